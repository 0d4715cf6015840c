"""Any videos: class folders, sides, label maps."""

import collections
import os
import pathlib

import pytest

from data import (
  clips,
  label_maps,
  video_folder,
)
from data.errors import DataError

import data_trees
from dataset_parts import kinds, names, sources


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
  assert names(dataset.train)[0] == f'{sides[0]}/a/{sides[0]}0.mp4'


def test_groups_of_ucf101_and_parts_of_kinetics_stay_together(tmp_path):
  for class_name in ('A', 'B'):
    for group in range(8):
      for part in range(3):
        path = tmp_path / class_name / f'v_{class_name}_g{group:02}_c{part:02}'
        path.parent.mkdir(exist_ok=True)
        path.with_suffix('.avi').touch()
  dataset = video_folder.read(tmp_path)
  assert len(dataset.test) == 12
  assert not sources(dataset.train) & sources(dataset.test)
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
  assert len(texts) == 2 and not kinds(dataset, True)


def test_names_that_are_no_text(tmp_path):
  data_trees.video_folder(tmp_path, empty=True)
  odd = os.fsdecode(bytes(tmp_path / 'run') + b'/\xff\xfe.avi')
  pathlib.Path(odd).touch()
  (tmp_path / 'a\nb').mkdir()
  (tmp_path / 'a\nb' / 'x.avi').touch()
  dataset = video_folder.scan(tmp_path)
  assert kinds(dataset, True) == {'name': 2}


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
