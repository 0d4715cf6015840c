"""The LSTM stack against the NumPy loop, its gradients and its contract."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from hman_jax.cells import LSTM

import reference

B, T, D = 2, 4, 3
SIZES = [(4,), (4, 3), (3, 5, 4), (2, 3, 4, 5)]


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _random_params(cell, seed=0):
  rng = np.random.default_rng(seed)
  params = cell.init(jax.random.key(0), D, jnp.float64)
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)


def _inputs(seed=1):
  return np.random.default_rng(seed).normal(size=(T, B, D))


def _run(cell, params, x):
  state = cell.initial_state((B,), jnp.float64)
  shown = []
  for x_t in x:
    state, out = cell.step(params, state, jnp.asarray(x_t))
    shown.append(out.h)
  return state, jnp.stack(shown)


class Variants(chex.TestCase):
  """The same numbers with jit and without, for a batch and for each row."""

  @chex.variants(with_jit=True, without_jit=True)
  def test_equals_the_loop(self):
    for sizes in SIZES:
      cell = LSTM(sizes)
      params, x = _random_params(cell), _inputs()
      run = self.variant(lambda p, x, cell=cell: _run(cell, p, x))
      state, shown = run(params, jnp.asarray(x))
      layers = [
        dict(zip('WUb', (np.asarray(v) for v in p))) for p in params.layers
      ]
      for b in range(B):
        c, h = [np.zeros(s) for s in sizes], [np.zeros(s) for s in sizes]
        for t in range(T):
          c, h = reference.lstm_step(layers, c, h, x[t, b])
          np.testing.assert_allclose(shown[t, b], np.concatenate(h), rtol=1e-10)
        for l in range(len(sizes)):
          np.testing.assert_allclose(state.c[l][b], c[l], rtol=1e-10)
          np.testing.assert_allclose(state.h[l][b], h[l], rtol=1e-10)


def test_gradient_equals_finite_differences():
  cell = LSTM((3, 2))
  flat, unravel = ravel_pytree((_random_params(cell), jnp.asarray(_inputs())))
  readout = jnp.asarray(np.random.default_rng(3).normal(size=(T, B, 5)))
  loss = jax.jit(lambda v: jnp.sum(_run(cell, *unravel(v))[1] * readout))
  gradient = jax.grad(loss)(flat)
  step = 1e-6 * np.eye(flat.size)
  numerical = [float(loss(flat + e) - loss(flat - e)) / 2e-6 for e in step]
  np.testing.assert_allclose(gradient, numerical, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize('batch_shape', [(), (2,), (2, 3)])
def test_any_leading_shape(batch_shape):
  cell = LSTM((3, 2))
  params = _random_params(cell)
  x = jnp.asarray(np.random.default_rng(2).normal(size=(*batch_shape, D)))
  state, out = cell.step(
    params, cell.initial_state(batch_shape, jnp.float64), x
  )
  chex.assert_shape(out.h, (*batch_shape, 5))
  flat = x.reshape(-1, D)
  zeros = cell.initial_state((len(flat),), jnp.float64)
  expected, _ = cell.step(params, zeros, flat)
  chex.assert_trees_all_close(
    jax.tree.map(lambda v: v.reshape(-1, v.shape[-1]), state),
    expected,
    rtol=1e-12,
  )
  like = cell.initial_state(dtype=jnp.float64, like=x)
  chex.assert_trees_all_equal(
    like, cell.initial_state(batch_shape, jnp.float64)
  )


def test_it_has_no_boundaries_and_draws_nothing():
  cell = LSTM((3,))
  params = _random_params(cell)
  state = cell.initial_state((B,), jnp.float64)
  x = jnp.ones((B, D))
  one = cell.step(params, state, x, jax.random.key(0))
  other = cell.step(params, state, x, jax.random.key(1), noise=7.0, slope=2.0)
  chex.assert_trees_all_equal(one, other)
  assert one[1][1:] == (None, None, None)
  assert not cell.stochastic
  with pytest.raises(ValueError, match='boundaries: expected None'):
    cell.step(params, state, x, boundaries=jnp.ones((B, 1)))


def test_initial_parameters():
  layer = LSTM((6,), forget_bias=1.5).init(jax.random.key(0), D).layers[0]
  np.testing.assert_array_equal(layer.bias, [0] * 6 + [1.5] * 6 + [0] * 12)
  for block in jnp.split(layer.recurrent, 4, axis=1):
    np.testing.assert_allclose(block @ block.T, np.eye(6), atol=1e-5)


@pytest.mark.parametrize('sizes', [(), (3, 0), (2.5,)])
def test_bad_sizes_are_named(sizes):
  with pytest.raises(ValueError, match='hidden_sizes: expected'):
    LSTM(sizes)
