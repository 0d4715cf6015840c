"""HMDB51 on disk: class folders of videos, and the official split lists.

Kuehne et al., ICCV 2011. Also J-HMDB's clips, or any subset of the classes, in
the same layout.
"""

import dataclasses
import hashlib
import pathlib
from typing import NamedTuple

import numpy as np

from data.errors import DataError

UNUSED, TRAIN, TEST = 0, 1, 2
NUM_SPLITS = 3
VIDEO_SUFFIX = '.avi'
_SPLIT_FOLDERS = ('splits', 'testTrainMulti_7030_splits', 'test_train_splits')
_MAX_LISTED = 10

_HOW_TO_GET = """\
HMDB51 is not at config.data.root={root!r}: no <class>_test_split{split}.txt.
  1. Get the videos (hmdb51_org.rar) and the splits (test_train_splits.rar) from
     https://serre.lab.brown.edu/hmdb51.html
  2. Unpack both, and the 51 .rar files inside the first, to this layout:
       ROOT/<class>/<clip>.avi     or ROOT/videos/<class>/<clip>.avi
       ROOT/testTrainMulti_7030_splits/<class>_test_split1.txt, or ROOT/splits/
  3. Run python -m experiments.main --config=configs/hmdb51.py with
     --config.data.root=ROOT
Without any videos:
     python -m experiments.main --config=configs/quickstart.py"""


@dataclasses.dataclass(frozen=True)
class Clip:
  """One video and its class.

  Attributes:
    name: '<class>/<file>', unique in the data set.
    path: the video.
    label: index of the class, 0-based.
    source: the video that the clip was cut from, as far as its name tells: the
      name up to the first `_<class>_`.
  """

  name: str
  path: pathlib.Path
  label: int
  source: str


@dataclasses.dataclass(frozen=True)
class Hmdb51:
  """One split of the data set.

  Attributes:
    class_names: sorted.
    train, test: clips marked 1 and 2 in the split lists.
    identity: name, split and a digest of the lists.
  """

  class_names: tuple[str, ...]
  train: tuple[Clip, ...]
  test: tuple[Clip, ...]
  identity: dict


class Partition(NamedTuple):
  """Training, validation and test clips."""

  train: list[Clip]
  validation: list[Clip]
  test: list[Clip]


def read(root: str | pathlib.Path, split: int) -> Hmdb51:
  """Reads the lists of a split and finds its videos.

  Args:
    root: folder with `<class>/<clip>.avi`, or `videos/<class>/<clip>.avi`, and
      the lists in `splits/`, `testTrainMulti_7030_splits/` or
      `test_train_splits/` (flat, or one `testTrainMulti_7030_splits/` deeper),
      or in the root itself. "~" is the home folder.
    split: 1, 2 or 3.

  Returns:
    `Hmdb51`. Classes are those with a list.

  Raises:
    DataError: if there is no data set at `root`, naming where to get it; if a
      line of a list is wrong, with file and line; if a listed video is missing.
  """
  if not 1 <= split <= NUM_SPLITS:
    raise DataError(f'config.data.split: expected 1, 2 or 3, got {split}.')
  folder = pathlib.Path(root).expanduser()
  lists = _split_lists(folder, split) if str(root) else {}
  if not lists:
    raise DataError(_HOW_TO_GET.format(root=str(root), split=split))
  class_names = tuple(sorted(lists))
  videos = _videos_folder(folder, class_names)
  clips: dict[int, list[Clip]] = {TRAIN: [], TEST: [], UNUSED: []}
  digest = hashlib.sha256()
  for label, class_name in enumerate(class_names):
    for file, mark in _read_list(lists[class_name], class_name):
      digest.update(f'{class_name}/{file} {mark}\n'.encode())
      clips[mark].append(
        Clip(
          name=f'{class_name}/{file}',
          path=videos / class_name / file,
          label=label,
          source=file.partition(f'_{class_name}_')[0],
        )
      )
  _check_videos(clips[TRAIN] + clips[TEST], videos)
  return Hmdb51(
    class_names=class_names,
    train=tuple(clips[TRAIN]),
    test=tuple(clips[TEST]),
    identity={
      'name': 'hmdb51',
      'split': split,
      'num_classes': len(class_names),
      'lists_sha256': digest.hexdigest(),
    },
  )


def partition(
  dataset: Hmdb51, validation_fraction: float, seed: int
) -> Partition:
  """Holds validation clips out of the training clips, by source video.

  Clips cut from one video stay on one side; every class gives its share.

  Args:
    dataset: from `read`.
    validation_fraction: of the training clips of every class, in (0, 1); more,
      where the last video chosen has more clips than are wanted.
    seed: of the choice.

  Returns:
    `Partition`; test clips are never touched.

  Raises:
    DataError: if a class has clips of one source video only.

  Example:
    >>> clips = tuple(Clip(str(i), pathlib.Path(), 0, f's{i}')
    ...               for i in range(10))
    >>> parts = partition(Hmdb51(('a',), clips, (), {}), 0.2, seed=0)
    >>> len(parts.train), len(parts.validation)
    (8, 2)
  """
  if not 0 < validation_fraction < 1:
    raise DataError(
      'config.data.validation_fraction: expected in (0, 1), got '
      f'{validation_fraction}.'
    )
  rng = np.random.default_rng(seed)
  held_out: set[tuple[int, str]] = set()
  for label, class_name in enumerate(dataset.class_names):
    sources = [c.source for c in dataset.train if c.label == label]
    groups = sorted(set(sources))
    if len(groups) < 2:
      raise DataError(
        f'class {class_name!r}: expected training clips of at least 2 source '
        f'videos, to hold one out for validation, got {len(groups)}.'
      )
    wanted = max(round(validation_fraction * len(sources)), 1)
    count = 0
    for group in rng.permutation(groups)[: len(groups) - 1]:
      if count >= wanted:
        break
      held_out.add((label, str(group)))
      count += sources.count(str(group))

  def is_held_out(clip: Clip) -> bool:
    return (clip.label, clip.source) in held_out

  return Partition(
    train=[c for c in dataset.train if not is_held_out(c)],
    validation=[c for c in dataset.train if is_held_out(c)],
    test=list(dataset.test),
  )


def _split_lists(root: pathlib.Path, split: int) -> dict[str, pathlib.Path]:
  """The list of each class, from the first split folder that has any."""
  ending = f'_test_split{split}.txt'
  outer = [root / name for name in _SPLIT_FOLDERS]
  inner = [folder / _SPLIT_FOLDERS[1] for folder in outer]
  for folder in (*outer, *inner, root):
    if not folder.is_dir():
      continue
    lists = {
      f.name.removesuffix(ending): f
      for f in folder.iterdir()
      if f.name.endswith(ending) and not f.name.startswith('.')
    }
    if lists:
      return lists
  return {}


def _videos_folder(
  root: pathlib.Path, class_names: tuple[str, ...]
) -> pathlib.Path:
  for folder in (root / 'videos', root):
    if any((folder / name).is_dir() for name in class_names):
      return folder
  raise DataError(
    f'{root}: there are split lists, but no folder of a class, such as '
    f'{root / class_names[0]} or {root / "videos" / class_names[0]}.'
  )


def _read_list(path: pathlib.Path, class_name: str) -> list[tuple[str, int]]:
  """(file name, mark) of each line; names may hold blanks, #, ( and such."""
  try:
    text = path.read_text(encoding='utf-8-sig')
  except (OSError, UnicodeDecodeError) as e:
    raise DataError(f'{path}: cannot read the list: {e}.') from e
  entries: dict[str, int] = {}
  for number, line in enumerate(text.split('\n'), start=1):
    if not line.strip():
      continue
    file, mark = (line.rsplit(maxsplit=1) + [''])[:2]
    if mark not in ('0', '1', '2') or not file.endswith(VIDEO_SUFFIX):
      raise DataError(
        f'{path}:{number}: expected "<clip>{VIDEO_SUFFIX} <mark>" with mark 1 '
        f'(train), 2 (test) or 0 (unused), got {line!r}.'
      )
    if '/' in file or '\\' in file:
      raise DataError(
        f'{path}:{number}: expected a file of the class {class_name!r}, got a '
        f'path: {file!r}.'
      )
    if file in entries:
      raise DataError(f'{path}:{number}: {file!r} is listed twice.')
    entries[file] = int(mark)
  if not entries:
    raise DataError(f'{path}: the list is empty.')
  return list(entries.items())


def _check_videos(clips: list[Clip], videos: pathlib.Path) -> None:
  missing = [c.name for c in clips if not c.path.is_file()]
  if missing:
    listed = '\n  '.join(missing[:_MAX_LISTED])
    more = len(missing) - _MAX_LISTED
    raise DataError(
      f'{videos}: {len(missing)} listed videos are missing:\n  {listed}'
      + (f'\n  and {more} more' if more > 0 else '')
    )
