"""Writes little videos, for tests."""

import fractions
import pathlib

import av
import numpy as np


def write(
  path: pathlib.Path,
  frames: np.ndarray,
  codec: str = 'mpeg4',
  pix_fmt: str = 'yuv420p',
) -> pathlib.Path:
  """uint8 `[T, H, W, 3]` as a video file; folders are made."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=fractions.Fraction(30))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = pix_fmt
    stream.bit_rate = 4_000_000
    for frame in frames:
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
  return path


def shades(num_frames: int, size: tuple[int, int] = (48, 64), first: int = 20):
  """Frames of one grey each, 12 brighter every frame."""
  grey = first + 12 * np.arange(num_frames)
  return np.broadcast_to(
    grey[:, None, None, None], (num_frames, *size, 3)
  ).astype(np.uint8)
