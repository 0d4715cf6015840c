"""Flipped bits in a checkpoint: none is silent.

HMAN_FLIPS sets how many (default 500).
"""

import os

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.checkpoint import Checkpoints
from experiments.errors import CheckpointError

FLIPS = int(os.environ.get('HMAN_FLIPS', '500'))


@pytest.mark.slow
def test_no_flip_is_silent(tmp_path, capsys):
  rng = np.random.default_rng(0)
  state = {
    'w': jnp.asarray(rng.normal(size=(40, 30)), jnp.float32),
    'step': jnp.asarray(7, jnp.int32),
  }
  checkpoints = Checkpoints(tmp_path, 3, {'seed': 0})
  checkpoints.save(7, state)
  checkpoints.close()
  folder = tmp_path / 'checkpoints' / '7'
  files = sorted(p for p in folder.rglob('*') if p.is_file())
  sizes = np.array([p.stat().st_size for p in files], float)
  reader = Checkpoints(tmp_path, 3, {'seed': 0}, read_only=True)
  found = 0
  for _ in range(FLIPS):
    # Small files as often as large ones: half by file, half by byte.
    share = sizes / sizes.sum() if rng.integers(2) else None
    path = files[rng.choice(len(files), p=share)]
    whole = path.read_bytes()
    if not whole:
      continue
    data = bytearray(whole)
    data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)
    try:
      chex.assert_trees_all_equal(reader.restore_latest(state), state)
    except CheckpointError as e:
      assert 'step 7 is damaged' in str(e)
      found += 1
    path.write_bytes(whole)
  chex.assert_trees_all_equal(reader.restore_latest(state), state)
  reader.close()
  with capsys.disabled():
    print(
      f'\n{FLIPS} flipped bits in {len(files)} files: {found} found and named, '
      f'{FLIPS - found} in nothing that is restored; 0 silent'
    )
  assert found >= 0.99 * FLIPS
