"""No attention: every location weighs the same."""

import jax.numpy as jnp

from hman_jax import stochastic
from hman_jax.attention.base import Attention, AttentionOutput
from hman_jax.attention.position import position_code


class Mean(Attention):
  """x_t = mean_i X_i: average pooling, the row without attention.

  It has no parameters, whatever the scorer. Attributes: see `Attention`.

  Example:
    >>> import jax
    >>> x, h = jax.numpy.ones((2, 4, 3)), jax.numpy.ones((2, 8))
    >>> Mean(num_locations=4).apply({}, x, h).weights[0].tolist()
    [0.25, 0.25, 0.25, 0.25]
  """

  def setup(self):
    """The position code only: there is nothing to score with."""
    self.code = position_code(self.position_code, self.num_locations)

  def project(self, features):
    """Nothing to project."""
    del features

  def logits(self, projected, h):
    """Equal scores `[B, N]`."""
    del projected
    return jnp.zeros((*h.shape[:-1], self.num_locations), h.dtype)

  def attend(self, logits, features, h, key, deterministic):
    """See `Attention.attend`."""
    del h, key, deterministic
    weights = jnp.full_like(logits, 1.0 / self.num_locations)
    zeros = jnp.zeros_like(logits[..., 0])
    return AttentionOutput(
      context=self.expected(features, weights),
      weights=weights,
      log_prob=zeros,
      temperature=zeros + 1,
      entropy=stochastic.categorical_entropy(logits),
    )
