"""Piotr Dollar's `.seq` files, in which Olympic Sports comes.

Little-endian. A header of 1024 bytes: uint32 magic 0xFEED; at byte 548 eight
uint32: width, height, bits of a pixel, real bits, bytes of a picture, format
(102 or 201: JPEG), number of frames, 0; at 584 the frames a second, a float64.
Then the frames: a uint32 size that counts itself, a JPEG file, and a gap of 8
or 16 bytes, the same after every frame.
"""

import math
import os
import pathlib
import struct
from typing import NamedTuple

from data.errors import VideoError

HEADER_SIZE = 1024
MAGIC = 0xFEED
_FIELDS_AT = 548
_FIELDS = struct.Struct('<8I4xd')
_JPEG_FORMATS = (102, 201)
_JPEG_START = b'\xff\xd8'
_SIZE_BYTES = 4
_GAPS = (8, 16)


class Seq(NamedTuple):
  """What a `.seq` file holds.

  Attributes:
    width, height: as its header declares them.
    num_declared: frames as its header declares them; 0: it does not tell.
    fps: frames a second, or None if the header has no such number.
    frames: (first byte, number of bytes) of the JPEG of each frame.
  """

  width: int
  height: int
  num_declared: int
  fps: float | None
  frames: tuple[tuple[int, int], ...]


def read(path: pathlib.Path) -> Seq:
  """Finds the frames of a `.seq` file.

  Every frame there is counts. A file with fewer than its header declares, or
  that ends within one, is cut.

  Args:
    path: the file.

  Returns:
    `Seq`, with at least one frame.

  Raises:
    VideoError: if it cannot be read, is no such file, holds no JPEG pictures,
      is cut, or if the size of a frame cannot be right.
  """
  try:
    with open(path, 'rb') as file:
      return _read(path, file, os.fstat(file.fileno()).st_size)
  except OSError as e:
    raise VideoError(f'{path}: cannot read: {e.strerror}.') from e


def _read(path: pathlib.Path, file, size: int) -> Seq:
  header = file.read(HEADER_SIZE)
  if len(header) < HEADER_SIZE:
    raise VideoError(
      f'{path}: cut: expected a header of {HEADER_SIZE} bytes, the file has '
      f'{size}. Get it again.'
    )
  if struct.unpack_from('<I', header) != (MAGIC,):
    raise VideoError(f'{path}: no .seq file: it does not start with 0xFEED.')
  width, height, _, _, _, kind, declared, _, fps = _FIELDS.unpack_from(
    header, _FIELDS_AT
  )
  if kind not in _JPEG_FORMATS:
    raise VideoError(
      f'{path}: expected pictures in JPEG (format 102 or 201), got format '
      f'{kind}.'
    )
  frames = []
  position, gap = HEADER_SIZE, None
  while position < size:
    length = _frame_size(path, file, position, size, len(frames), declared)
    if length is None:  # only what is not a frame follows the declared ones
      break
    frames.append((position + _SIZE_BYTES, length - _SIZE_BYTES))
    position += length
    if size - position <= max(_GAPS):
      break
    gap = gap or _gap(file, position)
    if gap is None and not 0 < declared <= len(frames):
      raise VideoError(
        f'{path}: damaged: no second frame 8 or 16 bytes after the first, at '
        f'byte {position}. Get it again.'
      )
    position += gap or max(_GAPS)
  if not frames:
    raise VideoError(f'{path}: no frames in it.')
  if len(frames) < declared:
    raise VideoError(
      f'{path}: cut: its header promises {declared} frames, {len(frames)} are '
      'there. Get it again.'
    )
  good = math.isfinite(fps) and fps > 0
  return Seq(width, height, declared, fps if good else None, tuple(frames))


def _frame_size(
  path: pathlib.Path, file, position: int, size: int, done: int, declared: int
) -> int | None:
  """Bytes of the frame here, its size included; None: no frame, none due."""
  file.seek(position)
  head = file.read(_SIZE_BYTES + len(_JPEG_START))
  length = int.from_bytes(head[:_SIZE_BYTES], 'little')
  is_frame = head[_SIZE_BYTES:] == _JPEG_START and length >= len(head)
  if is_frame and position + length <= size:
    return length
  if 0 < declared <= done:
    return None
  if is_frame or len(head) < _SIZE_BYTES + len(_JPEG_START):
    raise VideoError(
      f'{path}: cut: frame {done + 1} needs {max(length, len(head))} bytes '
      f'from byte {position} on, the file has {size}. Get it again.'
    )
  raise VideoError(
    f'{path}: damaged: no JPEG picture where frame {done + 1} should be, at '
    f'byte {position}. Get it again.'
  )


def _gap(file, position: int) -> int | None:
  """The gap after the first frame, as the place of the second tells."""
  for gap in _GAPS:
    file.seek(position + gap + _SIZE_BYTES)
    if file.read(len(_JPEG_START)) == _JPEG_START:
      return gap
  return None
