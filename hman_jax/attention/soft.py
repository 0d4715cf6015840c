"""Soft attention: the expectation of the features."""

import jax
import jax.numpy as jnp

from hman_jax import stochastic
from hman_jax.attention.base import Attention, AttentionOutput


class Soft(Attention):
  """x_t = sum_i softmax(e)_i X_i (HM-AN, arXiv 1708.07590, eq. 12-13).

  Deterministic: it needs no key. Attributes: see `Attention`.

  Example:
    >>> import jax
    >>> attention = Soft(num_locations=4)
    >>> x, h = jax.numpy.ones((2, 4, 3)), jax.numpy.ones((2, 8))
    >>> params = attention.init(jax.random.key(0), x, h)
    >>> attention.apply(params, x, h).context.shape
    (2, 3)
  """

  def attend(self, logits, features, h, key, deterministic):
    """See `Attention.attend`."""
    del h, key, deterministic
    weights = jax.nn.softmax(logits, axis=-1)
    zeros = jnp.zeros_like(logits[..., 0])
    return AttentionOutput(
      context=self.expected(features, weights),
      weights=weights,
      log_prob=zeros,
      temperature=zeros + 1,
      entropy=stochastic.categorical_entropy(logits),
    )
