"""Bytes from elsewhere are never run: no reader in the repository can."""

import ast
import io
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest

from data.errors import DataError
from data.features import VideoFeatures

ROOT = pathlib.Path(__file__).parent.parent
PACKAGES = ('benchmarks', 'configs', 'data', 'experiments', 'hman_jax')
FORBIDDEN_MODULES = {
  'cloudpickle', 'dill', 'h5py', 'joblib', 'jsonpickle', 'marshal', 'pickle',
  'shelve', 'tables', 'yaml',
}  # fmt: skip
# Weights come as a pickle: read by a subclass that finds no class but tensors.
# Keras' are HDF5, read without links and objects. Features are neither.
EXCEPT = {
  ('data/torch_weights.py', 'pickle'),
  ('data/resnet152.py', 'h5py'),
}


def _violations(tree: ast.AST, name: str) -> list[str]:
  found = []
  for node in ast.walk(tree):
    modules = []
    if isinstance(node, ast.Import):
      modules = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom):
      modules = [node.module or '']
    for module in {m.partition('.')[0] for m in modules}:
      if module in FORBIDDEN_MODULES and (name, module) not in EXCEPT:
        found.append(f'{name}:{node.lineno}: imports {module}')
    if not isinstance(node, ast.Call):
      continue
    called = ast.unparse(node.func)
    pickled = [k.value for k in node.keywords if k.arg == 'allow_pickle']
    if called in ('eval', 'exec', 'compile', '__import__', 'torch.load') or (
      called.startswith(('pickle.load', 'pickle.Unpickler', 'torch.hub'))
    ):
      found.append(f'{name}:{node.lineno}: calls {called}')
    if pickled and ast.unparse(pickled[0]) != 'False':
      found.append(f'{name}:{node.lineno}: {called} with allow_pickle')
  return found


def test_nothing_in_the_repository_runs_data():
  files = [p for d in PACKAGES for p in sorted((ROOT / d).rglob('*.py'))]
  assert len(files) > 60
  found = []
  for path in files:
    tree = ast.parse(path.read_text(encoding='utf-8'))
    found += _violations(tree, str(path.relative_to(ROOT)))
  assert not found, '\n'.join(found)


@pytest.mark.parametrize(
  'code',
  [
    'import pickle', 'from h5py import File', 'import torch\ntorch.load(x)',
    'np.load(p, allow_pickle=True)', 'np.load(p, allow_pickle=flag)', 'eval(x)',
    'import joblib.numpy_pickle', 'exec(x)',
  ],
)  # fmt: skip
def test_what_runs_data_would_be_found(code):
  assert _violations(ast.parse(code), 'x.py')


def test_the_one_unpickler_finds_no_class():
  tree = ast.parse((ROOT / 'data' / 'torch_weights.py').read_text())
  (own,) = (
    node
    for node in tree.body
    if isinstance(node, ast.ClassDef)
    and 'pickle.Unpickler' in map(ast.unparse, node.bases)
  )
  assert 'find_class' in {getattr(node, 'name', '') for node in own.body}


class _Run:
  """Makes a folder when a common unpickler reads it."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


def _torch_file(evil) -> bytes:
  file = io.BytesIO()
  with zipfile.ZipFile(file, 'w') as archive:
    archive.writestr('archive/data.pkl', pickle.dumps(evil))
    archive.writestr('archive/version', '3')
  return file.getvalue()


def _object_array(evil) -> bytes:
  file = io.BytesIO()
  array = np.empty((1, 1, 1), object)
  array[0, 0, 0] = evil
  np.save(file, array, allow_pickle=True)
  return file.getvalue()


def _bomb(_) -> bytes:
  """A .npz whose array is 1 GB of zeros in 1 MB."""
  file = io.BytesIO()
  with (
    zipfile.ZipFile(file, 'w', zipfile.ZIP_DEFLATED) as archive,
    archive.open('a.npy', 'w', force_zip64=True) as member,
  ):
    shape = {'descr': '<f2', 'fortran_order': False, 'shape': (2**29, 1, 1)}
    np.lib.format.write_array_header_1_0(member, shape)
    for _ in range(64):
      member.write(bytes(2**24))
  return file.getvalue()


FORMATS = {
  '.pkl': pickle.dumps,
  '.pt': _torch_file,
  '.npy': _object_array,
  '.h5': lambda evil: b'\x89HDF\r\n\x1a\n' + pickle.dumps(evil),
  '.keras': _torch_file,
}


def _refused(tmp_path, content, suffix):
  """Under its own name, and as what the store would hold."""
  for name in (f'a{suffix}', 'a.npy'):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(DataError, match=name.replace('.', r'\.')):
      VideoFeatures(['a'], [path], [0], class_names=['x'], identity={})


@pytest.mark.parametrize('suffix', FORMATS)
def test_features_of_another_format_are_refused(tmp_path, suffix):
  canary = tmp_path / 'canary'
  _refused(tmp_path, FORMATS[suffix](_Run(canary)), suffix)
  assert not canary.exists()
  pickle.loads(pickle.dumps(_Run(canary)))
  assert canary.exists()  # what was refused does run


@pytest.mark.slow
def test_a_bomb_is_refused(tmp_path):
  _refused(tmp_path, _bomb(None), '.npz')
