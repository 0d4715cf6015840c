"""Flipped bits in checkpoints, a run's other files and records of features.

None is silent: it is found, or what is read is as it was. HMAN_FLIPS sets how
many (default 600).
"""

import os

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from data import features, store
from data.errors import DataError
from experiments import curves, trained, workdir
from experiments.checkpoint import Checkpoints
from experiments.errors import CheckpointError, WorkdirError

import untrained_runs

FLIPS = int(os.environ.get('HMAN_FLIPS', '600'))


def _flipped(folder, rng, number):
  """Flips a bit of a file of a folder; yields that file, and mends it."""
  files = sorted(p for p in folder.rglob('*') if p.is_file())
  whole = {p: p.read_bytes() for p in files if p.stat().st_size}
  files = list(whole)
  sizes = np.array([len(data) for data in whole.values()], float)
  for _ in range(number):
    # Small files as often as large ones: half by file, half by byte.
    share = sizes / sizes.sum() if rng.integers(2) else None
    path = files[rng.choice(len(files), p=share)]
    data = bytearray(whole[path])
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    yield path
    path.write_bytes(whole[path])


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['checkpoints', 'best'])
def test_no_flip_in_a_checkpoint_is_silent(kind, tmp_path, capsys):
  rng = np.random.default_rng(0)
  state = {
    'w': jnp.asarray(rng.normal(size=(40, 30)), jnp.float32),
    'step': jnp.asarray(7, jnp.int32),
  }
  checkpoints = Checkpoints(tmp_path, 3, {'seed': 0})
  checkpoints.save(7, state)
  checkpoints.save_best(7, state, 0.5)
  checkpoints.close()
  reader = Checkpoints(tmp_path, 3, read_only=True)
  latest = kind == 'checkpoints'
  restore = reader.restore_latest if latest else reader.restore_best
  message = 'step 7 is damaged' if latest else 'best state is damaged'
  found, manifests = 0, 0
  for path in _flipped(tmp_path / kind, rng, FLIPS // 3):
    manifests += path.name == 'manifest.json'
    try:
      chex.assert_trees_all_equal(restore(state), state)
    except CheckpointError as e:
      assert message in str(e)
      found += 1
  chex.assert_trees_all_equal(restore(state), state)
  reader.close()
  with capsys.disabled():
    print(
      f'\n{FLIPS // 3} bits flipped in {kind}/, {manifests} of them in its '
      f'manifest: {found} found and named, {FLIPS // 3 - found} in nothing '
      'that is read; 0 silent'
    )
  assert found >= 0.99 * (FLIPS // 3)


@pytest.mark.slow
def test_no_flip_in_the_other_files_of_a_run_is_silent(tmp_path, capsys):
  """What programs take from them is what was written, or they refuse."""
  rng = np.random.default_rng(0)
  run, files = untrained_runs.make(tmp_path / 'run'), tmp_path / 'files'
  workdir.finish(run, {'test': {'acc/top1': 0.9375}}, 'top-1 accuracy 93.8')
  files.mkdir()
  names = sorted(p.name for p in run.iterdir() if p.is_file())
  assert set(names) == {
    'config.json', 'data.json', 'label_map.txt', 'manifest.json',
    'metrics.json', 'metrics.jsonl', 'table.txt',
  }  # fmt: skip
  for name in names:
    (run / name).rename(files / name)

  def read():
    """Each file by what the programs read it with."""
    return {
      'config.json': trained.read_config(files).to_dict(),
      'data.json': trained._read_json(files, 'data.json'),
      'label_map.txt': trained._read_labels(files),
      'manifest.json': workdir.changes(files),
      'metrics.json': workdir.read_tree(files, 'metrics.json'),
      'metrics.jsonl': curves.read(files),
      'table.txt': workdir.finished_table(files),
    }

  expected = read()
  assert set(expected) == set(names)
  found = dict.fromkeys(names, 0)
  harmless = found.copy()
  for path in _flipped(files, rng, FLIPS // 3):
    try:
      assert read() == expected, path
      harmless[path.name] += 1
    except WorkdirError as e:
      assert f'{path}: damaged' in str(e)
      found[path.name] += 1
  assert read() == expected
  with capsys.disabled():
    print(
      f'\n{FLIPS // 3} bits flipped in the other files of a run, found and '
      f'named: {found}; of no meaning: {harmless}; 0 silent'
    )
  del harmless['manifest.json']  # its blanks
  assert not any(harmless.values()) and min(found.values()) > 0


@pytest.mark.slow
def test_no_flip_in_the_store_of_features_is_silent(tmp_path, capsys):
  rng = np.random.default_rng(0)
  identity = {'extractor': 'fake', 'weights': 'none'}
  expected, paths = {}, {}
  for dtype in store.DTYPES:
    folder = store.open_folder(tmp_path, identity | {'dtype': dtype})
    paths[dtype] = [store.path_of(folder, f'{n:064x}') for n in range(3)]
    for number, path in enumerate(paths[dtype]):
      writer = store.Writer(path, (4, 6), dtype)
      writer.append(rng.normal(size=(number + 2, 4, 6)).astype(np.float16))
      writer.commit(identity, number + 2, None)

  def read(dtype):
    source = features.VideoFeatures(
      ['a', 'b', 'c'], paths[dtype], [0, 1, 0], class_names=('x', 'y'),
      identity={},
    )  # fmt: skip
    return [
      {k: np.array(v) for k, v in source[i].items()} for i in range(len(source))
    ]

  expected = {dtype: read(dtype) for dtype in store.DTYPES}
  records, found = 0, 0
  for path in _flipped(tmp_path, rng, FLIPS // 3):
    is_record = path.suffix == '.npy'
    records += is_record
    dtype = next((d for d in paths if path in paths[d]), 'float16')
    try:
      chex.assert_trees_all_equal(read(dtype), expected[dtype])
      assert not is_record, path
    except DataError as e:
      assert str(path) in str(e)
      found += 1
  with capsys.disabled():
    print(
      f'\n{FLIPS // 3} bits flipped in a store of features, {records} of them '
      f'in records: {found} found and named; the others in identity.json, '
      'which is compared and written anew; 0 silent'
    )
  assert found == records
