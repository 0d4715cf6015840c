"""Olympic Sports: layouts and lists."""

import pytest

from data import (
  clips,
  olympic_sports,
)
from data.errors import DataError

import data_trees
from dataset_parts import kinds, names


@pytest.mark.parametrize('suffix', ['', '.seq', '.avi'])
@pytest.mark.parametrize('per_class', [True, False])
def test_olympic_sports_layouts(tmp_path, suffix, per_class):
  data_trees.olympic_sports(
    tmp_path, per_class=per_class, suffix=suffix, empty=True
  )
  dataset = olympic_sports.read(tmp_path)
  assert dataset.class_names == (
    'basketball_layup', 'diving_platform_10m', 'vault'
  )  # fmt: skip
  assert (len(dataset.train), len(dataset.test)) == (18, 6)
  assert 'vault/-wJ9o_cOnVQ_00100_00190' in names(dataset.train)
  assert 'diving_platfrom_10m/z--9_00000_00090' in names(dataset.test)
  assert {c.source for c in dataset.train} == {'-wJ9o_cOnVQ', 'a_b-c', '0Xy'}
  assert all(c.path.suffix == '.seq' for c in dataset.train)
  assert kinds(dataset) == {'list': 2}  # 18 and 6 are not 649 and 134
  assert '18 clips for train; the official list has 649' in str(
    dataset.findings[0]
  )
  parts = clips.partition(dataset, 0.1, 0)
  assert [len(p) for p in parts] == [12, 6, 6]


@pytest.mark.parametrize('place', ['splits', '.', 'train_test_splits'])
def test_olympic_sports_lists_are_found(tmp_path, place):
  data_trees.olympic_sports(tmp_path, empty=True)
  (tmp_path / 'videos').mkdir()
  for name in ('basketball_layup', 'diving_platfrom_10m', 'vault'):
    (tmp_path / name).rename(tmp_path / 'videos' / name)
  lists = tmp_path / 'train_test_split'
  if place == '.':
    for side in ('train', 'test'):
      (lists / side).rename(tmp_path / side)
  else:
    lists.rename(tmp_path / place)
  assert len(olympic_sports.read(tmp_path).train) == 18


def test_olympic_sports_corrected_names_and_other_videos(tmp_path):
  data_trees.olympic_sports(tmp_path, empty=True)
  split = tmp_path / 'train_test_split' / 'train'
  path = split / 'diving_platfrom_10m.txt'
  path.rename(split / 'diving_platform_10m.txt')
  video = tmp_path / 'vault' / '0Xy_00000_00090.seq'
  video.with_suffix('.avi').touch()  # beside it
  other = tmp_path / 'vault' / 'z--9_00000_00090.seq'
  other.rename(other.with_suffix('.mp4'))
  dataset = olympic_sports.read(tmp_path)
  assert len(dataset.train) == 18
  paths = {c.name: c.path for c in dataset.train + dataset.test}
  assert paths['vault/0Xy_00000_00090'] == video
  assert paths['vault/z--9_00000_00090'].suffix == '.mp4'


@pytest.mark.parametrize(
  ('line', 'kind', 'message'),
  [
    ('none_00000_00001', 'missing', "'none_00000_00001' is not in vault"),
    ('0Xy_00000_00090', 'duplicate', 'listed twice, first in .*vault.txt:5'),
    ('z--9_00000_00090', 'duplicate', 'listed twice, first in '),
    ('vautl/0Xy_00000_00090', 'class', "Did you mean 'vault'?"),
    ('../vault/0Xy_00000_00090', 'class', 'no class folder'),
  ],
)
def test_olympic_sports_bad_lines(tmp_path, line, kind, message):
  data_trees.olympic_sports(tmp_path, empty=True)
  path = tmp_path / 'train_test_split' / 'train' / 'vault.txt'
  text = path.read_text().rstrip()
  if kind == 'duplicate' and line.startswith('z'):
    path = tmp_path / 'train_test_split' / 'test' / 'vault.txt'
    text = path.read_text().rstrip()
  path.write_text(f'{text}\n\n{line}\n')
  number = len(text.splitlines()) + 2
  with pytest.raises(DataError, match=message) as error:
    olympic_sports.read(tmp_path)
  assert f'{path}:{number}: ' in str(error.value)
  assert kinds(olympic_sports.scan(tmp_path), True) == {kind: 1}


def test_olympic_sports_ambiguous_names_and_unused_clips(tmp_path):
  data_trees.olympic_sports(tmp_path, per_class=False, empty=True)
  path = tmp_path / 'train_test_split' / 'train.txt'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join([*lines[1:-2], '0Xy_00000_00090']))
  dataset = olympic_sports.scan(tmp_path)
  assert kinds(dataset, True) == {'name': 1}
  assert any(
    "write 'basketball_layup/0Xy_00000_00090' or" in str(f)
    for f in dataset.findings
  )
  assert kinds(dataset)['unused'] == 1


@pytest.mark.parametrize('content', [b'', b'\n \n', b'\xff\xfe\xfa'])
def test_olympic_sports_bad_lists(tmp_path, content):
  data_trees.olympic_sports(tmp_path, empty=True)
  path = tmp_path / 'train_test_split' / 'train' / 'vault.txt'
  path.write_bytes(content)
  with pytest.raises(DataError, match='list') as error:
    olympic_sports.read(tmp_path)
  assert str(path) in str(error.value)
