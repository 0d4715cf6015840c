"""Proof that a checkpoint is what was saved, and of this run.

A record goes into each checkpoint: a SHA-256 for every array, the fingerprint
of the run, and a SHA-256 of the record itself. A manifest with a SHA-256 for
every file is written after all of them. Orbax restores flipped bits without a
word; here they are found.
"""

import contextlib
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from experiments import storage
from hman_jax import __version__

Record = dict[str, Any]
_SEAL = 'sha256'
_MANIFEST = 'manifest.json'


def arrays_of(state: Any) -> dict[str, np.ndarray]:
  """The arrays of a state on the host, by their path in it.

  Called by all processes, if some hold parts of an array only.
  """
  leaves, _ = jax.tree.flatten_with_path(jax.tree.map(_whole, state))
  leaves = jax.device_get(leaves)
  return {jax.tree_util.keystr(path): np.asarray(x) for path, x in leaves}


def _whole(x):
  """An array that this process has all of."""
  is_here = not isinstance(x, jax.Array) or x.is_fully_addressable
  if is_here or x.is_fully_replicated:
    return x
  return multihost_utils.process_allgather(x, tiled=True)


def make(step: int, state: Any, fingerprint: Mapping[str, Any]) -> Record:
  """The record of a state.

  Args:
    step: of the state.
    state: a pytree of arrays.
    fingerprint: what the run is; JSON-able.

  Returns:
    A JSON-able dict.
  """
  record = {
    'step': step,
    'version': __version__,
    'fingerprint': json.loads(json.dumps(fingerprint)),
    'arrays': {
      name: {
        'shape': list(x.shape),
        'dtype': str(x.dtype),
        'sha256': hashlib.sha256(np.ascontiguousarray(x).tobytes()).hexdigest(),
      }
      for name, x in arrays_of(state).items()
    },
  }
  return sealed(record)


def sealed(record: Mapping[str, Any]) -> Record:
  """A JSON-able dict with its own SHA-256 in it."""
  return {**record, _SEAL: _seal(record)}


def is_sealed(record: Any) -> bool:
  """Whether a record is as it was written."""
  if not isinstance(record, dict) or _SEAL not in record:
    return False
  rest = {k: v for k, v in record.items() if k != _SEAL}
  return record[_SEAL] == _seal(rest)


def damaged_arrays(state: Any, record: Record) -> list[str]:
  """Names of the arrays that are not those of the record."""
  found = make(0, state, {})['arrays']
  expected = record['arrays']
  return [
    name
    for name in sorted(found.keys() | expected.keys())
    if found.get(name) != expected.get(name)
  ]


def shape_differences(like: Any, record: Record) -> list[str]:
  """Lines about arrays whose shape or dtype is not what a model needs.

  Args:
    like: a state of the model.
    record: of the checkpoint.

  Returns:
    One line an array.
  """
  describe = lambda a: f'{a["dtype"]}{a["shape"]}' if a else 'absent'
  needed = {
    name: {'shape': list(x.shape), 'dtype': str(x.dtype)}
    for name, x in arrays_of(like).items()
  }
  there = record['arrays']
  lines = []
  for name in sorted(needed.keys() | there.keys()):
    a, b = needed.get(name), there.get(name)
    if a is None or b is None or any(a[k] != b[k] for k in a):
      lines.append(f'{name}: is {describe(b)}, expected {describe(a)}')
  return lines


def fingerprint_differences(
  old: Mapping[str, Any],
  new: Mapping[str, Any],
  earlier: Mapping[str, list] | None = None,
) -> list[str]:
  """Lines about the parts of a run's fingerprint `new` that differ in `old`.

  Args:
    old: of the state.
    new: of the run.
    earlier: what parts of the run's were before a change that was allowed.

  Returns:
    One line a part.
  """
  may_be = lambda name: (new[name], *(earlier or {}).get(name, ()))
  return [
    f'{name}: was {old.get(name)!r}, is {new[name]!r}'
    for name in sorted(new)
    if old.get(name) not in may_be(name)
  ]


def _seal(record: Mapping[str, Any]) -> str:
  text = json.dumps(record, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def write_manifest(directory: pathlib.Path) -> None:
  """Lists the files of a directory with their checksums.

  The disk then holds them all, also after a power cut.

  Args:
    directory: of a checkpoint; nothing in it is written any more.

  Raises:
    OSError: if it cannot be written.
  """
  files = _files(directory)
  manifest = {'files': {name: _digest(directory / name) for name in files}}
  for path in (*directory.rglob('*'), directory, directory.parent):
    storage.sync(path)
  text = json.dumps(sealed(manifest))
  storage.write_whole(directory / _MANIFEST, text)


def drop_manifest(directory: pathlib.Path) -> None:
  """Marks a checkpoint as not finished, as far as the disk lets it."""
  with contextlib.suppress(OSError):
    (directory / _MANIFEST).unlink(missing_ok=True)


def is_finished(directory: pathlib.Path) -> bool:
  """Whether the list of a checkpoint's files, the last of them, is there."""
  return (directory / _MANIFEST).exists()


def damaged_files(directory: pathlib.Path) -> str:
  """What is wrong with the files of a checkpoint; empty if they are whole.

  Raises:
    OSError: if one cannot be read: that says nothing about what it holds.
  """
  try:
    manifest = json.loads((directory / _MANIFEST).read_bytes())
  except FileNotFoundError:
    return 'its save was not finished'
  except ValueError as e:
    return f'{_MANIFEST}: {e}'
  if not is_sealed(manifest):
    return f'{_MANIFEST} is not as it was written'
  expected = manifest['files']
  try:
    found = {name: _digest(directory / name) for name in _files(directory)}
  except FileNotFoundError as e:
    return f'{e.filename} is missing'
  wrong = sorted(
    name
    for name in found.keys() | expected.keys()
    if found.get(name) != expected.get(name)
  )
  more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
  return f'wrong checksum: {", ".join(wrong[:3])}{more}' if wrong else ''


def _files(directory: pathlib.Path) -> list[str]:
  ours = (_MANIFEST, f'.{_MANIFEST}.tmp')
  return sorted(
    os.path.relpath(os.path.join(folder, name), directory)
    for folder, _, names in os.walk(directory, onerror=_raise)
    for name in names
    if name not in ours
  )


def _raise(error: OSError) -> None:
  raise error


def _digest(path: pathlib.Path) -> str:
  with path.open('rb') as file:
    return hashlib.file_digest(file, 'sha256').hexdigest()
