"""Straight-through values, noise and the score function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from hman_jax import losses, models, stochastic

import reference


@pytest.mark.parametrize('jit', [False, True])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_straight_through_is_exactly_0_or_1(dtype, jit):
  soft = jnp.linspace(0.0, 1.0, 1_000_001).astype(dtype)
  tiny = jnp.array([1e-38, 1e-30, 1e-8, 0.5, 1 - 1e-7], dtype)
  soft = jnp.concatenate([soft, tiny])
  f = stochastic.straight_through
  f = jax.jit(f) if jit else f
  for value in (0.0, 1.0):
    out = np.asarray(f(jnp.full_like(soft, value), soft), np.float32)
    assert (out == value).all()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_boundaries_are_exactly_0_or_1(dtype):
  logits = jnp.linspace(-30, 30, 100_001).astype(dtype)[:, None]
  keys = jax.random.split(jax.random.key(0), len(logits))
  sample = jax.jit(stochastic.binary_concrete)(keys, logits, 0.3)
  assert sample.value.dtype == dtype
  assert set(np.unique(np.asarray(sample.value, np.float32))) == {0.0, 1.0}


def test_straight_through_gradient():
  f = lambda s: stochastic.straight_through(jnp.round(s), s) * 3.0
  assert float(jax.grad(f)(0.7)) == 3.0


def test_noise_of_a_row_depends_on_its_key_only():
  keys = jax.random.split(jax.random.key(0), 5)
  whole = stochastic.sample_gumbel(keys, (5,), (3,))
  for i in range(5):
    np.testing.assert_array_equal(
      whole[i], stochastic.sample_gumbel(keys[i], (), (3,))
    )
  with pytest.raises(ValueError, match='one key a row'):
    stochastic.sample_gumbel(keys, (4,), (3,))
  with pytest.raises(ValueError, match='key: expected'):
    stochastic.as_key(jnp.zeros(2))


def test_logistic_noise_is_the_difference_of_gumbels():
  """Quantiles of both against the logistic distribution."""
  n = 100_000
  e = np.sort(stochastic.sample_logistic(jax.random.key(0), (n,), ()))
  g = stochastic.sample_gumbel(jax.random.key(1), (n,), (2,))
  d = np.sort(np.asarray(g[:, 0] - g[:, 1]))
  p = np.linspace(0.05, 0.95, 19)
  exact = np.log(p / (1 - p))
  at = (p * n).astype(int)
  np.testing.assert_allclose(e[at], exact, atol=0.06)
  np.testing.assert_allclose(d[at], exact, atol=0.06)


def test_dropout_keeps_the_mean():
  x = jnp.ones((1000, 100))
  y = stochastic.dropout(jax.random.key(0), x, 0.3)
  assert abs(float(y.mean()) - 1.0) < 0.02
  np.testing.assert_allclose(np.unique(y), [0.0, 1 / 0.7], rtol=1e-6)


N_LOCATIONS, STEPS, CLASSES = 4, 2, 3


def _toy():
  """Two steps; the reward is log p(y) of a fixed readout of both picks."""
  rng = np.random.default_rng(0)
  table = jnp.asarray(
    rng.normal(size=(STEPS, N_LOCATIONS, CLASSES)), jnp.float32
  )
  theta = jnp.asarray(rng.normal(size=(STEPS, N_LOCATIONS)), jnp.float32)
  return table, theta


def _logits_of(table, picks):
  return jnp.stack([table[t, picks[t]] for t in range(STEPS)])[None]


def _exact_gradient(table, theta):
  """d/d theta of -E[sum_t r] by enumeration of all pairs of picks."""
  valid = [True] * STEPS
  gradient = np.zeros(theta.shape)
  for picks in np.ndindex(*(N_LOCATIONS,) * STEPS):
    p = [reference.softmax(theta[t]) for t in range(STEPS)]
    probability = np.prod([p[t][picks[t]] for t in range(STEPS)])
    logits = np.asarray(_logits_of(table, picks)[0], np.float64)
    r = reference.reward(logits, 1, valid)
    for t in range(STEPS):
      score = np.eye(N_LOCATIONS)[picks[t]] - p[t]
      gradient[t] -= probability * r * score
  return gradient


def test_reinforce_is_unbiased_and_gumbel_measured_beside(record_property):
  table, theta = _toy()
  n = 40_000
  keys = jax.random.split(jax.random.key(7), n)
  mask, label = jnp.ones((1, STEPS), bool), jnp.array([1])

  def reinforce(theta, key):
    pick, _ = stochastic.gumbel_softmax(key, jax.lax.stop_gradient(theta), 1.0)
    log_p = jax.nn.log_softmax(theta, axis=-1)
    log_prob = jnp.take_along_axis(log_p, pick[:, None], 1)[:, 0]
    logits = _logits_of(table, pick)
    reward = losses.reward(logits, label, mask)
    zero = jnp.zeros((1, STEPS))
    return losses.reinforce_loss(
      log_prob[None], zero, reward, -0.8, mask, entropy_weight=0.0
    )[0]

  def gumbel(theta, key):
    pick, soft = stochastic.gumbel_softmax(key, theta, 0.3)
    one_hot = jax.nn.one_hot(pick, N_LOCATIONS)
    weights = stochastic.straight_through(one_hot, soft)
    logits = jnp.einsum('tn,tnc->tc', weights, table)[None]
    return -jnp.mean(losses.log_likelihood(logits, label))

  per_draw = lambda f: jax.jit(jax.vmap(jax.grad(f), (None, 0)))(theta, keys)
  draws = np.asarray(per_draw(reinforce), np.float64)
  exact = _exact_gradient(table, np.asarray(theta, np.float64))
  standard_error = draws.std(axis=0) / np.sqrt(n)
  assert (np.abs(draws.mean(axis=0) - exact) < 3 * standard_error).all()
  relaxed = np.asarray(per_draw(gumbel), np.float64)
  variances = draws.var(axis=0).sum(), relaxed.var(axis=0).sum()
  record_property('variance_reinforce', float(variances[0]))
  record_property('variance_gumbel', float(variances[1]))
  print(f'variance: REINFORCE {variances[0]:.4f}, Gumbel {variances[1]:.4f}')
  assert all(0 < v < 100 for v in variances)


def test_baseline_moves_by_a_tenth():
  b = stochastic.update_baseline(jnp.float32(1.0), jnp.array([2.0, 4.0]))
  assert float(b) == pytest.approx(0.9 * 1.0 + 0.1 * 3.0)


def test_reinforce_is_unbiased_through_the_whole_recogniser():
  """E[gradient] = gradient of E[mean log p(y)], by enumeration, T = 2, N = 4.

  The second pick's distribution depends on the first pick through the state.
  The exact gradient is by finite differences of the NumPy loops' expectation.
  """
  d, size, label, n = 2, 2, 1, 20_000
  model = models.create(
    CLASSES, cell='lstm', attention='reinforce', hidden_sizes=(size,),
    attention_options={'num_locations': N_LOCATIONS},
  )  # fmt: skip
  rng = np.random.default_rng(3)
  x = jnp.asarray(rng.normal(size=(1, STEPS, N_LOCATIONS, d)), jnp.float32)
  variables = jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32),
    model.init(jax.random.key(0), x),
  )
  flat, unravel = ravel_pytree(variables)

  def expectation(v):
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), unravel_64(v))
    cell = [dict(zip('WUb', layer)) for layer in p['cell'].layers]
    scorer, head = p['attention']['location_logits'], p['head']
    total = 0.0
    for picks in np.ndindex(*(N_LOCATIONS,) * STEPS):
      c, h, weight, logits = [np.zeros(size)], [np.zeros(size)], 1.0, []
      for t, pick in enumerate(picks):
        e = reference.location_logits(scorer['kernel'], scorer['bias'], h[0])
        weight *= reference.softmax(e)[pick]
        c, h = reference.lstm_step(cell, c, h, np.asarray(x[0, t, pick]))
        logits.append(h[0] @ head['kernel'] + head['bias'])
      total += weight * reference.reward(logits, label, [True] * STEPS)
    return total

  with jax.enable_x64(True):
    start, unravel_64 = ravel_pytree(
      jax.tree.map(lambda a: np.asarray(a, np.float64), variables['params'])
    )
    start = np.asarray(start)
    exact = [
      -(expectation(start + e) - expectation(start - e)) / 2e-5
      for e in 1e-5 * np.eye(start.size)
    ]

  mask, labels = jnp.ones((1, STEPS), bool), jnp.array([label])

  def loss(v, key):
    out = model.apply(unravel(v), x, mask, key=key)
    surrogate = losses.reinforce_loss(
      out.attention.log_prob, out.attention.entropy,
      losses.reward(out.logits, labels, mask), -1.0, mask, entropy_weight=0.0,
    )  # fmt: skip
    direct = -jnp.mean(losses.log_likelihood(out.logits, labels))
    return surrogate[0] + direct

  keys = jax.random.split(jax.random.key(12), n)
  draws = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))(flat, keys)
  draws = np.asarray(draws, np.float64)
  error = np.abs(draws.mean(axis=0) - np.array(exact))
  # 3 standard errors in the mean square; no single one of them beyond 4.
  standard = draws.std(axis=0) / np.sqrt(n) + 1e-6
  assert np.sqrt(np.mean((error / standard) ** 2)) < 3
  assert (error < 4 * standard).all()
  assert np.abs(exact).max() > 0.01
