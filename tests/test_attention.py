"""Attention modules against the NumPy loops, and their properties."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hman_jax import attention as attentions
from hman_jax import stochastic

import reference

B, N, D, H, A = 3, 9, 4, 5, 6
HARD = ('reinforce', 'gumbel', 'gumbel_adaptive')
SCORED = ('soft', *HARD)
SCORERS = ('location', 'content')
CODES = ('none', 'onehot', 'sincos')


@pytest.fixture
def float64():
  with jax.enable_x64(True):
    yield


def _make(name, scorer='location', code='none', dtype=np.float64, seed=0):
  """A module with random parameters, and random inputs."""
  rng = np.random.default_rng(seed)
  module = attentions.create(
    name, scorer=scorer, position_code=code, num_locations=N, scorer_size=A
  )
  X = jnp.asarray(rng.normal(size=(B, N, D)), dtype)
  h = jnp.asarray(rng.normal(size=(B, H)), dtype)
  variables = module.init(jax.random.key(0), X, h, deterministic=True)
  variables = jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape), dtype), variables
  )
  return module, variables, X, h


def _reference_logits(variables, scorer, code, X, h):
  p = jax.tree.map(np.asarray, variables['params'])
  X, h = np.asarray(X), np.asarray(h)
  if scorer == 'location':
    dense = p['location_logits']
    return reference.location_logits(dense['kernel'], dense['bias'], h)
  W_p = p['position_projection']['kernel'] if code.shape[1] else None
  return reference.content_logits(
    p['feature_projection']['kernel'],
    W_p,
    p['state_projection']['kernel'],
    p['state_projection']['bias'],
    p['content_weights'],
    X,
    code,
    h,
  )


@pytest.mark.parametrize(
  ('name', 'scorer', 'code_name'),
  list(itertools.product(SCORED, SCORERS, CODES)),
)
@pytest.mark.parametrize('projected', [False, True])
def test_equals_the_loop(float64, name, scorer, code_name, projected):
  module, variables, X, h = _make(name, scorer, code_name)
  given = None
  if projected:
    given = module.apply(variables, X, method='project')
  out = module.apply(variables, X, h, projected=given, deterministic=True)
  code = reference.position_code(code_name, N)
  for b in range(B):
    logits = _reference_logits(variables, scorer, code, X[b], h[b])
    joined = np.concatenate([np.asarray(X[b]), code], axis=1)
    weights = reference.softmax(logits)
    if name in HARD:
      weights = np.eye(N)[logits.argmax()]
    np.testing.assert_allclose(out.weights[b], weights, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(
      out.context[b], weights @ joined, rtol=1e-10, atol=1e-12
    )
    np.testing.assert_allclose(
      out.entropy[b], reference.entropy(logits), rtol=1e-10
    )
    temperature = 1.0
    if name == 'gumbel':
      temperature = 0.3
    if name == 'gumbel_adaptive':
      dense = variables['params']['inverse_temperature']
      temperature = reference.adaptive_temperature(
        np.asarray(dense['kernel'])[:, 0],
        np.asarray(dense['bias'])[0],
        np.asarray(h[b]),
      )
      assert 0 < temperature < 1
    np.testing.assert_allclose(out.temperature[b], temperature, rtol=1e-10)
    assert float(out.log_prob[b]) == 0.0


@pytest.mark.parametrize('name', HARD)
def test_a_drawn_pick_equals_the_loop(float64, name):
  module, variables, X, h = _make(name, 'content', 'onehot')
  keys = jax.random.split(jax.random.key(3), B)
  out = module.apply(variables, X, h, keys)
  code = reference.position_code('onehot', N)
  for b in range(B):
    logits = _reference_logits(variables, 'content', code, X[b], h[b])
    g = np.asarray(stochastic.sample_gumbel(keys[b], (), (N,)), np.float64)
    pick = int((logits + g).argmax())
    assert (
      np.asarray(out.weights[b]).round(12).tolist() == np.eye(N)[pick].tolist()
    )
    np.testing.assert_array_equal(out.context[b, :D], X[b, pick])
    np.testing.assert_array_equal(out.context[b, D:], code[pick])
    np.testing.assert_allclose(
      out.log_prob[b], reference.log_softmax(logits)[pick], rtol=1e-10
    )


@pytest.mark.parametrize('name', ['gumbel', 'gumbel_adaptive'])
def test_gumbel_gradient_is_that_of_the_soft_weights(float64, name):
  """The gradient of the context is that of softmax((e + g) / tau) . X."""
  module, variables, X, h = _make(name, 'content', 'sincos')
  keys = jax.random.split(jax.random.key(3), B)
  readout = jnp.asarray(np.random.default_rng(2).normal(size=(B, D + 12)))
  code = jnp.asarray(reference.position_code('sincos', N))
  g = stochastic.sample_gumbel(keys, (B,), (N,))

  def hard(v):
    return jnp.sum(module.apply(v, X, h, keys).context * readout)

  def soft(v):
    bound = module.bind(v)
    logits = bound.logits(bound.project(X), h)
    tau = bound.temperature(h)[:, None]
    weights = jax.nn.softmax((logits + g) / tau, axis=-1)
    context = jnp.einsum('bn,bnd->bd', weights, X)
    return jnp.sum(jnp.concatenate([context, weights @ code], -1) * readout)

  chex.assert_trees_all_close(
    jax.grad(hard)(variables), jax.grad(soft)(variables), rtol=1e-9
  )


def test_soft_gradient_equals_finite_differences(float64):
  module, variables, X, h = _make('soft', 'content', 'onehot')
  loss = lambda v: jnp.sum(jnp.square(module.apply(v, X, h).context))
  gradient = jax.grad(loss)(variables)
  direction = jax.tree.map(
    lambda p: jnp.asarray(np.random.default_rng(8).normal(size=p.shape)),
    variables,
  )
  moved = lambda e: loss(
    jax.tree.map(lambda p, d: p + e * d, variables, direction)
  )
  slope = float(moved(1e-5) - moved(-1e-5)) / 2e-5
  inner = sum(
    float(jnp.vdot(a, b))
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction))
  )
  assert inner == pytest.approx(slope, rel=1e-6)


@pytest.mark.parametrize('name', HARD)
def test_pick_frequency_is_the_softmax(name):
  module, variables, X, h = _make(name, dtype=np.float32)
  n = 20_000
  rows = lambda v: jnp.broadcast_to(v[:1], (n, *v.shape[1:]))
  keys = jax.random.split(jax.random.key(4), n)
  out = module.apply(variables, rows(X), rows(h), keys)
  logits = _reference_logits(
    variables, 'location', np.zeros((N, 0)), X[0], h[0]
  )
  p = reference.softmax(logits)
  error = np.abs(np.asarray(out.weights, np.float64).mean(axis=0) - p)
  assert (error < 4.5 * np.sqrt(p * (1 - p) / n) + 1e-6).all()


def test_reinforce_picks_get_no_gradient(float64):
  module, variables, X, h = _make('reinforce')
  key = jax.random.key(0)
  context = lambda v: jnp.sum(module.apply(v, X, h, key).context)
  gradient = jax.tree.leaves(jax.grad(context)(variables))
  assert all(not np.any(g) for g in gradient)
  log_prob = lambda v: jnp.sum(module.apply(v, X, h, key).log_prob)
  assert any(np.any(g) for g in jax.tree.leaves(jax.grad(log_prob)(variables)))


def test_mean_is_the_mean_and_has_no_parameters():
  X = jax.random.normal(jax.random.key(0), (B, N, D))
  module = attentions.create('none', num_locations=N, scorer='content')
  variables = module.init(jax.random.key(0), X, jnp.ones((B, H)))
  assert not jax.tree.leaves(variables)
  out = module.apply(variables, X, jnp.ones((B, H)))
  chex.assert_trees_all_close(out.context, X.mean(axis=1), atol=1e-6)


@pytest.mark.parametrize('name', [*SCORED, 'none'])
def test_float16_features_are_read_in_float32(name):
  module, variables, X, h = _make(name, 'content', dtype=np.float32)
  key = jax.random.key(0)
  out = module.apply(variables, X.astype(jnp.float16), h, key)
  assert out.context.dtype == jnp.float32
  same = module.apply(
    variables, X.astype(jnp.float16).astype(jnp.float32), h, key
  )
  chex.assert_trees_all_close(out, same, atol=1e-6)


@pytest.mark.parametrize('name', HARD)
def test_a_missing_key_is_named(name):
  module, variables, X, h = _make(name, dtype=np.float32)
  with pytest.raises(ValueError, match='key: expected a PRNG key'):
    module.apply(variables, X, h)


def test_bad_names_and_shapes_are_named():
  with pytest.raises(ValueError, match="Did you mean 'gumbel'"):
    attentions.create('gumbell')
  X, h = jnp.ones((B, N, D)), jnp.ones((B, H))
  with pytest.raises(ValueError, match='expected 49 locations'):
    attentions.create('soft').init(jax.random.key(0), X, h)
  with pytest.raises(ValueError, match='square'):
    attentions.position_code('onehot', 7)
  with pytest.raises(ValueError, match='scorer: expected'):
    attentions.create('soft', scorer='contents', num_locations=N).init(
      jax.random.key(0), X, h
    )


@pytest.mark.parametrize('name', CODES)
def test_position_codes_equal_the_loop(name):
  np.testing.assert_allclose(
    attentions.position_code(name, 49),
    reference.position_code(name, 49),
    atol=1e-6,
  )


def test_a_fifth_attention_is_one_class():
  class Middle(attentions.Attention):
    """Always the location in the middle."""

    def attend(self, logits, features, h, key, deterministic):
      weights = jax.nn.one_hot(jnp.full(h.shape[:-1], N // 2), N)
      zeros = jnp.zeros(h.shape[:-1])
      return attentions.AttentionOutput(
        self.expected(features, weights), weights, zeros, zeros + 1, zeros
      )

  X, h = jnp.ones((B, N, D)), jnp.ones((B, H))
  out, _ = Middle(num_locations=N).init_with_output(jax.random.key(0), X, h)
  chex.assert_shape(out.context, (B, D))
