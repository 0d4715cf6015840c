"""Olympic Sports on disk: class folders of `.seq` files, and official lists.

Niebles, Chen, Fei-Fei, ECCV 2010. 783 clips of 16 classes from 475 source
videos: a random split would put parts of one video on both sides.
"""

import pathlib

from data import clips
from data.clips import Clip, Dataset, Finding
from data.errors import DataError
from data.videos import SUFFIXES

SIDES = ('train', 'test')
NUM_LISTED = {'train': 649, 'test': 134}
_SPELLING = {'diving_platfrom_10m': 'diving_platform_10m'}  # as it is on disk
_LIST_FOLDERS = ('train_test_split', 'train_test_splits', 'splits', '.')
_LIST_NAMES = ('{}.txt', '{}_list.txt', '{}list.txt', '{}_set.txt')

_HOW_TO_GET = """\
Olympic Sports is not at config.data.root={root!r}: {missing}.
  1. Get the sequences and the official split from
     http://vision.stanford.edu/Datasets/OlympicSports/
  2. Unpack both to this layout:
       ROOT/<class>/<clip>.seq    or ROOT/videos/<class>/<clip>.seq
       ROOT/train_test_split/train/<class>.txt, or .../train.txt for all classes
       ROOT/train_test_split/test/<class>.txt,  or .../test.txt
  3. Run python -m experiments.main --config=configs/olympic_sports.py with
     --config.data.root=ROOT
Without any videos:
     python -m experiments.main --config=configs/quickstart.py"""


def read(root: str | pathlib.Path, allow_missing: int = 0) -> Dataset:
  """Reads the official lists and finds the clips.

  Args:
    root: folder with `<class>/<clip>.seq` or `videos/<class>/<clip>.seq` (or
      another kind of video of that name), and the lists in `train_test_split/`,
      `splits/` or the root: one a class in `train/` and `test/`, or `train.txt`
      and `test.txt`. "~" is the home folder.
    allow_missing: go on without this many listed videos.

  Returns:
    `Dataset`; classes are the folders with clips.

  Raises:
    DataError: if there is no data set at `root`, naming where to get it; if a
      line of a list is wrong, with file and line; if a listed video is missing.
  """
  return clips.checked(scan(root), root, allow_missing)


def scan(root: str | pathlib.Path) -> Dataset:
  """As `read`, with everything that is wrong as findings.

  Args:
    root: see `read`.

  Returns:
    `Dataset`, of the lines that are right and the videos that are there.

  Raises:
    DataError: if there is no data set at `root`.
  """
  folder = pathlib.Path(root).expanduser()
  lists = _lists(folder) if str(root) else {}
  if not lists:
    raise DataError(_how_to_get(root, 'no lists of train and test'))
  videos = _videos(folder)
  if not videos:
    raise DataError(_how_to_get(root, 'no class folder with a .seq file'))
  class_names = tuple(sorted({_class_name(f) for f, _ in videos}))
  findings: list[Finding] = []
  places: dict[tuple[str, str], str] = {}  # where a clip was listed
  sides = {}
  for side in SIDES:
    sides[side] = [
      Clip(
        name=f'{folder_name}/{path.stem}',
        path=path,
        label=class_names.index(_class_name(folder_name)),
        source=clips.source_of(path.stem),
      )
      for list_path in lists[side]
      for folder_name, path in _read_list(list_path, videos, places, findings)
    ]
    if len(sides[side]) != NUM_LISTED[side]:
      message = (
        f'{len(sides[side])} clips for {side}; the official list has '
        f'{NUM_LISTED[side]}.'
      )
      findings.append(Finding('list', message, lists[side][0], fatal=False))
  left = [path for key, path in videos.items() if key not in places]
  findings += clips.unused(left, folder, 'in no list')
  return Dataset(
    class_names=class_names,
    train=tuple(sides['train']),
    test=tuple(sides['test']),
    identity={
      'name': 'olympic_sports',
      'num_classes': len(class_names),
      'lists_sha256': clips.digest(sides.values()),
    },
    findings=tuple(findings),
  )


def _how_to_get(root: str | pathlib.Path, missing: str) -> str:
  return _HOW_TO_GET.format(root=str(root), missing=missing)


def _class_name(folder_name: str) -> str:
  return _SPELLING.get(folder_name, folder_name)


def _lists(root: pathlib.Path) -> dict[str, list[pathlib.Path]]:
  """The lists of each side, from the first folder that has both."""
  for base in _LIST_FOLDERS:
    lists = {}
    for side in SIDES:
      folder = root / base / side
      files = [root / base / name.format(side) for name in _LIST_NAMES]
      if folder.is_dir():
        files += [p for p in clips.entries(folder) if p.suffix == '.txt']
        files = [p for p in files if p.is_file()]
      else:
        files = [p for p in files if p.is_file()][:1]
      lists[side] = files
    if all(lists.values()):
      return lists
  return {}


def _videos(root: pathlib.Path) -> dict[tuple[str, str], pathlib.Path]:
  """{(class folder, stem): video}; .seq goes before other kinds."""
  found = {}
  for folder in (root / 'videos', root):
    if not folder.is_dir():
      continue
    for class_folder in clips.entries(folder):
      if not class_folder.is_dir() or class_folder.name in _LIST_FOLDERS:
        continue
      videos = [p for p in clips.entries(class_folder) if clips.is_video(p)]
      for path in sorted(videos, key=lambda p: p.suffix.lower() == '.seq'):
        if path.is_file():
          found[class_folder.name, path.stem] = path
    if found:
      break
  return dict(sorted(found.items()))


def _read_list(
  path: pathlib.Path,
  videos: dict[tuple[str, str], pathlib.Path],
  places: dict[tuple[str, str], str],
  findings: list[Finding],
) -> list[tuple[str, pathlib.Path]]:
  """(class folder, video) of each line that is right."""
  listed = []
  try:
    lines = clips.read_lines(path)
  except DataError as e:
    message = str(e).removeprefix(f'{path}: ')
    findings.append(Finding('list', message, path))
    return listed
  folders = {folder for folder, _ in videos}
  by_name = {_class_name(f): f for f in sorted(folders)}
  own = by_name.get(_class_name(path.stem))  # a list of one class
  for number, line in lines:
    name = line.strip()
    class_name, _, stem = name.rpartition('/')
    if pathlib.PurePath(stem).suffix.lower() in SUFFIXES:
      stem = stem.rpartition('.')[0]
    if class_name:
      candidates = [by_name.get(_class_name(class_name), class_name)]
    else:
      candidates = [own] if own else sorted(folders)
    keys = [(c, stem) for c in candidates if (c, stem) in videos]
    if class_name and candidates[0] not in folders:
      hint = clips.nearest(class_name, folders)
      kind, message = 'class', f'no class folder {class_name!r}.{hint}'
    elif not keys:
      where = candidates[0] if len(candidates) == 1 else 'any class folder'
      kind, message = 'missing', f'{stem!r} is not in {where}.'
    elif len(keys) > 1:
      choice = ' or '.join(repr('/'.join(key)) for key in keys)
      kind = 'name'
      message = f'{stem!r} is in several class folders: write {choice}.'
    elif keys[0] in places:
      kind = 'duplicate'
      message = f'{stem!r} is listed twice, first in {places[keys[0]]}.'
    else:
      places[keys[0]] = f'{path}:{number}'
      listed.append((keys[0][0], videos[keys[0]]))
      continue
    findings.append(Finding(kind, message, path, number))
  return listed
