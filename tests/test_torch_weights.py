"""Weights files of PyTorch: what is read, and what is refused."""

import collections
import hashlib
import io
import os
import pathlib
import pickle
import struct
import sys
import types

import numpy as np
import pytest

from data import (
  efficientnet_lite0,
  torch_weights,
)
from data.errors import DataError


class _Storage:
  def __init__(self, key, data):
    self.key, self.data = key, data


class _Tensor:
  """Pickled as PyTorch does a tensor."""

  def __init__(self, storage, offset, shape, strides):
    self.args = (storage, offset, shape, strides)

  def __reduce__(self):
    rebuild = sys.modules['torch._utils']._rebuild_tensor_v2
    return rebuild, (*self.args, False, collections.OrderedDict())


class _Pickler(pickle.Pickler):
  def persistent_id(self, obj):
    if isinstance(obj, _Storage):
      kind = sys.modules['torch'].FloatStorage
      return ('storage', kind, obj.key, 'cpu', len(obj.data), None)
    return None


@pytest.fixture
def fake_torch(monkeypatch):
  """As much of torch as pickling a tensor needs, under its names."""

  def _rebuild_tensor_v2():
    raise AssertionError('never called')

  class FloatStorage:
    pass

  for module, member in [
    ('torch', FloatStorage),
    ('torch._utils', _rebuild_tensor_v2),
  ]:
    fake = types.ModuleType(module)
    member.__module__, member.__qualname__ = module, member.__name__
    setattr(fake, member.__name__, member)
    monkeypatch.setitem(sys.modules, module, fake)


def _legacy_file(path, tensors, storages, magic=0x1950A86A20F9469CFC6C):
  file = io.BytesIO()
  info = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}
  for part in (magic, 1001, info, tensors, [s.key for s in storages]):
    _Pickler(file, protocol=2).dump(part)
  for storage in storages:
    file.write(struct.pack('<q', len(storage.data)))
    file.write(np.asarray(storage.data, '<f4').tobytes())
  path.write_bytes(file.getvalue())
  return path


def test_tensors_are_read(tmp_path, fake_torch):
  one, two = _Storage('7', np.arange(12.0)), _Storage('8', [5.0])
  tensors = collections.OrderedDict(
    whole=_Tensor(one, 0, (3, 4), (4, 1)),
    transposed=_Tensor(one, 0, (4, 3), (1, 4)),
    part=_Tensor(one, 5, (2,), (3,)),
    scalar=_Tensor(two, 0, (), ()),
  )
  path = _legacy_file(tmp_path / 'w.pth', tensors, [one, two])
  whole = np.arange(12, dtype=np.float32).reshape(3, 4)
  expected = {
    'whole': whole,
    'transposed': whole.T,
    'part': np.array([5, 8]),
    'scalar': np.array(5),
  }
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  arrays = torch_weights.read(path, digest)
  assert list(arrays) == list(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(arrays[name], array)
    assert arrays[name].dtype == np.float32
  with pytest.raises(DataError, match=r'w\.pth: expected the file of SHA-256'):
    torch_weights.read(path, '0' * 64)


@pytest.mark.parametrize(
  'view',
  [(0, (13,), (1,)), (12, (1,), (1,)), (0, (2,), (-1,)), (-1, (2,), (1,))],
)
def test_tensors_stay_inside_their_storage(tmp_path, fake_torch, view):
  storage = _Storage('0', np.arange(12.0))
  tensors = {'w': _Tensor(storage, *view)}
  path = _legacy_file(tmp_path / 'w.pth', tensors, [storage])
  with pytest.raises(DataError, match='its storage'):
    torch_weights.read_tensors(path)


class _Run:
  """Runs `function(*args)` when a common unpickler reads it."""

  def __init__(self, function, *args):
    self.call = (function, args)

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('part', ['tensors', 'magic'])
@pytest.mark.parametrize('function', [os.mkdir, eval, getattr, pathlib.Path])
def test_code_in_a_weights_file_is_refused(tmp_path, part, function):
  canary = tmp_path / 'canary'
  args = {
    os.mkdir: (str(canary),),
    eval: (f'__import__("os").mkdir({str(canary)!r})',),
    getattr: ('', 'upper'),
    pathlib.Path: ('.',),
  }[function]
  evil = _Run(function, *args)
  options = {'magic': evil} if part == 'magic' else {}
  path = _legacy_file(tmp_path / 'w.pth', {'w': evil}, [], **options)
  with pytest.raises(DataError, match=r'w\.pth: not a file of tensors only'):
    torch_weights.read_tensors(path)
  assert not canary.exists()


@pytest.mark.parametrize(
  'content',
  [b'', b'PK\x03\x04 zip', pickle.dumps({'a': 1}), pickle.dumps([1, 2])],
)
def test_other_files_are_no_weights(tmp_path, content):
  path = tmp_path / 'w.pth'
  path.write_bytes(content)
  with pytest.raises(DataError, match=r'w\.pth: not a file of tensors only'):
    torch_weights.read_tensors(path)


def test_missing_weights(tmp_path, monkeypatch):
  with pytest.raises(DataError, match='cannot read the weights'):
    torch_weights.read(tmp_path / 'none.pth', '')
  monkeypatch.setattr(efficientnet_lite0, 'PACKAGE', 'no_such_package')
  with pytest.raises(DataError, match='no_such_package: not installed'):
    efficientnet_lite0.weights_path()
