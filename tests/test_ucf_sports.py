"""UCF Sports: layouts, splits, stray things."""

import collections

import pytest

from data import (
  clips,
  ucf_sports,
)
from data.errors import DataError

import data_trees
from dataset_parts import names, sources


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
  assert not sources(dataset.train) & sources(dataset.test)
  per_class = collections.Counter(c.label for c in dataset.test)
  assert set(per_class) == set(range(10))
  parts = clips.partition(dataset, 0.1, 0)
  assert not sources(parts.train) & sources(parts.validation)
  assert parts.test == list(dataset.test)


def test_ucf_sports_splits_are_seeded(tmp_path):
  data_trees.ucf_sports_tree(tmp_path, num=8, empty=True)
  one, again, two = (ucf_sports.read(tmp_path, k) for k in (1, 1, 2))
  assert one == again and one.identity != two.identity
  assert set(names(one.test)) != set(names(two.test))
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
  found = names(every.train + every.test)
  assert 'Lifting/5000-1_70001.avi' in found


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
