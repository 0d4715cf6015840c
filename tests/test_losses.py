"""Losses against the NumPy loops; padding adds nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hman_jax import losses

import reference

B, T, N, C = 3, 5, 4, 6


@pytest.fixture(autouse=True)
def _float64():
  with jax.enable_x64(True):
    yield


@pytest.fixture
def case():
  rng = np.random.default_rng(0)
  lengths = np.array([5, 3, 1])
  return {
    'logits': rng.normal(size=(B, T, C)),
    'labels': np.array([1, 5, 0]),
    'mask': np.arange(T)[None] < lengths[:, None],
    'weights': rng.dirichlet(np.ones(N), (B, T)),
    'log_prob': rng.normal(size=(B, T)),
    'entropy': rng.random((B, T)),
  }


@pytest.mark.parametrize('smoothing', [0.0, 0.1])
def test_cross_entropy(case, smoothing):
  ours = losses.cross_entropy(
    case['logits'], case['labels'], case['mask'], smoothing
  )
  theirs = [
    reference.cross_entropy(x, y, v, smoothing)
    for x, y, v in zip(case['logits'], case['labels'], case['mask'])
  ]
  np.testing.assert_allclose(ours, theirs, rtol=1e-10)


def test_rewards(case):
  args = case['logits'], case['labels'], case['mask']
  ours, to_go = losses.reward(*args), losses.rewards_to_go(*args)
  for b in range(B):
    row = [a[b] for a in args]
    np.testing.assert_allclose(ours[b], reference.reward(*row), rtol=1e-10)
    np.testing.assert_allclose(
      to_go[b], reference.rewards_to_go(*row), rtol=1e-10
    )
  np.testing.assert_allclose(to_go[:, 0], ours, rtol=1e-6)
  gradient = jax.grad(lambda x: jnp.sum(losses.reward(x, *args[1:])))(args[0])
  assert not np.any(gradient)


@pytest.mark.parametrize('per_step', [False, True])
def test_reinforce_loss(case, per_step):
  rng = np.random.default_rng(1)
  reward = rng.normal(size=(B, T) if per_step else (B,))
  ours = losses.reinforce_loss(
    case['log_prob'],
    case['entropy'],
    jnp.asarray(reward),
    0.3,
    case['mask'],
    weight=0.7,
    entropy_weight=0.05,
  )
  for b in range(B):
    rewards = reward[b] if per_step else np.full(T, reward[b])
    theirs = reference.reinforce_loss(
      case['log_prob'][b], case['entropy'][b], rewards, 0.3, case['mask'][b],
      0.7, 0.05,
    )  # fmt: skip
    np.testing.assert_allclose(ours[b], theirs, rtol=1e-10)


def test_doubly_stochastic_penalty(case):
  ours = losses.doubly_stochastic_penalty(
    jnp.asarray(case['weights']), case['mask']
  )
  theirs = [
    reference.doubly_stochastic(w, v)
    for w, v in zip(case['weights'], case['mask'])
  ]
  np.testing.assert_allclose(ours, theirs, rtol=1e-10)
  uniform = jnp.full((1, T, N), 1 / N)
  np.testing.assert_allclose(
    losses.doubly_stochastic_penalty(uniform, case['mask'][:1]), 0, atol=1e-12
  )


def test_boundary_rate_penalty_and_its_gradient(case):
  z = jnp.asarray(np.random.default_rng(2).random((B, T, 2)))
  mask = case['mask']
  rate = np.array(
    [np.mean([z[b, t, l] for b in range(B) for t in range(T) if mask[b, t]])
     for l in range(2)]
  )  # fmt: skip
  penalty = lambda z: losses.boundary_rate_penalty(z, mask, 0.2)
  np.testing.assert_allclose(losses.boundary_rates(z, mask), rate, rtol=1e-10)
  np.testing.assert_allclose(penalty(z), np.sum((rate - 0.2) ** 2), rtol=1e-10)
  plain = lambda z: jnp.sum(jnp.square(losses.boundary_rates(z, mask) - 0.2))
  np.testing.assert_allclose(
    jax.grad(penalty)(z), jax.grad(plain)(z), rtol=1e-10
  )


def test_padding_adds_nothing(case):
  longer = {
    k: np.concatenate([v, np.full_like(v[:, :2], 7)], axis=1)
    for k, v in case.items()
    if k not in ('labels', 'mask')
  }
  mask = np.pad(case['mask'], ((0, 0), (0, 2)))

  def all_losses(c, mask):
    return (
      losses.cross_entropy(c['logits'], case['labels'], mask),
      losses.reward(c['logits'], case['labels'], mask),
      losses.reinforce_loss(
        c['log_prob'], c['entropy'], jnp.ones(B), 0.1, mask
      ),
      losses.doubly_stochastic_penalty(jnp.asarray(c['weights']), mask),
    )

  for a, b in zip(all_losses(case, case['mask']), all_losses(longer, mask)):
    np.testing.assert_allclose(a, b, rtol=1e-10)
