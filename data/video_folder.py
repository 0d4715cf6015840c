"""Any videos: class folders, or lists of paths and labels.

Without lists, `<class>/<video>` below the root, or below `train/` and `test/`
(or `val/`) there. With lists, see `data.video_lists`.
"""

import pathlib
from collections.abc import Sequence

from data import clips, label_maps, listed_clips
from data.clips import Clip, Dataset, Finding
from data.errors import DataError
from data.label_maps import LabelMap
from data.listed_clips import SIDE_NAMES, Sides
from data.videos import SUFFIXES

_LABEL_MAPS = ('label_map.txt', 'label_map.json', 'classInd.txt')

_HOW_TO = """\
config.data.root={root!r}: no videos to be found there. Expected one of
  ROOT/<class>/<video>, also ROOT/train/<class>/<video> and ROOT/test/...
  --config.data.train_list=FILE, and test_list=FILE, of lines "path label" with
    paths below ROOT
A video is a file ({suffixes}) or a folder of img_00001.jpg and so on.
Without any videos:
     python -m experiments.main --config=configs/quickstart.py"""


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
  names = label_maps.read(label_map_path) if label_map_path else None
  if any(given.values()):
    if not train_list:
      raise DataError(
        'config.data.train_list: missing, where another list is given.'
      )
    class_names, sides = listed_clips.read(
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
) -> tuple[tuple[str, ...], Sides]:
  """Clips of class folders, of one or more sides."""
  folders: dict[str, pathlib.Path] = {}
  for side, names in SIDE_NAMES.items():
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
  sides: Sides = {side: [] for side in SIDE_NAMES}
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
