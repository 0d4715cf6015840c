"""Any videos: class folders, or lists of paths and labels.

Without lists, `<class>/<video>` below the root, or below `train/` and `test/`
(or `val/`) there. With lists, a line `path label` a video, split from the
right; `folder number_of_frames label` for a folder of frames; or a csv file
with a header, as of Kinetics (label, youtube_id, time_start, time_end) or with
columns for path and label.
"""

import collections
import csv
import functools
import io
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from data import clips
from data.clips import Clip, Dataset, Finding
from data.errors import DataError
from data.videos import SUFFIXES

_LABEL_MAPS = ('label_map.txt', 'label_map.json', 'classInd.txt')
_SIDE_NAMES = {
  'train': ('train', 'training'),
  'validation': ('val', 'validation', 'valid'),
  'test': ('test', 'testing'),
}
_SIDES = tuple(_SIDE_NAMES)
_INTEGER = re.compile(r'[+-]?[0-9]{1,18}')
_NUMBERED = re.compile(r'([0-9]{1,9})\s+(\S.*)')
_PATH_COLUMNS = ('video_path', 'path', 'video', 'file', 'filename', 'relpath')
_LABEL_COLUMNS = ('label', 'label_name', 'class', 'action')
_TIME_COLUMNS = ('start', 'end')

_HOW_TO = """\
config.data.root={root!r}: no videos to be found there. Expected one of
  ROOT/<class>/<video>, also ROOT/train/<class>/<video> and ROOT/test/...
  --config.data.train_list=FILE, and test_list=FILE, of lines "path label" with
    paths below ROOT
A video is a file ({suffixes}) or a folder of img_00001.jpg and so on.
Without any videos:
     python -m experiments.main --config=configs/quickstart.py"""


class LabelMap(NamedTuple):
  """The classes of a file.

  Attributes:
    names: in the order of their labels.
    first: what lists write for the first of them: 0, or 1 with classInd.txt.
  """

  names: tuple[str, ...]
  first: int


class Line(NamedTuple):
  """One video of a list, as it is written there.

  Attributes:
    number: of the line, from 1.
    path: below the root, the number of frames included where there is one.
    label: number, name, or None where there is none.
    any_suffix: the path has no suffix (Kinetics).
  """

  number: int
  path: str
  label: int | str | None
  any_suffix: bool = False


def read(
  root: str | pathlib.Path, *, allow_missing: int = 0, **options
) -> Dataset:
  """Finds videos and their classes, and splits them.

  Args:
    root: the folder that all paths are below. "~" is the home folder.
    allow_missing: go on without this many listed videos.
    **options: see `scan`.

  Returns:
    `Dataset`.

  Raises:
    DataError: if there are no videos; if a line of a list is wrong, with file
      and line; if a listed video is missing; if labels have gaps.
  """
  return clips.checked(scan(root, **options), root, allow_missing)


def scan(
  root: str | pathlib.Path,
  *,
  train_list: str = '',
  validation_list: str = '',
  test_list: str = '',
  label_map: str = '',
  split: int = 1,
  test_fraction: float = 0.25,
) -> Dataset:
  """As `read`, with everything that is wrong as findings.

  Args:
    root: the folder that all paths are below.
    train_list: list of training videos, here or below the root; '': none.
    validation_list: of validation videos; '': held out of training.
    test_list: of test videos; '': split from training.
    label_map: file of class names, one a line, or `{name: label}` in .json, or
      UCF101's classInd.txt, with which labels begin at 1; '': the first of
      label_map.txt, label_map.json, classInd.txt in the root, if any.
    split: seed of the split where there is no test side, >= 0.
    test_fraction: of the clips of every class, where there is no test side.

  Returns:
    `Dataset`, of the lines that are right and the videos that are there.

  Raises:
    DataError: if there are no videos at `root`, or no such list.
  """
  if not str(root) or not pathlib.Path(root).expanduser().is_dir():
    raise DataError(_how_to(root))
  folder = pathlib.Path(root).expanduser().absolute()
  findings: list[Finding] = []
  given = {
    'train': train_list, 'validation': validation_list, 'test': test_list
  }  # fmt: skip
  label_map_path = _label_map_path(folder, label_map)
  names = read_label_map(label_map_path) if label_map_path else None
  if any(given.values()):
    if not train_list:
      raise DataError(
        'config.data.train_list: missing, where another list is given.'
      )
    class_names, sides = _from_lists(
      folder,
      {s: _list_path(folder, s, name) for s, name in given.items() if name},
      names,
      findings,
    )
  else:
    class_names, sides = _from_folders(folder, names, findings)
  if not any(sides.values()) and not any(f.fatal for f in findings):
    raise DataError(_how_to(root))
  _check_classes(class_names, sides['train'], label_map_path, folder, findings)
  official = bool(sides['test'])
  if not official:
    sides['train'], sides['test'], odd = clips.split(
      sides['train'], class_names, test_fraction, split, folder
    )
    findings += odd
  return Dataset(
    class_names=class_names,
    train=tuple(sides['train']),
    validation=tuple(sides['validation']),
    test=tuple(sides['test']),
    identity={
      'name': 'video_folder',
      'split': 'given' if official else split,
      'num_classes': len(class_names),
      'clips_sha256': clips.digest(sides.values()),
    },
    findings=tuple(findings),
  )


def read_label_map(path: pathlib.Path) -> LabelMap:
  """Reads the names of the classes.

  Args:
    path: one name a line; or lines `<number> <name>` with the numbers 1..n
      (classInd.txt) or 0..n-1; or JSON: `{name: number}` or a list of names.

  Returns:
    `LabelMap`.

  Raises:
    DataError: naming the file, and the line of a name that is there twice.
  """
  lines = clips.read_lines(path)
  if path.suffix.lower() == '.json':
    names = _json_names(path)
    return LabelMap(tuple(names), 0)
  numbered = [_NUMBERED.fullmatch(text.strip()) for _, text in lines]
  numbers = sorted(int(m[1]) for m in numbered if m)
  if len(numbers) == len(lines) and numbers[0] <= 1:
    first = numbers[0]
    if numbers != list(range(first, first + len(numbers))):
      raise DataError(
        f'{path}: expected the numbers {first}..{first + len(numbers) - 1}, '
        'each once.'
      )
    named = sorted(
      (int(m[1]), line, m[2]) for (line, _), m in zip(lines, numbered) if m
    )
  else:
    first = 0
    named = [(k, line, text.strip()) for k, (line, text) in enumerate(lines)]
  seen: dict[str, int] = {}
  for _, line, name in named:
    if not name.isprintable():
      raise DataError(f'{path}:{line}: expected a name, got {name!r}.')
    if name in seen:
      raise DataError(
        f'{path}:{line}: class {name!r} is there twice, first in line '
        f'{seen[name]}.'
      )
    seen[name] = line
  return LabelMap(tuple(seen), first)


def _json_names(path: pathlib.Path) -> list[str]:
  expected = f'{path}: expected {{"class": 0, ...}} or ["class", ...] in JSON'
  try:
    tree = json.loads(
      path.read_text(encoding='utf-8-sig'), object_pairs_hook=list
    )
  except (ValueError, RecursionError) as e:
    raise DataError(f'{expected}: {e}.') from e
  if not isinstance(tree, list) or not tree:
    raise DataError(f'{expected}, got {str(tree)[:40]!r}.')
  if all(isinstance(item, tuple) for item in tree):
    pairs = [(label, name) for name, label in tree]
    if not all(type(label) is int for label, _ in pairs) or sorted(
      label for label, _ in pairs
    ) != list(range(len(pairs))):
      raise DataError(
        f'{path}: expected the labels 0..{len(pairs) - 1}, each once.'
      )
    names = [name for _, name in sorted(pairs)]
  else:
    names = tree
  if not all(
    isinstance(name, str) and name and name.isprintable() for name in names
  ):
    raise DataError(f'{expected}, got a name that is no text.')
  if len(set(names)) < len(names):
    twice = next(n for n in names if names.count(n) > 1)
    raise DataError(f'{path}: class {twice!r} is there twice.')
  return names


def read_list(path: pathlib.Path, findings: list[Finding]) -> list[Line]:
  """Reads a list of videos.

  Args:
    path: lines `path label`, or `folder frames label`, split from the right; or
      a .csv file with commas, with a header or of lines `path,label`.
    findings: where wrong lines go.

  Returns:
    The lines that are right.

  Raises:
    DataError: if it cannot be read or is empty.
  """
  lines = clips.read_lines(path)
  if path.suffix.lower() == '.csv' and ',' in lines[0][1]:
    return _read_csv(path, findings)
  entries = []
  for number, text in lines:
    left, label = ([''] + text.strip().rsplit(maxsplit=1))[-2:]
    if label.lower().endswith(SUFFIXES):  # the end of a path with blanks
      left, label = text.strip(), None
    elif not left:
      left, label = label, None
    entries.append(_line(number, left, label))
  return entries


def _line(number: int, path: str, label: str | None) -> Line:
  """A line with its label as a number where it is one."""
  if label is not None and _INTEGER.fullmatch(label):
    return Line(number, path, int(label))
  return Line(number, path, label or None)


def _read_csv(path: pathlib.Path, findings: list[Finding]) -> list[Line]:
  text = path.read_text(encoding='utf-8-sig')
  rows = csv.reader(io.StringIO(text, newline=''))
  entries: list[Line] = []
  columns: dict[str, int] | None = None
  first = True
  try:
    for cells in rows:
      cells = [cell.strip() for cell in cells]
      if not any(cells):
        continue
      if first:
        first = False
        columns = _columns(cells)
        if columns:
          continue
      if columns:
        entries += _row(path, rows.line_num, cells, columns, findings)
      elif len(cells) == 2:
        entries.append(_line(rows.line_num, *cells))
      else:
        message = f'expected "path,label", got {len(cells)} cells.'
        findings.append(Finding('line', message, path, rows.line_num))
  except csv.Error as e:
    findings.append(Finding('line', f'no csv: {e}.', path, rows.line_num))
  return entries


def _columns(cells: Sequence[str]) -> dict[str, int] | None:
  """{column: index} if this is a header."""
  columns = {cell.lower(): k for k, cell in enumerate(cells)}
  known = (*_PATH_COLUMNS, 'youtube_id')
  if any(c in columns for c in known) and any(
    c in columns for c in _LABEL_COLUMNS
  ):
    return columns
  return None


def _row(
  path: pathlib.Path,
  number: int,
  cells: Sequence[str],
  columns: dict[str, int],
  findings: list[Finding],
) -> list[Line]:
  """One row under a header; nothing if it is wrong."""

  def cell(*names):
    for name in names:
      if name in columns and columns[name] < len(cells):
        return cells[columns[name]]
    return ''

  def wrong(message):
    findings.append(Finding('line', message, path, number))
    return []

  label = cell(*_LABEL_COLUMNS)
  if not label:
    return wrong('no label.')
  video = cell(*_PATH_COLUMNS)
  if video:
    start, end = (cell(name) for name in _TIME_COLUMNS)
    if end or start.strip('0.'):
      return wrong(
        f'a part of a video (start {start!r}, end {end!r}): parts are not cut '
        'out. Make a file of each, and leave start and end empty.'
      )
    return [_line(number, video, label)]
  times = [cell('time_start'), cell('time_end')]
  if not cell('youtube_id') or not all(re.fullmatch('[0-9]{1,6}', t)
                                       for t in times):  # fmt: skip
    return wrong(
      'expected youtube_id, time_start and time_end in whole seconds, got '
      f'{cell("youtube_id")!r}, {times[0]!r}, {times[1]!r}.'
    )
  start, end = map(int, times)
  name = f'{label}/{cell("youtube_id")}_{start:06d}_{end:06d}'
  return [Line(number, name, label, any_suffix=True)]


# --- from lists and folders to clips ----------------------------------------

_Sides = dict[str, list[Clip]]


def _how_to(root: str | pathlib.Path) -> str:
  return _HOW_TO.format(root=str(root), suffixes=', '.join(SUFFIXES))


def _label_map_path(root: pathlib.Path, name: str) -> pathlib.Path | None:
  if name:
    return _list_path(root, 'label_map', name)
  files = [root / n for n in _LABEL_MAPS if (root / n).is_file()]
  return files[0] if files else None


def _list_path(root: pathlib.Path, side: str, name: str) -> pathlib.Path:
  here = pathlib.Path(name).expanduser()
  for path in (here, root / here):
    if path.is_file():
      return path
  field = side if side == 'label_map' else f'{side}_list'
  raise DataError(
    f'config.data.{field}: no file {name!r}, here or below {root}.'
  )


def _from_folders(
  root: pathlib.Path, label_map: LabelMap | None, findings: list[Finding]
) -> tuple[tuple[str, ...], _Sides]:
  """Clips of class folders, of one or more sides."""
  folders: dict[str, pathlib.Path] = {}
  for side, names in _SIDE_NAMES.items():
    for name in names:
      if (root / name).is_dir() and not clips.is_video(root / name):
        folders.setdefault(side, root / name)
  if 'train' not in folders or len(folders) < 2:
    folders = {'train': root}
  if 'test' not in folders and 'validation' in folders:
    folders['test'] = folders.pop('validation')  # as Kinetics is evaluated
  found: dict[str, list[tuple[str, pathlib.Path]]] = {}
  for side, folder in folders.items():
    found[side] = _videos_of_classes(folder, findings)
  names = sorted({name for videos in found.values() for name, _ in videos})
  if label_map:
    for name in names:
      if name not in label_map.names:
        hint = clips.nearest(name, label_map.names)
        message = f'the class folder {name!r} is not in the label map.{hint}'
        findings.append(Finding('class', message, root))
    names = list(label_map.names)
  labels = {name: label for label, name in enumerate(names)}
  sides: _Sides = {side: [] for side in _SIDES}
  for side, videos in found.items():
    for name, path in videos:
      if name in labels:
        relative = path.relative_to(root).as_posix()
        sides[side].append(
          Clip(relative, path, labels[name], clips.source_of(path.stem))
        )
  return tuple(names), sides


def _videos_of_classes(
  folder: pathlib.Path, findings: list[Finding]
) -> list[tuple[str, pathlib.Path]]:
  """(class, video) for each video of each class folder."""
  found = []
  for class_folder in clips.entries(folder):
    if not class_folder.is_dir():
      continue
    content = clips.entries(class_folder)
    videos = [p for p in content if clips.is_video(p)]
    if not videos:
      findings += clips.unused([class_folder], folder, 'without videos')
      continue
    others = [p for p in content if p not in videos]
    findings += clips.unused(others, class_folder, 'no videos')
    odd = [
      p
      for p in videos
      if not class_folder.name.isprintable() or not _is_utf8(p.name)
    ]
    for path in odd:
      message = 'its name, or that of its folder, is no text. Rename it.'
      findings.append(Finding('name', message, path))
    found += [(class_folder.name, p) for p in videos if p not in odd]
  return found


def _is_utf8(name: str) -> bool:
  try:
    name.encode()
  except UnicodeEncodeError:
    return False
  return True


def _from_lists(
  root: pathlib.Path,
  lists: dict[str, pathlib.Path],
  label_map: LabelMap | None,
  findings: list[Finding],
) -> tuple[tuple[str, ...], _Sides]:
  """Clips of lists."""
  entries: list[tuple[str, pathlib.Path, Line]] = []
  for side, path in lists.items():
    try:
      entries += [(side, path, line) for line in read_list(path, findings)]
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
  sides: _Sides = {side: [] for side in _SIDES}
  for side, path, line in entries:

    def wrong(kind, message, path=path, line=line):
      findings.append(Finding(kind, message, path, line.number))

    label = _label(line, classes, wrong)
    relative = _relative(root, line, wrong)
    if label is None or relative is None:
      continue
    video = _video(root, relative, line, _SIDE_NAMES[side], listing)
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
  if frame_folder and _INTEGER.fullmatch(frames):
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


def _check_classes(
  names: Sequence[str],
  train: Sequence[Clip],
  label_map: pathlib.Path | None,
  root: pathlib.Path,
  findings: list[Finding],
) -> None:
  """Every class needs clips to train on."""
  present = {clip.label for clip in train}
  empty = [name for k, name in enumerate(names) if k not in present]
  if not empty or not train:
    return
  listed = ', '.join(repr(n) for n in empty[: clips.MAX_LISTED])
  more = f' and {len(empty) - clips.MAX_LISTED} more'
  listed += more if len(empty) > clips.MAX_LISTED else ''
  if label_map:
    message = f'no training clips of {listed}.'
    findings.append(Finding('class', message, label_map, fatal=False))
  else:
    message = (
      f'labels have gaps: no training clips of {listed}. Number the classes '
      '0, 1, 2, ..., or give config.data.label_map.'
    )
    findings.append(Finding('label', message, root))
