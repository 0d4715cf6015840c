"""The HMDB51 layout: lists, videos, validation."""

import collections
import os
import pathlib

import pytest

from data import clips as clips_lib
from data import hmdb51
from data.errors import DataError

ODD_NAMES = (
  '-dash_wave_u_nm_np1_ba_med_0.avi',
  '#1 (best)_wave_u_nm_np1_ba_med_1.avi',
  'a&b;c_wave_u_nm_np1_ba_med_2.avi',
  'two  blanks! @home_wave_u_nm_np1_ba_med_3.avi',
  'ends in 1_wave_2 .avi',
  ' leading_wave_u_nm_np1_ba_med_4.avi',
)
SPLIT_FOLDERS = (
  'splits',
  'testTrainMulti_7030_splits',
  'testTrainMulti_7030_splits/testTrainMulti_7030_splits',
  'splits/testTrainMulti_7030_splits',
  'test_train_splits/testTrainMulti_7030_splits',
  'test_train_splits',
  '.',
)


def _lists(**classes):
  """Lists of ten clips a class, of five source videos: 6 train, 3 test."""
  return {
    name: {
      f's{k // 2}_{name}_u_nm_np1_ba_med_{k % 2}.avi': mark
      for k, mark in enumerate([1] * 6 + [2] * 3 + [0])
    }
    for name in classes or ('wave', 'brush_hair', 'sit')
  }


def _write(
  root: pathlib.Path, lists, *, videos='.', splits='splits', end=' \n', split=1
):
  """A data set of empty video files; returns the root."""
  folder = root / splits
  folder.mkdir(parents=True, exist_ok=True)
  for name, marks in lists.items():
    text = ''.join(f'{file} {mark}{end}' for file, mark in marks.items())
    (folder / f'{name}_test_split{split}.txt').write_bytes(text.encode())
    (root / videos / name).mkdir(parents=True, exist_ok=True)
    for file in marks:
      (root / videos / name / file).touch()
  return root


def _names(clips):
  return [c.name for c in clips]


@pytest.mark.parametrize('videos', ['.', 'videos'])
@pytest.mark.parametrize('splits', SPLIT_FOLDERS)
def test_layouts(tmp_path, videos, splits):
  root = _write(tmp_path, _lists(), videos=videos, splits=splits)
  dataset = hmdb51.read(root, 1)
  assert dataset.class_names == ('brush_hair', 'sit', 'wave')
  assert (len(dataset.train), len(dataset.test)) == (18, 9)
  for clip in (*dataset.train, *dataset.test):
    class_name, _, file = clip.name.partition('/')
    assert dataset.class_names[clip.label] == class_name
    assert clip.path == root / videos / class_name / file
    assert clip.path.is_file()


@pytest.mark.parametrize('end', ['\n', ' \n', '\r\n', '  \n\n', '\t \n'])
def test_line_ends_and_blanks(tmp_path, end):
  dataset = hmdb51.read(_write(tmp_path, _lists(), end=end), 1)
  assert (len(dataset.train), len(dataset.test)) == (18, 9)


def test_odd_names_are_kept(tmp_path):
  marks = dict.fromkeys(ODD_NAMES, 1)
  dataset = hmdb51.read(_write(tmp_path, {'wave': marks}), 1)
  assert [c.path.name for c in dataset.train] == list(ODD_NAMES)
  assert [c.source for c in dataset.train] == [
    '-dash',
    '#1 (best)',
    'a&b;c',
    'two  blanks! @home',
    'ends in 1',
    ' leading',
  ]


def test_the_same_name_in_two_classes_is_two_clips(tmp_path):
  marks = {'x.avi': 1, 'y.avi': 2}
  dataset = hmdb51.read(_write(tmp_path, {'a': marks, 'b': marks}), 1)
  assert _names(dataset.train) == ['a/x.avi', 'b/x.avi']


def test_unused_clips_need_no_video(tmp_path):
  root = _write(tmp_path, {'a': {'x.avi': 1, 'y.avi': 2, 'z.avi': 0}})
  (root / 'a' / 'z.avi').unlink()
  dataset = hmdb51.read(root, 1)
  assert len(dataset.train) == len(dataset.test) == 1


def test_splits_are_read_apart(tmp_path):
  _write(tmp_path, {'a': {'x.avi': 1, 'y.avi': 2}}, split=1)
  root = _write(tmp_path, {'a': {'x.avi': 2, 'y.avi': 1}}, split=2)
  one, two = hmdb51.read(root, 1), hmdb51.read(root, 2)
  assert _names(one.train) == _names(two.test) == ['a/x.avi']
  assert one.identity['lists_sha256'] != two.identity['lists_sha256']


def test_a_class_without_list_is_left_out(tmp_path):
  root = _write(tmp_path, _lists(wave=1))
  (root / 'no_list').mkdir()
  (root / 'splits' / '._wave_test_split1.txt').write_bytes(b'\0\x05\x16')
  (root / 'splits' / 'README').write_text('not a list')
  assert hmdb51.read(root, 1).class_names == ('wave',)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('x.avi', 'expected'),
    ('x.avi 3', 'expected'),
    ('x.avi one', 'expected'),
    ('x.mp3 1', 'expected'),
    ('1', 'expected'),
    ('../a/x.avi 1', 'path'),
    ('ok.avi 2', 'twice'),
    ('ok.avi 1', 'twice'),
  ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
  root = _write(tmp_path, {'wave': {'ok.avi': 1}})
  path = root / 'splits' / 'wave_test_split1.txt'
  path.write_text(f'ok.avi 1 \n\n{line} \n')
  with pytest.raises(DataError, match=message) as error:
    hmdb51.read(root, 1)
  assert f'{path}:3: ' in str(error.value)


@pytest.mark.parametrize('content', [b'', b' \n', b'\xff\xfe\xfa'])
def test_a_bad_list_is_named(tmp_path, content):
  root = _write(tmp_path, {'wave': {'ok.avi': 1}})
  path = root / 'splits' / 'wave_test_split1.txt'
  path.write_bytes(content)
  with pytest.raises(DataError, match='list') as error:
    hmdb51.read(root, 1)
  assert str(path) in str(error.value)


def test_missing_videos_are_counted_and_ten_named(tmp_path):
  root = _write(tmp_path, _lists())
  clips = hmdb51.read(root, 1).train
  for clip in clips[:13]:
    clip.path.unlink()
  with pytest.raises(DataError, match='13 listed videos are missing') as error:
    hmdb51.read(root, 1)
  message = str(error.value)
  assert all(c.name in message for c in clips[:10])
  assert clips[10].name not in message
  assert 'and 3 more' in message


def test_lists_without_any_class_folder(tmp_path):
  root = _write(tmp_path / 'a', _lists())
  (root / 'splits').rename(tmp_path / 'splits')
  with pytest.raises(DataError, match='no folder of a class'):
    hmdb51.read(tmp_path, 1)


@pytest.mark.parametrize('make', ['nothing', 'missing', 'videos', 'splits'])
def test_no_data_set_gives_one_message_with_the_way_out(tmp_path, make):
  root = tmp_path / 'hmdb51'
  if make != 'missing':
    root.mkdir()
  if make == 'videos':
    (root / 'wave').mkdir()
  if make == 'splits':
    (root / 'splits').mkdir()
  with pytest.raises(DataError) as error:
    hmdb51.read('' if make == 'nothing' else root, 1)
  message = str(error.value)
  assert 'https://' in message
  assert '<class>/<clip>.avi' in message
  assert 'testTrainMulti_7030_splits' in message
  assert 'wave_test_split' not in message
  assert 'python -m experiments.main --config=configs/quickstart.py' in message


def test_the_home_folder(tmp_path, monkeypatch):
  _write(tmp_path / 'hmdb51', _lists())
  monkeypatch.setenv('HOME', str(tmp_path))
  assert len(hmdb51.read('~/hmdb51', 1).train) == 18


@pytest.mark.parametrize('split', [0, 4, -1])
def test_the_split_is_checked(tmp_path, split):
  with pytest.raises(DataError, match=r'config\.data\.split'):
    hmdb51.read(tmp_path, split)


# --- validation -------------------------------------------------------------


def _check_partition(dataset, parts, fraction):
  assert parts.test == list(dataset.test)
  assert sorted(_names(parts.train + parts.validation)) == sorted(
    _names(dataset.train)
  )
  sources = [{(c.label, c.source) for c in part} for part in parts[:2]]
  assert not sources[0] & sources[1]
  train, held_out = (
    collections.Counter(c.label for c in part) for part in parts[:2]
  )
  for label in range(len(dataset.class_names)):
    assert train[label] > 0
    wanted = round(fraction * (train[label] + held_out[label]))
    largest = max(
      collections.Counter(
        c.source for c in parts.validation if c.label == label
      ).values()
    )
    assert held_out[label] < max(wanted, 1) + largest


@pytest.mark.parametrize('fraction', [0.01, 0.1, 0.34, 0.99])
def test_validation_is_held_out_by_source_and_class(tmp_path, fraction):
  dataset = hmdb51.read(_write(tmp_path, _lists()), 1)
  _check_partition(dataset, clips_lib.partition(dataset, fraction, 0), fraction)


def test_the_seed_decides(tmp_path):
  dataset = hmdb51.read(_write(tmp_path, _lists()), 1)
  choices = [
    tuple(_names(clips_lib.partition(dataset, 0.1, s).validation))
    for s in (0, 0, 1, 2, 3, 4)
  ]
  assert choices[0] == choices[1]
  assert len(set(choices)) > 1


@pytest.mark.parametrize('fraction', [0.0, 1.0, -0.1, float('nan')])
def test_the_fraction_is_checked(tmp_path, fraction):
  dataset = hmdb51.read(_write(tmp_path, _lists()), 1)
  with pytest.raises(DataError, match='validation_fraction'):
    clips_lib.partition(dataset, fraction, 0)


def test_a_class_of_one_source_video_cannot_be_held_out(tmp_path):
  marks = {'s_wave_0.avi': 1, 's_wave_1.avi': 1, 't_wave_0.avi': 2}
  dataset = hmdb51.read(_write(tmp_path, {'wave': marks}), 1)
  with pytest.raises(DataError, match=r"'wave'.*at least 2 source"):
    clips_lib.partition(dataset, 0.1, 0)


# --- real clips -------------------------------------------------------------


@pytest.mark.real_data
@pytest.mark.skipif(
  'HMAN_REAL_DATA' not in os.environ,
  reason='set HMAN_REAL_DATA to the folder that holds jhmdb/',
)
@pytest.mark.parametrize(
  ('split', 'sizes'), [(1, (391, 160)), (2, (389, 162)), (3, (391, 160))]
)
def test_jhmdb(split, sizes):
  dataset = hmdb51.read(
    pathlib.Path(os.environ['HMAN_REAL_DATA'], 'jhmdb'), split
  )
  assert len(dataset.class_names) == 12
  assert (len(dataset.train), len(dataset.test)) == sizes
  assert len({*_names(dataset.train), *_names(dataset.test)}) == 551
  _check_partition(dataset, clips_lib.partition(dataset, 0.1, 0), 0.1)
  for clip in dataset.train:
    assert clip.source != clip.path.name  # the marker was found
