"""UCF Sports on disk: 13 folders of 10 classes, a folder for each clip.

Rodriguez, Ahmed, Shah, CVPR 2008; Soomro, Zamir 2014. There is no official
split: ours is seeded and stratified.
"""

import pathlib
import re

from data import clips, frame_folder
from data.clips import Clip, Dataset, Finding
from data.errors import DataError

NUM_CLIPS = 150
CLASS_OF = {
  'Diving-Side': 'Diving',
  'Golf-Swing-Back': 'Golf-Swing',
  'Golf-Swing-Front': 'Golf-Swing',
  'Golf-Swing-Side': 'Golf-Swing',
  'Kicking-Front': 'Kicking',
  'Kicking-Side': 'Kicking',
  'Lifting': 'Lifting',
  'Riding-Horse': 'Riding-Horse',
  'Run-Side': 'Run',
  'SkateBoarding-Front': 'SkateBoarding',
  'Swing-Bench': 'Swing-Bench',
  'Swing-SideAngle': 'Swing-SideAngle',
  'Walk-Front': 'Walk',
}
_NUM_CLASSES = len(set(CLASS_OF.values()))
_ABOVE = ('.', 'ucf action', 'ucf_sports_actions/ucf action')
_FRAMES = ('.', 'jpeg', 'jpg', 'frames')  # below a clip's folder
_SHOT = re.compile(r'(.+)_\d+', re.DOTALL)  # of a source video
_NO_SOURCE = ('img', 'image', 'frame')

_HOW_TO_GET = """\
UCF Sports is not at config.data.root={root!r}: no folder such as Diving-Side.
  1. Get ucf_sports_actions.zip from
     https://www.crcv.ucf.edu/data/UCF_Sports_Action.php
  2. Unpack it; each clip is an .avi or a folder of .jpg frames:
       ROOT/ucf action/Diving-Side/001/   (ROOT or the folder above it will do)
  3. Run python -m experiments.main --config=configs/ucf_sports.py with
     --config.data.root=ROOT
Without any videos:
     python -m experiments.main --config=configs/quickstart.py"""


def read(
  root: str | pathlib.Path,
  split: int,
  test_fraction: float = 0.25,
  allow_missing: int = 0,
) -> Dataset:
  """Finds the clips and splits them.

  Args:
    root: the folder with the 13 folders of classes, or one or two above it.
      "~" is the home folder.
    split: seed of the split, >= 0.
    test_fraction: of the clips of every class, in (0, 1).
    allow_missing: go on without this many empty clip folders.

  Returns:
    `Dataset`, of the classes that are there. A clip is an .avi where there is
    one, else the folder with its .jpg frames; its source is told by the name of
    either up to the last `_<number>`.

  Raises:
    DataError: if there is no data set at `root`, naming where to get it; if a
      clip's folder is empty, or holds several videos.
  """
  dataset = scan(root, split, test_fraction)
  return clips.checked(dataset, root, allow_missing)


def scan(
  root: str | pathlib.Path, split: int, test_fraction: float = 0.25
) -> Dataset:
  """As `read`, with everything that is wrong as findings.

  Args:
    root: see `read`.
    split: seed of the split, >= 0.
    test_fraction: of the clips of every class, in (0, 1).

  Returns:
    `Dataset`.

  Raises:
    DataError: if there is no data set at `root`.
  """
  folder = _find(root)
  findings: list[Finding] = []
  found: list[tuple[str, str, pathlib.Path]] = []  # class, name, video
  for entry in clips.entries(folder):
    if entry.name in CLASS_OF and entry.is_dir():
      for name, video in _clips_of(entry, findings):
        found.append((CLASS_OF[entry.name], name, video))
    elif entry.is_dir():
      hint = clips.nearest(entry.name, CLASS_OF)
      message = f'not used, no folder of UCF Sports.{hint}'
      findings.append(Finding('unused', message, entry, fatal=False))
  class_names = tuple(sorted({c for c, _, _ in found}))
  if (len(found), len(class_names)) != (NUM_CLIPS, _NUM_CLASSES):
    message = (
      f'{len(found)} clips of {len(class_names)} classes; UCF Sports has '
      f'{NUM_CLIPS} of {_NUM_CLASSES}.'
    )
    findings.append(Finding('list', message, folder, fatal=False))
  every = [
    Clip(name, video, class_names.index(class_name), _source(name, video))
    for class_name, name, video in found
  ]
  train, test, odd = clips.split(
    every, class_names, test_fraction, split, folder
  )
  return Dataset(
    class_names=class_names,
    train=tuple(train),
    test=tuple(test),
    identity={
      'name': 'ucf_sports',
      'split': split,
      'num_classes': len(class_names),
      'clips_sha256': clips.digest((train, test)),
    },
    findings=(*findings, *odd),
  )


def _find(root: str | pathlib.Path) -> pathlib.Path:
  if str(root):
    for above in _ABOVE:
      folder = pathlib.Path(root).expanduser() / above
      if any((folder / name).is_dir() for name in CLASS_OF):
        return folder
  raise DataError(_HOW_TO_GET.format(root=str(root)))


def _clips_of(
  folder: pathlib.Path, findings: list[Finding]
) -> list[tuple[str, pathlib.Path]]:
  """(name, video) of each clip in a class folder."""
  found, others = [], []
  for entry in clips.entries(folder):
    name = f'{folder.name}/{entry.name}'
    if not entry.is_dir():
      if clips.is_video(entry):
        found.append((name, entry))
      else:
        others.append(entry)
      continue
    videos = [
      p for p in clips.entries(entry) if p.is_file() and clips.is_video(p)
    ]
    frames = [
      entry / below
      for below in _FRAMES
      if (entry / below).is_dir() and clips.is_video(entry / below)
    ]
    if len(videos) > 1:
      names = ', '.join(repr(v.name) for v in videos[:3])
      message = f'expected one video, got {len(videos)}: {names}. Keep one.'
      findings.append(Finding('name', message, entry))
    elif videos or frames:
      found.append((name, (videos or frames)[0]))
    else:
      message = 'there is no video and no .jpg frames in it.'
      findings.append(Finding('missing', message, entry))
  findings += clips.unused(others, folder, 'no video')
  return found


def _source(name: str, video: pathlib.Path) -> str:
  stem = video.stem
  if video.is_dir():
    frames = [p for p in clips.entries(video) if frame_folder.is_frame(p.name)]
    stem = frames[0].stem
  match = _SHOT.fullmatch(stem)
  if match and match[1].lower() not in _NO_SOURCE:
    return match[1]
  return name
