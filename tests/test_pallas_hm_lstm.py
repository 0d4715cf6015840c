"""The kernels by Pallas's interpreter, and their lowering for CUDA."""

import dataclasses
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_deferred import _assert_close, _compiled, _loss, _variables
from test_hm_lstm import _reference_layers

from configs import default
from experiments import train
from experiments.errors import ConfigError
from hman_jax import models, pallas_hm_lstm
from hman_jax.cells import HMLSTM, LSTM
from hman_jax.models import Recogniser
from hman_jax.pallas_hm_lstm import PallasHMLSTM
from hman_jax.unroll import unroll

import reference

BATCH = 16
KERNELS = '__gpu$xla.gpu.triton'


def _draw(seed):
  """A random recogniser (options), inputs and call options."""
  rng = np.random.default_rng(seed)
  pick = lambda *choices: choices[rng.integers(len(choices))]
  steps, locations, size = int(rng.integers(1, 5)), 4, int(rng.integers(1, 9))
  layers = tuple(pick(32, 32, 64) for _ in range(rng.integers(1, 4)))
  boundary = pick('gumbel', 'straight_through', 'soft', 'given')
  options = {
    'attention': pick('soft', 'reinforce', 'gumbel_adaptive', 'none'),
    'hidden_sizes': layers,
    'attention_options': {
      'num_locations': locations,
      'scorer': pick('location', 'content'),
      'scorer_size': 5,
    },
    'initial_state': pick('zeros', 'mean_features'),
    'dropout': pick(0.0, 0.3),
    'remat': pick(False, False, True),
    'cell_options': {
      'boundary': boundary,
      'top_detector': pick(True, False),
      'copied_boundary': pick('recompute', 'zero'),
      'output_activation': pick('tanh', 'identity'),
    },
  }
  call = {
    'key': jax.random.split(jax.random.key(seed), pick((), BATCH)),
    'boundary_noise': 0.7,
    'boundary_slope': 1.5,
  }
  if boundary == 'given':
    bits = rng.integers(0, 2, size=(BATCH, steps, len(layers)))
    call['boundaries'] = jnp.asarray(bits, jnp.float32)
  mask = pick(None, jnp.asarray(rng.integers(0, 2, (BATCH, steps)), bool))
  features = rng.normal(size=(BATCH, steps, locations, size))
  return options, jnp.asarray(features, jnp.float32), mask, call


def _gradients(seed, **more):
  """((loss, outputs), gradients) of the drawn case by the kernels, by JAX."""
  options, features, mask, call = _draw(seed)
  results = []
  for backward in ('pallas', 'autodiff'):
    model = models.create(3, **{**options, 'backward': backward, **more})
    assert isinstance(model, Recogniser)
    if backward == 'pallas':
      assert isinstance(model.cell, PallasHMLSTM)
      cell = dataclasses.replace(model.cell, interpret=True)
      model = dataclasses.replace(model, cell=cell)
    variables = _variables(model, features, seed)
    scale = lambda v: v / 4  # sums of 64 terms, not of 6
    variables['params']['cell'] = jax.tree.map(
      scale, variables['params']['cell']
    )
    loss = lambda v, x, model=model: _loss(
      model, v, x, mask, call, np.random.default_rng(seed)
    )
    results.append(
      _compiled(
        jax.value_and_grad(loss, (0, 1), has_aux=True), variables, features
      )
    )
  return results


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(16))
def test_equals_autodiff(seed):
  _assert_close(*_gradients(seed))


@pytest.mark.slow
def test_equals_autodiff_of_bfloat16():
  """Up to what rounding makes of sums in another order."""
  _assert_close(*_gradients(3, dtype='bfloat16'), tolerance=2e-3)


def _cell(boundary='given', **options):
  """(cell by the interpreter, its parameters, x `[B, T, D]`, boundaries)."""
  rng = np.random.default_rng(0)
  cell = PallasHMLSTM((32, 64), boundary=boundary, interpret=True, **options)
  params = jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape) / 8, p.dtype),
    jax.eval_shape(lambda: cell.init(jax.random.key(0), 5)),
  )
  x = jnp.asarray(rng.normal(size=(BATCH, 3, 5)), jnp.float32)
  given = jnp.asarray(rng.integers(0, 2, (BATCH, 3, 2)), jnp.float32)
  return cell, params, x, given


def test_equals_the_loop():
  """Forward, against the equations in NumPy."""
  cell, params, x, given = _cell()

  def step(state, at, _):
    return cell.step(params, state, at[0], boundaries=at[1])

  run = lambda x, given: unroll(step, cell.initial_state((BATCH,)), (x, given))
  _, out = _compiled(run, x, given)
  layers = _reference_layers(params)
  for row in range(BATCH):
    c, h = [[np.zeros(s) for s in cell.hidden_sizes] for _ in range(2)]
    z = [0.0, 0.0]
    for t in range(3):
      bits = given[row, t]
      c, h, z, _, operations = reference.hm_lstm_step(
        layers, c, h, z, x[row, t],
        detect=lambda l, a, bits=bits: (float(bits[l]), float(bits[l])),
      )  # fmt: skip
      np.testing.assert_allclose(out.h[row, t], np.concatenate(h), atol=1e-6)
      np.testing.assert_array_equal(out.operation[row, t], operations)


def _loss_of(cell, params, x):
  state = cell.initial_state((x.shape[0],))
  step = lambda state, x, key: cell.step(params, state, x, key)
  state, out = unroll(step, state, x, key=jax.random.key(0))
  return jnp.sum(out.h) + jnp.sum(out.boundary_prob) + jnp.sum(state.c[0])


def test_gradients_of_one_step():
  """All of one layer, of two tiles of rows and of units."""
  cell = PallasHMLSTM((64,), boundary='soft', interpret=True)
  plain = HMLSTM((64,), boundary='soft')
  rng = np.random.default_rng(0)
  draw = lambda a: jnp.asarray(rng.normal(size=a.shape) / 8, a.dtype)
  params, state = jax.tree.map(
    draw,
    jax.eval_shape(
      lambda: (cell.init(jax.random.key(0), 5), cell.initial_state((32,)))
    ),
  )
  x = jnp.asarray(rng.normal(size=(32, 1, 5)), jnp.float32)

  def loss(cell, *args, **options):
    params, state, x = args
    step = lambda state, x, _: cell.step(params, state, x)
    state, out = unroll(step, state, x, **options)
    total = jax.tree.map(lambda y: jnp.mean(jnp.sin(y)), (state, out.h))
    return sum(jax.tree.leaves(total))

  both = [
    functools.partial(loss, cell),
    functools.partial(loss, plain, backward='autodiff'),
  ]
  run = lambda *args: [jax.value_and_grad(f, (0, 1, 2))(*args) for f in both]
  _assert_close(*_compiled(run, params, state, x))


def _lowered(cell, batch, size, platform):
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), size))
  x = jax.ShapeDtypeStruct((batch, 60, size), jnp.float32)
  gradient = jax.jit(jax.grad(lambda p, x: _loss_of(cell, p, x)))
  traced = gradient.trace(params, x)
  return traced.lower(lowering_platforms=(platform,)).as_text()


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16'])
def test_lowers_for_cuda(dtype):
  """At the paper's shape: a kernel forward and one backward for each layer."""
  cell = PallasHMLSTM((512,) * 3, dtype=dtype)
  assert _lowered(cell, 64, 2048, 'cuda').count(KERNELS) == 6


def test_no_kernel_elsewhere():
  assert KERNELS not in _lowered(PallasHMLSTM((32,)), 16, 4, 'cpu')


@pytest.mark.parametrize(
  ('options', 'batch', 'reason'),
  [
    ({}, (16,), None),
    ({'layer_norm': True}, (16,), 'layer_norm'),
    ({'skip_copies': True}, (16,), 'skip_copies'),
    ({'hidden_sizes': (32, 48)}, (16,), 'not multiples of 32'),
    ({}, (8,), 'not a multiple of 16'),
    ({}, (), 'not one number'),
    ({'hidden_sizes': (512,) * 3}, (16,), None),
    ({'hidden_sizes': (1024,) * 3}, (16,), 'exceed a cache'),
    ({'hidden_sizes': (640,) * 3}, (16,), 'exceed a cache'),
    ({'hidden_sizes': (640,) * 3, 'dtype': 'bfloat16'}, (16,), None),
  ],
)
def test_obstacles(options, batch, reason):
  cell = HMLSTM(**{'hidden_sizes': (32, 32), **options})
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 2048))
  found = pallas_hm_lstm.obstacle(cell, params, batch)
  assert found is None if reason is None else reason in str(found)


def test_other_parameters_are_an_obstacle():
  cell = HMLSTM((32,))
  init = lambda: cell.init(jax.random.key(0), 4, jnp.bfloat16)
  params = jax.eval_shape(init)
  assert 'bfloat16' in str(pallas_hm_lstm.obstacle(cell, params, (16,)))


def test_what_has_an_obstacle_runs_as_ever():
  cell, params, x, _ = _cell('straight_through')
  plain = HMLSTM((32, 64), boundary='straight_through')
  run = lambda cell: lambda params, x: _loss_of(cell, params, x)
  with pytest.warns(UserWarning, match='batch of 4 is not a multiple of 16'):
    jaxpr = jax.make_jaxpr(run(cell))(params, x[:4])
  assert str(jaxpr) == str(jax.make_jaxpr(run(plain))(params, x[:4]))


def test_who_gets_the_kernels():
  cell = HMLSTM((32,), boundary='soft', temperature=0.7)
  with_kernel = pallas_hm_lstm.with_kernel(cell)
  assert dataclasses.asdict(with_kernel) == {
    **dataclasses.asdict(cell),
    'interpret': False,
  }
  assert pallas_hm_lstm.with_kernel(with_kernel) is with_kernel
  lstm = LSTM((32,))
  assert pallas_hm_lstm.with_kernel(lstm) is lstm
  with warnings.catch_warnings():
    warnings.simplefilter('error')
    model = models.create(2, hidden_sizes=(32,), backward='pallas')
  assert isinstance(model, Recogniser)
  assert isinstance(model.cell, PallasHMLSTM) and model.backward == 'deferred'


def test_several_devices_are_refused():
  config = default.get_config()
  config.model.backward = 'pallas'
  with pytest.raises(ConfigError, match="expected 'deferred' on 4 devices"):
    train.make_model(config, 3, (49, 16))
