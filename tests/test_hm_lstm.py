"""The HM-LSTM against the NumPy loop, and its properties."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from hman_jax import cells, stochastic
from hman_jax.cells import COPY, FLUSH, HMLSTM, UPDATE

import reference

D, T = 5, 6
TOLERANCE = 1e-10


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


def _random_params(cell, seed=0):
  """Parameters of the cell's structure, all random normal."""
  rng = np.random.default_rng(seed)
  params = cell.init(jax.random.key(0), D, jnp.float64)
  return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)


def _reference_layers(params):
  names = {
    'W': 'bottom_up', 'U': 'recurrent', 'V': 'top_down', 'b': 'bias',
    'w_z': 'bottom_up_z', 'u_z': 'recurrent_z', 'v_z': 'top_down_z',
    'b_z': 'bias_z', 'scale': 'norm_scale', 'shift': 'norm_bias',
  }  # fmt: skip
  value = lambda v: None if v is None else np.asarray(v)
  return [
    {k: value(getattr(layer, n)) for k, n in names.items()}
    for layer in params.layers
  ]


def _run_both(cell, seed=0, key=None, slope=1.0, boundaries=None, **step):
  """T steps of the library and of the loop; their outputs as arrays."""
  params = _random_params(cell, seed)
  x = np.random.default_rng(seed + 1).normal(size=(T, D))
  layers, sizes = _reference_layers(params), cell.hidden_sizes
  state = cell.initial_state((), jnp.float64)
  c, h = [np.zeros(s) for s in sizes], [np.zeros(s) for s in sizes]
  z = [0.0] * len(sizes)
  ours, theirs = [], []
  for t in range(T):
    key_t = None if key is None else jax.random.fold_in(key, t)
    given = None if boundaries is None else jnp.asarray(boundaries[t])
    state, out = cell.step(
      params,
      state,
      jnp.asarray(x[t]),
      key_t,
      deterministic=key is None,
      slope=slope,
      boundaries=given,
      **step,
    )

    def detect(l, a, t=t, key_t=key_t):
      if cell.boundary == 'given':
        return boundaries[t][l], boundaries[t][l]
      if cell.boundary == 'straight_through':
        return reference.hard_sigmoid_boundary(float(a), slope)
      if cell.boundary == 'soft':
        soft = float(reference.sigmoid(a / cell.temperature))
        return soft, soft
      noise = 0.0
      if key_t is not None:
        key_l = jax.random.fold_in(key_t, l)
        noise = float(stochastic.sample_logistic(key_l, (), (1,))[0])
      return reference.gumbel_boundary(float(a), noise, cell.temperature)

    c, h, z, probs, operations = reference.hm_lstm_step(
      layers, c, h, z, x[t],
      detect=detect,
      identity=cell.output_activation == 'identity',
      zero_copied=cell.copied_boundary == 'zero',
    )  # fmt: skip
    ours.append((*state.c, out.h, out.z, out.boundary_prob, out.operation))
    theirs.append((*c, np.concatenate(h), z, probs, operations))
  return ours, theirs


def _assert_equal(ours, theirs):
  for at_step, expected in zip(ours, theirs):
    for a, b in zip(at_step, expected):
      np.testing.assert_allclose(a, b, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize('sizes', [(4,), (4, 3), (3, 5, 4), (2, 3, 4, 5)])
@pytest.mark.parametrize('boundary', ['gumbel', 'straight_through', 'soft'])
@pytest.mark.parametrize('layer_norm', [False, True])
def test_equals_the_loop(sizes, boundary, layer_norm):
  cell = HMLSTM(sizes, boundary=boundary, layer_norm=layer_norm)
  _assert_equal(*_run_both(cell, slope=2.5))


@pytest.mark.parametrize(
  'options',
  [
    {'top_detector': False},
    {'copied_boundary': 'zero'},
    {'output_activation': 'identity'},
    {'temperature': 1.7, 'boundary': 'soft'},
    {
      'top_detector': False, 'copied_boundary': 'zero', 'layer_norm': True,
      'output_activation': 'identity',
    },
  ],
)  # fmt: skip
def test_options_equal_the_loop(options):
  _assert_equal(*_run_both(HMLSTM((3, 5, 4), **options)))


def test_drawn_boundaries_equal_the_loop():
  ours, theirs = _run_both(HMLSTM((3, 5, 4)), key=jax.random.key(2))
  _assert_equal(ours, theirs)


def test_given_boundaries_equal_the_loop():
  given = np.random.default_rng(4).integers(0, 2, (T, 3)).astype(float)
  cell = HMLSTM((3, 5, 4), boundary='given')
  _assert_equal(*_run_both(cell, boundaries=given))


def test_operations():
  cell = HMLSTM((3, 3), boundary='given')
  params = _random_params(cell)
  state = cell.initial_state((), jnp.float64)
  x = jnp.ones(D)
  expected = {
    (0, 0): (UPDATE, COPY),
    (1, 0): (UPDATE, UPDATE),
    (0, 1): (UPDATE, COPY),
    (1, 1): (UPDATE, UPDATE),
  }
  for z, operations in expected.items():
    after, out = cell.step(params, state, x, boundaries=jnp.array(z, float))
    assert tuple(out.operation.tolist()) == operations
    follow = tuple(
      cell.step(params, after, x, boundaries=jnp.zeros(2))[1].operation.tolist()
    )
    assert follow == (FLUSH if z[0] else UPDATE, FLUSH if z[1] else COPY)


def test_copy_leaves_the_state_as_it_was_to_the_bit():
  cell = HMLSTM((3, 4), boundary='given')
  params = _random_params(cell)
  state = cell.initial_state((), jnp.float64)
  step = lambda s, z: cell.step(
    params, s, jnp.ones(D), boundaries=jnp.array(z, float)
  )[0]
  before = step(state, (1, 0))
  after = step(before, (0, 0))
  chex.assert_trees_all_equal(after.c[1], before.c[1])
  chex.assert_trees_all_equal(after.h[1], before.h[1])
  assert np.abs(np.asarray(after.c[0] - before.c[0])).max() > 1e-3


def test_flush_forgets_the_cell():
  cell = HMLSTM((3,), boundary='given')
  params = _random_params(cell)
  state = cell.initial_state((), jnp.float64)._replace(z=jnp.ones(1))
  step = lambda c: cell.step(
    params, state._replace(c=(c,)), jnp.ones(D), boundaries=jnp.zeros(1)
  )[0]
  chex.assert_trees_all_equal(step(jnp.zeros(3)), step(jnp.full(3, 7.0)))


def _numerical_gradient(f, params, epsilon=1e-6):
  flat, unravel = ravel_pytree(params)
  flat = np.asarray(flat)
  f = jax.jit(lambda v, f=f: f(unravel(v)))
  gradient = np.zeros_like(flat)
  for k in range(flat.size):
    up, down = flat.copy(), flat.copy()
    up[k] += epsilon
    down[k] -= epsilon
    gradient[k] = (float(f(up)) - float(f(down))) / (2 * epsilon)
  return gradient


def _loss(cell, x, boundaries=None):
  readout = np.random.default_rng(3).normal(size=(T, cell.output_size))

  def loss(params):
    state = cell.initial_state((), jnp.float64)
    total = 0.0
    for t in range(T):
      given = None if boundaries is None else jnp.asarray(boundaries[t])
      state, out = cell.step(
        params, state, x[t], deterministic=True, boundaries=given
      )
      total += out.h @ readout[t]
    return total

  return loss


@pytest.mark.parametrize('layer_norm', [False, True])
@pytest.mark.parametrize('boundary', ['soft', 'given'])
def test_gradient_equals_finite_differences(boundary, layer_norm):
  given = None
  if boundary == 'given':
    given = np.random.default_rng(4).integers(0, 2, (T, 2)).astype(float)
  cell = HMLSTM(
    (3, 2), boundary=boundary, temperature=1.0, layer_norm=layer_norm
  )
  params = _random_params(cell)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(T, D)))
  loss = _loss(cell, x, given)
  gradient, _ = ravel_pytree(jax.grad(loss)(params))
  numerical = _numerical_gradient(loss, params)
  np.testing.assert_allclose(gradient, numerical, rtol=1e-5, atol=1e-6)


def test_straight_through_gradient_is_that_of_the_soft_value():
  """By hand: one layer, two steps; z_1 chooses FLUSH or UPDATE at step 2."""
  cell = HMLSTM((1,), temperature=0.3)
  params = _random_params(cell, seed=5)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, D)))

  def run(params):
    state = cell.initial_state((), jnp.float64)
    first, _ = cell.step(params, state, x[0], deterministic=True)
    return first, cell.step(params, first, x[1], deterministic=True)[0]

  gradient = jax.grad(lambda p: run(p)[1].c[0][0])(params)
  first, _ = run(params)
  layer = jax.tree.map(np.asarray, params.layers[0])
  a = layer.bias_z + x[0] @ layer.bottom_up_z
  soft = reference.sigmoid(a / 0.3)
  d_soft = soft * (1 - soft) / 0.3
  s = first.h[0] @ layer.recurrent + x[1] @ layer.bottom_up + layer.bias
  f, c = reference.sigmoid(s[1]), float(first.c[0][0])
  # c_2 = z i g + (1 - z)(f c + i g), so d c_2 / d z = -f c
  np.testing.assert_allclose(
    gradient.layers[0].bias_z, -f * c * d_soft, rtol=1e-9
  )


@pytest.mark.parametrize('boundary', ['gumbel', 'straight_through'])
def test_top_detector_gets_gradient(boundary):
  cell = HMLSTM((3, 4, 3), boundary=boundary)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(T, D)))
  gradient = jax.grad(_loss(cell, x))(_random_params(cell)).layers[-1]
  for name in ('bottom_up_z', 'recurrent_z', 'bias_z'):
    assert np.abs(getattr(gradient, name)).max() > 0, name


@pytest.mark.parametrize('temperature', [0.1, 0.3, 2.0])
@pytest.mark.parametrize('logit', [-2.0, 0.0, 1.5])
def test_boundary_frequency_is_the_sigmoid(temperature, logit):
  n = 40_000
  keys = jax.random.split(jax.random.key(1), n)
  sample = stochastic.binary_concrete(
    keys, jnp.full((n, 1), logit), temperature
  )
  p = float(reference.sigmoid(logit))
  error = abs(float(sample.value.mean()) - p)
  assert error < 4 * np.sqrt(p * (1 - p) / n)


def test_one_key_a_row_does_not_depend_on_the_batch():
  cell = HMLSTM((3, 4))
  params = _random_params(cell)
  keys = jax.random.split(jax.random.key(0), 4)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(4, D)))
  whole, _ = cell.step(params, cell.initial_state((4,), jnp.float64), x, keys)
  for i in range(4):
    row, _ = cell.step(
      params,
      cell.initial_state((1,), jnp.float64),
      x[i : i + 1],
      keys[i : i + 1],
    )
    chex.assert_trees_all_close(
      row, jax.tree.map(lambda v, i=i: v[i : i + 1], whole), rtol=1e-12
    )


def test_raw_keys_are_accepted():
  cell = HMLSTM((3, 4))
  params = _random_params(cell)
  state = cell.initial_state((2,), jnp.float64)
  typed = cell.step(params, state, jnp.ones((2, D)), jax.random.key(7))
  raw = cell.step(params, state, jnp.ones((2, D)), jax.random.PRNGKey(7))
  chex.assert_trees_all_equal(typed, raw)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'hidden_sizes': ()}, 'hidden_sizes'),
    ({'hidden_sizes': (3, 0)}, 'hidden_sizes'),
    ({'boundary': 'gumbell'}, "Did you mean 'gumbel'"),
    ({'copied_boundary': 'one'}, 'copied_boundary'),
    ({'output_activation': 'relu'}, 'output_activation'),
    ({'temperature': 0.0}, 'temperature'),
    ({'boundary_rate': 1.0}, 'boundary_rate'),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    HMLSTM(**options)


def test_bad_steps_are_named():
  drawn, given = HMLSTM((3,)), HMLSTM((3,), boundary='given')
  params = _random_params(drawn)
  state = drawn.initial_state((), jnp.float64)
  with pytest.raises(ValueError, match='key: expected'):
    drawn.step(params, state, jnp.ones(D))
  with pytest.raises(ValueError, match='boundaries: expected exactly'):
    given.step(params, state, jnp.ones(D))
  with pytest.raises(ValueError, match='boundaries: expected shape'):
    given.step(params, state, jnp.ones(D), boundaries=jnp.ones(2))
  with pytest.raises(ValueError, match='boundaries: expected exactly'):
    drawn.step(
      params, state, jnp.ones(D), deterministic=True, boundaries=jnp.ones(1)
    )


@pytest.mark.parametrize('rate', [0.1, 0.5, 0.9])
def test_initial_rate_sets_the_bias(rate):
  layers = HMLSTM((3, 4), boundary_rate=rate).init(jax.random.key(0), D).layers
  for layer in layers:
    assert float(reference.sigmoid(layer.bias_z)) == pytest.approx(rate)


def test_one_layer_that_only_updates_is_an_lstm():
  """One layer that never finds a boundary is an LSTM."""
  hm, lstm = HMLSTM((4,), boundary='given'), cells.LSTM((4,))
  params = _random_params(hm)
  layer = params.layers[0]
  plain = cells.LSTMParams(
    (cells.LSTMLayerParams(layer.bottom_up, layer.recurrent, layer.bias),)
  )
  a = hm.initial_state((), jnp.float64)
  b = lstm.initial_state((), jnp.float64)
  for x in np.random.default_rng(2).normal(size=(T, D)):
    a, _ = hm.step(params, a, jnp.asarray(x), boundaries=jnp.zeros(1))
    b, _ = lstm.step(plain, b, jnp.asarray(x))
    chex.assert_trees_all_close((a.c, a.h), (b.c, b.h), rtol=1e-12)


# --- every straight-through gradient, by finite differences -----------------


def _surrogate_loss(cell, params, x, readout, noise, base, slope):
  """The loop's loss with z = hard + soft - soft_0; records or reads base.

  hard and soft_0 are the numbers at the point where the gradient is taken, so
  the finite differences of this loss are the straight-through gradient.
  """
  sizes, record = cell.hidden_sizes, not base
  c, h = [np.zeros(s) for s in sizes], [np.zeros(s) for s in sizes]
  z, total = [0.0] * len(sizes), 0.0
  for t in range(T):

    def detect(l, a, t=t):
      if cell.boundary == 'gumbel':
        soft = float(reference.sigmoid((a + noise[t][l]) / cell.temperature))
      else:
        soft = max(0.0, min(1.0, (slope * float(a) + 1) / 2))
      if record:
        base[t, l] = float(soft > 0.5), soft
      hard, soft_0 = base[t, l]
      return hard + soft - soft_0, soft

    c, h, z, _, _ = reference.hm_lstm_step(
      _reference_layers(params), c, h, z, x[t],
      detect=detect, zero_copied=cell.copied_boundary == 'zero',
    )  # fmt: skip
    total += np.concatenate(h) @ readout[t]
  return float(total)


@pytest.mark.parametrize(
  'options',
  [
    {'boundary': 'gumbel'},
    pytest.param(
      {'boundary': 'gumbel', 'copied_boundary': 'zero', 'temperature': 1.0},
      marks=pytest.mark.slow,
    ),
    {'boundary': 'straight_through'},
    pytest.param(
      {'boundary': 'straight_through', 'top_detector': False},
      marks=pytest.mark.slow,
    ),
  ],
)
def test_straight_through_gradient_equals_finite_differences(options):
  """Through both choices, of the layer itself and of the layer above."""
  cell = HMLSTM((2, 2, 2), layer_norm=True, **options)
  params = jax.tree.map(lambda p: 0.5 * p, _random_params(cell, seed=11))
  key, scale, slope = jax.random.key(6), 0.7, 0.4
  rng = np.random.default_rng(1)
  x, readout = rng.normal(size=(T, D)), rng.normal(size=(T, 6))
  drawn = cell.boundary == 'gumbel'
  noise = [
    [
      scale
      * float(
        stochastic.sample_logistic(
          jax.random.fold_in(jax.random.fold_in(key, t), l), (), (1,)
        )[0]
      )
      for l in range(3)
    ]
    for t in range(T)
  ]

  @jax.jit
  def loss(params):
    state, total = cell.initial_state((), jnp.float64), 0.0
    for t in range(T):
      state, out = cell.step(
        params, state, jnp.asarray(x[t]),
        jax.random.fold_in(key, t) if drawn else None,
        slope=slope, noise=scale,
      )  # fmt: skip
      total += out.h @ readout[t]
    return total

  base = {}
  args = x, readout, noise, base, slope
  value = _surrogate_loss(cell, params, *args)
  np.testing.assert_allclose(float(loss(params)), value, rtol=1e-10)
  assert {hard for hard, _ in base.values()} == {0.0, 1.0}
  gradient, _ = ravel_pytree(jax.grad(loss)(params))
  flat, unravel = ravel_pytree(params)
  numerical = []
  for k in range(0, flat.size, 3):
    at = lambda e, k=k: _surrogate_loss(cell, unravel(flat.at[k].add(e)), *args)
    numerical.append((at(1e-6) - at(-1e-6)) / 2e-6)
  np.testing.assert_allclose(gradient[::3], numerical, rtol=1e-5, atol=1e-7)
  assert np.any(ravel_pytree(jax.grad(loss)(params).layers[0].bias_z)[0])


@pytest.mark.parametrize('noise', [0.0, 0.4, 1.0])
def test_drawn_boundaries_of_four_layers_equal_the_loop(noise):
  cell = HMLSTM((2, 3, 4, 5), copied_boundary='zero', layer_norm=True)
  params = _random_params(cell)
  layers, key = _reference_layers(params), jax.random.key(4)
  state = cell.initial_state((), jnp.float64)
  c, h = [np.zeros(s) for s in cell.hidden_sizes], None
  h, z = [v.copy() for v in c], [0.0] * 4
  step = jax.jit(cell.step)
  for t, x in enumerate(np.random.default_rng(2).normal(size=(T, D))):
    key_t = jax.random.fold_in(key, t)
    state, out = step(params, state, jnp.asarray(x), key_t, noise=noise)

    def detect(l, a, key_t=key_t):
      key_l = jax.random.fold_in(key_t, l)
      e = float(stochastic.sample_logistic(key_l, (), (1,))[0])
      return reference.gumbel_boundary(float(a), noise * e, cell.temperature)

    c, h, z, _, operations = reference.hm_lstm_step(
      layers, c, h, z, x, detect=detect, zero_copied=True
    )
    np.testing.assert_allclose(out.h, np.concatenate(h), rtol=1e-10)
    np.testing.assert_array_equal(out.z, z)
    np.testing.assert_array_equal(out.operation, operations)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_operations_keep_their_promises_in_low_precision(dtype):
  """Drawn boundaries under jit: 0/1, bit-equal COPY, layer 1 never COPYs."""
  cell = HMLSTM((4, 4, 4), boundary_rate=0.4)
  params = cell.init(jax.random.key(0), D, dtype)
  state = cell.initial_state((64,), dtype)
  step = jax.jit(cell.step)
  seen = set()
  for t in range(T):
    key = jax.random.fold_in(jax.random.key(1), t)
    x = jax.random.normal(jax.random.fold_in(key, 9), (64, D), dtype)
    before, (state, out) = state, step(params, state, x, key)
    assert out.h.dtype == dtype
    z = np.asarray(out.z, np.float64)
    assert set(np.unique(z)) <= {0.0, 1.0}
    operation = np.asarray(out.operation)
    flush = np.asarray(before.z, np.float64) == 1
    below = np.concatenate([np.ones((64, 1)), z[:, :-1]], axis=1) == 1
    np.testing.assert_array_equal(
      operation, np.where(flush, FLUSH, np.where(below, UPDATE, COPY))
    )
    assert not np.any(operation[:, 0] == COPY)
    for l in range(3):
      copied = operation[:, l] == COPY
      chex.assert_trees_all_equal(
        (state.c[l][copied], state.h[l][copied]),
        (before.c[l][copied], before.h[l][copied]),
      )
    seen |= set(operation.ravel().tolist())
  assert seen == {COPY, UPDATE, FLUSH}


@pytest.mark.parametrize('batch_shape', [(2,), (2, 3)])
def test_any_leading_shape_equals_the_rows(batch_shape):
  cell = HMLSTM((3, 2), boundary='straight_through', layer_norm=True)
  params = _random_params(cell)
  x = jnp.asarray(np.random.default_rng(2).normal(size=(2, *batch_shape, D)))
  state = cell.initial_state(batch_shape, jnp.float64)
  rows = cell.initial_state((int(np.prod(batch_shape)),), jnp.float64)
  for x_t in x:
    state, out = cell.step(params, state, x_t)
    rows, out_rows = cell.step(params, rows, x_t.reshape(-1, D))
  flat = jax.tree.map(lambda v: v.reshape(-1, v.shape[-1]), (state, out))
  chex.assert_trees_all_close(flat, (rows, out_rows), rtol=1e-12)
