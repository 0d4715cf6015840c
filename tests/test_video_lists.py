"""Any videos: lists of them."""

import pathlib

import pytest

from data import (
  clips,
  video_folder,
)
from data.errors import DataError

import data_trees
from dataset_parts import kinds, names


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
  assert names(dataset.train) == [n for n, _ in train]
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
  assert names(dataset.validation) == [n for n, _ in train[:3]]
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
  assert names(dataset.train) == [n for n, _ in train]
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
  assert kind in kinds(scanned, True)


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
