"""The contract of attention modules, and what they share.

A module scores the N locations of a feature map from the state before this
step, and hands one context vector to the recurrent cell. A new attention is
one file with a subclass of `Attention` that defines `attend`, and one line in
`hman_jax/attention/__init__.py`.
"""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hman_jax import precision
from hman_jax.attention.position import position_code
from hman_jax.cells.base import check_choice
from hman_jax.types import Array, Key

SCORERS = ('location', 'content')


# How strongly an untrained content scorer prefers locations with large
# features: see `Attention`.
_ACTIVE_KERNEL, _ACTIVE_WEIGHTS = 3.0, 2.0


class AttentionOutput(NamedTuple):
  """What an attention module returns at one step.

  Attributes:
    context: `[B, D + P]` what the cell reads: feature and position code.
    weights: `[B, N]` weights of the locations, summing to 1; one-hot for a
      hard attention.
    log_prob: `[B]` log-probability of the pick; 0 when nothing was drawn.
    temperature: `[B]` temperature used; 1 when there is none.
    entropy: `[B]` entropy of softmax(logits), in nats.
  """

  context: Array
  weights: Array
  log_prob: Array
  temperature: Array
  entropy: Array


class Attention(nn.Module):
  """Base of all attention modules.

  Logits e of the locations come from one of two scorers:

  - `location` (HM-AN, arXiv 1708.07590, eq. 12): e = W h_{t-1} + b. It never
    looks at the current frame.
  - `content`: e_i = u . tanh(W_c [X_i; p_i] + W_d h_{t-1} + b), additive over
    feature and state (Xu et al., arXiv 1502.03044; Sharma et al., arXiv
    1511.04119).

  Near uniform attention, weighing a location up or down tells the cell the
  same, and a hard attention that has learned to look away sees nothing any
  more. So the content scorer starts with a preference for active locations
  (features of images and of ReLUs are >= 0): the kernel W_c with a mean of
  3 / D and u with a mean of 2 / A, beside LeCun normal noise.

  A summed or picked context does not say where it came from: a position code
  p_i may be appended to each feature X_i (see `position.position_code`).

  Attributes:
    scorer: 'location' or 'content'.
    position_code: 'none', 'onehot' or 'sincos'.
    num_locations: N.
    scorer_size: width of the content scorer.
    dtype: of the factors of the scorer's matrix products: 'float32', or
      'bfloat16' (see `precision.dot`). Weights and their mean are float32.
  """

  scorer: str = 'location'
  position_code: str = 'none'
  num_locations: int = 49
  scorer_size: int = 128
  dtype: precision.Dtype = 'float32'

  def setup(self):
    """Creates the scorer; sizes D and H follow from the first call."""
    check_choice('scorer', self.scorer, SCORERS)
    check_choice('dtype', self.dtype, precision.DTYPES)
    options = precision.dense_options(self.dtype)
    self.code = position_code(self.position_code, self.num_locations)
    if self.scorer == 'location':
      self.location_logits = nn.Dense(self.num_locations, **options)
    else:
      self.feature_projection = nn.Dense(
        self.scorer_size,
        use_bias=False,
        kernel_init=_active_kernel,
        **options,
      )
      if self.code.shape[-1]:
        self.position_projection = nn.Dense(
          self.scorer_size, use_bias=False, **options
        )
      self.state_projection = nn.Dense(self.scorer_size, **options)
      self.content_weights = self.param(
        'content_weights', _active_weights, (self.scorer_size,)
      )

  def project(self, features: Array) -> Array | None:
    """The part of the scorer that does not depend on the state.

    It may be computed for all steps of a clip in one matrix product and handed
    to `__call__` step by step.

    Args:
      features: `[..., N, D]`.

    Returns:
      `[..., N, A]`, or None for the location scorer.
    """
    if self.scorer == 'location':
      return None
    dtype = jnp.promote_types(features.dtype, jnp.float32)
    projected = self.feature_projection(features.astype(dtype))
    if self.code.shape[-1]:
      where = self.position_projection(jnp.asarray(self.code, dtype))
      projected += where.reshape((1,) * (projected.ndim - 2) + where.shape)
    return projected

  def logits(self, projected: Array | None, h: Array) -> Array:
    """Scores e `[B, N]` from `project`'s part and the state h `[B, H]`."""
    if projected is None:
      return self.location_logits(h)
    hidden = jnp.tanh(projected + self.state_projection(h)[..., None, :])
    weights = self.content_weights.reshape((1,) * (hidden.ndim - 1) + (-1,))
    return jnp.sum(hidden * weights, axis=-1)

  def __call__(
    self,
    features: Array,
    h: Array,
    key: Key | None = None,
    *,
    projected: Array | None = None,
    deterministic: bool = False,
  ) -> AttentionOutput:
    """One step of attention.

    Args:
      features: `[B, N, D]` floating; converted to float32 where read.
      h: `[B, H]` hidden state of layer 1 at the step before.
      key: one key, or one key a row; needed by the hard attentions in
        training.
      projected: `project(features)` if it was computed before.
      deterministic: hard attentions pick the argmax of e, without noise.

    Returns:
      `AttentionOutput`.

    Raises:
      ValueError: if the features have not N locations, or a key is missing.
    """
    if features.shape[-2] != self.num_locations:
      raise ValueError(
        f'features: expected {self.num_locations} locations (num_locations) '
        f'on the axis before the last, got shape {features.shape}.'
      )
    if projected is None:
      projected = self.project(features)
    logits = self.logits(projected, h)
    return self.attend(logits, features, h, key, deterministic)

  def attend(
    self,
    logits: Array,
    features: Array,
    h: Array,
    key: Key | None,
    deterministic: bool,
  ) -> AttentionOutput:
    """Turns scores into a context: what each attention defines.

    Args:
      logits: `[B, N]` scores e.
      features: `[B, N, D]`.
      h: `[B, H]`.
      key: one key, one key a row, or None.
      deterministic: whether to leave out all noise.

    Returns:
      `AttentionOutput`.
    """
    raise TypeError(f'{type(self).__name__} does not define attend().')

  def expected(self, features: Array, weights: Array) -> Array:
    """The mean of feature and code under `weights` `[B, N]`: `[B, D + P]`."""
    features = features.astype(weights.dtype)
    context = jnp.einsum('...n,...nd->...d', weights, features)
    code = jnp.asarray(self.code, weights.dtype)
    return jnp.concatenate([context, weights @ code], axis=-1)

  def picked(self, features: Array, weights: Array, pick: Array) -> Array:
    """Feature and code of one location, read by gather: `[B, D + P]`.

    Backward it is the mean under `weights` `[B, N]` (straight-through); with
    no gradient into `weights` it is a plain gather.
    """
    code = jnp.broadcast_to(
      jnp.asarray(self.code, weights.dtype),
      (*weights.shape[:-1], *self.code.shape),
    )
    read = [_gather(features, weights, pick), _gather(code, weights, pick)]
    return jnp.concatenate(read, axis=-1)


def _active_kernel(key: Key, shape: tuple[int, int], dtype: Any) -> Array:
  """LeCun normal around a mean of 3 / D."""
  noise = nn.initializers.lecun_normal()(key, shape, dtype)
  return noise + _ACTIVE_KERNEL / shape[0]


def _active_weights(key: Key, shape: tuple[int]) -> Array:
  """Normal of variance 1 / A around a mean of 2 / A."""
  noise = jax.random.normal(key, shape) / shape[0] ** 0.5
  return noise + _ACTIVE_WEIGHTS / shape[0]


def require_key(key: Key | None, deterministic: bool, name: str) -> Key | None:
  """None when deterministic, else the key; ValueError if it is missing."""
  if deterministic:
    return None
  if key is None:
    raise ValueError(
      f'key: expected a PRNG key, since attention {name!r} draws a location at '
      'each step; got None. Pass a key, or deterministic=True.'
    )
  return key


@jax.custom_vjp
def _gather(features: Array, weights: Array, pick: Array) -> Array:
  """features[b, pick[b]] forward; d/d weights as of sum_n weights_n X_n."""
  index = pick[..., None, None]
  row = jnp.take_along_axis(features, index, axis=-2, mode='clip')
  return row[..., 0, :].astype(weights.dtype)


def _gather_forward(features, weights, pick):
  return _gather(features, weights, pick), (features, weights, pick)


def _gather_backward(saved: Any, gradient: Array):
  features, weights, pick = saved
  d_weights = jnp.einsum(
    '...d,...nd->...n', gradient, features.astype(weights.dtype)
  )
  one_hot = jax.nn.one_hot(pick, weights.shape[-1], dtype=gradient.dtype)
  d_features = one_hot[..., None] * gradient[..., None, :]
  zero = np.zeros(pick.shape, jax.dtypes.float0)
  return d_features.astype(features.dtype), d_weights, zero


_gather.defvjp(_gather_forward, _gather_backward)
