"""The scan over time against a Python loop: masks, keys, direction, pieces."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hman_jax import cells, stochastic
from hman_jax.unroll import unroll

B, T, D = 3, 5, 2
MASKS = {
  'suffix': [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 0, 0, 0]],
  'prefix': [[0, 0, 0, 1, 1], [0, 1, 1, 1, 1], [1, 1, 1, 1, 1]],
  'holes': [[1, 0, 1, 0, 1], [0, 1, 0, 1, 0], [0, 0, 0, 0, 0]],
}


def _step(carry, x, key):
  """A step whose carry and output are pytrees, noisy if there is a key."""
  u = x['a'] + x['b'].astype(jnp.float32)[:, None]
  if key is not None:
    u = u + stochastic.sample_logistic(key, u.shape[:1], u.shape[1:])
  new = {'s': 0.5 * carry['s'] + u, 'n': carry['n'] + 1}
  return new, (new['s'] ** 2, u[:, 0])


def _inputs():
  rng = np.random.default_rng(0)
  return {
    'a': jnp.asarray(rng.normal(size=(B, T, D)), jnp.float32),
    'b': jnp.asarray(rng.integers(0, 9, (B, T)), jnp.uint8),
  }


def _carry(batch=B):
  return {'s': jnp.ones((batch, D)), 'n': jnp.zeros(batch, jnp.int32)}


def _loop(inputs, mask, keys, start, reverse):
  """One row and one step at a time, skipping padding."""
  carries, outputs = [], []
  for b in range(B):
    carry = jax.tree.map(lambda v: v[:1], _carry())
    rows = {}
    for t in reversed(range(T)) if reverse else range(T):
      if not mask[b, t]:
        rows[t] = (np.zeros((1, D)), np.zeros(1))
        continue
      x = jax.tree.map(lambda v, b=b, t=t: v[b : b + 1, t], inputs)
      key = None
      if keys is not None:
        key = jax.random.fold_in(keys[b], start + t)[None]
      carry, rows[t] = _step(carry, x, key)
    carries.append(carry)
    outputs.append(
      jax.tree.map(lambda *v: np.stack(v, 1), *[rows[t] for t in range(T)])
    )
  join = lambda *v: np.concatenate(v)
  return jax.tree.map(join, *carries), jax.tree.map(join, *outputs)


class Variants(chex.TestCase):
  """The loop with jit and without."""

  @chex.variants(with_jit=True, without_jit=True)
  def test_equals_the_loop(self):
    keys = jax.random.split(jax.random.key(3), B)
    for reverse in (False, True):
      run = self.variant(
        lambda carry, x, mask, key, start, reverse=reverse: unroll(
          _step, carry, x, mask=mask, key=key, start=start, reverse=reverse
        )
      )
      for (name, rows), (key, start) in itertools.product(
        MASKS.items(), ((None, 0), (keys, 7))
      ):
        mask = jnp.asarray(rows, bool)
        ours = run(_carry(), _inputs(), mask, key, start)
        theirs = _loop(_inputs(), np.asarray(mask), key, start, reverse)
        for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs)):
          np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=name)
        np.testing.assert_array_equal(ours[0]['n'], mask.sum(1))


@pytest.mark.parametrize('reverse', [False, True])
def test_without_a_mask_all_steps_are_valid(reverse):
  run = lambda mask: unroll(
    _step, _carry(), _inputs(), mask=mask, reverse=reverse
  )
  chex.assert_trees_all_equal(run(None), run(jnp.ones((B, T), bool)))


@pytest.mark.parametrize('garbage', [1e30, -7.0, np.nan, np.inf])
def test_what_stands_in_padding_is_not_read(garbage):
  mask = jnp.asarray(MASKS['holes'], bool)
  inputs = _inputs()
  spoilt = {**inputs, 'a': jnp.where(mask[..., None], inputs['a'], garbage)}
  chex.assert_trees_all_equal(
    unroll(_step, _carry(), inputs, mask=mask),
    unroll(_step, _carry(), spoilt, mask=mask),
  )


@pytest.mark.parametrize('extra', [1, 11])
def test_padding_of_any_length_changes_nothing(extra):
  keys = jax.random.split(jax.random.key(3), B)
  mask = jnp.asarray(MASKS['suffix'], bool)
  longer = jax.tree.map(
    lambda v: jnp.pad(
      v, ((0, 0), (0, extra)) + ((0, 0),) * (v.ndim - 2), constant_values=9
    ),
    _inputs(),
  )
  carry, out = unroll(_step, _carry(), _inputs(), mask=mask, key=keys)
  more = jnp.pad(mask, ((0, 0), (0, extra)))
  carry2, out2 = unroll(_step, _carry(), longer, mask=more, key=keys)
  chex.assert_trees_all_equal(carry, carry2)
  chex.assert_trees_all_equal(out, jax.tree.map(lambda v: v[:, :T], out2))
  assert all(not np.any(v[:, T:]) for v in jax.tree.leaves(out2))


@pytest.mark.parametrize('split', [1, 2, 4])
@pytest.mark.parametrize('masked', [False, True])
def test_pieces_joined_are_the_whole(split, masked):
  keys = jax.random.split(jax.random.key(3), B)
  mask = jnp.asarray(MASKS['suffix'], bool) if masked else None
  whole = unroll(_step, _carry(), _inputs(), mask=mask, key=keys)
  part = lambda tree, s: jax.tree.map(lambda v: v[:, s], tree)
  head, tail = slice(0, split), slice(split, None)
  carry, first = unroll(
    _step, _carry(), part(_inputs(), head), mask=part(mask, head), key=keys
  )
  carry, second = unroll(
    _step,
    carry,
    part(_inputs(), tail),
    mask=part(mask, tail),
    key=keys,
    start=split,
  )
  joined = jax.tree.map(
    lambda a, b: jnp.concatenate([a, b], axis=1), first, second
  )
  chex.assert_trees_all_close((carry, joined), whole, atol=1e-6)


def test_a_row_with_its_key_is_that_row_alone():
  keys = jax.random.split(jax.random.key(3), B)
  _, whole = unroll(_step, _carry(), _inputs(), key=keys)
  for b in range(B):
    row = jax.tree.map(lambda v, b=b: v[b : b + 1], _inputs())
    _, alone = unroll(_step, _carry(1), row, key=keys[b : b + 1])
    chex.assert_trees_all_close(
      alone, jax.tree.map(lambda v, b=b: v[b : b + 1], whole), atol=1e-6
    )


def test_one_key_and_raw_keys():
  """One key is folded step by step; raw key data is the same key."""
  key = jax.random.key(5)
  _, ours = unroll(_step, _carry(), _inputs(), key=key)
  carry = _carry()
  for t in range(T):
    x = jax.tree.map(lambda v, t=t: v[:, t], _inputs())
    carry, out = _step(carry, x, jax.random.fold_in(key, t))
    chex.assert_trees_all_close(
      out, jax.tree.map(lambda v, t=t: v[:, t], ours), rtol=1e-5, atol=1e-5
    )
  raw = jax.random.key_data(key)
  _, same = unroll(_step, _carry(), _inputs(), key=raw)
  chex.assert_trees_all_equal(ours, same)
  keys = jax.random.split(key, B)
  chex.assert_trees_all_equal(
    unroll(_step, _carry(), _inputs(), key=keys),
    unroll(_step, _carry(), _inputs(), key=jax.random.key_data(keys)),
  )


def test_noise_differs_between_steps_rows_and_starts():
  zeros = jax.tree.map(jnp.zeros_like, _inputs())
  keys = jax.random.split(jax.random.key(3), B)
  _, (_, noise) = unroll(_step, _carry(), zeros, key=keys)
  _, (_, later) = unroll(_step, _carry(), zeros, key=keys, start=T)
  drawn = np.concatenate([noise, later]).ravel()
  assert np.unique(drawn).size == drawn.size


@pytest.mark.parametrize('cell', [cells.LSTM((4, 3)), cells.HMLSTM((4, 3))])
def test_a_frame_at_a_time_with_a_traced_start(cell):
  """Streaming a bare cell compiles once and gives what the batch gives."""
  params = cell.init(jax.random.key(0), D)
  keys = jax.random.split(jax.random.key(3), B)
  x = _inputs()['a']
  step = lambda state, x, key: cell.step(params, state, x, key)

  traces = []

  @jax.jit
  def frame(state, x, start):
    traces.append(1)
    return unroll(step, state, x, key=keys, start=start)

  state = cell.initial_state((B,))
  whole_state, whole = unroll(step, state, x, key=keys)
  for t in range(T):
    state, out = frame(state, x[:, t : t + 1], jnp.int32(t))
    chex.assert_trees_all_close(
      out, jax.tree.map(lambda v, t=t: v[:, t : t + 1], whole), atol=1e-6
    )
  chex.assert_trees_all_close(state, whole_state, atol=1e-6)
  assert len(traces) == 1


def test_gradient_stops_at_padding():
  mask = jnp.asarray(MASKS['suffix'], bool)

  def loss(x):
    carry, out = unroll(_step, _carry(), x, mask=mask)
    return jnp.sum(carry['s']) + jnp.sum(out[0])

  inputs = _inputs()
  gradient = jax.grad(lambda a: loss({**inputs, 'a': a}))(inputs['a'])
  assert not np.any(gradient[~mask])
  assert np.all(gradient[mask] != 0)


def test_wrong_shapes_are_named():
  mask = jnp.ones((B, T + 1), bool)
  with pytest.raises(ValueError, match=r'same leading \[B, T\]'):
    unroll(_step, _carry(), _inputs(), mask=mask)
