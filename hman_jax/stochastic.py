"""Discrete random choices inside a differentiable network.

Straight-through, Gumbel-softmax, binary concrete and the score function
(REINFORCE): every random draw of the library is made here, from explicit keys.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hman_jax.types import Array, Key


class BoundarySample(NamedTuple):
  """A 0/1 draw and the relaxed value whose gradient it carries.

  Attributes:
    value: float array, exactly 0 or 1 forward; gradient of `soft` backward.
    soft: float array in (0, 1), same shape.
  """

  value: Array
  soft: Array


def as_key(key: Key) -> Key:
  """Returns a typed key (or array of keys), wrapping raw uint32 key data.

  Args:
    key: typed key array of any shape, or raw `uint32` key data whose last axis
      holds the words of a key.

  Returns:
    A typed key array.

  Raises:
    ValueError: if `key` is neither.

  Example:
    >>> import jax
    >>> as_key(jax.random.PRNGKey(0)).shape
    ()
  """
  if jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
    return key
  if key.dtype == jnp.uint32:
    return jax.random.wrap_key_data(key)
  raise ValueError(
    'key: expected a typed PRNG key (jax.random.key(seed)) or raw uint32 key '
    f'data, got an array of dtype {key.dtype}.'
  )


def fold_in(key: Key, data) -> Key:
  """`jax.random.fold_in` for one key or for an array of keys.

  Args:
    key: one key, or an array of keys.
    data: integer scalar folded into every key.

  Returns:
    Keys of the same shape.

  Example:
    >>> keys = jax.random.split(jax.random.key(0), 3)
    >>> fold_in(keys, 7).shape
    (3,)
  """
  key = as_key(key)
  if key.ndim == 0:
    return jax.random.fold_in(key, data)
  return jax.vmap(fold_in, in_axes=(0, None))(key, data)


def _draw(sampler, key: Key, batch_shape, event_shape) -> Array:
  """Draws `batch_shape + event_shape` from one key, or one key a row."""
  key = as_key(key)
  batch_shape, event_shape = tuple(batch_shape), tuple(event_shape)
  if key.ndim == 0:
    return sampler(key, batch_shape + event_shape)
  if key.shape != batch_shape:
    raise ValueError(
      f'key: expected one key, or one key a row of shape {batch_shape}; '
      f'got keys of shape {key.shape}.'
    )
  rows = jax.vmap(lambda k: sampler(k, event_shape))(key.reshape(-1))
  return rows.reshape(batch_shape + event_shape)


def sample_gumbel(key: Key, batch_shape, event_shape) -> Array:
  """Draws standard Gumbel noise.

  Args:
    key: one key, or one key a row (shape `batch_shape`).
    batch_shape: leading shape, for example `(B,)`.
    event_shape: trailing shape, for example `(N,)`.

  Returns:
    float32 array of shape `batch_shape + event_shape`.

  Raises:
    ValueError: if `key` has another shape than `()` and `batch_shape`.

  Example:
    >>> sample_gumbel(jax.random.key(0), (2,), (49,)).shape
    (2, 49)
  """
  return _draw(jax.random.gumbel, key, batch_shape, event_shape)


def sample_logistic(key: Key, batch_shape, event_shape) -> Array:
  """Draws standard logistic noise, the difference of two Gumbels.

  Args:
    key: one key, or one key a row (shape `batch_shape`).
    batch_shape: leading shape.
    event_shape: trailing shape.

  Returns:
    float32 array of shape `batch_shape + event_shape`.

  Raises:
    ValueError: if `key` has another shape than `()` and `batch_shape`.

  Example:
    >>> sample_logistic(jax.random.key(0), (2,), (3,)).shape
    (2, 3)
  """
  return _draw(jax.random.logistic, key, batch_shape, event_shape)


def dropout(key: Key, x: Array, rate: float) -> Array:
  """Zeroes entries with probability `rate` and rescales the others.

  Args:
    key: one key, or one key a row.
    x: float array `[B, F]`.
    rate: probability in [0, 1).

  Returns:
    float array `[B, F]` of the dtype of `x`.

  Example:
    >>> dropout(jax.random.key(0), jnp.ones((1, 3)), 0.0).tolist()
    [[1.0, 1.0, 1.0]]
  """
  keep = 1.0 - rate
  uniform = _draw(jax.random.uniform, key, x.shape[:-1], x.shape[-1:])
  return jnp.where(uniform < keep, x / keep, jnp.zeros_like(x))


def straight_through(hard: Array, soft: Array) -> Array:
  """Returns `hard` forward, with the gradient of `soft` backward.

  soft + stop_gradient(hard - soft). For 0/1 values and soft values in [0, 1]
  the result is exactly 0 or 1 in float32 and bfloat16: the difference is
  within half a unit in the last place of 1 of being undone by the sum.

  Args:
    hard: float array; gets no gradient.
    soft: float array of the same shape and dtype.

  Returns:
    float array of the same shape and dtype.

  Reference: Bengio, Leonard, Courville, arXiv 1308.3432.

  Example:
    >>> straight_through(jnp.ones(1), jnp.full(1, 0.7)).tolist()
    [1.0]
  """
  return soft + jax.lax.stop_gradient(hard - soft)


def binary_concrete(
  key: Key | None,
  logits: Array,
  temperature: float | Array,
  noise: float | Array = 1.0,
) -> BoundarySample:
  """Draws 0/1 with P(1) = sigmoid(logits), differentiable by straight-through.

  soft = sigmoid((a + noise * e) / tau), e ~ Logistic(0, 1), and value =
  [soft > 1/2] (HM-AN, arXiv 1708.07590, eq. 9-11, with `(log pi + g) / tau` for
  the printed `log(pi + g) / tau`, and `>` for `>=`).

  Args:
    key: one key, or one key a row (`logits.shape[:-1]`), or None: no noise,
      that is value = [logits > 0].
    logits: float array `[..., F]`, the log-odds a.
    temperature: positive scalar tau.
    noise: scale of the logistic noise; 1 is the distribution above, 0 is the
      deterministic choice.

  Returns:
    A `BoundarySample` of the shape and dtype of `logits`.

  Example:
    >>> binary_concrete(None, jnp.array([-1.0, 2.0]), 0.3).value.tolist()
    [0.0, 1.0]
  """
  if key is not None:
    e = sample_logistic(key, logits.shape[:-1], logits.shape[-1:])
    logits = logits + (noise * e).astype(logits.dtype)
  soft = jax.nn.sigmoid(logits / temperature)
  hard = (soft > 0.5).astype(soft.dtype)
  return BoundarySample(straight_through(hard, soft), soft)


def hard_sigmoid_boundary(
  logits: Array, slope: float | Array
) -> BoundarySample:
  """Deterministic 0/1 by a straight-through hard sigmoid.

  soft = max(0, min(1, (slope * a + 1) / 2)); value = [soft > 1/2]
  (Chung, Ahn, Bengio, arXiv 1609.01704, with slope annealing).

  Args:
    logits: float array, the log-odds a.
    slope: positive scalar, usually min(5, 1 + 0.04 * epoch).

  Returns:
    A `BoundarySample` of the shape and dtype of `logits`.

  Example:
    >>> hard_sigmoid_boundary(jnp.array([-2.0, 0.5]), 1.0).soft.tolist()
    [0.0, 0.75]
  """
  soft = jnp.clip((slope * logits + 1.0) / 2.0, 0.0, 1.0).astype(logits.dtype)
  hard = (soft > 0.5).astype(soft.dtype)
  return BoundarySample(straight_through(hard, soft), soft)


def gumbel_softmax(
  key: Key | None,
  logits: Array,
  temperature: float | Array,
) -> tuple[Array, Array]:
  """Draws a location by Gumbel-max and its differentiable relaxation.

  soft = softmax((e + g) / tau), g ~ Gumbel(0, 1); pick = argmax(e + g), whose
  distribution is softmax(e) whatever tau (HM-AN eq. 20, with `(log pi + g) /
  tau` for the printed `log(pi + g) / tau`).

  Args:
    key: one key, or one key a row, or None: no noise.
    logits: float array `[..., N]`.
    temperature: positive scalar, or array `[..., 1]`.

  Returns:
    (pick, soft): int32 array `[...]` in 0..N-1, and float array `[..., N]`
    that sums to 1 over the last axis.

  Reference: Jang, Gu, Poole, arXiv 1611.01144.

  Example:
    >>> pick, soft = gumbel_softmax(None, jnp.array([[0.0, 3.0]]), 0.3)
    >>> pick.tolist()
    [1]
  """
  if key is not None:
    g = sample_gumbel(key, logits.shape[:-1], logits.shape[-1:])
    logits = logits + g.astype(logits.dtype)
  pick = jnp.argmax(logits, axis=-1).astype(jnp.int32)
  return pick, jax.nn.softmax(logits / temperature, axis=-1)


def categorical_entropy(logits: Array) -> Array:
  """Entropy of softmax(logits) over the last axis, in nats.

  Args:
    logits: float array `[..., N]`.

  Returns:
    float array `[...]`, in [0, log N].

  Example:
    >>> round(float(categorical_entropy(jnp.zeros(4))), 4)
    1.3863
  """
  log_p = jax.nn.log_softmax(logits, axis=-1)
  return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def score_function_surrogate(
  log_prob: Array, reward: Array, baseline: float | Array
) -> Array:
  """A loss whose gradient is the REINFORCE estimate.

  -(r - b) * log p(pick), with no gradient through r and b (HM-AN eq. 14-19).

  Args:
    log_prob: float array, log-probability of what was picked.
    reward: float array of the same shape.
    baseline: scalar b, or an array of the same shape.

  Returns:
    float array of the same shape, to be minimised.

  Reference: Williams 1992.

  Example:
    >>> r = jnp.array([1.0])
    >>> score_function_surrogate(jnp.array([-2.0]), r, 0.5).tolist()
    [1.0]
  """
  return -jax.lax.stop_gradient(reward - baseline) * log_prob


def update_baseline(
  baseline: Array, reward: Array, decay: float = 0.9
) -> Array:
  """Moves the REINFORCE baseline: b <- decay * b + (1 - decay) * mean(r).

  Args:
    baseline: scalar b.
    reward: float array of rewards of this batch.
    decay: in [0, 1]; 0.9 in the paper.

  Returns:
    The new scalar baseline, with no gradient.

  Example:
    >>> b = update_baseline(jnp.zeros(()), jnp.array([1.0, 3.0]))
    >>> round(float(b), 4)
    0.2
  """
  mean = jax.lax.stop_gradient(jnp.mean(reward))
  return decay * baseline + (1.0 - decay) * mean
