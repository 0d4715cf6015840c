"""Frames from a camera or a pipe, as they come.

A pipe may carry motion JPEG, yuv4mpegpipe, Matroska or MPEG-TS: what can be
read without going back. Its kind is that of its first bytes. A device is a
camera of Video4Linux.
"""

import os
import stat
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import av
import numpy as np

from data import videos
from data.errors import VideoError

STDIN = '-'
_FIRST_BYTES = {
  b'\xff\xd8': 'mjpeg',
  b'YUV4MPEG2': 'yuv4mpegpipe',
  b'\x1a\x45\xdf\xa3': 'matroska',
  b'G': 'mpegts',
}
_EXPECTED = 'motion JPEG, yuv4mpegpipe, Matroska or MPEG-TS'
_PEEK = 16
# Look at little before the first frame is given: a camera has no end to wait
# for.
_OPTIONS = {'probesize': '2048', 'analyzeduration': '1', 'fpsprobesize': '0'}


def stream(
  source: str,
  sizes: Sequence[videos.Size],
  *,
  fps: float | None = None,
) -> Iterator[tuple[np.ndarray, ...]]:
  """The frames of a live source one at a time.

  Args:
    source: '-' for standard input, or the path of a named pipe, of a file that
      is read as a pipe is, or of a camera (/dev/video0).
    sizes: see `videos.stream`.
    fps: take the frame that is shown at 0, 1/fps, ... seconds; None: all.

  Yields:
    uint8 arrays `[height, width, 3]`, RGB, one a size.

  Raises:
    VideoError: if it cannot be opened, is of another kind, or breaks off within
      a frame.
  """
  name = 'standard input' if source == STDIN else source
  try:
    is_camera = source != STDIN and stat.S_ISCHR(os.stat(source).st_mode)
    if is_camera:
      with av.open(source, format='v4l2') as container:
        yield from videos.stream_opened(name, container, sizes, fps=fps)
      return
    if source == STDIN:
      yield from _pipe(name, sys.stdin.buffer, sizes, fps)
      return
    with open(source, 'rb') as file:
      yield from _pipe(name, file, sizes, fps)
  except (av.error.FFmpegError, OSError, ValueError) as e:
    if isinstance(e, VideoError):
      raise
    reason = getattr(e, 'strerror', None) or e
    raise VideoError(f'{name}: cannot read: {reason}.') from e


def _pipe(name: str, file, sizes, fps) -> Iterator[tuple[np.ndarray, ...]]:
  head = file.peek(_PEEK)[:_PEEK]
  kinds = [k for first, k in _FIRST_BYTES.items() if head.startswith(first)]
  if not kinds:
    found = f'what starts with {head[:8]!r}' if head else 'nothing'
    raise VideoError(
      f'{name}: expected {_EXPECTED}, found {found}. Another kind: '
      'ffmpeg -i IN -c copy -f matroska -.'
    )
  with av.open(_Pipe(file), format=kinds[0], options=_OPTIONS) as container:
    yield from videos.stream_opened(name, container, sizes, fps=fps)


class _Pipe:
  """What PyAV needs of a file: no more is waited for than has come."""

  def __init__(self, file: BinaryIO):
    self._file = file

  def read(self, size: int) -> bytes:
    return self._file.read1(size)  # pyright: ignore
