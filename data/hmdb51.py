"""HMDB51 on disk: class folders of videos, and the official split lists.

Kuehne et al., ICCV 2011. Also J-HMDB's clips, or any subset of the classes, in
the same layout.
"""

import hashlib
import pathlib

from data import clips
from data.clips import Clip, Dataset, Finding
from data.errors import DataError

UNUSED, TRAIN, TEST = 0, 1, 2
NUM_SPLITS = 3
VIDEO_SUFFIX = '.avi'
_SPLIT_FOLDERS = ('splits', 'testTrainMulti_7030_splits', 'test_train_splits')

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


def read(
  root: str | pathlib.Path, split: int, allow_missing: int = 0
) -> Dataset:
  """Reads the lists of a split and finds its videos.

  Args:
    root: folder with `<class>/<clip>.avi`, or `videos/<class>/<clip>.avi`, and
      the lists in `splits/`, `testTrainMulti_7030_splits/` or
      `test_train_splits/` (flat, or one `testTrainMulti_7030_splits/` deeper),
      or in the root itself. "~" is the home folder.
    split: 1, 2 or 3.
    allow_missing: go on without this many listed videos.

  Returns:
    `Dataset`, of the clips marked 1 and 2. Classes are those with a list.

  Raises:
    DataError: if there is no data set at `root`, naming where to get it; if a
      line of a list is wrong, with file and line; if a listed video is missing.
  """
  return clips.checked(scan(root, split), root, allow_missing)


def scan(root: str | pathlib.Path, split: int) -> Dataset:
  """As `read`, with everything that is wrong as findings.

  Args:
    root: see `read`.
    split: 1, 2 or 3.

  Returns:
    `Dataset`, of the lines that are right and the videos that are there.

  Raises:
    DataError: if there is no data set at `root`.
  """
  if not 1 <= split <= NUM_SPLITS:
    raise DataError(f'config.data.split: expected 1, 2 or 3, got {split}.')
  folder = pathlib.Path(root).expanduser()
  lists = _split_lists(folder, split) if str(root) else {}
  if not lists:
    raise DataError(_HOW_TO_GET.format(root=str(root), split=split))
  class_names = tuple(sorted(lists))
  videos = _videos_folder(folder, class_names)
  sides: dict[int, list[Clip]] = {TRAIN: [], TEST: [], UNUSED: []}
  findings: list[Finding] = []
  digest = hashlib.sha256()
  for label, class_name in enumerate(class_names):
    path = lists[class_name]
    present = _files(videos / class_name)
    listed = _read_list(path, class_name, findings)
    for file, (line, mark) in listed.items():
      digest.update(f'{class_name}/{file} {mark}\n'.encode())
      if file not in present and mark != UNUSED:
        message = f'{videos / class_name / file} is missing.'
        findings.append(Finding('missing', message, path, line))
        continue
      sides[mark].append(
        Clip(
          name=f'{class_name}/{file}',
          path=videos / class_name / file,
          label=label,
          source=file.partition(f'_{class_name}_')[0],
        )
      )
    findings += clips.unused(
      [p for name, p in present.items() if name not in listed],
      videos / class_name,
      f'in no line of {path.name}',
    )
  return Dataset(
    class_names=class_names,
    train=tuple(sides[TRAIN]),
    test=tuple(sides[TEST]),
    identity={
      'name': 'hmdb51',
      'split': split,
      'num_classes': len(class_names),
      'lists_sha256': digest.hexdigest(),
    },
    findings=tuple(findings),
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


def _files(folder: pathlib.Path) -> dict[str, pathlib.Path]:
  """Videos of a class folder by name; none, if there is no folder."""
  if not folder.is_dir():
    return {}
  return {
    p.name: p
    for p in clips.entries(folder)
    if p.suffix == VIDEO_SUFFIX and p.is_file()
  }


def _read_list(
  path: pathlib.Path, class_name: str, findings: list[Finding]
) -> dict[str, tuple[int, int]]:
  """{file name: (line, mark)}; names may hold blanks, #, ( and such."""
  listed: dict[str, tuple[int, int]] = {}
  try:
    lines = clips.read_lines(path)
  except DataError as e:
    message = str(e).removeprefix(f'{path}: ')
    findings.append(Finding('list', message, path))
    return listed
  for number, line in lines:
    file, mark = (line.rsplit(maxsplit=1) + [''])[:2]
    if mark not in ('0', '1', '2') or not file.endswith(VIDEO_SUFFIX):
      kind = 'line'
      message = (
        f'expected "<clip>{VIDEO_SUFFIX} <mark>" with mark 1 (train), 2 '
        f'(test) or 0 (unused), got {line!r}.'
      )
    elif '/' in file or '\\' in file:
      kind = 'line'
      message = (
        f'expected a file of the class {class_name!r}, got a path: {file!r}.'
      )
    elif file in listed:
      kind = 'duplicate'
      message = f'{file!r} is listed twice, first in line {listed[file][0]}.'
    else:
      listed[file] = (number, int(mark))
      continue
    findings.append(Finding(kind, message, path, number))
  return listed
