"""The deferred backward pass against JAX's own, which is its reference."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hman_jax import deferred, models, precision
from hman_jax.deferred import layout
from hman_jax.unroll import unroll


def _compiled(function, *args):
  return jax.jit(function)(*args)


def _assert_close(actual, expected, tolerance=1e-6):
  """Within `tolerance` of the largest entry of each array, or of 1."""
  chex.assert_trees_all_equal_structs(actual, expected)
  for (path, a), b in zip(
    jax.tree_util.tree_leaves_with_path(actual), jax.tree.leaves(expected)
  ):
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    scale = max(1.0, np.abs(b).max(initial=0.0))
    np.testing.assert_allclose(
      a / scale, b / scale, rtol=0, atol=tolerance,
      err_msg=jax.tree_util.keystr(path),
    )  # fmt: skip


def _draw(seed):
  """A random recogniser (options), inputs and call options."""
  rng = np.random.default_rng(seed)
  pick = lambda *choices: choices[rng.integers(len(choices))]
  batch, steps, locations, size = 3, int(rng.integers(1, 8)), pick(4, 9), 4
  layers = tuple(int(h) for h in rng.integers(1, 7, size=rng.integers(1, 4)))
  cell = pick('hm_lstm', 'hm_lstm', 'lstm')
  boundary = pick('gumbel', 'straight_through', 'soft', 'given')
  options = {
    'cell': cell,
    'attention': pick('soft', 'reinforce', 'gumbel', 'gumbel_adaptive', 'none'),
    'head': pick('concat', 'gated_embedding'),
    'hidden_sizes': layers,
    'attention_options': {
      'num_locations': locations,
      'scorer': pick('location', 'content'),
      'position_code': pick('none', 'onehot', 'sincos'),
      'scorer_size': 5,
    },
    'initial_state': pick('zeros', 'mean_features'),
    'input_dropout': pick(0.0, 0.3),
    'dropout': pick(0.0, 0.3),
    'feature_norm': pick('none', 'layer', 'standard'),
  }
  call = {
    'key': jax.random.split(jax.random.key(seed), pick((), batch)),
    'start': int(rng.integers(3)),
  }
  if cell == 'hm_lstm':
    options['cell_options'] = {
      'boundary': boundary,
      'top_detector': pick(True, False),
      'copied_boundary': pick('recompute', 'zero'),
      'layer_norm': pick(False, True),
      'output_activation': pick('tanh', 'identity'),
    }
    call |= {'boundary_noise': 0.7, 'boundary_slope': 1.5}
    if boundary == 'given':
      bits = rng.integers(0, 2, size=(batch, steps, len(layers)))
      call['boundaries'] = jnp.asarray(bits, jnp.float32)
  mask = pick(None, jnp.asarray(rng.integers(0, 2, (batch, steps)), bool))
  shape = (batch, steps, locations, size)
  features = jnp.asarray(rng.normal(size=shape), pick(jnp.float32, jnp.float16))
  return options, features, mask, call, pick(True, False)


def _variables(model, features, seed=0):
  """Random parameters, the biases too, without compiling their `init`."""
  rng = np.random.default_rng(seed)
  shapes = jax.eval_shape(model.init, jax.random.key(0), features)
  drawn = jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape) / 2, p.dtype), shapes
  )
  if 'features' in drawn['params']:  # the scale is a divisor
    drawn['params']['features']['scale'] = jnp.full(features.shape[-1], 1.5)
  return drawn


def _loss(model, variables, features, mask, call, rng):
  """A random linear functional of a random part of all outputs."""
  out = model.apply(variables, features, mask, **call)
  total = jnp.mean(jnp.square(out.logits))
  for leaf in jax.tree.leaves((out.attention, out.cell, out.state)):
    weights, keep = rng.normal(size=leaf.shape), rng.random() < 0.5
    if keep and jnp.issubdtype(leaf.dtype, jnp.floating):
      total += jnp.mean(leaf * jnp.asarray(weights, leaf.dtype))
  return total, out


def _gradients(seed, remat=False, dtype=jnp.float32, factors='float32'):
  """The same drawn case both ways: {backward: ((loss, outputs), gradients)}."""
  options, features, mask, call, with_features = _draw(seed)
  results = {}
  for backward in ('deferred', 'autodiff'):
    model = models.create(
      3,
      **options,
      backward=backward,
      remat=remat and backward == 'deferred',
      dtype=factors,
    )
    variables = _variables(model, features, seed)
    if dtype != jnp.float32:
      variables, features = jax.tree.map(
        lambda x: x.astype(dtype), (variables, features)
      )
      call['state'] = model.cell.initial_state((features.shape[0],), dtype)
    loss = lambda v, x, model=model: _loss(
      model, v, x, mask, call, np.random.default_rng(seed)
    )
    argnums = (0, 1) if with_features else 0
    results[backward] = _compiled(
      jax.value_and_grad(loss, argnums, has_aux=True), variables, features
    )
  return results


@pytest.mark.parametrize('seed', range(2))
def test_equals_autodiff(layouts, seed):
  results = _gradients(seed)
  _assert_close(results['deferred'], results['autodiff'])


@pytest.mark.slow
@pytest.mark.parametrize('seed', range(2, 42))
def test_equals_autodiff_widely(seed):
  results = _gradients(seed, remat=seed % 3 == 0)
  _assert_close(results['deferred'], results['autodiff'])


@pytest.mark.slow
@pytest.mark.parametrize('seed', [101])
def test_equals_autodiff_in_float64(layouts, seed):
  with jax.enable_x64(True):
    results = _gradients(seed, dtype=jnp.float64)
    assert results['deferred'][0][0].dtype == jnp.float64
    _assert_close(results['deferred'], results['autodiff'], 1e-10)


@pytest.mark.parametrize('seed', [5])
def test_remat_equals_autodiff(layouts, seed):
  results = _gradients(seed, remat=True)
  _assert_close(results['deferred'], results['autodiff'])


@pytest.fixture
def turned(monkeypatch):
  """Steps have the batch last as where products are large."""
  monkeypatch.setattr(deferred, '_LEAST_STEPS', 2)
  monkeypatch.setattr(layout, '_LEAST_ROWS', 1)
  monkeypatch.setattr(layout, '_LEAST_WORK', 1)
  monkeypatch.setattr(layout, '_LEAST_SHARE', 0)


@pytest.fixture(params=['batch_first', 'batch_last'])
def layouts(request):
  """Both layouts of a step."""
  if request.param == 'batch_last':
    request.getfixturevalue('turned')


@pytest.mark.parametrize(
  'seed', [3, *(pytest.param(s, marks=pytest.mark.slow) for s in range(42, 54))]
)
def test_turned_products_equal_autodiff(turned, seed):
  """Up to what rounding makes of sums in another order."""
  results = _gradients(seed, remat=seed % 3 == 1, factors='bfloat16')
  _assert_close(results['deferred'], results['autodiff'], 1e-2)


@pytest.mark.parametrize(
  'steps, remat',
  [(3, False)]
  + [
    pytest.param(steps, remat, marks=pytest.mark.slow)
    for steps in (1, 2, 3, 4, 5, 7)
    for remat in (False, True)
    if (steps, remat) != (3, False)
  ],
)
def test_turned_products_of_rounded_factors(turned, steps, remat):
  """Against plain NumPy, backward too; XLA refuses some such products."""
  rng = np.random.default_rng(steps)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  w, u, x, c = draw(8, 8) / 3, draw(6, 8) / 3, draw(4, steps, 6), draw(4, 8)

  def loss(w, u, x, c):
    def step(c, x, key):
      s = precision.dot(c, w, 'bfloat16') + precision.dot(x, u, 'bfloat16')
      return s / 2, s

    last, outputs = unroll(step, c, x, remat=remat)
    return jnp.sum(last) + jnp.sum(outputs[:, 0]), outputs

  run = jax.jit(jax.value_and_grad(loss, (0, 1, 2, 3), has_aux=True))
  (_, outputs), gradients = run(w, u, x, c)
  rounded = lambda a: np.asarray(
    jnp.asarray(a, jnp.bfloat16).astype(jnp.float32), np.float64
  )
  before, sums = [np.asarray(c, np.float64)], []
  for t in range(steps):
    sums.append(
      rounded(before[-1]) @ rounded(w) + rounded(x[:, t]) @ rounded(u)
    )
    before.append(sums[-1] / 2)
  np.testing.assert_allclose(outputs, np.stack(sums, axis=1), atol=2e-2)
  d_c, d_w, d_u, d_x = np.ones((4, 8)), 0, 0, []
  for t in reversed(range(steps)):
    d_s = rounded(d_c / 2 + (t == 0))
    d_w, d_u = d_w + rounded(before[t]).T @ d_s, d_u + rounded(x[:, t]).T @ d_s
    d_c, d_x = d_s @ rounded(w).T, [d_s @ rounded(u).T, *d_x]
  expected = d_w, d_u, np.stack(d_x, axis=1), d_c
  for found, right in zip(gradients, expected):
    np.testing.assert_allclose(found, right, atol=2e-2 * np.abs(right).max())


def test_large_products_of_many_rows_are_turned(monkeypatch):
  """Over some steps: 8 at least, none of them alone in a segment."""
  w = jnp.ones((6, 6))

  def is_turned(rows, dtype='float32', steps=8, remat=False):
    run = lambda w, c: unroll(
      lambda c, x, key: (precision.dot(c, w, dtype) + x, c),
      c,
      jnp.ones((rows, steps, 6)),
      remat=remat,
    )[0].sum()
    jaxpr = jax.make_jaxpr(jax.grad(run))(w, jnp.ones((rows, 6)))
    return 'turned_product' in str(jaxpr)

  assert not is_turned(16)  # a small weight
  monkeypatch.setattr(layout, '_LEAST_WORK', 16 * 36)
  assert is_turned(16) and is_turned(16, 'bfloat16')
  assert not is_turned(15) and not is_turned(16, steps=7)
  assert is_turned(16, steps=12, remat=True)
  assert not is_turned(16, steps=13, remat=True)  # 3 times 4, and 1
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert not is_turned(16)


# Steps with something odd about them: each is (step, weights).
_W = np.random.default_rng(0).normal(size=(4, 4)) / 2


def _shared(w, c, x, key):
  c = jnp.tanh(c @ w + x @ w)
  return c, c @ w


def _also_elsewhere(w, c, x, key):
  c = jnp.tanh(c @ w * jnp.sum(jnp.square(w)) + x)
  return c, c


def _on_the_left(w, c, x, key):
  c = jnp.tanh((w @ c.T).T + x)
  return c, jnp.einsum('ij,bj->bi', w, c)


def _cast_and_reshaped(w, c, x, key):
  half = w.astype(jnp.bfloat16).reshape(2, 8).reshape(4, 4)
  c = jnp.tanh(c @ half.astype(jnp.float32) + x + w[0].reshape(1, 4))
  return c, c


def _rounded(w, c, x, key):
  dot = lambda a, b: precision.dot(a, b, 'bfloat16')
  s = dot(c, w) + dot(x, w.T) + w[:1]
  c = jnp.tanh(s + dot(x, w) + dot(w, s.T).T)
  return c, s


def _three_axes(w, c, x, key):
  pairs = c.reshape(2, 2, 2) @ w[:2, :2]
  c = jnp.tanh(pairs.reshape(2, 4) + x @ w)
  return c, precision.dot(c.reshape(2, 2, 2), w[:2, :2], 'bfloat16')


def _precise(w, c, x, key):
  c = jnp.tanh(jnp.matmul(c, w, precision='highest') + x)
  return c, c


def _without_products(w, c, x, key):
  c = jnp.tanh(c * w[:1] + x)
  return c, c


def _sum_used_twice(w, c, x, key):
  s = c @ w
  return jnp.tanh(s + x @ w.T) + s, s


def _sum_given_out(w, c, x, key):
  s = c @ w + x @ w.T + w[:1]
  return s, s


def _weight_given_out(w, c, x, key):
  return c @ w + x, 2 * jnp.ones_like(x) * w[:1]


def _noisy(w, c, x, key):
  noise = jax.random.normal(key, c.shape)
  picked = jnp.take_along_axis(x, jnp.argmax(c, axis=-1)[:, None], axis=-1)
  kept = jax.random.uniform(key, c.shape) < 0.7
  c = jnp.tanh(jnp.where(kept, c @ w + noise, 0.0) + picked)
  return c, jnp.floor(3 * c) * c


def _parts(w, c, x, key):
  """All that a step with the batch last knows how to do, and more."""
  s = c @ w
  left, right = jnp.split(s, 2, axis=-1)
  pairs = jnp.concatenate([right, s[:, 1:3], left], axis=-1).reshape(2, 3, 2)
  best = jnp.argmax(pairs, axis=-1)
  scaled = pairs / (1 + jnp.sum(jnp.square(pairs), axis=(1, 2), keepdims=True))
  shown = jnp.where(best[..., None] == 1, scaled, pairs).max(axis=1)
  rows = jnp.cumsum(s, axis=0) + s.mean(axis=0, keepdims=True) + s[::-1]
  rows += jnp.tanh(s).T[:2].sum()
  spread = x[:, None, :] * s[:, :, None] + s[:, None, ::2].sum()
  c = jnp.tanh(rows + jnp.concatenate([shown, s[:, ::2]], axis=-1))
  return c + c @ w[:, 0][:, None], spread[:, 1:3].squeeze()


def _made_of_nothing(w, c, x, key):
  """A product, and parts, of what no step and no weight has a hand in."""
  fixed = jnp.eye(2, 4) @ w + jnp.broadcast_to(jnp.arange(4.0), (2, 4)) @ w
  left, right = jnp.split(jnp.broadcast_to(w[0], (2, 4)), 2, axis=-1)
  return jnp.tanh(c @ w + fixed) + jnp.tile(left * right, 2), x @ w


def _whole_numbers(w, c, x, key):
  large = jnp.full((4, 4), 2**25 + 1)
  odd = ((x > 0).astype(jnp.int32) @ large) % 2
  return jnp.tanh(c @ w + x) * odd, x @ w


def _mixed_sum(w, c, x, key):
  c = jnp.tanh(x[:, :1] @ w[:1] + c @ w + w[:1] + x @ w)
  return c, c


def _nested(w, c, x, key):
  loop = lambda i, c: jax.jit(lambda c: jnp.tanh(c @ w))(c)
  c = jax.lax.cond(jnp.sum(x) > 0, lambda c: c @ w, lambda c: c, c)
  return jax.lax.fori_loop(0, 2, loop, c + x), c


_STEPS = (
  _shared, _also_elsewhere, _on_the_left, _cast_and_reshaped, _rounded,
  _three_axes, _precise, _without_products, _sum_used_twice, _sum_given_out,
  _weight_given_out, _noisy, _parts, _made_of_nothing, _whole_numbers,
  _mixed_sum, _nested,
)  # fmt: skip


@pytest.mark.parametrize('step', _STEPS, ids=lambda f: f.__name__[1:])
def test_any_step(turned, step):
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 6, 4)), jnp.float32)
  mask = jnp.array([[1, 1, 0, 1, 1, 1], [1, 0, 0, 1, 0, 0]], bool)

  def loss(w, x, start, backward, reverse, remat):
    carry, outputs = unroll(
      functools.partial(step, w), start, x, mask=mask, key=jax.random.key(2),
      reverse=reverse, backward=backward, remat=remat,
    )  # fmt: skip
    return jnp.mean(carry) + jnp.mean(jnp.square(outputs)), outputs

  def both(w, x, start):
    results = []
    for options in ((False, False), (True, True)):
      for backward in ('deferred', 'autodiff'):
        run = lambda *a, o=options, b=backward: loss(*a, b, *o)
        results.append(
          jax.value_and_grad(run, (0, 1, 2), has_aux=True)(w, x, start)
        )
    return results

  args = jnp.asarray(_W, jnp.float32), x, jnp.full((2, 4), 0.1)
  plain = _compiled(both, *args)
  for fast, slow in zip(plain[::2], plain[1::2]):
    # Autodiff rounds other sums to bfloat16, or at every step, deferred once.
    rounded = step in (_cast_and_reshaped, _rounded, _three_axes)
    _assert_close(fast, slow, 1e-2 if rounded else 1e-6)


def test_carry_and_inputs_of_any_structure(layouts):
  def step(carry, x, key):
    del key
    new = {
      'count': carry['count'] + 1,
      'h': jnp.tanh(carry['h'] @ w + x['a'] * x['i'][:, None]),
    }
    return new, (new['h'], {'count': new['count']}, None)

  w = jnp.asarray(_W, jnp.float32)
  carry = {'count': jnp.zeros(2, jnp.int32), 'h': jnp.ones((2, 4))}
  inputs = {'a': jnp.ones((2, 5, 4)), 'i': jnp.arange(10).reshape(2, 5)}

  def loss(carry, inputs, backward):
    last, out = unroll(step, carry, inputs, backward=backward)
    return jnp.sum(last['h']) + jnp.mean(out[0]), (last, out)

  fast, slow = (
    jax.value_and_grad(
      functools.partial(loss, backward=b), (0, 1), has_aux=True, allow_int=True
    )(carry, inputs)
    for b in ('deferred', 'autodiff')
  )
  drop = lambda tree: jax.tree.map(
    lambda x: 0.0 if x.dtype == jax.dtypes.float0 else x, tree
  )
  _assert_close(drop(fast), drop(slow))


def test_vmap_and_eager(layouts):
  w = jnp.asarray(_W, jnp.float32)
  x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 3, 4)), jnp.float32)

  def loss(w, backward):
    run = functools.partial(unroll, backward=backward)
    return jnp.sum(run(functools.partial(_shared, w), x[:, 0], x)[0])

  ws = jnp.stack([w, 2 * w])
  fast, slow = (
    jax.vmap(jax.grad(functools.partial(loss, backward=b)))(ws)
    for b in ('deferred', 'autodiff')
  )
  _assert_close(fast, slow)
  one = jax.grad(functools.partial(loss, backward='deferred'))(w)
  _assert_close(one, fast[0])


def test_halves_joined_are_the_whole(layouts):
  options, features, _, call, _ = _draw(3)
  call['start'] = 0
  call.pop('boundaries', None)
  options |= {'cell': 'hm_lstm', 'cell_options': {}, 'initial_state': 'zeros'}
  features = jnp.tile(features[:, :1], (1, 5, 1, 1)).astype(jnp.float32)
  model = models.create(3, **options)
  variables = _variables(model, features)

  def whole(v):
    return jnp.mean(jnp.square(model.apply(v, features, **call).logits))

  def halves(v):
    first = model.apply(v, features[:, :2], **call)
    rest = call | {'state': first.state, 'start': 2}
    second = model.apply(v, features[:, 2:], **rest)
    logits = jnp.concatenate([first.logits, second.logits], axis=1)
    return jnp.mean(jnp.square(logits))

  one, other = _compiled(
    lambda v: (jax.value_and_grad(whole)(v), jax.value_and_grad(halves)(v)),
    variables,
  )
  _assert_close(one, other)


# What the backward pass does not do.

_B, _T, _N, _D, _H = 2, 5, 9, 7, 6


def _equations(jaxpr):
  for equation in jaxpr.eqns:
    yield equation
    for value in jax.tree.leaves(
      equation.params, is_leaf=lambda x: hasattr(x, 'eqns')
    ):
      if hasattr(value, 'eqns'):
        yield from _equations(value)
      elif hasattr(value, 'jaxpr'):
        yield from _equations(value.jaxpr)


def _gradient_jaxpr(remat=False, argnums=0, backward='deferred'):
  model = models.create(
    4, hidden_sizes=(_H, _H), backward=backward, remat=remat,
    feature_norm='standard',
    attention_options={'num_locations': _N, 'scorer': 'content'},
  )  # fmt: skip
  x = jnp.ones((_B, _T, _N, _D))
  variables = _variables(model, x)
  loss = lambda v, x: jnp.sum(model.apply(v, x, key=jax.random.key(1)).logits)
  return jax.make_jaxpr(jax.grad(loss, argnums))(variables, x).jaxpr


def _scans(jaxpr):
  return [e for e in _equations(jaxpr) if e.primitive.name == 'scan']


def test_backward_defers_all_weights_and_draws_nothing():
  forward, backward = _scans(_gradient_jaxpr())
  inner = lambda scan: [
    e.primitive.name for e in _equations(scan.params['jaxpr'].jaxpr)
  ]
  for name in ('random_bits', 'argmax'):
    assert name in inner(forward)
    assert name not in inner(backward)
  # The carry holds the state's gradient, and no kernel's or column's.
  carried = backward.outvars[: backward.params['num_carry']]
  state = [(_B, _H)] * 4 + [(_B, 2)]
  shapes = [v.aval.shape for v in carried]
  assert shapes[:5] == state
  assert shapes[5] == (1, 1, 128)  # the content scorer's last weights
  # The sums of all steps, which their gradients replace.
  assert len(shapes) > 6 and {shape[:2] for shape in shapes[6:]} == {(_T, _B)}
  # Autodiff does carry them: the test would see it.
  _, naive = _scans(_gradient_jaxpr(backward='autodiff'))
  shapes = [v.aval.shape for v in naive.outvars]
  assert (_H, 4 * _H) in shapes


@pytest.mark.parametrize('remat', [False, True])
def test_features_get_a_gradient_only_when_asked(remat):
  def sizes(argnums):
    jaxpr = _gradient_jaxpr(remat, argnums)
    return {
      v.aval.size
      for scan in _scans(jaxpr)
      for v in scan.outvars
    }  # fmt: skip

  size = _B * _T * _N * _D
  part = 3 * _B * _N * _D  # of a segment of ceil(sqrt(5)) steps
  assert not sizes(0) & {size, part}
  assert sizes((0, 1)) & {size, part}


def _memory(num_steps, **options):
  w = jnp.asarray(np.random.default_rng(0).normal(size=(16, 64)), jnp.float32)

  def step(w, c, x, key):
    del key
    i, f, o, g = jnp.split(c @ w + x, 4, axis=-1)
    return jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i * o) * jnp.tanh(g), None

  def loss(w, c, x):
    carry, _ = unroll(functools.partial(step, w), c, x, **options)
    return jnp.sum(carry)

  args = w, jnp.ones((16, 16)), jnp.ones((16, num_steps, 1))
  compiled = jax.jit(jax.grad(loss)).lower(*args).compile()
  return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize('backward', ['deferred', 'autodiff'])
def test_remat_needs_memory_of_the_square_root(backward):
  grow = lambda remat: (
    _memory(1024, backward=backward, remat=remat)
    / _memory(64, backward=backward, remat=remat)
  )
  assert grow(False) > 8  # 16 times the steps
  assert grow(True) < 6  # the square root of 16 is 4


def test_rows_may_lie_on_several_devices(layouts):
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Auto,))
  rows = NamedSharding(mesh, PartitionSpec('data'))
  model = models.create(
    4, hidden_sizes=(8, 8), attention_options={'num_locations': _N}
  )
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(8, 3, _N, 16)), jnp.float32)
  variables = _variables(model, x)
  keys = jax.random.split(jax.random.key(1), 8)

  def loss(v, x, keys):
    return jnp.mean(jnp.square(model.apply(v, x, key=keys).logits))

  run = jax.jit(jax.value_and_grad(loss))
  args = variables, jax.device_put(x, rows), jax.device_put(keys, rows)
  compiled = run.lower(*args).compile()
  _assert_close(compiled(*args), run(variables, x, keys))
  assert 'all-gather' not in compiled.as_text()


def test_where_rows_lie_may_be_part_of_their_types(layouts):
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Explicit,))
  place = lambda x, *axes: jax.device_put(
    x, NamedSharding(mesh, PartitionSpec(*axes))
  )

  def loss(w, c, x):
    step = lambda c, x, key: (jnp.tanh(c @ w + x), c)
    return jnp.sum(unroll(step, c, x)[0])

  rng = np.random.default_rng(0)
  draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  w, c, x = draw(6, 6), draw(8, 6), draw(8, 5, 6)
  run = jax.jit(jax.grad(loss))
  spread = run(place(w), place(c, 'data'), place(x, 'data'))
  _assert_close(spread, run(w, c, x))


def test_sizes_of_weights_may_be_symbols(layouts):
  def gradient(w, c, x):
    step = lambda c, x, key: (precision.dot(c, w, 'bfloat16') + x, c)
    return jax.grad(lambda w: jnp.sum(unroll(step, c, x)[0]))(w)

  h = jax.export.symbolic_shape('h')[0]
  shape = lambda *s: jax.ShapeDtypeStruct(s, jnp.float32)
  shapes = shape(h, h), shape(16, h), shape(16, 3, h)
  exported = jax.export.export(jax.jit(gradient))(*shapes)
  args = jnp.ones((4, 4)) / 4, jnp.ones((16, 4)), jnp.ones((16, 3, 4))
  _assert_close(exported.call(*args), gradient(*args), 1e-2)


def test_weights_alone_may_lie_explicitly(layouts):
  mesh = jax.make_mesh((4,), ('data',), axis_types=(AxisType.Explicit,))
  c, x = jnp.ones((8, 6)), jnp.ones((8, 5, 6))

  def loss(w):
    step = lambda c, x, key: (jnp.tanh(c @ w + x), c)
    return jnp.sum(unroll(step, c, x)[0])

  w = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float32)
  everywhere = jax.device_put(w, NamedSharding(mesh, PartitionSpec()))
  run = jax.jit(jax.grad(loss))
  _assert_close(run(everywhere), run(w))


def test_a_sum_of_which_one_product_is_large_stays_one(monkeypatch):
  monkeypatch.setattr(layout, '_LEAST_WORK', 32 * 64 * 64)
  w, u = jnp.ones((64, 64)) / 64, jnp.ones((2, 64))
  c, x = jnp.ones((32, 64)), jnp.ones((32, 9, 2))

  def loss(w, u):
    step = lambda c, x, key: (jnp.tanh(c @ w + x @ u), None)
    return jnp.sum(unroll(step, c, x)[0])

  _, backward = _scans(jax.make_jaxpr(jax.grad(loss, (0, 1)))(w, u).jaxpr)
  sums = [v for v in backward.outvars if v.aval.shape == (9, 64, 32)]
  assert len(sums) == 1
  assert not any(v.aval.shape == (9, 32, 64) for v in backward.outvars)


def test_effects_happen_once_a_step(layouts):
  seen = []

  def step(c, x, key):
    del key
    jax.debug.callback(lambda v: seen.append(float(v)), x[0, 0])
    return c * x, None

  x = jnp.arange(1.0, 4.0).reshape(1, 3, 1)
  gradient = jax.grad(lambda c: unroll(step, c, x)[0].sum())(jnp.ones((1, 1)))
  jax.effects_barrier()
  assert sorted(seen) == [1.0, 2.0, 3.0]
  assert gradient.tolist() == [[6.0]]


def test_errors():
  x = jnp.ones((1, 2, 3))
  with pytest.raises(ValueError, match=r"backward: expected .*'deferred'"):
    unroll(lambda c, x, k: (c, x), x[:, 0], x, backward='defered')  # pyright: ignore
  with pytest.raises(ValueError, match='backward: expected one of'):
    models.create(2, backward='fast')  # pyright: ignore
  with pytest.raises(TypeError, match='body: expected a carry of structure'):
    deferred.scan(lambda c, at: ((c, c), c), x[:, 0], x, length=2)
  for length in (2, 9):
    with pytest.raises(TypeError, match='carry'):
      deferred.scan(lambda c, at: (c[:, :1], c), x[:, 0], x, length=length)
