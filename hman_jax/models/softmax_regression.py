"""Softmax regression on the whole feature cube of each frame."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from hman_jax import precision, stochastic
from hman_jax.models import heads
from hman_jax.models.features import init_statistics, normalise
from hman_jax.models.recogniser import RecogniserOutput
from hman_jax.types import Array, Key
from hman_jax.unroll import unroll


@dataclasses.dataclass(frozen=True)
class SoftmaxRegression:
  """logits_t = W vec(X_t) + b: each frame by itself, without order.

  The simplest row of the tables (Sharma et al., arXiv 1511.04119; HM-AN, arXiv
  1708.07590). Same `init` and `apply` as `Recogniser`.

  Attributes:
    num_classes: C.
    input_dropout: dropout rate on vec(X_t), in [0, 1).
    feature_norm: 'none', 'layer' or 'standard' (see `features.normalise`).
    dtype: of the factors of the matrix product (see `precision.dot`).

  Example:
    >>> import jax
    >>> model = SoftmaxRegression(num_classes=5)
    >>> x = jax.numpy.ones((2, 3, 49, 16))
    >>> variables = model.init(jax.random.key(0), x)
    >>> model.apply(variables, x, deterministic=True).logits.shape
    (2, 3, 5)
  """

  num_classes: int
  input_dropout: float = 0.0
  feature_norm: str = 'none'
  dtype: precision.Dtype = 'float32'

  def init(self, key: Key, features: Array, mask: Array | None = None):
    """Draws parameters for features `[B, T, N, D]`: `{'params': ...}`."""
    del mask
    num_locations, size = features.shape[-2:]
    head = heads.init_dense(key, num_locations * size, self.num_classes)
    return {
      'params': {'head': head, **init_statistics(self.feature_norm, size)}
    }

  def first_state(
    self, variables: Any, features: Array, mask: Array | None = None
  ) -> None:
    """None: it carries nothing; see `Recogniser.first_state`."""
    del variables, features, mask

  def apply(
    self,
    variables: Any,
    features: Array,
    mask: Array | None = None,
    *,
    key: Key | None = None,
    deterministic: bool = False,
    start: int | Array = 0,
    **unused,
  ) -> RecogniserOutput:
    """Classifies each frame; see `Recogniser.apply` for the arguments.

    Args:
      variables: from `init`.
      features: `[B, T, N, D]` floating.
      mask: unused; a frame's logits depend on that frame only.
      key: one key, or one key a row; needed by dropout.
      deterministic: no dropout.
      start: number of frames already run.
      **unused: boundary options and state of `Recogniser.apply`.

    Returns:
      `RecogniserOutput` with logits `[B, T, C]` and nothing else.

    Raises:
      ValueError: if a key is missing where noise is drawn.
    """
    del mask, unused
    features = normalise(features, self.feature_norm, variables['params'])
    x = features.reshape(*features.shape[:2], -1).astype(jnp.float32)
    if self.input_dropout and not deterministic:
      if key is None:
        raise ValueError(
          'key: expected a PRNG key, since dropout draws noise; got None.'
        )
      x = _dropout_per_step(key, x, self.input_dropout, start)
    logits = heads.dense(variables['params']['head'], x, self.dtype)
    return RecogniserOutput(logits, None, None, None)


def _dropout_per_step(key, x, rate, start):
  """Dropout of `[B, T, F]` with the keys of steps that `unroll` uses."""
  _, out = unroll(
    lambda carry, x_t, key_t: (carry, stochastic.dropout(key_t, x_t, rate)),
    (),
    x,
    key=key,
    start=start,
  )
  return out
