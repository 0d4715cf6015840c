"""What a data set is and will cost: python -m data.describe --config=FILE.

Headers of videos are read, not the videos. How long extraction takes is
measured on a few clips on this machine.
"""

import collections
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags

from data import command
from data.clips import Clip
from data.decoding import Decoders
from data.errors import VideoError

_FLAGS = command.new_flags()
flags.DEFINE_bool(
  'estimate',
  True,
  'Measure how long the extraction of features takes.',
  flag_values=_FLAGS,
)
_SAMPLE = 5  # clips to measure on


def main() -> int:
  """Prints what a config's data set is; 0."""
  opened = command.open_config(_FLAGS)
  every = [clip for part in opened.parts for clip in part]
  tree = {
    'data': opened.dataset.identity,
    'root': str(opened.data.root),
    'classes': command.class_counts(opened),
    **_headers(every),
    'video_bytes': sum(_size(clip.path) for clip in every),
  }
  if _FLAGS.estimate and tree['frames']:
    from data import features  # imports JAX

    name, fps = opened.data.features, opened.data.fps or None
    total = round(tree['seconds'] * fps) if fps else tree['frames']['total']
    tree['features'] = {'extractor': name} | estimate(
      features.create(name, opened.data.weights),
      every,
      total,
      fps,
      opened.data.store_dtype,
    )
  if _FLAGS.json:
    print(json.dumps(tree, indent=2))
  else:
    print(_report(opened, tree))
  return 0


def _headers(every: Sequence[Clip]) -> dict[str, Any]:
  """Numbers of frames, sizes and codings, as the headers declare them."""
  lengths, seconds, unreadable, untold = [], 0.0, 0, 0
  kinds: collections.Counter[str] = collections.Counter()
  with Decoders() as decoders:
    headers = decoders.headers(clip.path for clip in every)
    told = [
      header
      for _, header in command.progress(headers, len(every), 'headers read')
    ]
  for header in told:
    if isinstance(header, VideoError):
      unreadable += 1
      continue
    kinds[f'{header.kind} {header.codec} {header.width}x{header.height}'] += 1
    if header.num_frames is None:
      untold += 1
      continue
    lengths.append(header.num_frames)
    seconds += header.num_frames / header.fps if header.fps else 0.0
  return {
    'kinds': dict(kinds.most_common()),
    'frames': command.frame_counts(lengths) if lengths else None,
    'seconds': round(seconds, 1),
    'unreadable': unreadable,
    'without_frame_count': untold,
  }


def estimate(
  extractor: Any,
  every: Sequence[Clip],
  total: int,
  fps: float | None = None,
  dtype: str = 'float16',
) -> dict[str, Any]:
  """Measures decoding and extraction on a few clips.

  Args:
    extractor: a `data.features.Extractor`.
    every: all clips.
    total: frames of all clips.
    fps: frames a second to take; None: every frame.
    dtype: of the features on disk.

  Returns:
    {'bytes': of all features, 'decode_fps', 'extract_fps', 'seconds': of all};
    the last three are None if no clip of the sample can be decoded.
  """
  numbers = extractor.feature_shape[0] * extractor.feature_shape[1]
  cost = {'bytes': total * numbers * np.dtype(dtype).itemsize}
  step = max(len(every) // _SAMPLE, 1)
  sample = [clip.path for clip in every[::step][:_SAMPLE]]
  clips, count = [], 0
  with Decoders(1) as decoders:
    list(decoders.headers(sample[:1]))  # it is running now
    start = time.perf_counter()
    for path in sample:
      try:
        size = extractor.image_size
        clips.append(decoders.decode(path, size, fps=fps))
      except VideoError:
        continue
      count += len(clips[-1])
    decoding = time.perf_counter() - start
  if not clips:
    return cost | {'decode_fps': None, 'extract_fps': None, 'seconds': None}
  for frames in clips:  # compiles
    extractor.extract(frames)
  start = time.perf_counter()
  for frames in clips:
    extractor.extract(frames)
  extraction = time.perf_counter() - start
  return cost | {
    'decode_fps': round(count / decoding, 1),
    'extract_fps': round(count / extraction, 1),
    # One decodes while the other extracts.
    'seconds': round(total / count * max(decoding, extraction), 1),
  }


def _size(path: pathlib.Path) -> int:
  try:
    if path.is_dir():
      return sum(entry.stat().st_size for entry in os.scandir(path))
    return path.stat().st_size
  except OSError:
    return 0


def _report(opened: command.Opened, tree: dict[str, Any]) -> str:
  lines = [command.title(opened), command.class_table(tree['classes'])]
  lines += [f'{count} x {kind}' for kind, count in tree['kinds'].items()]
  if tree['frames']:
    lines += [
      command.histogram(tree['frames']),
      f'about {tree["frames"]["total"]} frames, '
      f'{_duration(tree["seconds"])}, by the headers',
    ]
  if tree['without_frame_count']:
    lines.append(
      f'{tree["without_frame_count"]} clips do not tell their frames'
    )
  if tree['unreadable']:
    lines.append(
      f'{tree["unreadable"]} clips cannot be read: python -m data.check tells'
    )
  lines.append(f'videos: {_bytes(tree["video_bytes"])}')
  cost = tree.get('features')
  if cost:
    lines.append(
      f'features of {cost["extractor"]}: {_bytes(cost["bytes"])} more'
    )
    if cost['seconds'] is not None:
      lines.append(
        f'to extract them: about {_duration(cost["seconds"])} on this machine '
        f'(decoding {cost["decode_fps"]:.0f}, extraction '
        f'{cost["extract_fps"]:.0f} frames/s)'
      )
  return '\n'.join(lines)


def _bytes(count: int) -> str:
  value, unit = float(count), 'B'
  for larger in ('kB', 'MB', 'GB', 'TB'):
    if value < 1000:
      break
    value, unit = value / 1000, larger
  return f'{value:.0f} {unit}' if value >= 10 else f'{value:.1f} {unit}'


def _duration(seconds: float) -> str:
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours} h {minutes} min'
  return f'{minutes} min {rest} s' if minutes else f'{rest} s'


if __name__ == '__main__':
  command.run(main, _FLAGS, __doc__ or '')
