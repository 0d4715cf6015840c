"""Writes miniature data sets, exact in their layout, for tests."""

import pathlib

import numpy as np

from data import ucf_sports

import video_files

SIZE = (32, 32)


def frames(number: int) -> np.ndarray:
  """8 to 11 frames of noise, other ones for every number."""
  rng = np.random.default_rng(number)
  shape = (8 + number % 4, *SIZE, 3)
  return rng.integers(0, 256, shape, np.uint8)


class _Numbers:
  """Different frames for each clip of a tree."""

  def __init__(self, empty: bool = False):
    self.next, self.empty = 0, empty

  def video(self, path: pathlib.Path) -> None:
    self.next += 1
    if self.empty:
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_bytes(b'%d' % self.next)
    elif path.suffix == '.seq':
      video_files.write_seq(path, frames(self.next))
    elif path.suffix == '.avi':  # soon written
      video_files.write(path, frames(self.next), 'rawvideo', 'bgr24')
    else:
      video_files.write(path, frames(self.next))

  def folder(self, path: pathlib.Path, name: str = 'img_{:05}.jpg') -> None:
    self.next += 1
    if self.empty:
      path.mkdir(parents=True, exist_ok=True)
      (path / name.format(1)).write_bytes(b'%d' % self.next)
    else:
      video_files.write_folder(path, frames(self.next), name)


def hmdb51(root: pathlib.Path, *, flat: bool = False) -> pathlib.Path:
  """Three classes of 8 clips of 4 source videos, with names as there are."""
  numbers = _Numbers()
  folder = root if flat else root / 'testTrainMulti_7030_splits'
  folder.mkdir(parents=True, exist_ok=True)
  sources = ('-dash', '#1 (best)', 'a&b;c', 'two  blanks! @home')
  for class_name in ('brush_hair', 'sit', 'wave'):
    lines = []
    for k, source in enumerate(sources):
      for part in range(2):
        file = f'{source}_{class_name}_u_nm_np1_ba_med_{part}.avi'
        numbers.video(root / class_name / file)
        lines.append(f'{file} {2 if k == 3 else 1} \n')
    path = folder / f'{class_name}_test_split1.txt'
    path.write_text(''.join(lines) + '\n')
  return root


def ucf_sports_tree(
  root: pathlib.Path, kind: str = 'avi', *, num: int = 4, empty: bool = False
) -> pathlib.Path:
  """The 13 folders of `num` clips each: 'avi', 'jpg' or 'both'; gt beside."""
  numbers = _Numbers(empty)
  below = root / 'ucf_sports_actions' / 'ucf action'
  for folder in ucf_sports.CLASS_OF:
    for k in range(1, num + 1):
      clip = below / folder / f'{k:03}'
      name = f'{2538 + k}-{k % 2}_7{k:04}'
      if kind != 'jpg':
        numbers.video(clip / f'{name}.avi')
      if kind != 'avi':
        numbers.folder(clip / 'jpeg' if k % 2 else clip, name + '_{:03}.jpg')
      (clip / 'gt').mkdir(parents=True, exist_ok=True)
      (clip / 'gt' / f'{name}.tif.txt').write_text('1 2 3 4')
  return root


def olympic_sports(
  root: pathlib.Path,
  *,
  per_class: bool = True,
  suffix: str = '',
  empty: bool = False,
) -> pathlib.Path:
  """Three classes of 8 clips of 4 source videos."""
  numbers = _Numbers(empty)
  lines: dict[str, list[str]] = {'train': [], 'test': []}
  for class_name in ('basketball_layup', 'diving_platfrom_10m', 'vault'):
    own: dict[str, list[str]] = {'train': [], 'test': []}
    for k, source in enumerate(('-wJ9o_cOnVQ', 'a_b-c', '0Xy', 'z--9')):
      for part in range(2):
        name = f'{source}_{100 * part:05}_{100 * part + 90:05}'
        numbers.video(root / class_name / f'{name}.seq')
        side = 'test' if k == 3 else 'train'
        own[side].append(f'{name}{suffix}')
        lines[side].append(f'{class_name}/{name}{suffix}')
    if per_class:
      for side, names in own.items():
        path = root / 'train_test_split' / side / f'{class_name}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('\n'.join(names) + '\r\n')
  if not per_class:
    for side, names in lines.items():
      path = root / 'train_test_split' / f'{side}.txt'
      path.parent.mkdir(parents=True, exist_ok=True)
      path.write_text('\n'.join(names) + '\n\n')
  return root


def video_folder(root: pathlib.Path, *, empty: bool = False) -> pathlib.Path:
  """Two classes of files and one of folders of frames, 6 clips each."""
  numbers = _Numbers(empty)
  suffixes = ('avi', 'mp4', 'mkv')
  for k in range(6):
    numbers.video(root / 'run' / f'my run #{k}.{suffixes[k % 3]}')
    numbers.video(root / 'jump up' / f'-{k}.{suffixes[k % 3]}')
    numbers.folder(root / 'sit' / f'clip {k}')
  return root
