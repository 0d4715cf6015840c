"""Decodes videos to RGB frames with PyAV, in order."""

import pathlib

import av
import numpy as np

from data.errors import VideoError


def decode(
  path: str | pathlib.Path, size: tuple[int, int] | None = None
) -> np.ndarray:
  """All frames of a video.

  Frames are counted by decoding them: what the header says of their number is
  not looked at. The whole frame is resized to `size`, whatever its shape.

  Args:
    path: a video file.
    size: (height, width) to resize to, or None for the video's own.

  Returns:
    uint8 `[T, height, width, 3]`, RGB, T >= 1.

  Raises:
    VideoError: naming the file, if it cannot be opened, has no video stream,
      breaks off, or has no frames.
  """
  height, width = size or (None, None)
  frames = []
  try:
    with av.open(str(path)) as container:
      if not container.streams.video:
        raise VideoError(f'{path}: no video stream in it.')
      for frame in container.decode(video=0):
        small = frame.reformat(
          width=width, height=height, format='rgb24', interpolation='BILINEAR'
        )
        frames.append(small.to_ndarray())
  except (av.error.FFmpegError, OSError, ValueError) as e:
    if isinstance(e, VideoError):
      raise
    where = f' after {len(frames)} frames' if frames else ''
    reason = getattr(e, 'strerror', None) or e
    raise VideoError(f'{path}: cannot decode{where}: {reason}.') from e
  if not frames:
    raise VideoError(f'{path}: no frames in it.')
  return np.stack(frames)
