"""What a video container promises, read from its own bytes.

A cut file often decodes without an error, only shorter, and the frame count in
a header proves nothing. What does tell is a container that promises bytes past
the end of the file, or that lacks its index.

An MPEG programme stream promises nothing: a cut between two of its packs cannot
be seen here, only one within a pack, when it is decoded.
"""

import os
import pathlib
import stat
import struct
from typing import BinaryIO

from data.errors import VideoError

SEQ = 'seq'
_SEQ_MAGIC = struct.pack('<I', 0xFEED)
_MP4_FIRST = (b'ftyp', b'moov', b'mdat', b'free', b'skip', b'wide', b'pnot')
_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_EXPECTED = 'avi, mp4, mov, mkv, webm, mpg or seq'


def check(path: pathlib.Path) -> str:
  """Tells the kind of a file, and whether it is whole.

  The kind is that of its first bytes, whatever its name says.

  Args:
    path: a plain file on this machine, or a link to one.

  Returns:
    FFmpeg's name of the format: 'avi', 'mov', 'matroska' or 'mpeg'; or `SEQ`.

  Raises:
    VideoError: if it is no plain file, cannot be read, is of no such kind, or
      if bytes or the index are missing.
  """
  try:
    mode = os.stat(path).st_mode
    if stat.S_ISREG(mode):
      with open(path, 'rb') as file:
        return _check(path, file, os.fstat(file.fileno()).st_size)
  except (OSError, ValueError) as e:
    if isinstance(e, VideoError):
      raise
    raise VideoError(
      f'{path}: cannot read: {getattr(e, "strerror", None) or e}.'
    ) from e
  kind = 'a directory' if stat.S_ISDIR(mode) else 'no plain file'
  raise VideoError(f'{path}: cannot read: it is {kind}.')


def _check(path: pathlib.Path, file: BinaryIO, size: int) -> str:
  head = file.read(12)
  if head[:4] == b'RIFF' and head[8:] == b'AVI ':
    _check_avi(path, file, size)
    return 'avi'
  if head[4:8] in _MP4_FIRST:
    _check_mp4(path, file, size)
    return 'mov'
  if head[:4] == _EBML.to_bytes(4, 'big'):
    _check_matroska(path, file, size)
    return 'matroska'
  if head[:4] == b'\0\0\1\xba':
    return 'mpeg'
  if head[:4] == _SEQ_MAGIC:
    return SEQ
  raise VideoError(
    f'{path}: cannot decode: expected a video ({_EXPECTED}), found '
    + (f'a file that starts with {head[:8]!r}' if head else 'an empty file')
    + '. Another kind: ffmpeg -i IN -c copy OUT.mkv.'
  )


def _cut(path: pathlib.Path, end: int, size: int) -> VideoError:
  return VideoError(
    f'{path}: cut: the file promises {end} bytes and has {size}. Get it again.'
  )


def _at(file: BinaryIO, position: int, count: int) -> bytes:
  file.seek(position)
  return file.read(count)


def _check_avi(path: pathlib.Path, file: BinaryIO, size: int) -> None:
  """RIFF chunks, one `AVI ` and any number of `AVIX`; an index in the first."""
  start, has_index = 0, False
  while size - start >= 12 and _at(file, start, 4) == b'RIFF':
    (length,) = struct.unpack('<I', _at(file, start + 4, 4))
    end = start + 8 + length
    if length < 4 or end > size:
      raise _cut(path, end, size)
    position = start + 12
    while position + 8 <= end:
      name, length = struct.unpack('<4sI', _at(file, position, 8))
      if position + 8 + length > end:
        raise _cut(path, position + 8 + length, end)
      if name == b'LIST' and _at(file, position + 8, 4) == b'hdrl':
        has_index |= b'indx' in file.read(length)  # OpenDML's
      has_index |= name == b'idx1'
      position += 8 + length + length % 2
    start = end + end % 2
  if not has_index:
    raise VideoError(
      f'{path}: cut: it lacks its index (idx1). Get it again, or, if it was '
      'never finished: ffmpeg -i IN -c copy OUT.avi.'
    )


def _check_mp4(path: pathlib.Path, file: BinaryIO, size: int) -> None:
  """Boxes of the top level; `moov` is the index."""
  position, has_index = 0, False
  while position < size:
    head = _at(file, position, 16)
    if len(head) < 8:
      raise _cut(path, position + 8, size)
    length, name = struct.unpack('>I4s', head[:8])
    if length == 1 and len(head) == 16:
      (length,) = struct.unpack('>Q', head[8:])
    has_index |= name == b'moov'
    if length == 0:  # to the end of the file
      break
    if length < 8:
      raise VideoError(
        f'{path}: damaged: a box of {length} bytes at byte {position}. Get it '
        'again.'
      )
    position += length
    if position > size:
      raise _cut(path, position, size)
  if not has_index:
    raise VideoError(f'{path}: cut: it lacks its index (moov). Get it again.')


def _check_matroska(path: pathlib.Path, file: BinaryIO, size: int) -> None:
  """EBML elements; a segment of unknown size (live) is looked into."""
  position = 0
  while position < size:
    name, length, start = _element(path, file, position, size)
    if length is None:
      if name == _CLUSTER:  # ends where the next element begins: no promise
        return
      if name != _SEGMENT:
        raise VideoError(
          f'{path}: damaged: element {name:X} at byte {position} has no size. '
          'Get it again.'
        )
      position = start
      continue
    position = start + length
    if position > size:
      raise _cut(path, position, size)


def _element(
  path: pathlib.Path, file: BinaryIO, position: int, size: int
) -> tuple[int, int | None, int]:
  """(id, size or None if unknown, first byte of the content)."""
  head = _at(file, position, 12)
  name_length = 9 - head[0].bit_length()
  length_at = head[name_length : name_length + 1]
  length_length = 9 - length_at[0].bit_length() if length_at else 1
  start = position + name_length + length_length
  if start > size:
    raise _cut(path, start, size)
  if name_length > 4 or length_length > 8:
    raise VideoError(
      f'{path}: damaged: no element at byte {position}. Get it again.'
    )
  name = int.from_bytes(head[:name_length], 'big')
  value = int.from_bytes(head[name_length:][:length_length], 'big')
  ones = (1 << 7 * length_length) - 1
  length = value & ones
  return name, None if length == ones else length, start
