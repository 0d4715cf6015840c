"""Forty and more bad inputs, on the way that the main job takes.

Each is put into a good miniature data set. It ends in an error that names the
file, or in the stated recovery, with the features that the good data set has.
`pytest tests/test_bad_inputs.py -m slow` prints the table.
"""

import os
import pathlib
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from typing import NamedTuple

import av
import numpy as np
import pytest

from configs import hmdb51 as hmdb51_recipe
from configs import video_folder as video_folder_recipe
from data import (
  catalogue,
  check,
  clips,
  decoding,
  extract,
  features,
  videos,
)
from data.errors import DataError, VideoError
from experiments import config as config_lib
from experiments import datasets

import data_trees
import video_files
from quarters import Quarters

NOBODY = 65534
NUM_CUTS = 30
SPLITS = 'testTrainMulti_7030_splits'


class Good(NamedTuple):
  """Good data sets, and the store of their features.

  Attributes:
    folder: with the trees 'folder' and 'hmdb51', and 'store'.
    features: {tree: {name of a clip: its features}}.
  """

  folder: pathlib.Path
  features: dict[str, dict[str, np.ndarray]]


RECIPES = {'folder': video_folder_recipe, 'hmdb51': hmdb51_recipe}


def _load(tree, root, store, **fields):
  """{name of a clip: its features}, on all sides, as the main job has them."""
  config = RECIPES[tree].get_config()
  config.data.root, config.data.features_dir = str(root), str(store)
  config.data.update(fields)
  splits = datasets.load(config_lib.resolve(config))
  return {
    name: np.array(source[k]['features'])
    for source in splits[:3]
    for k, name in enumerate(source.clip_names)
  }


@pytest.fixture(scope='module')
def good(tmp_path_factory):
  folder = tmp_path_factory.mktemp('good')
  data_trees.video_folder(folder / 'folder')
  data_trees.hmdb51(folder / 'hmdb51')
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(features.EXTRACTORS, 'efficientnet_lite0', Quarters)
    return Good(
      folder,
      {t: _load(t, folder / t, folder / 'store') for t in RECIPES},
    )


# --- what is done to a data set: it returns fields of the config ------------

AVI, MP4, MKV = (f'run/my run #{k}.{s}' for k, s in enumerate(
  ('avi', 'mp4', 'mkv')))  # fmt: skip
NEW = 'run/new.avi'


def _content(raw: bytes, name: str = AVI):
  return lambda root: (root / name).write_bytes(raw) and None


def _written(frames, codec='mpeg4', pix_fmt='yuv420p', **options):
  def change(root):
    (root / AVI).unlink()
    video_files.write(root / AVI, frames, codec, pix_fmt, **options)

  return change


def _sound(root):
  with av.open(str(root / AVI), 'w', format='mp4') as container:
    stream = container.add_stream('aac', rate=8000)
    sound = av.AudioFrame.from_ndarray(
      np.zeros((1, 1024), np.float32), format='fltp', layout='mono'
    )
    sound.sample_rate = 8000
    container.mux(stream.encode(sound))
    container.mux(stream.encode())


def _no_frames(root):
  with av.open(str(root / AVI), 'w') as container:
    stream = container.add_stream('mpeg4', rate=30)
    stream.height = stream.width = 32
    stream.pix_fmt = 'yuv420p'
    container.start_encoding()


def _million_declared(root):
  raw = bytearray((root / AVI).read_bytes())
  struct.pack_into('<I', raw, raw.index(b'avih') + 8 + 16, 10**6)
  struct.pack_into('<I', raw, raw.index(b'strh') + 8 + 32, 10**6)
  (root / AVI).write_bytes(raw)


def _damaged_within(root):
  raw = bytearray((root / MP4).read_bytes())
  middle = (raw.index(b'mdat') + raw.index(b'moov')) // 2
  raw[middle : middle + 40] = bytes(40)
  (root / MP4).write_bytes(raw)


def _rotated(root):
  (root / MP4).unlink()
  video_files.write(root / MP4, video_files.shades(4))
  video_files.rotate(root / MP4, 46341, 46341, -46341, 46341)


def _instead(make):
  def change(root):
    (root / AVI).unlink()
    make(root / AVI)

  return change


def _seq(cut=0, **header):
  def change(root):
    raw = video_files.seq_bytes(data_trees.frames(90), **header)
    (root / 'run' / 'new.seq').write_bytes(raw[: len(raw) - cut])

  return change


def _folder_list(change: Callable[[list[str]], list[str]], encode=str.encode):
  """Lists of all clips, of which those of training are changed."""

  def write(root):
    rows = [
      f'{path.relative_to(root)} {label}'
      for label, name in enumerate(('jump up', 'run', 'sit'))
      for path in sorted((root / name).iterdir())
    ]
    train = [r for k, r in enumerate(rows) if k % 3]
    lists = root.parent / 'lists'
    lists.mkdir()
    (lists / 'test.txt').write_text('\n'.join(rows[::3]))
    text = '\n'.join(change(train)) + '\n'
    (lists / 'train.txt').write_bytes(encode(text))
    return {
      'train_list': str(lists / 'train.txt'),
      'test_list': str(lists / 'test.txt'),
    }

  return write


def _more(line: str):
  return _folder_list(lambda rows: [*rows, line])


def _csv(text: str):
  def write(root):
    path = root.parent / 'train.csv'
    path.write_text(text)
    return {'train_list': str(path)}

  return write


def _map(text: str):
  return lambda root: (root / 'label_map.txt').write_text(text) and None


def _with_map(names: str, text: str):
  def write(root):
    _map(names)(root)
    return _csv(text)(root)

  return write


def _split(change: Callable[[str], str]):
  def write(root):
    path = root / SPLITS / 'sit_test_split1.txt'
    path.write_text(change(path.read_text()))

  return write


def _no_root(root):
  shutil.rmtree(root)


def _empty_root(root):
  shutil.rmtree(root)
  root.mkdir()


def _extra(name: str, source: str):
  return lambda root: shutil.copy(root / source, root / name) and None


# --- the table --------------------------------------------------------------


class Row(NamedTuple):
  """A bad input.

  Attributes:
    name: in words.
    change: makes a good tree bad; gives fields of the config, or None.
    error: what the message says; '' where it recovers.
    tree: which data set.
    renamed: {name of a clip: that of the same in the good data set}.
    other: clips whose features are others than those of the good data set.
  """

  name: str
  change: Callable[[pathlib.Path], dict | None]
  error: str = ''
  tree: str = 'folder'
  renamed: dict[str, str] = {}  # noqa: RUF012
  other: tuple[str, ...] = ()


CUT = r'cut|cannot decode'
ROWS = [
  Row('zero bytes', _content(b''), 'an empty file'),
  Row('one byte', _content(b'R'), 'expected a video'),
  Row('text', _content(b'no video at all\n' * 99), 'expected a video'),
  Row('noise', _content(np.random.default_rng(0).bytes(5000)),
      'expected a video'),
  Row('a playlist', _content(b'ffconcat version 1.0\nfile "my run #1.mp4"\n'),
      'expected a video'),
  Row('sound alone', _sound, 'no video stream'),
  Row('no frames', _no_frames, 'no frames|cannot decode'),
  Row('one frame', _written(video_files.shades(1)), other=(AVI,)),
  Row('8192 x 8192', _written(np.zeros((1, 8192, 8192), np.uint8), 'png',
                              'gray', source='gray'), '8192 x 8192: more than'),
  Row('1 x 1', _written(np.zeros((3, 1, 1, 3), np.uint8), 'png', 'rgb24'),
      other=(AVI,)),
  Row('10^6 frames declared', _million_declared),
  Row('a coding not on the list',
      _written(video_files.shades(2), 'magicyuv', 'gbrp'), 'magicyuv'),
  Row('rotated by 45 degrees', _rotated, 'rotated by other than 90'),
  Row('frames overwritten', _damaged_within, 'damaged after|cannot decode'),
  Row('another extension',
      lambda root: (root / MP4).rename(root / NEW) and None,
      renamed={NEW: MP4}),
  Row('an extension of no video', _extra('run/new.txt', MP4)),
  Row('a link to itself', _instead(lambda p: p.symlink_to(p)),
      'symbolic links'),
  Row('a link to nothing', _instead(lambda p: p.symlink_to('/none')),
      'No such file'),
  Row('a pipe', _instead(os.mkfifo), 'no plain file'),
  Row('a device', _instead(lambda p: p.symlink_to('/dev/zero')),
      'no plain file'),
  Row('a folder without frames', _instead(pathlib.Path.mkdir), other=(AVI,)),
  Row('a name that is no text', lambda root: (root / MP4).rename(
      os.fsdecode(bytes(root) + b'/run/\xff\xfe.mp4')) and None,
      'no text|cannot be written'),
  Row('a .seq that is cut', _seq(cut=700), 'cut'),
  Row('a .seq of another size', _seq(width=64), 'damaged'),
  Row('a missing frame', lambda root: (
      root / 'sit' / 'clip 3' / 'img_00004.jpg').unlink(), 'frame 4 is missing',
      ),
  Row('a frame of zero bytes', _content(b'', 'sit/clip 3/img_00004.jpg'),
      'img_00004.jpg'),
  Row('no such root', _no_root, 'no videos to be found|no such'),
  Row('an empty root', _empty_root, 'no videos'),
  Row('a list without lines', _folder_list(lambda rows: []), 'is empty'),
  Row('a list that is no text', _folder_list(list, lambda t: b'\xff\xfe' + (
      t.encode('utf-16-le'))), "can't decode byte"),
  Row('a list with a BOM', _folder_list(list, lambda t: t.encode('utf-8-sig'))),
  Row('a list with CRLF',
      _folder_list(list, lambda t: t.replace('\n', '\r\n').encode())),
  Row('a list with tabs', _folder_list(
      lambda rows: ['\t'.join(r.rsplit(' ', 1)) for r in rows])),
  Row('a clip listed twice', _folder_list(lambda rows: [*rows, rows[0]]),
      'listed twice'),
  Row('a missing clip', _more('run/none.avi 1'), 'none.avi is missing'),
  Row('a path outside', _more('../../run/a.avi 1'), 'expected a path below'),
  Row('an absolute path', _more('/etc/hosts 1'), 'expected a path below'),
  Row('a path on the net', _more('http://127.0.0.1/a.avi 1'), 'missing'),
  Row('no label', _more('run/new.avi'), 'no label'),
  Row('label -1', _more('run/new.avi -1'), 'expected a label'),
  Row('label 10^9', _more('run/new.avi 1000000000'), 'expected a label'),
  Row('a gap in the labels', _folder_list(
      lambda rows: [r[:-1] + '7' if r[-1] == '2' else r for r in rows]),
      'gaps'),
  Row('an unknown class', _with_map(
      'run\nsit\njump up\n', 'path,label\n' + ''.join(
        f'run/my run #{k}.{s},{c}\n' for k, s, c in (
          (0, 'avi', 'run'), (1, 'mp4', 'run'), (2, 'mkv', 'ran')))),
      "unknown class 'ran'. Did you mean 'run'"),
  Row('a clip in train and test', _folder_list(
      lambda rows: [*rows, 'jump up/-0.avi 0']), 'listed twice'),
  Row('a part of a video', _csv('video_path,start,end,label\n'
      'run/my run #0.avi,1.5,3,0\n'), 'a part of a video'),
  Row('a csv with an open quote', _csv('path,label\n"run/my run #0.avi,1\n'),
      'no label|quote|expected'),
  Row('a class named twice', _map('run\nsit\nrun\n'), 'is there twice'),
  Row('a class without a folder', _map('run\nsit\nfly\njump up\n')),
  Row('a folder without a class', _map('run\nsit\n'), "'jump up'"),
  Row('a split with a BOM and CRLF', _split(
      lambda t: '\ufeff' + t.replace('\n', '\r\n')), tree='hmdb51'),
  Row('an empty split', _split(lambda t: ''), 'list', 'hmdb51'),
  Row('mark 3 in a split', _split(lambda t: t + 'x.avi 3\n'),
      'expected', 'hmdb51'),
  Row('a missing clip in a split', _split(lambda t: t + 'none.avi 1\n'),
      'none.avi is missing', 'hmdb51'),
  Row('a missing class', lambda root: shutil.rmtree(root / 'sit'),
      'sit', 'hmdb51'),
]  # fmt: skip


def _one_line(e: DataError) -> str:
  return str(e).strip().splitlines()[-1 if 'videos are bad' in str(e) else 0]


@pytest.fixture
def place(good, tmp_path, monkeypatch):
  """Copies a good tree, and loads it with the store of all."""
  monkeypatch.setitem(features.EXTRACTORS, 'efficientnet_lite0', Quarters)

  def copy(tree):
    shutil.copytree(good.folder / tree, tmp_path / tree, symlinks=True)
    return tmp_path / tree

  return copy


def test_there_are_forty():
  assert len(ROWS) >= 40 and len({r.name for r in ROWS}) == len(ROWS)


@pytest.mark.slow
@pytest.mark.parametrize('row', ROWS, ids=lambda row: row.name)
def test_bad_inputs(good, place, row, capsys):
  root = place(row.tree)
  fields = row.change(root) or {}
  expected = good.features[row.tree]
  try:
    found = _load(row.tree, root, good.folder / 'store', **fields)
  except DataError as e:
    outcome = str(e)
    with capsys.disabled():
      shown = outcome.replace(f'{root.parent}/', '')
      print(f'\n{row.name}: {shown.splitlines()[:3]}', end='')
    assert row.error and re.search(row.error, outcome), outcome
    assert str(root) in outcome or str(root.parent) in outcome
    return
  assert not row.error, f'no error, {len(found)} clips'
  same = {n: row.renamed.get(n, n) for n in found if n not in row.other}
  for name, before in same.items():
    np.testing.assert_array_equal(found[name], expected[before])
  gone = set(expected) - set(same.values()) - set(row.other)
  assert not gone
  with capsys.disabled():
    print(f'\n{row.name}: recovers, {len(same)} clips as they were', end='')


@pytest.mark.slow
@pytest.mark.parametrize('name', [AVI, MP4, MKV])
def test_cuts(good, place, name, capsys):
  """Truncated at 30 points: never a shorter clip."""
  root = place('folder')
  raw = (root / name).read_bytes()
  # Beside each other, so that one pass takes all.
  for k in range(NUM_CUTS):
    end = k * (len(raw) - 1) // (NUM_CUTS - 1)
    (root / name).with_stem(f'cut {k}').write_bytes(raw[:end])
  with pytest.raises(DataError) as error:
    _load('folder', root, good.folder / 'store')
  assert f'{NUM_CUTS} of {18 + NUM_CUTS} videos are bad' in str(error.value)
  with capsys.disabled():
    print(f'\n{name} cut at {NUM_CUTS} points: {NUM_CUTS} errors', end='')


@pytest.mark.slow
def test_a_file_that_may_not_be_read(good, place, capsys):
  root = place('folder')
  (root / AVI).chmod(0)
  is_root = os.geteuid() == 0
  if is_root:  # who may read everything
    os.seteuid(NOBODY)
    try:
      for recipe in RECIPES.values():
        data = recipe.get_config().data
        data.root = str(root)
        with pytest.raises(DataError, match='Permission denied'):
          catalogue.scan(data)
      with pytest.raises(DataError, match='Permission denied') as error:
        videos.decode(root / AVI)
    finally:
      os.seteuid(0)
  else:
    with pytest.raises(DataError, match='Permission denied') as error:
      _load('folder', root, good.folder / 'store')
  assert AVI in str(error.value)
  with capsys.disabled():
    print('\nmay not be read: Permission denied', end='')


@pytest.mark.slow
def test_the_same_video_on_two_sides(place, capsys):
  """`data.check` tells; a data set may have them all the same."""
  root = place('folder')
  shutil.copy(root / AVI, root / 'jump up' / 'copy.avi')
  copies = [
    clips.Clip(f'{k}', root / name, k, f'{k}')
    for k, name in enumerate((AVI, 'jump up/copy.avi'))
  ]
  parts = clips.Partition(copies[:1], [], copies[1:])
  findings = check.judge(parts, check.examine(parts))
  assert [f.kind for f in findings if f.fatal] == ['leakage']
  with capsys.disabled():
    print(f'\na clip on two sides: data.check: {findings[0].message}', end='')


def test_decoders_go_on_after_a_bad_clip(tmp_path):
  """They may be kept by who asks for one clip after the other."""
  good = video_files.write(tmp_path / 'a.mkv', video_files.shades(3))
  (tmp_path / 'b.mkv').write_bytes(good.read_bytes()[:-9])
  with decoding.Decoders(1) as decoders:
    for _ in range(2):
      with pytest.raises(VideoError, match='cut'):
        extract.extract_clip(
          tmp_path / 'b.mkv', Quarters(), tmp_path / 's', decoders=decoders
        )
      shutil.rmtree(tmp_path / 's')
      record = extract.extract_clip(
        good, Quarters(), tmp_path / 's', decoders=decoders
      )
      assert record.num_decoded == 3


@pytest.mark.slow
def test_memory_does_not_grow_with_frames(tmp_path, capsys):
  """20,000 frames would be 245 MB; by VmHWM, which is of one process."""
  path = tmp_path / 'long.avi'
  frames = np.zeros((20_000, 16, 16, 3), np.uint8)
  video_files.write(path, frames, 'rawvideo', 'bgr24')
  code = f"""
import pathlib
from data import videos
def peak():
  status = pathlib.Path('/proc/self/status').read_text()
  return int(status.split('VmHWM:')[1].split()[0])
for k, _ in enumerate(videos.stream({str(path)!r}, [(64, 64)]), start=1):
  if k == 1000:
    early = peak()
print(k, early, peak())
"""
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=pathlib.Path(__file__).parents[1],
    capture_output=True, text=True, timeout=580,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  count, early, late = map(int, done.stdout.split())  # kB
  assert count == 20_000 and late - early < 60_000
  with capsys.disabled():
    print(
      f'\n{count} frames: {early // 1000} MB after 1000, {late // 1000} MB '
      'after all',
      end='',
    )


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['mp4', 'mkv', 'mov'])
def test_times_that_begin_before_zero(tmp_path, suffix):
  """Matroska moves them; mp4's edit list hides what comes before zero."""
  frames = video_files.shades(6)
  early = [-6, -4, -2, 0, 2, 4]
  path = video_files.write(tmp_path / f'a.{suffix}', frames, times=early)
  frames = frames if suffix == 'mkv' else frames[3:]
  grey = frames[:, 0, 0, 0].astype(int)
  every = videos.decode(path)[:, 0, 0, 0].astype(int)
  np.testing.assert_allclose(every, grey, atol=4)
  sampled = videos.decode(path, fps=30)[:, 0, 0, 0].astype(int)
  np.testing.assert_allclose(sampled, grey.repeat(2), atol=4)


@pytest.mark.slow
@pytest.mark.parametrize('suffix', ['avi', 'mp4', 'mkv'])
def test_threads_change_no_pixel(tmp_path, suffix):
  frames = data_trees.frames(3)
  path = video_files.write(tmp_path / f'a.{suffix}', frames, 'libx264')
  expected = videos.decode(path)
  for count in (1, 2, 4):
    with av.open(str(path)) as container:
      stream = container.streams.video[0]
      stream.thread_type = 'AUTO'
      stream.thread_count = count
      found = [
        f.reformat(format='rgb24', interpolation='BILINEAR').to_ndarray()
        for f in container.decode(stream)
      ]
    np.testing.assert_array_equal(found, expected)
