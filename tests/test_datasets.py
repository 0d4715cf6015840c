"""UCF Sports, Olympic Sports, any videos: layouts, lists, splits."""

import collections
import json
import os
import pathlib
import subprocess
import sys

import pytest

from configs import hmdb51 as hmdb51_recipe
from configs import olympic_sports as olympic_sports_recipe
from configs import ucf_sports as ucf_sports_recipe
from configs import video_folder as video_folder_recipe
from data import (
  clips,
  features,
  label_maps,
  olympic_sports,
  pipeline,
  ucf_sports,
  video_folder,
)
from data.errors import DataError
from experiments import config as config_lib
from experiments import datasets

import data_trees
from quarters import Quarters

ROOT = pathlib.Path(__file__).parents[1]


def _names(part):
  return [c.name for c in part]


def _kinds(dataset, fatal=None):
  return collections.Counter(
    f.kind for f in dataset.findings if fatal is None or f.fatal is fatal
  )


def _sources(part):
  return {(c.label, c.source) for c in part}


# --- the split without an official one --------------------------------------


def _clips(*counts_of_sources):
  """For each class, the numbers of clips of its source videos."""
  return [
    clips.Clip(f'{label}/{s}_{k}', pathlib.Path(), label, f's{s}')
    for label, counts in enumerate(counts_of_sources)
    for s, count in enumerate(counts)
    for k in range(count)
  ]


@pytest.mark.parametrize('fraction', [0.05, 0.25, 0.5, 0.95])
def test_split_is_stratified_and_keeps_sources_whole(fraction):
  every = _clips([2] * 20, [1] * 12, [3] * 5)
  train, test, findings = clips.split(every, 'abc', fraction, 1, pathlib.Path())
  assert not findings
  assert sorted(train + test, key=every.index) == every
  assert not _sources(train) & _sources(test)
  for label, largest in ((0, 2), (1, 1), (2, 3)):
    sides = [[c for c in s if c.label == label] for s in (train, test)]
    wanted = max(round(fraction * len(sides[0] + sides[1])), 1)
    assert 1 <= len(sides[1]) < wanted + largest
    assert len({c.source for c in sides[0]}) >= 2  # one to hold out


def test_the_number_decides_the_split():
  every = _clips([1] * 20, [1] * 20)
  tests = [
    tuple(_names(clips.split(every, 'ab', 0.25, k, pathlib.Path())[1]))
    for k in (1, 1, 2, 3)
  ]
  assert tests[0] == tests[1] and len(set(tests)) == 3


def test_a_class_of_two_sources_is_split_by_clip_and_told():
  every = _clips([4, 4], [1] * 8)
  train, test, findings = clips.split(every, 'ab', 0.25, 1, pathlib.Path())
  assert [f.kind for f in findings] == ['source'] and not findings[0].fatal
  assert "class 'a': 8 clips of 2 source videos" in str(findings[0])
  assert len(test) == 4 and len(train) == 12
  dataset = clips.Dataset(('a', 'b'), tuple(train), tuple(test), {})
  parts = clips.partition(dataset, 0.1, 0)
  assert [len(p) for p in parts] == [10, 2, 4]


def test_a_class_of_two_clips_cannot_be_split():
  findings = clips.split(_clips([1, 1]), 'a', 0.25, 1, pathlib.Path())[2]
  assert findings[0].fatal and '2 clips' in findings[0].message


@pytest.mark.parametrize('fraction', [0.0, 1.0, -1, float('nan')])
def test_the_fraction_is_checked(fraction):
  with pytest.raises(DataError, match=r'config\.data\.test_fraction'):
    clips.split(_clips([1] * 9), 'a', fraction, 1, pathlib.Path())


def test_given_validation_clips_are_kept():
  every = _clips([1] * 9)
  dataset = clips.Dataset(
    ('a',), tuple(every[:4]), tuple(every[4:6]), {}, tuple(every[6:])
  )
  parts = clips.partition(dataset, 0.5, 3)
  assert parts == (every[:4], every[6:], every[4:6])


def test_missing_clips_may_be_allowed():
  findings = tuple(
    clips.Finding('missing', f'{k}.avi is missing.', pathlib.Path('l.txt'), k)
    for k in (1, 2)
  )
  dataset = clips.Dataset(('a',), (), (), {'name': 'x'}, findings=findings)
  with pytest.raises(DataError, match='2 listed videos are missing') as error:
    clips.checked(dataset, 'r', 1)
  assert 'l.txt:2: 2.avi is missing.' in str(error.value)
  assert '--config.data.allow_missing=2' in str(error.value)
  allowed = clips.checked(dataset, 'r', 2)
  assert allowed.identity['num_missing'] == 2
  assert not any(f.fatal for f in allowed.findings)
  other = clips.Dataset(('a',), (), (), {'name': 'x'}, findings=findings[:1])
  assert clips.checked(other, 'r', 2).identity != allowed.identity
  moved = tuple(f._replace(path=pathlib.Path('m', 'l.txt')) for f in findings)
  there = clips.Dataset(('a',), (), (), {'name': 'x'}, findings=moved)
  assert clips.checked(there, 'r', 2).identity == allowed.identity


# --- UCF Sports -------------------------------------------------------------


@pytest.mark.parametrize('root', ['.', 'ucf_sports_actions',
                                  'ucf_sports_actions/ucf action'])  # fmt: skip
@pytest.mark.parametrize('kind', ['avi', 'jpg', 'both'])
def test_ucf_sports_layouts(tmp_path, root, kind):
  data_trees.ucf_sports_tree(tmp_path, kind, num=4, empty=True)
  dataset = ucf_sports.read(tmp_path / root, 1)
  assert len(dataset.class_names) == 10
  assert dataset.class_names[:3] == ('Diving', 'Golf-Swing', 'Kicking')
  every = dataset.train + dataset.test
  assert len(every) == 52
  counts = collections.Counter(dataset.class_names[c.label] for c in every)
  assert counts['Golf-Swing'] == 12 and counts['Kicking'] == 8
  assert counts['Walk'] == 4
  assert all(c.path.is_dir() == (kind == 'jpg') for c in every)
  clip = next(c for c in every if c.name == 'Walk-Front/003')
  assert clip.source.startswith('2541-1')
  assert not _sources(dataset.train) & _sources(dataset.test)
  per_class = collections.Counter(c.label for c in dataset.test)
  assert set(per_class) == set(range(10))
  parts = clips.partition(dataset, 0.1, 0)
  assert not _sources(parts.train) & _sources(parts.validation)
  assert parts.test == list(dataset.test)


def test_ucf_sports_splits_are_seeded(tmp_path):
  data_trees.ucf_sports_tree(tmp_path, num=8, empty=True)
  one, again, two = (ucf_sports.read(tmp_path, k) for k in (1, 1, 2))
  assert one == again and one.identity != two.identity
  assert set(_names(one.test)) != set(_names(two.test))
  assert len(one.test) == 26  # a quarter of 104


def test_ucf_sports_unknown_and_stray_things(tmp_path):
  data_trees.ucf_sports_tree(tmp_path, empty=True)
  folder = tmp_path / 'ucf_sports_actions' / 'ucf action'
  (folder / 'Diving-Sid' / '001').mkdir(parents=True)
  (folder / 'Lifting' / 'notes.txt').touch()
  (folder / 'readme.txt').touch()
  dataset = ucf_sports.read(tmp_path, 1)
  texts = [str(f) for f in dataset.findings if f.kind == 'unused']
  assert len(texts) == 2
  assert "Did you mean 'Diving-Side'?" in texts[0]
  assert "'notes.txt'" in texts[1]
  odd = [str(f) for f in dataset.findings if f.kind == 'list']
  assert '52 clips of 10 classes; UCF Sports has 150 of 10' in odd[0]


def test_ucf_sports_clips_in_place_of_folders(tmp_path):
  data_trees.ucf_sports_tree(tmp_path, empty=True)
  lifting = tmp_path / 'ucf_sports_actions' / 'ucf action' / 'Lifting'
  (lifting / '5000-1_70001.avi').touch()
  every = ucf_sports.read(tmp_path, 1)
  names = _names(every.train + every.test)
  assert 'Lifting/5000-1_70001.avi' in names


def test_ucf_sports_bad_clip_folders(tmp_path):
  data_trees.ucf_sports_tree(tmp_path, empty=True)
  folder = tmp_path / 'ucf_sports_actions' / 'ucf action'
  (folder / 'Lifting' / '001' / 'second.avi').touch()
  next((folder / 'Walk-Front' / '002').glob('*.avi')).unlink()
  with pytest.raises(DataError) as error:
    ucf_sports.read(tmp_path, 1)
  assert "expected one video, got 2: '2539-1_70001.avi'" in str(error.value)
  assert 'Walk-Front/002: there is no video and no .jpg' in str(error.value)


def test_ucf_sports_frames_without_a_source(tmp_path):
  """Plain names tell nothing: such clips are not of one source video."""
  for k in range(6):
    folder = tmp_path / 'Lifting' / f'{k:03}'
    folder.mkdir(parents=True)
    (folder / 'img_00001.jpg').touch()
  dataset = ucf_sports.read(tmp_path, 1)
  assert len({c.source for c in dataset.train + dataset.test}) == 6


# --- Olympic Sports ---------------------------------------------------------


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
  assert 'vault/-wJ9o_cOnVQ_00100_00190' in _names(dataset.train)
  assert 'diving_platfrom_10m/z--9_00000_00090' in _names(dataset.test)
  assert {c.source for c in dataset.train} == {'-wJ9o_cOnVQ', 'a_b-c', '0Xy'}
  assert all(c.path.suffix == '.seq' for c in dataset.train)
  assert _kinds(dataset) == {'list': 2}  # 18 and 6 are not 649 and 134
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
  assert _kinds(olympic_sports.scan(tmp_path), True) == {kind: 1}


def test_olympic_sports_ambiguous_names_and_unused_clips(tmp_path):
  data_trees.olympic_sports(tmp_path, per_class=False, empty=True)
  path = tmp_path / 'train_test_split' / 'train.txt'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join([*lines[1:-2], '0Xy_00000_00090']))
  dataset = olympic_sports.scan(tmp_path)
  assert _kinds(dataset, True) == {'name': 1}
  assert any(
    "write 'basketball_layup/0Xy_00000_00090' or" in str(f)
    for f in dataset.findings
  )
  assert _kinds(dataset)['unused'] == 1


@pytest.mark.parametrize('content', [b'', b'\n \n', b'\xff\xfe\xfa'])
def test_olympic_sports_bad_lists(tmp_path, content):
  data_trees.olympic_sports(tmp_path, empty=True)
  path = tmp_path / 'train_test_split' / 'train' / 'vault.txt'
  path.write_bytes(content)
  with pytest.raises(DataError, match='list') as error:
    olympic_sports.read(tmp_path)
  assert str(path) in str(error.value)


@pytest.mark.parametrize('module', [ucf_sports, olympic_sports])
@pytest.mark.parametrize('make', ['nothing', 'missing', 'empty', 'file'])
def test_no_data_set_gives_one_message_with_the_way_out(tmp_path, module, make):
  root = tmp_path / 'data'
  if make == 'empty':
    root.mkdir()
  if make == 'file':
    root.touch()
  options = {} if module is olympic_sports else {'split': 1}
  with pytest.raises(DataError) as error:
    module.read('' if make == 'nothing' else root, **options)
  message = str(error.value)
  assert 'http' in message and 'ROOT/' in message
  assert 'python -m experiments.main --config=configs/quickstart.py' in message


# --- any videos: class folders ----------------------------------------------


def test_class_folders(tmp_path):
  data_trees.video_folder(tmp_path, empty=True)
  dataset = video_folder.read(tmp_path, split=1)
  assert dataset.class_names == ('jump up', 'run', 'sit')
  assert (len(dataset.train), len(dataset.test)) == (12, 6)
  assert collections.Counter(c.label for c in dataset.test) == {
    0: 2,
    1: 2,
    2: 2,
  }
  clip = next(c for c in dataset.train + dataset.test if c.label == 2)
  assert clip.path.is_dir() and clip.name.startswith('sit/clip ')
  assert not dataset.findings
  other = video_folder.read(tmp_path, split=2)
  assert other.identity != dataset.identity


@pytest.mark.parametrize(
  ('sides', 'sizes'),
  [
    (('train', 'test'), (4, 0, 2)),
    (('training', 'testing'), (4, 0, 2)),
    (('train', 'val'), (4, 0, 2)),  # as Kinetics is evaluated
    (('train', 'val', 'test'), (4, 3, 2)),
  ],
)
def test_folders_of_sides(tmp_path, sides, sizes):
  counts = dict(zip(sides, (4, 2)))
  if len(sides) == 3:
    counts = dict(zip(sides, (4, 3, 2)))
  for side, count in counts.items():
    for k in range(count):
      path = tmp_path / side / 'ab'[k % 2] / f'{side}{k}.mp4'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.touch()
  dataset = video_folder.read(tmp_path)
  assert tuple(map(len, (dataset.train, dataset.validation, dataset.test))) == (
    sizes
  )
  assert dataset.identity['split'] == 'given'
  assert _names(dataset.train)[0] == f'{sides[0]}/a/{sides[0]}0.mp4'


def test_groups_of_ucf101_and_parts_of_kinetics_stay_together(tmp_path):
  for class_name in ('A', 'B'):
    for group in range(8):
      for part in range(3):
        path = tmp_path / class_name / f'v_{class_name}_g{group:02}_c{part:02}'
        path.parent.mkdir(exist_ok=True)
        path.with_suffix('.avi').touch()
  dataset = video_folder.read(tmp_path)
  assert len(dataset.test) == 12
  assert not _sources(dataset.train) & _sources(dataset.test)
  assert clips.source_of('x_000010_000020') == 'x'


def test_stray_things_in_class_folders_are_told(tmp_path):
  data_trees.video_folder(tmp_path, empty=True)
  (tmp_path / 'run' / 'notes.txt').touch()
  (tmp_path / 'run' / '.hidden.avi').touch()
  (tmp_path / 'run' / 'deeper').mkdir()
  (tmp_path / 'annotations').mkdir()
  dataset = video_folder.read(tmp_path)
  assert dataset.class_names == ('jump up', 'run', 'sit')
  texts = sorted(str(f) for f in dataset.findings)
  assert "'deeper', 'notes.txt'" in texts[0] and 'hidden' not in texts[0]
  assert "'annotations'" in texts[1]
  assert len(texts) == 2 and not _kinds(dataset, True)


def test_names_that_are_no_text(tmp_path):
  data_trees.video_folder(tmp_path, empty=True)
  odd = os.fsdecode(bytes(tmp_path / 'run') + b'/\xff\xfe.avi')
  pathlib.Path(odd).touch()
  (tmp_path / 'a\nb').mkdir()
  (tmp_path / 'a\nb' / 'x.avi').touch()
  dataset = video_folder.scan(tmp_path)
  assert _kinds(dataset, True) == {'name': 2}


def test_a_folder_that_may_not_be_read(tmp_path, monkeypatch):
  data_trees.video_folder(tmp_path, empty=True)
  real = os.listdir

  def listdir(path):
    if str(path).endswith('clip 3'):
      raise PermissionError(13, 'Permission denied')
    return real(path)

  monkeypatch.setattr(os, 'listdir', listdir)
  with pytest.raises(DataError, match='clip 3: cannot read: Permission denied'):
    video_folder.read(tmp_path)


@pytest.mark.parametrize('make', ['nothing', 'missing', 'empty', 'file'])
def test_no_videos(tmp_path, make):
  root = tmp_path / 'data'
  if make == 'empty':
    (root / 'class').mkdir(parents=True)
  if make == 'file':
    root.touch()
  with pytest.raises(DataError, match='no videos to be found') as error:
    video_folder.read('' if make == 'nothing' else root)
  assert 'ROOT/<class>/<video>' in str(error.value)


# --- any videos: label maps -------------------------------------------------

LABEL_MAPS = {
  'label_map.txt': ('run\njump up\nsit\n', 0),
  'crlf.txt': ('\ufeffrun\r\njump up \r\nsit', 0),
  'classInd.txt': ('1 run\n2 jump up\n3 sit\n\n', 1),
  'shuffled.txt': ('3 sit\n1 run\n2 jump up\n', 1),
  'from_zero.txt': ('0 run\n1 jump up\n2 sit\n', 0),
  'label_map.json': ('{"jump up": 1, "run": 0, "sit": 2}', 0),
  'names.json': ('["run", "jump up", "sit"]', 0),
}


@pytest.mark.parametrize('name', LABEL_MAPS)
def test_label_maps(tmp_path, name):
  text, first = LABEL_MAPS[name]
  path = tmp_path / name
  path.write_text(text, newline='')
  assert label_maps.read(path) == (('run', 'jump up', 'sit'), first)


@pytest.mark.parametrize(
  ('name', 'text', 'message'),
  [
    ('a.txt', '', 'empty'),
    ('a.txt', 'run\nsit\n\nrun\n', r"a\.txt:4: class 'run' is there twice"),
    ('a.txt', 'run\na\x07b\n', r'a\.txt:2: expected a name'),
    ('a.txt', '1 run\n2 run\n', r"a\.txt:2: class 'run' is there twice"),
    ('a.txt', '1 run\n3 sit\n', r'numbers 1\.\.2'),
    ('a.txt', '0 run\n0 sit\n', r'numbers 0\.\.1'),
    ('a.json', '{"run": 0', 'JSON'),
    ('a.json', '[' * 100_000, 'JSON'),
    ('a.json', '{}', 'JSON'),
    ('a.json', '3', 'JSON'),
    ('a.json', '{"run": 0, "sit": 2}', r'labels 0\.\.1'),
    ('a.json', '{"run": 0, "sit": true}', r'labels 0\.\.1'),
    ('a.json', '{"run": 0, "run": 1}', "'run' is there twice"),
    ('a.json', '["run", 3]', 'JSON'),
    ('a.json', '["run", "\\ud800"]', 'no text'),
  ],
)
def test_bad_label_maps(tmp_path, name, text, message):
  path = tmp_path / name
  path.write_text(text)
  with pytest.raises(DataError, match=message) as error:
    label_maps.read(path)
  assert str(path) in str(error.value)


def test_a_label_map_orders_class_folders(tmp_path):
  data_trees.video_folder(tmp_path, empty=True)
  (tmp_path / 'label_map.txt').write_text('sit\nrun\nfly\njump up\n')
  dataset = video_folder.read(tmp_path)
  assert dataset.class_names == ('sit', 'run', 'fly', 'jump up')
  assert {c.label for c in dataset.train} == {0, 1, 3}
  assert "no training clips of 'fly'" in str(dataset.findings[0])
  (tmp_path / 'label_map.txt').write_text('sit\nruns\njump up\n')
  with pytest.raises(DataError, match=r"'run' is not in the label map\. Did"):
    video_folder.read(tmp_path)


# --- any videos: lists ------------------------------------------------------


def _lines():
  """A line for each clip of `data_trees.video_folder`: 5 train, 1 test."""
  label = {'run': 0, 'jump up': 1, 'sit': 2}
  suffixes = ('avi', 'mp4', 'mkv')
  train, test = [], []
  for k in range(6):
    suffix = suffixes[k % 3]
    for name in (f'run/my run #{k}.{suffix}', f'jump up/-{k}.{suffix}',
                 f'sit/clip {k}'):  # fmt: skip
      (test if k == 5 else train).append((name, label[name.split('/')[0]]))
  return train, test


@pytest.fixture(scope='module')
def tree(tmp_path_factory):
  return data_trees.video_folder(tmp_path_factory.mktemp('tree'), empty=True)


def _write(folder, name, rows, form='{} {}\n', header=''):
  path = folder / name
  text = header + ''.join(form.format(*row) for row in rows)
  path.write_text(text, newline='')
  return str(path)


@pytest.mark.parametrize('name', ['train.txt', 'train.csv'])
@pytest.mark.parametrize(
  'form', ['{} {}\n', '{}\t{}\r\n', '  {}   {}  \n\n', '{} 0{}\n']
)
def test_lists(tree, tmp_path, form, name):
  train, test = _lines()
  dataset = video_folder.read(
    tree,
    train_list=_write(tmp_path, name, train, form, '\ufeff'),
    test_list=_write(tmp_path, 'test.txt', test, form),
  )
  assert (len(dataset.train), len(dataset.test)) == (15, 3)
  assert dataset.class_names == ('run', 'jump up', 'sit')  # of the folders
  assert _names(dataset.train) == [n for n, _ in train]
  assert [c.label for c in dataset.train] == [k for _, k in train]


@pytest.mark.parametrize(
  'header', ['', 'video_path,label\n', 'label_id,path,label\n',
             'video_path,start,end,label\n'],
)  # fmt: skip
def test_csv_lists(tree, tmp_path, header):
  form = {
    '': '"{}",{}\n',
    'video_path,label\n': '{},{}\n',
    'label_id,path,label\n': '9,"{}",{}\n',
    'video_path,start,end,label\n': '{},0,,{}\n',
  }[header]
  train, test = _lines()
  dataset = video_folder.read(
    tree,
    train_list=_write(tmp_path, 'train.csv', train, form, header),
    test_list=_write(tmp_path, 'test.csv', test, form, header),
  )
  assert [c.label for c in dataset.train] == [k for _, k in train]


def test_a_train_list_alone_is_split(tree, tmp_path):
  train, test = _lines()
  path = _write(tmp_path, 'all.txt', train + test)
  dataset = video_folder.read(tree, train_list=path, split=2)
  assert (len(dataset.train), len(dataset.test)) == (12, 6)


def test_three_lists(tree, tmp_path):
  train, test = _lines()
  dataset = video_folder.read(
    tree,
    train_list=_write(tmp_path, 'a', train[3:]),
    validation_list=_write(tmp_path, 'b', train[:3]),
    test_list=_write(tmp_path, 'c', test),
  )
  assert _names(dataset.validation) == [n for n, _ in train[:3]]
  parts = clips.partition(dataset, 0.1, 0)
  assert [len(p) for p in parts] == [12, 3, 3]


def test_lists_with_names_of_classes(tree, tmp_path):
  names = {0: 'zero', 1: 'one', 2: 'two'}
  train, test = ([(n, names[k]) for n, k in rows] for rows in _lines())
  lists = {
    'train_list': _write(tmp_path, 'a', train),
    'test_list': _write(tmp_path, 'b', test),
  }
  dataset = video_folder.read(tree, **lists)
  assert dataset.class_names == ('one', 'two', 'zero')
  assert dataset.train[0].label == 2
  label_map = _write(tmp_path, 'm.txt', [('zero',), ('one',), ('two',)], '{}\n')
  dataset = video_folder.read(tree, label_map=label_map, **lists)
  assert dataset.class_names == ('zero', 'one', 'two')
  assert [c.label for c in dataset.train] == [k for _, k in _lines()[0]]


def test_lists_of_ucf101(tree, tmp_path):
  """Labels from 1 in training lists, none in test lists."""
  train, test = _lines()
  class_ind = _write(
    tmp_path, 'classInd.txt', [(1, 'run'), (2, 'jump up'), (3, 'sit')]
  )
  options = {
    'test_list': _write(tmp_path, 'testlist01.txt', test[:2], '{}\n'),
    'label_map': class_ind,
  }
  one_up = [(n, k + 1) for n, k in train]
  path = _write(tmp_path, 'trainlist01.txt', one_up)
  dataset = video_folder.read(tree, train_list=path, **options)
  assert [c.label for c in dataset.train] == [k for _, k in train]
  assert [c.label for c in dataset.test] == [0, 1]
  path = _write(tmp_path, 'from_zero.txt', train)
  with pytest.raises(DataError, match=r'expected a label 1\.\.3, got 0'):
    video_folder.read(tree, train_list=path, **options)


def test_rawframes(tree, tmp_path):
  train, test = _lines()
  counts = {
    n: len(list((tree / n).iterdir())) for n, _ in train + test if 'clip' in n
  }
  rows = [(f'{n} {counts[n]}' if n in counts else n, k) for n, k in train]
  dataset = video_folder.read(
    tree, train_list=_write(tmp_path, 'a.txt', rows),
    test_list=_write(tmp_path, 'b.txt', test),
  )  # fmt: skip
  assert _names(dataset.train) == [n for n, _ in train]
  rows[2] = (f'{train[2][0]} 99', 2)
  with pytest.raises(DataError, match=r'a\.txt:3: 99 frames by the list'):
    video_folder.read(
      tree, train_list=_write(tmp_path, 'a.txt', rows),
      test_list=_write(tmp_path, 'b.txt', test),
    )  # fmt: skip


@pytest.mark.parametrize('folder', ['', 'train', 'val'])
def test_kinetics_csv(tmp_path, folder):
  side = 'validation' if folder == 'val' else 'train'
  names = ['-abc_DEF-12', 'q' * 11, 'r' * 11, '_' * 11]
  rows = []
  for class_name in ('riding a bike', 'yoga'):
    disk = class_name.replace(' ', '_') if folder else class_name
    for k, name in enumerate(names):
      path = tmp_path / folder / disk / f'{name}_{k:06}_{k + 10:06}.mp4'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.touch()
      rows.append((class_name, name, k, k + 10, side))
  header = 'label,youtube_id,time_start,time_end,split\n'
  form = '{},{},{},{},{}\n'
  path = _write(tmp_path, 'k.csv', rows, form, header)
  if side == 'train':
    dataset = video_folder.read(tmp_path, train_list=path)
    assert len(dataset.train) == 6 and len(dataset.test) == 2
  else:
    train = tmp_path / 'x.mp4'
    train.touch()
    dataset = video_folder.scan(
      tmp_path, train_list=_write(tmp_path, 't.txt', [('x.mp4', 'yoga')]),
      validation_list=path,
    )  # fmt: skip
    assert len(dataset.validation) == 8
  assert dataset.class_names == ('riding a bike', 'yoga')
  assert {c.source for c in dataset.train + dataset.validation} <= {
    *names,
    'x.mp4',
  }


BAD_LINES = [
  ('run/none.avi 0', 'missing', 'none.avi is missing'),
  ('run/my run #0.avi 0', 'duplicate', "'run/my run #0.avi' is listed twice"),
  ('run/../run/my run #1.mp4 0', 'line', 'expected a path below'),
  ('/etc/passwd 0', 'line', 'expected a path below'),
  ('x.avi', 'line', 'no label'),
  ('run/my run #5.mkv', 'line', 'no label'),
  ('run/my run #5.mkv -1', 'label', r'expected a label 0\.\.2, got -1'),
  ('run/my run #5.mkv 1000000000', 'label', r'expected a label 0\.\.13, got'),
  ('run/my run #5.mkv 4', 'label', 'gaps: no training clips of .3.'),
  ('annotations 0', 'missing', 'missing|without frames'),
  ('5', 'line', 'no label'),
  ('a\0b.avi 0', 'missing', 'missing'),
  ('n' * 5000 + '.avi 0', 'missing', 'missing'),
]


@pytest.mark.parametrize(('line', 'kind', 'message'), BAD_LINES)
def test_bad_lines_are_named(tree, tmp_path, line, kind, message):
  (tree / 'annotations').mkdir(exist_ok=True)
  train, test = _lines()
  path = pathlib.Path(_write(tmp_path, 'a.txt', train))
  path.write_text(path.read_text() + f'\n{line}\n')
  with pytest.raises(DataError, match=message) as error:
    video_folder.read(
      tree, train_list=str(path), test_list=_write(tmp_path, 'b.txt', test[1:])
    )
  assert ('gaps' in message) != (f'{path}:17: ' in str(error.value))
  scanned = video_folder.scan(
    tree, train_list=str(path), test_list=_write(tmp_path, 'b.txt', test[1:])
  )
  assert kind in _kinds(scanned, True)


@pytest.mark.parametrize(
  ('row', 'message'),
  [
    ('run,,0,10,train', 'expected youtube_id'),
    ('run,abc,x,10,train', 'expected youtube_id'),
    (',abc,0,10,train', 'no label'),
    ('run,abc,0,10,train', 'is missing'),
    ('run', 'expected youtube_id'),
    ('"run', 'expected youtube_id'),
    ('.,abc,0,10,train', 'is missing'),
  ],
)
def test_bad_rows_of_kinetics(tree, tmp_path, row, message):
  path = tmp_path / 'a.csv'
  path.write_text(f'label,youtube_id,time_start,time_end,split\n{row}\n')
  with pytest.raises(DataError, match=message) as error:
    video_folder.read(tree, train_list=str(path))
  assert f'{path}:2: ' in str(error.value)


def test_parts_of_videos_are_refused(tree, tmp_path):
  path = tmp_path / 'a.csv'
  path.write_text('video_path,start,end,label\nrun/my run #0.avi,1.5,3,0\n')
  with pytest.raises(DataError, match=r'a\.csv:2: a part of a video'):
    video_folder.read(tree, train_list=str(path))


def test_labels_with_gaps(tree, tmp_path):
  train, test = _lines()
  rows = [(n, k + (k > 0)) for n, k in train]  # 0, 2, 3
  with pytest.raises(DataError, match="gaps: no training clips of '1'"):
    video_folder.read(
      tree, train_list=_write(tmp_path, 'a', rows),
      test_list=_write(tmp_path, 'b', test[:1]),
    )  # fmt: skip


def test_the_folder_and_the_label_agree(tree, tmp_path):
  train, test = _lines()
  label_map = _write(
    tmp_path, 'm.txt', [('run',), ('sit',), ('jump up',)], '{}\n'
  )
  with pytest.raises(DataError, match="1 is 'sit', the folder is 'jump"):
    video_folder.read(
      tree, train_list=_write(tmp_path, 'a', train),
      test_list=_write(tmp_path, 'b', test), label_map=label_map,
    )  # fmt: skip


def test_missing_lists(tree, tmp_path):
  with pytest.raises(DataError, match=r"data\.train_list: no file 'no\.txt'"):
    video_folder.read(tree, train_list='no.txt')
  path = _write(tmp_path, 'b', _lines()[1])
  with pytest.raises(DataError, match=r'data\.train_list: missing'):
    video_folder.read(tree, test_list=path)
  with pytest.raises(DataError, match=r"data\.label_map: no file 'm\.txt'"):
    video_folder.read(tree, label_map='m.txt')
  (tmp_path / 'empty').touch()
  with pytest.raises(DataError, match='the list is empty'):
    video_folder.read(tree, train_list=str(tmp_path / 'empty'))


def test_lists_below_the_root(tree):
  train, _ = _lines()
  _write(tree, 'list.txt', train)
  assert len(video_folder.read(tree, train_list='list.txt').train) == 12


# --- the main job -----------------------------------------------------------


TREES = {
  'hmdb51': (hmdb51_recipe, data_trees.hmdb51, {}),
  'hmdb51 flat': (hmdb51_recipe, data_trees.hmdb51, {'flat': True}),
  'ucf avi': (ucf_sports_recipe, data_trees.ucf_sports_tree, {'kind': 'avi'}),
  'ucf jpg': (ucf_sports_recipe, data_trees.ucf_sports_tree, {'kind': 'jpg'}),
  'olympic': (olympic_sports_recipe, data_trees.olympic_sports, {}),
  'folder': (video_folder_recipe, data_trees.video_folder, {}),
}


@pytest.mark.parametrize('name', TREES)
def test_from_a_tree_to_batches(tmp_path, monkeypatch, name, capsys):
  recipe, make, options = TREES[name]
  monkeypatch.setitem(features.EXTRACTORS, 'efficientnet_lite0', Quarters)
  config = recipe.get_config()
  config.data.root = str(make(tmp_path / 'data', **options))
  config.data.features_dir = str(tmp_path / 'store')
  splits = datasets.load(config_lib.resolve(config))
  assert json.dumps([s.identity for s in splits[:3]])
  seen = set()
  for source in splits[:3]:
    assert source.class_names == splits.train.class_names
    assert not seen & set(source.clip_names)
    seen |= set(source.clip_names)
    for batch in pipeline.eval_batches(source, batch_size=4, num_frames=8):
      assert batch['features'].shape[2:] == (4, 3)
  shown = capsys.readouterr().err
  assert ('warning: ' in shown) == (name.startswith(('ucf', 'oly')))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['hmdb51', 'ucf jpg', 'olympic', 'folder'])
def test_the_main_job(tmp_path, name):
  recipe, make, options = TREES[name]
  root = make(tmp_path / 'data', **options)
  fields = {
    'data.root': root, 'data.features_dir': tmp_path / 'store',
    'data.num_frames': 8, 'model.hidden_size': 8, 'model.scorer_size': 8,
    'train.num_steps': 2, 'train.batch_size': 4, 'train.eval_every': 2,
    'train.warmup_steps': 1, 'eval.batch_size': 4, 'checkpoint.every': 2,
  }  # fmt: skip
  done = subprocess.run(
    [
      sys.executable, '-m', 'experiments.main',
      f'--config={recipe.__file__}', f'--workdir={tmp_path / "run"}',
      *(f'--config.{k}={v}' for k, v in fields.items()),
    ],
    cwd=ROOT, capture_output=True, text=True, timeout=580,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'run' / 'metrics.json').exists()


@pytest.mark.slow
def test_int8_and_a_skipped_video_in_the_main_job(tmp_path):
  root = data_trees.hmdb51(tmp_path / 'data')
  bad = min(root.glob('sit/two*'))
  bad.write_bytes(bad.read_bytes()[:-500])
  fields = {
    'data.root': root, 'data.features_dir': tmp_path / 'store',
    'data.store_dtype': 'int8',
    'data.num_frames': 8, 'model.hidden_size': 8, 'model.scorer_size': 8,
    'train.num_steps': 2, 'train.batch_size': 4, 'train.eval_every': 2,
    'train.warmup_steps': 1, 'eval.batch_size': 4, 'checkpoint.every': 2,
  }  # fmt: skip

  def run(**more):
    return subprocess.run(
      [
        sys.executable, '-m', 'experiments.main',
        f'--config={hmdb51_recipe.__file__}', f'--workdir={tmp_path / "run"}',
        *(f'--config.{k}={v}' for k, v in (fields | more).items()),
      ],
      cwd=ROOT, capture_output=True, text=True, timeout=580,
    )  # fmt: skip

  done = run()
  assert done.returncode == 2 and '1 of 24 videos are bad' in done.stderr
  assert str(bad) in done.stderr and 'on_bad_video=skip' in done.stderr
  done = run(**{'data.on_bad_video': 'skip'})
  assert done.returncode == 0, done.stderr
  name = f'sit/{bad.name}'
  assert (
    f'1 clips were skipped, their videos being bad: {name}'
    in (tmp_path / 'run' / 'table.txt').read_text()
  )
  (about,) = (tmp_path / 'run' / 'checkpoints').glob('2/integrity/metadata')
  assert json.loads(about.read_text())['fingerprint']['skipped_clips'] == [name]
