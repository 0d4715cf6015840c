"""A video with what the model does drawn on it, written frame by frame.

Above: the frame, brighter orange where the network looks. Below: the likeliest
class so far; then a band for each layer that scrolls with time, coloured by
what the layer does (grey COPY, blue UPDATE, red FLUSH), with a black tick where
it found a boundary.
"""

import collections
import fractions
import math
import pathlib
from typing import Any

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from data import videos
from experiments.errors import HmanError
from hman_jax import FrameOutput

CODEC = 'libx264'
FIT = videos.Fit(min_width=320, max_width=1280, max_height=2880)  # of frames
_TEXT, _BAND, _GAP = 24, 12, 2  # pixels high
_STEP = 4  # pixels a frame in the bands
_HEAT = np.array((254, 178, 76), np.float32)
_HEAT_OPACITY = 0.6
_COLOURS = np.array(
  [(217, 217, 217), (116, 169, 207), (215, 48, 31)], np.uint8
)  # COPY, UPDATE, FLUSH
_BACKGROUND, _INK = (255, 255, 255), (0, 0, 0)


class Overlay:
  """Writes the picture of one video; a context manager.

  Args:
    path: the .mp4 file to write.
    size: (height, width) of the frames, both even; see `FIT`.
    fps: frames a second.
    num_layers: bands to draw.
    class_names: names of the classes.

  Raises:
    HmanError: if the file cannot be written.
  """

  def __init__(
    self,
    path: pathlib.Path,
    size: tuple[int, int],
    fps: float,
    num_layers: int,
    class_names: tuple[str, ...],
  ):
    self._size = size
    self._class_names = class_names
    self._font = ImageFont.load_default(14)
    height = size[0] + _TEXT + num_layers * (_BAND + _GAP)
    self._height = height + height % 2
    self._past: collections.deque[FrameOutput] = collections.deque(
      maxlen=size[1] // _STEP
    )
    self._num_layers = num_layers
    try:
      self._container = av.open(str(path), 'w', format='mp4')
    except OSError as e:
      raise HmanError(f'{path}: cannot write: {e.strerror or e}.') from e
    rate = fractions.Fraction(fps).limit_denominator(1001)
    stream: Any = self._container.add_stream(CODEC, rate=rate)
    stream.width, stream.height = size[1], self._height
    stream.pix_fmt = 'yuv420p'
    stream.options = {'crf': '23', 'preset': 'veryfast'}
    self._stream = stream

  def __enter__(self) -> 'Overlay':
    return self

  def __exit__(self, *unused) -> None:
    self.close()

  def add(self, frame: np.ndarray, output: FrameOutput) -> None:
    """Writes the next frame.

    Args:
      frame: uint8 `[height, width, 3]`, RGB, of `size`.
      output: of this frame, or of the last one that the model read.
    """
    self._past.append(output)
    canvas = np.full((self._height, self._size[1], 3), _BACKGROUND, np.uint8)
    canvas[: self._size[0]] = _heated(frame, output.weights)
    top = self._size[0] + _TEXT
    for layer in range(self._num_layers):
      band = canvas[top + layer * (_BAND + _GAP) :][:_BAND]
      self._draw_band(band, layer)
    picture = Image.fromarray(canvas)
    self._draw_text(ImageDraw.Draw(picture), output)
    video_frame = av.VideoFrame.from_image(picture)
    self._container.mux(self._stream.encode(video_frame))

  def close(self) -> None:
    """Writes what is still in memory, and ends the file."""
    self._container.mux(self._stream.encode())
    self._container.close()

  def _draw_band(self, band: np.ndarray, layer: int) -> None:
    """The last frames of a layer, the newest at the right."""
    right = len(self._past) * _STEP
    for number, output in enumerate(self._past):
      left = band.shape[1] - right + number * _STEP
      if output.operation is None or output.z is None:
        continue
      band[:, left : left + _STEP] = _COLOURS[output.operation[layer]]
      if output.z[layer]:
        band[:, left + _STEP - 1] = _INK

  def _draw_text(self, draw, output: FrameOutput) -> None:
    best = int(output.running.argmax())
    text = f'{100 * output.running[best]:.0f} %  {self._class_names[best]}'
    draw.text((6, self._size[0] + 3), text, fill=_INK, font=self._font)


def _heated(frame: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
  """The frame, with the heat of the attention over it."""
  if weights is None:
    return frame
  side = math.isqrt(weights.size)
  if side * side != weights.size:
    raise HmanError(
      f'attention: expected a square of locations, got {weights.size}.'
    )
  heat = Image.fromarray(
    (weights / weights.max()).reshape(side, side).astype(np.float32)
  ).resize(frame.shape[1::-1], Image.Resampling.BILINEAR)
  opacity = _HEAT_OPACITY * np.asarray(heat)[..., None]
  mixed = (1 - opacity) * frame + opacity * _HEAT[None, None]
  return mixed.astype(np.uint8)
