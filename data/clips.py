"""Clips, their classes and sides: what all readers of data sets share.

A reader's `scan` collects every finding, for `python -m data.check`; its `read`
is `scan` followed by `checked`, which refuses what has fatal ones.
"""

import collections
import dataclasses
import difflib
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from data import frame_folder
from data.errors import DataError
from data.videos import SUFFIXES

MAX_LISTED = 10

# How the kinds of findings are counted in a message.
_COUNTED = {
  'class': 'unknown or wrong classes',
  'duplicate': 'clips are listed twice',
  'label': 'labels are wrong',
  'line': 'lines are wrong',
  'list': 'lists cannot be used',
  'missing': 'listed videos are missing',
  'name': 'names are wrong',
  'source': 'classes have too few source videos',
  'unused': 'files or folders are not used',
}

# Ends of names that tell a clip's place in its source video: Kinetics and
# Olympic Sports (times or frames), UCF50 and UCF101 (clip of a group).
_CUTS = (
  re.compile(r'(.+)_\d{5,6}_\d{5,6}', re.DOTALL),
  re.compile(r'(.+_g\d+)_c\d+', re.DOTALL),
)


@dataclasses.dataclass(frozen=True)
class Clip:
  """One video and its class.

  Attributes:
    name: its path below the root, as '<class>/<file>'; unique in a data set.
    path: the video: a file, or a folder of frames.
    label: index of the class, 0-based.
    source: the video that the clip was cut from, as far as its name tells.
  """

  name: str
  path: pathlib.Path
  label: int
  source: str


class Finding(NamedTuple):
  """Something that is wrong, or odd, about a data set.

  Attributes:
    kind: 'class', 'duplicate', 'label', 'line', 'list', 'missing', 'name',
      'source' or 'unused'; `data.check` knows more.
    message: what was found, what was expected, how to mend it.
    path: the file or folder.
    line: of the file, from 1; None: all of it.
    fatal: whether the data set cannot be used like this.
  """

  kind: str
  message: str
  path: pathlib.Path
  line: int | None = None
  fatal: bool = True

  def __str__(self) -> str:
    line = '' if self.line is None else f':{self.line}'
    return f'{self.path}{line}: {self.message}'


@dataclasses.dataclass(frozen=True)
class Dataset:
  """One split of a data set.

  Attributes:
    class_names: in the order of the labels.
    train, test: clips of either side.
    identity: JSON-able: name, split, a digest of lists or clips.
    validation: clips, where the data set has a third side.
    findings: whatever is wrong or odd.
  """

  class_names: tuple[str, ...]
  train: tuple[Clip, ...]
  test: tuple[Clip, ...]
  identity: dict
  validation: tuple[Clip, ...] = ()
  findings: tuple[Finding, ...] = ()


class Partition(NamedTuple):
  """Training, validation and test clips."""

  train: list[Clip]
  validation: list[Clip]
  test: list[Clip]


def checked(
  dataset: Dataset, root: str | pathlib.Path, allow_missing: int = 0
) -> Dataset:
  """Refuses a data set with fatal findings.

  Args:
    dataset: of a reader's `scan`.
    root: of the data set, for the message.
    allow_missing: go on without this many listed videos.

  Returns:
    The data set; its identity tells if videos are missing.

  Raises:
    DataError: with the first `MAX_LISTED` findings and their number.
  """
  missing = [f for f in dataset.findings if f.kind == 'missing']
  few = len(missing) <= allow_missing
  fatal = [
    f for f in dataset.findings if f.fatal and not (few and f.kind == 'missing')
  ]
  if fatal:
    raise DataError(_message(fatal, root, len(missing)))
  if not missing:
    return dataset
  lines = ''.join(sorted(f'{f.path.name}:{f.line}\n' for f in missing))
  digest = hashlib.sha256(lines.encode('utf-8', 'surrogateescape')).hexdigest()
  return dataclasses.replace(
    dataset,
    identity=dataset.identity
    | {'num_missing': len(missing), 'missing_sha256': digest},
    findings=tuple(f._replace(fatal=False) for f in dataset.findings),
  )


def _message(
  fatal: Sequence[Finding], root: str | pathlib.Path, num_missing: int
) -> str:
  if len(fatal) == 1 and not num_missing:
    return str(fatal[0])
  counts = collections.Counter(f.kind for f in fatal)
  header = ', '.join(f'{n} {_COUNTED[kind]}' for kind, n in counts.items())
  listed = '\n  '.join(str(f) for f in fatal[:MAX_LISTED])
  more = len(fatal) - MAX_LISTED
  text = f'{root}: {header}:\n  {listed}'
  if more > 0:
    text += f'\n  and {more} more; python -m data.check lists all'
  if num_missing:
    text += (
      '\nTo go on without the missing videos: '
      f'--config.data.allow_missing={num_missing}'
    )
  return text


def partition(
  dataset: Dataset, validation_fraction: float, seed: int
) -> Partition:
  """Holds validation clips out of the training clips, by source video.

  Clips cut from one video stay on one side; every class gives its share. A data
  set that comes with validation clips keeps them.

  Args:
    dataset: from a reader.
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
    >>> parts = partition(Dataset(('a',), clips, (), {}), 0.2, seed=0)
    >>> len(parts.train), len(parts.validation)
    (8, 2)
  """
  if not 0 < validation_fraction < 1:
    raise DataError(
      'config.data.validation_fraction: expected in (0, 1), got '
      f'{validation_fraction}.'
    )
  if dataset.validation:
    return Partition(
      list(dataset.train), list(dataset.validation), list(dataset.test)
    )
  for label, class_name in enumerate(dataset.class_names):
    sources = {c.source for c in dataset.train if c.label == label}
    if not sources and all(c.label != label for c in dataset.test):
      continue  # a label map may name more classes than there are
    if len(sources) < 2:
      raise DataError(
        f'class {class_name!r}: expected training clips of at least 2 source '
        f'videos, to hold one out for validation, got {len(sources)}.'
      )
  train, validation = _hold_out(
    dataset.train, len(dataset.class_names), validation_fraction, seed, keep=1
  )
  return Partition(train, validation, list(dataset.test))


def split(
  clips: Sequence[Clip],
  class_names: Sequence[str],
  test_fraction: float,
  number: int,
  root: pathlib.Path,
) -> tuple[list[Clip], list[Clip], list[Finding]]:
  """A seeded, stratified split, for data sets without an official one.

  Clips cut from one video stay on one side. A class of fewer than 3 source
  videos (for training, validation and test) is split by clip, with a finding.

  Args:
    clips: all clips.
    class_names: their classes.
    test_fraction: of the clips of every class, in (0, 1).
    number: of the split: its seed.
    root: of the data set, for findings.

  Returns:
    Training clips, test clips, findings.

  Raises:
    DataError: if test_fraction is not in (0, 1).

  Example:
    >>> clips = [Clip(str(i), pathlib.Path(), i % 2, f's{i}')
    ...          for i in range(40)]
    >>> train, test, _ = split(clips, ('a', 'b'), 0.25, 1, pathlib.Path())
    >>> len(train), len(test), sum(c.label for c in test)
    (30, 10, 5)
  """
  if not 0 < test_fraction < 1:
    raise DataError(
      f'config.data.test_fraction: expected in (0, 1), got {test_fraction}.'
    )
  findings = []
  apart = list(clips)
  for label, class_name in enumerate(class_names):
    of_class = [c for c in apart if c.label == label]
    num_sources = len({c.source for c in of_class})
    if not of_class or num_sources >= 3:
      continue
    fatal = len(of_class) < 3
    findings.append(
      Finding(
        'source',
        f'class {class_name!r}: {len(of_class)} clips of {num_sources} source '
        'videos; 3 are needed, for training, validation and test'
        + ('.' if fatal else ': its clips are split one by one.'),
        root,
        fatal=fatal,
      )
    )
    apart = [
      dataclasses.replace(c, source=c.name) if c.label == label else c
      for c in apart
    ]
  train, test = _hold_out(
    apart, len(class_names), test_fraction, number, keep=2
  )
  return train, test, findings


def _hold_out(
  clips: Sequence[Clip], num_classes: int, fraction: float, seed: int, keep: int
) -> tuple[list[Clip], list[Clip]]:
  """(kept, held out): of every class its share, source videos undivided.

  `keep` source videos of every class stay, however few there are.
  """
  rng = np.random.default_rng(seed)
  held_out: set[tuple[int, str]] = set()
  for label in range(num_classes):
    counts = collections.Counter(c.source for c in clips if c.label == label)
    groups = sorted(counts)
    wanted = max(round(fraction * counts.total()), 1)
    count = 0
    for group in rng.permutation(groups)[: max(len(groups) - keep, 0)]:
      if count >= wanted:
        break
      held_out.add((label, str(group)))
      count += counts[str(group)]
  sides: tuple[list[Clip], list[Clip]] = ([], [])
  for clip in clips:
    sides[(clip.label, clip.source) in held_out].append(clip)
  return sides


def source_of(stem: str) -> str:
  """The video that a clip was cut from, by the usual ends of names.

  Args:
    stem: name of a clip, without suffix.

  Returns:
    The name without times or clip number; the whole name, if it has none.

  Example:
    >>> source_of('-wJ9oFcOnVQ_00135_00213'), source_of('v_YoYo_g01_c02')
    ('-wJ9oFcOnVQ', 'v_YoYo_g01')
  """
  for pattern in _CUTS:
    match = pattern.fullmatch(stem)
    if match:
      return match[1]
  return stem


def digest(parts: Iterable[Iterable[Clip]]) -> str:
  """SHA-256 of names, labels and sides, wherever the clips are."""
  total = hashlib.sha256()
  for side, clips in enumerate(parts):
    for clip in clips:
      line = f'{side} {clip.label} {clip.name}\n'
      total.update(line.encode('utf-8', 'surrogateescape'))
  return total.hexdigest()


def read_lines(path: pathlib.Path) -> list[tuple[int, str]]:
  """The lines of a list that are not blank, with their numbers.

  Ends of lines of any system and a byte order mark are taken away.

  Args:
    path: a text file in UTF-8.

  Returns:
    (number, line without blanks at its end) pairs, at least one.

  Raises:
    DataError: if it cannot be read, is not UTF-8, or is empty.
  """
  try:
    text = path.read_text(encoding='utf-8-sig')
  except (OSError, ValueError) as e:
    raise DataError(f'{path}: cannot read the list: {e}.') from e
  lines = [
    (number, line.rstrip())
    for number, line in enumerate(text.split('\n'), start=1)
    if line.strip()
  ]
  if not lines:
    raise DataError(f'{path}: the list is empty.')
  return lines


def is_video(path: pathlib.Path) -> bool:
  """Whether something on a disk is a clip by its looks: nothing is decoded.

  Args:
    path: a file with the suffix of a video, or a folder of frames.

  Returns:
    True for either.

  Raises:
    DataError: if it is a folder that cannot be read.
  """
  if path.name.startswith('.'):
    return False
  if path.is_dir():
    return count_frames(path) > 0
  return path.suffix.lower() in SUFFIXES


def count_frames(folder: pathlib.Path) -> int:
  """The number of pictures in a folder of frames, by their names.

  Args:
    folder: a folder.

  Returns:
    0 if it is no folder of frames.

  Raises:
    DataError: if it cannot be read.
  """
  try:
    return sum(frame_folder.is_frame(name) for name in os.listdir(folder))
  except OSError as e:
    raise DataError(f'{folder}: cannot read: {e.strerror}.') from e


def entries(folder: pathlib.Path) -> list[pathlib.Path]:
  """What is in a folder, sorted, without hidden files.

  Args:
    folder: a folder.

  Returns:
    Paths.

  Raises:
    DataError: if it cannot be read.
  """
  try:
    return sorted(p for p in folder.iterdir() if not p.name.startswith('.'))
  except OSError as e:
    raise DataError(f'{folder}: cannot read: {e.strerror}.') from e


def nearest(name: str, names: Iterable[str]) -> str:
  """' Did you mean ...?', or '' if nothing is near."""
  return _nearest(name, tuple(names))


@functools.lru_cache(4096)  # a wrong name is wrong in many lines
def _nearest(name: str, names: tuple[str, ...]) -> str:
  guess = difflib.get_close_matches(name, names, n=1)
  return f' Did you mean {guess[0]!r}?' if guess else ''


def unused(
  paths: Sequence[pathlib.Path], folder: pathlib.Path, why: str
) -> list[Finding]:
  """One finding for the files of a folder that are not used, or none."""
  if not paths:
    return []
  names = ', '.join(repr(p.name) for p in sorted(paths)[:3])
  more = f' and {len(paths) - 3} more' if len(paths) > 3 else ''
  message = f'not used, {why}: {names}{more}.'
  return [Finding('unused', message, folder, fatal=False)]
