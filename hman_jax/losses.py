"""Losses of recognisers, one number a clip; the caller averages over clips."""

import jax
import jax.numpy as jnp

from hman_jax import stochastic
from hman_jax.types import Array


def _log_softmax(logits: Array) -> Array:
  """Over the last axis, in float32 or better."""
  dtype = jnp.promote_types(logits.dtype, jnp.float32)
  return jax.nn.log_softmax(logits.astype(dtype), axis=-1)


def log_likelihood(logits: Array, labels: Array) -> Array:
  """log p(y) of every step: log_softmax(logits)[y].

  Args:
    logits: float `[B, T, C]`.
    labels: int `[B]` in 0..C-1 (out of range gives NaN: check on the host).

  Returns:
    float32 `[B, T]`.

  Example:
    >>> round(float(log_likelihood(jnp.zeros((1, 1, 2)), jnp.array([1]))[0, 0]),
    ...       4)
    -0.6931
  """
  log_p = _log_softmax(logits)
  one = jnp.take_along_axis(log_p, labels[:, None, None], axis=-1, mode='fill')
  return one[..., 0]


def cross_entropy(
  logits: Array, labels: Array, mask: Array, label_smoothing: float = 0.0
) -> Array:
  """Cross-entropy summed over the valid steps of a clip (HM-AN eq. 22).

  With smoothing s the target is (1 - s) one-hot + s / C.

  Args:
    logits: float `[B, T, C]`.
    labels: int `[B]`.
    mask: bool `[B, T]`, True where valid.
    label_smoothing: s in [0, 1).

  Returns:
    float32 `[B]`.

  Reference: Yan et al., arXiv 1708.07590.

  Example:
    >>> loss = cross_entropy(
    ...     jnp.zeros((1, 3, 2)), jnp.array([0]), jnp.array([[1, 1, 0]]) > 0)
    >>> round(float(loss[0]), 4)
    1.3863
  """
  per_step = -log_likelihood(logits, labels)
  if label_smoothing:
    log_p = _log_softmax(logits)
    uniform = -jnp.mean(log_p, axis=-1)
    per_step = (1 - label_smoothing) * per_step + label_smoothing * uniform
  return masked_sum(per_step, mask)


def masked_sum(values: Array, mask: Array) -> Array:
  """Sum over the valid steps: `[B, T]`, bool `[B, T]` -> `[B]`."""
  return jnp.sum(jnp.where(mask, values, 0.0), axis=1)


def masked_mean(values: Array, mask: Array) -> Array:
  """Mean over the valid steps (0 without any): `[B, T]` -> `[B]`."""
  count = jnp.maximum(jnp.sum(mask, axis=1), 1)
  return masked_sum(values, mask) / count


def reward(logits: Array, labels: Array, mask: Array) -> Array:
  """The REINFORCE reward r of a clip: mean of log p(y) over valid steps.

  Args:
    logits: float `[B, T, C]`.
    labels: int `[B]`.
    mask: bool `[B, T]`.

  Returns:
    float32 `[B]`, without gradient.

  Example:
    >>> r = reward(jnp.zeros((1, 3, 2)), jnp.array([0]), jnp.ones((1, 3)) > 0)
    >>> round(float(r[0]), 4)
    -0.6931
  """
  values = masked_mean(log_likelihood(logits, labels), mask)
  return jax.lax.stop_gradient(values)


def rewards_to_go(logits: Array, labels: Array, mask: Array) -> Array:
  """The reward of each step: mean of log p(y) over it and later valid steps.

  A pick at step t cannot change the steps before it: the rewards to go leave
  them out, for less variance at the same expectation up to scale.

  Args:
    logits: float `[B, T, C]`.
    labels: int `[B]`.
    mask: bool `[B, T]`.

  Returns:
    float32 `[B, T]`, without gradient; 0 in padding.

  Example:
    >>> r = rewards_to_go(
    ...     jnp.zeros((1, 2, 2)), jnp.array([0]), jnp.ones((1, 2)) > 0)
    >>> [round(v, 4) for v in r[0].tolist()]
    [-0.6931, -0.6931]
  """
  values = jnp.where(mask, log_likelihood(logits, labels), 0.0)
  to_go = jnp.flip(jnp.cumsum(jnp.flip(values, 1), axis=1), 1)
  valid = mask.astype(jnp.float32)
  count = jnp.flip(jnp.cumsum(jnp.flip(valid, 1), axis=1), 1)
  to_go = jnp.where(mask, to_go / jnp.maximum(count, 1.0), 0.0)
  return jax.lax.stop_gradient(to_go)


def reinforce_loss(
  log_prob: Array,
  entropy: Array,
  reward: Array,
  baseline: Array | float,
  mask: Array,
  *,
  weight: float = 1.0,
  entropy_weight: float = 0.002,
) -> Array:
  """The loss whose gradient is REINFORCE's, with an entropy bonus.

  lambda_r sum_t -(r - b) log p(s_t) - lambda_e sum_t H_t (HM-AN eq. 14-19 and
  Xu et al., arXiv 1502.03044), with no gradient through r and b.

  Args:
    log_prob: `[B, T]` log-probability of the picks.
    entropy: `[B, T]` entropies of the distributions picked from.
    reward: `[B]`, one a clip, or `[B, T]`, one a step.
    baseline: scalar b.
    mask: bool `[B, T]`.
    weight: lambda_r.
    entropy_weight: lambda_e.

  Returns:
    `[B]`, to be minimised.

  Example:
    >>> one = jnp.ones((1, 1))
    >>> loss = reinforce_loss(-2 * one, one, jnp.array([1.0]), 0.5, one > 0)
    >>> round(float(loss[0]), 4)
    0.998
  """
  if reward.ndim == 1:
    reward = reward[:, None]
  surrogate = stochastic.score_function_surrogate(
    log_prob, jnp.broadcast_to(reward, log_prob.shape), baseline
  )
  return masked_sum(weight * surrogate - entropy_weight * entropy, mask)


def doubly_stochastic_penalty(weights: Array, mask: Array) -> Array:
  """Penalty that spreads the attention of a clip over all locations.

  sum_i (T / N - sum_t w_{t,i})^2 with T the valid steps of the clip. (Sharma
  et al., arXiv 1511.04119, print the target 1, which no attention can reach
  unless T = N.)

  Args:
    weights: `[B, T, N]`, summing to 1 over N.
    mask: bool `[B, T]`.

  Returns:
    `[B]`.

  Example:
    >>> w = jnp.full((1, 4, 2), 0.5)
    >>> doubly_stochastic_penalty(w, jnp.ones((1, 4)) > 0).tolist()
    [0.0]
  """
  total = jnp.sum(jnp.where(mask[..., None], weights, 0.0), axis=1)
  target = jnp.sum(mask, axis=1, keepdims=True) / weights.shape[-1]
  return jnp.sum(jnp.square(target - total), axis=-1)


def boundary_rates(z: Array, mask: Array) -> Array:
  """Share of valid steps with a boundary, over the whole batch.

  Args:
    z: `[B, T, L]` boundaries in [0, 1].
    mask: bool `[B, T]`.

  Returns:
    `[L]` in [0, 1].

  Example:
    >>> z = jnp.array([[[1.0], [0.0]]])
    >>> boundary_rates(z, jnp.ones((1, 2)) > 0).tolist()
    [0.5]
  """
  count = jnp.maximum(jnp.sum(mask), 1)
  return jnp.sum(jnp.where(mask[..., None], z, 0.0), axis=(0, 1)) / count


def boundary_rate_penalty(
  z: Array, mask: Array, target: float, axis_name: str | None = None
) -> Array:
  """Keeps layers alive: sum over layers of (rate - target)^2.

  A layer that finds no boundaries is silent, and one that finds them
  everywhere forgets at every step: neither gets out by itself, since a rare
  choice gets little gradient.

  Args:
    z: `[B, T, L]` boundaries with their straight-through gradient.
    mask: bool `[B, T]`.
    target: rate aimed at, in [0, 1].
    axis_name: axis over which the batch is spread (`pmap`); the rate is that
      of the whole batch, and the gradient is right after averaging over it.

  Returns:
    scalar.

  Example:
    >>> z = jnp.array([[[1.0], [0.0]]])
    >>> float(boundary_rate_penalty(z, jnp.ones((1, 2)) > 0, 0.0))
    0.25
  """
  mean = lambda x: jax.lax.pmean(x, axis_name) if axis_name else x
  count = jnp.maximum(mean(jnp.sum(mask).astype(z.dtype)), 1.0)
  share = jnp.sum(jnp.where(mask[..., None], z, 0.0), axis=(0, 1)) / count
  rate = jax.lax.stop_gradient(mean(share))
  move = share - jax.lax.stop_gradient(share)  # 0, with the gradient of share
  error = rate - target
  return jnp.sum(jnp.square(error) + 2.0 * error * move)
