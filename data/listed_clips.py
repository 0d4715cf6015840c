"""From the lines of lists to clips: their videos, and their classes."""

import collections
import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from data import clips, video_lists
from data.clips import Clip, Finding
from data.errors import DataError
from data.label_maps import LabelMap
from data.video_lists import INTEGER, Line
from data.videos import SUFFIXES

# What the folders of a side are called.
SIDE_NAMES = {
  'train': ('train', 'training'),
  'validation': ('val', 'validation', 'valid'),
  'test': ('test', 'testing'),
}
Sides = dict[str, list[Clip]]


def read(
  root: pathlib.Path,
  lists: dict[str, pathlib.Path],
  label_map: LabelMap | None,
  findings: list[Finding],
) -> tuple[tuple[str, ...], Sides]:
  """Finds the videos that lists name.

  Args:
    root: the folder that all paths are below.
    lists: {side: file}.
    label_map: the classes, if they are given.
    findings: where wrong lines and lists go.

  Returns:
    Names of the classes, and {side: clips}.
  """
  entries: list[tuple[str, pathlib.Path, Line]] = []
  for side, path in lists.items():
    try:
      entries += [
        (side, path, line) for line in video_lists.read(path, findings)
      ]
    except DataError as e:
      message = str(e).removeprefix(f'{path}: ')
      findings.append(Finding('list', message, path))
  names = label_map.names if label_map else _names_of(entries)
  classes = _Classes(
    index={name: k for k, name in enumerate(names)},
    first=label_map.first if label_map else 0,
    are_given=bool(label_map),
    are_numbers=not label_map
    and not any(isinstance(line.label, str) for _, _, line in entries),
  )
  listing = functools.cache(_listing)
  places: dict[str, str] = {}
  sides: Sides = {side: [] for side in SIDE_NAMES}
  for side, path, line in entries:

    def wrong(kind, message, path=path, line=line):
      findings.append(Finding(kind, message, path, line.number))

    label = _label(line, classes, wrong)
    relative = _relative(root, line, wrong)
    if label is None or relative is None:
      continue
    video = _video(root, relative, line, SIDE_NAMES[side], listing)
    if video is None:
      wrong('missing', f'{root / relative} is missing.')
      continue
    name = video.relative_to(root).as_posix()
    if name in places:
      wrong('duplicate', f'{name!r} is listed twice, first in {places[name]}.')
      continue
    places[name] = f'{path}:{line.number}'
    if not _has_frames(video, line, wrong):
      continue
    source = clips.source_of(video.stem)
    sides[side].append(Clip(name, video, label, source))
  if classes.are_numbers:
    names = _folder_names(names, [c for side in sides.values() for c in side])
  return names, sides


class _Classes(NamedTuple):
  """The classes that lists may name.

  Attributes:
    index: {name: label}.
    first: what lists write for label 0.
    are_given: by a label map.
    are_numbers: there is no label map, and lists have numbers only.
  """

  index: dict[str, int]
  first: int
  are_given: bool
  are_numbers: bool


def _names_of(
  entries: Iterable[tuple[str, pathlib.Path, Line]],
) -> tuple[str, ...]:
  """Without a label map: names sorted, or the numbers themselves."""
  labels = {line.label for _, _, line in entries}
  texts = sorted(label for label in labels if isinstance(label, str))
  if texts:
    return tuple(texts)
  numbers = {label for label in labels if isinstance(label, int)}
  # A gap is found later; it must not make a billion names.
  count = min(max(numbers, default=-1) + 1, len(numbers) + clips.MAX_LISTED)
  return tuple(map(str, range(count)))


def _folder_names(
  names: tuple[str, ...], every: Iterable[Clip]
) -> tuple[str, ...]:
  """Names of the folders in place of bare numbers, where each has its own."""
  folders = collections.defaultdict(set)
  for clip in every:
    folders[clip.label].add(clip.path.parent.name)
  given = [folders[label] for label in range(len(names))]
  own = {next(iter(f)) for f in given if len(f) == 1}
  if len(own) < len(names) or not all(name.isprintable() for name in own):
    return names
  return tuple(next(iter(f)) for f in given)


def _label(line: Line, classes: _Classes, wrong) -> int | None:
  """Index of a line's class."""
  folder = pathlib.PurePosixPath(line.path).parent.name
  label, index, first = line.label, classes.index, classes.first
  if label is None and classes.are_given and folder in index:
    return index[folder]  # UCF101's test lists
  if label is None:
    wrong('line', f'no label: expected "path label", got {line.path!r}.')
    return None
  if isinstance(label, str):
    if label not in index or not label.isprintable():
      wrong('class', f'unknown class {label!r}.{clips.nearest(label, index)}')
      return None
    return index[label]
  if not classes.are_given and not classes.are_numbers:
    wrong('label', f'expected the name of a class like others, got {label}.')
    return None
  if not first <= label < first + len(index):
    last = first + len(index) - 1
    wrong('label', f'expected a label {first}..{last}, got {label}.')
    return None
  label -= first
  if classes.are_given and index.get(folder, label) != label:
    name = next(n for n, k in index.items() if k == label)
    wrong('label', f'{label + first} is {name!r}, the folder is {folder!r}.')
    return None
  return label


def _relative(root: pathlib.Path, line: Line, wrong) -> str | None:
  """The path of a line below the root."""
  path = pathlib.PurePosixPath(line.path)
  if path.is_absolute() and path.is_relative_to(root):
    path = path.relative_to(root)
  if path.is_absolute() or '..' in path.parts or not path.parts:
    wrong('line', f'expected a path below {root}, got {line.path!r}.')
    return None
  return path.as_posix()


def _listing(folder: pathlib.Path) -> dict[str, str]:
  """{name: name}, and {stem: name} for videos, of what is in a folder."""
  try:
    names = sorted(os.listdir(folder))
  except (OSError, ValueError):
    return {}
  stems = {
    pathlib.PurePath(n).stem: n for n in names if n.lower().endswith(SUFFIXES)
  }
  return stems | {n: n for n in names}


def _video(
  root: pathlib.Path,
  relative: str,
  line: Line,
  side_names: Sequence[str],
  listing: Callable[[pathlib.Path], dict[str, str]],
) -> pathlib.Path | None:
  """The file or folder that a line means, or None."""
  path = pathlib.PurePosixPath(relative)
  below = [path]
  if line.any_suffix:  # Kinetics: blanks in a class are often underscores
    folder = path.parent.name.replace(' ', '_')
    below.append(path.parent.parent / folder / path.name)
    below += [name / p for name in side_names for p in tuple(below)]
  for candidate in below:
    name = listing(root / candidate.parent).get(candidate.name)
    if name and (line.any_suffix or name == candidate.name):
      return root / candidate.parent / name
  frame_folder, _, frames = relative.rpartition(' ')
  if frame_folder and INTEGER.fullmatch(frames):
    video = root / frame_folder.rstrip()
    if listing(video.parent).get(video.name) == video.name:
      return video
  return None


def _has_frames(video: pathlib.Path, line: Line, wrong) -> bool:
  """Whether a folder has as many frames as its line says."""
  if not video.is_dir():
    return True
  count = clips.count_frames(video)
  if not count:
    wrong('missing', f'{video} is a folder without frames.')
    return False
  declared = line.path.rpartition(' ')[2]
  is_declared = video.name != pathlib.PurePosixPath(line.path).name
  if is_declared and int(declared) != count:
    wrong('line', f'{declared} frames by the list, {count} in {video}.')
    return False
  return True
