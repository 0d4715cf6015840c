"""Our cells inside flax.linen.RNN and flax.nnx.RNN."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from hman_jax import cells
from hman_jax import linen as hman_linen
from hman_jax import nnx as hman_nnx
from hman_jax.unroll import unroll

SPLIT = {'params': False, 'boundary': True}
SIZES = (6, 5)


def _x(batch=3, time=7, size=4):
  return jax.random.normal(jax.random.key(5), (batch, time, size))


def _linen(split=SPLIT, **options):
  cell = hman_linen.HMLSTMCell(hidden_sizes=SIZES, **options)
  rnn = nn.RNN(cell, split_rngs=split)
  return rnn, rnn.init(jax.random.key(0), _x())


def _nnx(broadcast=None, **options):
  rngs = nnx.Rngs(0, boundary=1)
  cell = hman_nnx.HMLSTMCell(4, SIZES, rngs=rngs, **options)
  return nnx.RNN(cell, broadcast_rngs=broadcast)


def _pure(params, x, mask=None, **options):
  cell = cells.HMLSTM(SIZES, **options)
  return unroll(
    lambda s, x_t, k: cell.step(params, s, x_t, deterministic=True),
    cell.initial_state((x.shape[0],)),
    x,
    mask=mask,
  )


def _rate_half(params):
  """The parameters with P(z = 1) = 1/2 at every step: all noise."""
  zero = lambda v: None if v is None else jnp.zeros_like(v)
  return params._replace(
    layers=tuple(
      layer._replace(
        bottom_up_z=zero(layer.bottom_up_z),
        recurrent_z=zero(layer.recurrent_z),
        top_down_z=zero(layer.top_down_z),
        bias_z=zero(layer.bias_z),
      )
      for layer in params.layers
    )
  )


@pytest.mark.parametrize('lengths', [None, (7, 4, 1)])
def test_linen_equals_the_pure_cell(lengths):
  rnn, variables = _linen(deterministic=True)
  x = _x()
  seq_lengths = None if lengths is None else jnp.array(lengths)
  carry, y = rnn.apply(variables, x, seq_lengths=seq_lengths, return_carry=True)
  mask = jnp.arange(7)[None] < jnp.array(lengths or (7,) * 3)[:, None]
  state, out = _pure(variables['params']['cell']['cell'], x, mask)
  chex.assert_trees_all_close(carry.state, state, atol=1e-6)
  chex.assert_trees_all_close(
    jnp.where(mask[..., None], y, 0.0), out.h, atol=1e-6
  )


@pytest.mark.parametrize('lengths', [None, (7, 4, 1)])
def test_nnx_equals_the_pure_cell(lengths):
  rnn = _nnx(deterministic=True)
  x = _x()
  seq_lengths = None if lengths is None else jnp.array(lengths)
  carry, y = rnn(x, seq_lengths=seq_lengths, return_carry=True)
  mask = jnp.arange(7)[None] < jnp.array(lengths or (7,) * 3)[:, None]
  params = jax.tree.map(
    lambda p: p[...],
    rnn.cell.params,
    is_leaf=lambda p: isinstance(p, nnx.Variable),
  )
  state, out = _pure(params, x, mask)
  chex.assert_trees_all_close(carry.state, state, atol=1e-6)
  chex.assert_trees_all_close(
    jnp.where(mask[..., None], y, 0.0), out.h, atol=1e-6
  )


def _assert_noise_differs_by_step(z):
  """z [B, T, L] of fair coins: about half differ between two steps."""
  changed = np.mean(np.asarray(z[:, 1:] != z[:, :-1]))
  assert 0.4 < changed < 0.6, changed
  between_rows = np.mean(np.asarray(z[1:] != z[:-1]))
  assert 0.4 < between_rows < 0.6, between_rows


@pytest.mark.parametrize('split', [True, False])
def test_linen_draws_other_noise_at_each_step(split):
  rnn, variables = _linen(
    {'params': False, 'boundary': split}, full_output=True
  )
  x = jnp.ones((16, 20, 4))
  params = {'cell': {'cell': _rate_half(variables['params']['cell']['cell'])}}
  out = rnn.apply({'params': params}, x, rngs={'boundary': jax.random.key(3)})
  _assert_noise_differs_by_step(out.z)
  again = rnn.apply({'params': params}, x, rngs={'boundary': jax.random.key(3)})
  chex.assert_trees_all_equal(out.z, again.z)
  other = rnn.apply({'params': params}, x, rngs={'boundary': jax.random.key(4)})
  assert np.mean(np.asarray(out.z != other.z)) > 0.4


def test_linen_without_the_stream_fails_and_says_what_to_pass():
  rnn, variables = _linen({'params': False})
  with pytest.raises(ValueError, match=r"split_rngs=.*'boundary': True"):
    rnn.apply(variables, _x(), rngs={'boundary': jax.random.key(0)})
  rnn, variables = _linen()
  with pytest.raises(ValueError, match="no RNG stream 'boundary'"):
    rnn.apply(variables, _x(), rngs={'params': jax.random.key(0)})


@pytest.mark.parametrize('broadcast', [None, 'boundary'])
def test_nnx_draws_other_noise_at_each_step(broadcast):
  rnn = _nnx(broadcast, full_output=True)
  zeroed = _rate_half(
    jax.tree.map(
      lambda p: p[...],
      rnn.cell.params,
      is_leaf=lambda p: isinstance(p, nnx.Variable),
    )
  )
  rnn.cell.params = nnx.data(jax.tree.map(nnx.Param, zeroed))
  x = jnp.ones((16, 20, 4))
  first = rnn(x)
  _assert_noise_differs_by_step(first.z)
  assert np.mean(np.asarray(first.z != rnn(x).z)) > 0.4


def test_nnx_without_the_stream_fails_and_says_what_to_pass():
  with pytest.raises(ValueError, match=r'rngs=nnx.Rngs\(0, boundary=1\)'):
    hman_nnx.HMLSTMCell(4, SIZES, rngs=nnx.Rngs(params=0))


def test_linen_trains():
  rnn, variables = _linen()
  x, target = _x(), jnp.sin(jnp.arange(7.0)).reshape(1, 7, 1)
  optimizer = optax.adam(1e-2)
  opt_state = optimizer.init(variables)

  @jax.jit
  def step(variables, opt_state, key):
    def loss(v):
      y = rnn.apply(v, x, rngs={'boundary': key})
      return jnp.mean(jnp.square(y - target))

    value, gradient = jax.value_and_grad(loss)(variables)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(variables, updates), opt_state, value

  values = []
  for i in range(60):
    variables, opt_state, value = step(variables, opt_state, jax.random.key(i))
    values.append(float(value))
  assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])


def test_nnx_trains():
  rnn = _nnx()
  x, target = _x(), jnp.sin(jnp.arange(7.0)).reshape(1, 7, 1)
  optimizer = nnx.Optimizer(rnn, optax.adam(1e-2), wrt=nnx.Param)

  @nnx.jit
  def step(rnn, optimizer):
    loss = lambda m: jnp.mean(jnp.square(m(x) - target))
    value, gradient = nnx.value_and_grad(loss)(rnn)
    optimizer.update(rnn, gradient)
    return value

  values = [float(step(rnn, optimizer)) for _ in range(60)]
  assert np.mean(values[-5:]) < 0.8 * np.mean(values[:5])


def test_lstm_adapters_agree_with_flax():
  x = _x()
  rnn = nn.RNN(hman_linen.LSTMCell(hidden_sizes=(6,)))
  variables = rnn.init(jax.random.key(0), x)
  params = variables['params']['cell']['cell'].layers[0]
  flax_cell = nn.OptimizedLSTMCell(6)
  order = {'i': 0, 'f': 1, 'o': 2, 'g': 3}
  columns = lambda k, w: w[..., order[k] * 6 : (order[k] + 1) * 6]
  theirs = {}
  for gate in order:
    theirs[f'i{gate}'] = {'kernel': columns(gate, params.bottom_up)}
    theirs[f'h{gate}'] = {
      'kernel': columns(gate, params.recurrent),
      'bias': columns(gate, params.bias),
    }
  expected = nn.RNN(flax_cell).apply({'params': {'cell': theirs}}, x)
  chex.assert_trees_all_close(rnn.apply(variables, x), expected, atol=1e-5)
