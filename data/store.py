"""The store of features: one file a video, proved by checksums.

A record begins as a NumPy file, which can be memory-mapped:

    features   .npy, float16 or int8 [T, N, D]
    scale      .npy, float32 [D]: features are int8 * scale; of int8 only
    about      JSON: SHA-256 of the video, what made the numbers, frames
               decoded and declared, CRC-32 of all that stands before
    trailer    length and CRC-32 of the JSON, and eight bytes that end a record

It is `<features_dir>/<extractor>-<digest>/<SHA-256 of the video>.npy`, so that
a moved data set finds its features again, and a changed video never gets
another's. It is written under another name and moved into place: a kill leaves
the whole record or none, and two writers the same one.
"""

import contextlib
import fcntl
import hashlib
import json
import math
import os
import pathlib
import struct
import uuid
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np

from data.errors import DataError, DiskError

FORMAT = 1
DTYPES = ('float16', 'int8')

_TRAILER = struct.Struct('<II8s')  # length and CRC-32 of the JSON, end
_END = b'hmanrec\n'
_MAX_ABOUT = 1 << 20  # bytes of JSON
_BLOCK = 1 << 20  # bytes read at a time
_FRAMES = 64  # quantised at a time
_LEVELS = 127  # of int8, on either side of zero
_NONE = type(None)
_TYPES = {
  'sha256': (str,),
  'identity': (dict,),
  'num_decoded': (int,),
  'num_declared': (int, _NONE),
  'error': (dict, _NONE),
}
_ERRORS = {'rms', 'max', 'relative'}


class DamagedError(DataError):
  """A record is not what was written; the message says how."""


class Record(NamedTuple):
  """What a record says of itself.

  Attributes:
    path: the file.
    shape: (T, N, D).
    dtype: 'float16' or 'int8', as stored.
    sha256: of the video.
    identity: what the numbers depend on.
    num_decoded: frames of the video, by decoding it.
    num_declared: frames by its header; None if it does not tell.
    error: of int8, {'rms', 'max'} over all numbers and 'relative', the
      root mean square error over that of the features; None of float16.
    offset: where the numbers begin.
    header_crc32: CRC-32 of the bytes before them.
    crc32: CRC-32 of the bytes before the JSON.
    end: where the JSON begins.
  """

  path: pathlib.Path
  shape: tuple[int, int, int]
  dtype: str
  sha256: str
  identity: dict
  num_decoded: int
  num_declared: int | None
  error: dict[str, float] | None
  offset: int
  header_crc32: int
  crc32: int
  end: int


def open_folder(features_dir: pathlib.Path, identity: dict) -> pathlib.Path:
  """The folder of one kind of features.

  Args:
    features_dir: the store; made if missing.
    identity: what the numbers depend on, JSON-able, with 'extractor'.

  Returns:
    The folder, with the identity in `identity.json`.

  Raises:
    DiskError: if it cannot be written.
  """
  text = json.dumps(identity, indent=2, sort_keys=True) + '\n'
  digest = hashlib.sha256(text.encode()).hexdigest()[:12]
  folder = features_dir / f'{identity["extractor"]}-{digest}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    about = folder / 'identity.json'
    if not about.exists() or about.read_bytes() != text.encode():
      with _temporary(about) as file:
        file.write(text.encode())
        _move(file, about)
  except OSError as e:
    raise DiskError(
      f'{folder}: cannot write features here: {e.strerror or e}. Give another '
      'folder by --config.data.features_dir.'
    ) from e
  return folder


def path_of(folder: pathlib.Path, sha256: str) -> pathlib.Path:
  """The file of a video's record."""
  return folder / f'{sha256}.npy'


class Writer:
  """Writes a record frame by frame; memory does not grow with its length.

  Args:
    path: from `path_of`.
    feature_shape: (N, D).
    dtype: one of `DTYPES`.

  Raises:
    DiskError: here and in every method, if the file cannot be written.
  """

  def __init__(
    self, path: pathlib.Path, feature_shape: tuple[int, int], dtype: str
  ):
    self._path, self._shape, self._dtype = path, feature_shape, dtype
    self._stack = contextlib.ExitStack()
    self.num_frames = 0
    with self._writing():
      self._file = self._stack.enter_context(_temporary(path))
      self._offset = self._write_header(self._file, np.float16)

  def append(self, features: np.ndarray) -> None:
    """Takes the next frames: finite float16 `[n, N, D]`."""
    with self._writing():
      self._file.write(np.ascontiguousarray(features, np.float16).data)
    self.num_frames += len(features)

  def commit(
    self, identity: dict, num_decoded: int, num_declared: int | None
  ) -> Record:
    """Ends the record and puts it in its place.

    Args:
      identity: see `Record`.
      num_decoded: see `Record`.
      num_declared: see `Record`.

    Returns:
      What was written.
    """
    file, error = self._file, None
    with self._writing():
      self._write_header(file, np.float16)
      if self._dtype == 'int8':
        file, error = self._quantise()
      end = file.seek(0, os.SEEK_END)
      about = {
        'format': FORMAT,
        'shape': [self.num_frames, *self._shape],
        'dtype': self._dtype,
        'sha256': self._path.stem,
        'identity': identity,
        'num_decoded': num_decoded,
        'num_declared': num_declared,
        'error': error,
        'offset': self._offset,
        'header_crc32': _crc32(file, self._offset),
        'crc32': _crc32(file, end),
      }
      file.seek(end)
      raw = json.dumps(about, sort_keys=True).encode()
      file.write(raw + _TRAILER.pack(len(raw), zlib.crc32(raw), _END))
      _move(file, self._path)
    self.abort()
    return _record(self._path, about, end)

  def abort(self) -> None:
    """Leaves nothing of what is not committed."""
    self._stack.close()

  def _write_header(self, file: IO[bytes], dtype: type) -> int:
    """Its size, which is that of any length: NumPy leaves room in it."""
    file.seek(0)
    np.lib.format.write_array_header_1_0(
      file,
      {
        'descr': np.lib.format.dtype_to_descr(np.dtype(dtype)),
        'fortran_order': False,
        'shape': (self.num_frames, *self._shape),
      },
    )
    return file.tell()

  def _quantise(self) -> tuple[IO[bytes], dict[str, float]]:
    self._file.flush()
    shape = (self.num_frames, *self._shape)
    values = np.memmap(self._file, np.float16, 'r', self._offset, shape)
    blocks = [slice(k, k + _FRAMES) for k in range(0, self.num_frames, _FRAMES)]
    largest = np.max([np.abs(values[b]).max((0, 1)) for b in blocks], axis=0)
    scale = largest.astype(np.float32) / _LEVELS
    scale[scale == 0] = 1.0
    file = self._stack.enter_context(_temporary(self._path))
    self._write_header(file, np.int8)
    squares = power = most = 0.0
    for block in blocks:
      exact = values[block].astype(np.float32)
      rounded = np.rint(exact / scale).astype(np.int8)
      file.write(rounded.data)
      wrong = np.abs(rounded * scale - exact)
      most = max(most, float(wrong.max()))
      squares += float(np.square(wrong, dtype=np.float64).sum())
      power += float(np.square(exact, dtype=np.float64).sum())
    np.lib.format.write_array(file, scale, (1, 0), allow_pickle=False)
    error = {
      'rms': (squares / values.size) ** 0.5,
      'max': most,
      'relative': (squares / power) ** 0.5 if power else 0.0,
    }
    return file, error

  @contextlib.contextmanager
  def _writing(self) -> Iterator[None]:
    try:
      yield
    except OSError as e:
      self.abort()
      raise DiskError(
        f'{self._path}: cannot write features: {e.strerror or e}. Mend this '
        'and run the same command to go on.'
      ) from e


def read(path: pathlib.Path) -> Record:
  """Reads what a record says of itself, and checks it but for its numbers.

  Args:
    path: from `path_of`.

  Returns:
    `Record`.

  Raises:
    DamagedError: naming the file, if it is no whole record of this video.
    DiskError: if it cannot be read, and may be whole.
  """
  try:
    with open(path, 'rb') as file:
      about, end = _read_about(file)
      record = _record(path, about, end)
      if _crc32(file, record.offset) != record.header_crc32:
        raise ValueError('its header does not have its checksum')
  except OSError as e:
    raise _unreadable(path, e) from e
  except (ValueError, KeyError, TypeError, RecursionError) as e:
    raise _damaged(path, e) from e
  if record.sha256 != path.stem:
    raise _damaged(path, f'it is the record of the video {record.sha256}')
  return record


def verify(record: Record) -> None:
  """Reads a record whole.

  Raises:
    DamagedError: naming the file, if its bytes are not those written.
    DiskError: if it cannot be read.
  """
  try:
    with open(record.path, 'rb') as file:
      if _crc32(file, record.end) != record.crc32:
        raise ValueError('its numbers do not have their checksum')
  except OSError as e:
    raise _unreadable(record.path, e) from e
  except ValueError as e:
    raise _damaged(record.path, e) from e


def load(record: Record) -> tuple[np.ndarray, np.ndarray | None]:
  """Memory-maps a record.

  Returns:
    (features, scale): float16 `[T, N, D]` and None, or int8 `[T, N, D]` and
    float32 `[D]`.

  Raises:
    DamagedError: if the file has changed since it was read.
    DiskError: if it cannot be read.
  """
  try:
    with open(record.path, 'rb') as file:
      features = np.memmap(file, record.dtype, 'r', record.offset, record.shape)
      if record.dtype != 'int8':
        return features, None
      file.seek(record.end - 4 * record.shape[2])
      return features, np.fromfile(file, np.float32, record.shape[2])
  except OSError as e:
    raise _unreadable(record.path, e) from e
  except ValueError as e:
    raise _damaged(record.path, e) from e


def _unreadable(path: pathlib.Path, error: OSError) -> DataError:
  """What is not there is damaged; what cannot be read may be whole."""
  if isinstance(error, FileNotFoundError | IsADirectoryError):
    return _damaged(path, error)
  return DiskError(
    f'{path}: cannot read these features: {error.strerror or error}. They are '
    'left as they are: mend this and run the same command to go on.'
  )


def _damaged(path: pathlib.Path, why: Any) -> DamagedError:
  reason = getattr(why, 'strerror', None) or why
  return DamagedError(
    f'{path}: damaged features ({reason}). python -m data.prepare makes them '
    'anew, or delete the file and run again.'
  )


def _read_about(file: IO[bytes]) -> tuple[dict, int]:
  """The JSON of a record, and where it begins."""
  size = file.seek(0, os.SEEK_END)
  if size < _TRAILER.size:
    raise ValueError('it is too short')
  file.seek(size - _TRAILER.size)
  length, crc32, last = _TRAILER.unpack(file.read(_TRAILER.size))
  end = size - _TRAILER.size - length
  if last != _END or length > _MAX_ABOUT or end < 0:
    raise ValueError('it does not end as a record does')
  file.seek(end)
  raw = file.read(length)
  if zlib.crc32(raw) != crc32:
    raise ValueError('what it says of itself does not have its checksum')
  file.seek(0)
  return json.loads(raw), end


def _record(path: pathlib.Path, about: dict, end: int) -> Record:
  if about['format'] != FORMAT:
    raise ValueError(f'its format is {about["format"]}, not {FORMAT}')
  fields = {k: v for k, v in about.items() if k != 'format'}
  for name, types in _TYPES.items():
    if type(fields[name]) not in types:
      raise ValueError(f'its {name} is of a wrong type')
  shape = tuple(about['shape'])
  record = Record(**(fields | {'path': path, 'shape': shape, 'end': end}))
  whole = all(type(n) is int for n in (*shape, record.offset))
  sound = whole and len(shape) == 3 and min(*shape, record.offset) > 0
  if record.dtype not in DTYPES or not sound:
    raise ValueError(f'it holds {record.dtype} {list(shape)}, no features')
  error = record.error or dict.fromkeys(_ERRORS, 0.0)
  if error.keys() != _ERRORS or not all(
    type(x) is float and math.isfinite(x) for x in error.values()
  ):
    raise ValueError('its error is not what a record says')
  size = math.prod(shape) * np.dtype(record.dtype).itemsize
  rest = end - record.offset - size
  if rest != 0 if record.dtype == 'float16' else rest < 4 * shape[2]:
    raise ValueError('its length is another')
  return record


def _crc32(file: IO[bytes], end: int) -> int:
  """CRC-32 of the first `end` bytes; three times as fast as SHA-256."""
  file.seek(0)
  crc32 = 0
  while end:
    block = file.read(min(end, _BLOCK))
    if not block:
      raise ValueError('it is too short')
    crc32 = zlib.crc32(block, crc32)
    end -= len(block)
  return crc32


@contextlib.contextmanager
def _temporary(path: pathlib.Path) -> Iterator[IO[bytes]]:
  """A file beside `path`, removed at the end unless moved; `sweep` knows by
  its lock that its writer is alive.
  """
  while True:
    temporary = path.with_name(f'.{path.stem}.{uuid.uuid4().hex}.tmp')
    with open(temporary, 'x+b') as file:
      with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(file, fcntl.LOCK_EX)
      if not temporary.exists():  # swept before it was locked
        continue
      try:
        yield file
      finally:
        temporary.unlink(missing_ok=True)
      return


def _move(file: IO[bytes], path: pathlib.Path) -> None:
  """Puts a file in its place when the disk holds all of it."""
  file.flush()
  os.fsync(file.fileno())
  os.replace(file.name, path)
  folder = os.open(path.parent, os.O_RDONLY)
  try:
    os.fsync(folder)
  finally:
    os.close(folder)


def sweep(folder: pathlib.Path) -> None:
  """Removes from a folder of the store what killed writers left."""
  for temporary in folder.glob('.*.tmp'):
    with contextlib.suppress(OSError), open(temporary, 'rb') as file:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
      temporary.unlink()
