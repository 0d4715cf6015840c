"""Decodes single JPEG pictures with PyAV, and reads their orientation."""

import struct

import av

from data.errors import VideoError

_EOI = b'\xff\xd9'
_TAIL = 64  # bytes that may follow the end: some writers pad
_EXIF = b'Exif\0\0'
_ORIENTATION = 0x0112

# Of EXIF: (rows and columns exchanged, then rows reversed, columns reversed).
_TURNS = {
  1: (False, False, False),
  2: (False, False, True),
  3: (False, True, True),
  4: (False, True, False),
  5: (True, False, False),
  6: (True, False, True),
  7: (True, True, True),
  8: (True, True, False),
}


def decode(data: bytes) -> tuple[av.VideoFrame, tuple[bool, bool, bool]]:
  """Decodes one picture.

  Args:
    data: a JPEG file.

  Returns:
    The picture as it is stored, and how to show it: whether its rows and
    columns are exchanged, then its rows reversed, its columns reversed.

  Raises:
    VideoError: if it is no picture, cut or damaged; the message has no name.
  """
  if _EOI not in data[-_TAIL:]:
    raise VideoError('the picture is cut')
  context = av.CodecContext.create('mjpeg', 'r')
  context.thread_count = 1
  context.options = {'err_detect': 'explode'}
  try:
    frames = [*context.decode(av.Packet(data)), *context.decode(None)]
  except (av.error.FFmpegError, ValueError, EOFError) as e:
    raise VideoError(f'the picture is damaged: {e}') from e
  if len(frames) != 1 or not isinstance(frames[0], av.VideoFrame):
    raise VideoError('the picture is damaged')
  if frames[0].is_corrupt:
    raise VideoError('the picture is damaged')
  return frames[0], _TURNS[_orientation(data)]


def _orientation(data: bytes) -> int:
  """EXIF's orientation, 1 where there is none."""
  position = 2
  while data[position : position + 1] == b'\xff':  # segments before the scan
    marker, length = data[position + 1], data[position + 2 : position + 4]
    if marker == 0xDA or len(length) < 2:
      break
    end = position + 2 + int.from_bytes(length, 'big')
    if marker == 0xE1 and data[position + 4 : position + 10] == _EXIF:
      return _orientation_of_tiff(data[position + 10 : end])
    position = end
  return 1


def _orientation_of_tiff(tiff: bytes) -> int:
  order = {b'II': '<', b'MM': '>'}.get(tiff[:2], '<')
  try:
    (directory,) = struct.unpack_from(f'{order}I', tiff, 4)
    (count,) = struct.unpack_from(f'{order}H', tiff, directory)
    for entry in range(count):
      tag, kind, _, value = struct.unpack_from(
        f'{order}HHIH', tiff, directory + 2 + 12 * entry
      )
      if tag == _ORIENTATION:
        if kind != 3 or value not in _TURNS:
          raise VideoError(f'the picture has no orientation {value}')
        return value
  except struct.error as e:
    raise VideoError('the picture has damaged EXIF data') from e
  return 1
