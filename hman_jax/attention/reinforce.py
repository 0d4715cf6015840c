"""Hard attention trained by the score function (REINFORCE)."""

import jax
import jax.numpy as jnp

from hman_jax import stochastic
from hman_jax.attention.base import Attention, AttentionOutput, require_key


class Reinforce(Attention):
  """x_t = X_s with s ~ softmax(e) (HM-AN, arXiv 1708.07590, eq. 14-19).

  No gradient goes through the pick: train with
  `losses.reinforce_loss(output.log_prob, output.entropy, ...)`. The paper's
  eq. 14 picks the argmax, which would make the estimate biased; here training
  samples and evaluation takes the argmax. Attributes: see `Attention`.

  Example:
    >>> import jax
    >>> attention = Reinforce(num_locations=4)
    >>> x, h = jax.numpy.ones((2, 4, 3)), jax.numpy.ones((2, 8))
    >>> key = jax.random.key(0)
    >>> params = attention.init(key, x, h, key)
    >>> attention.apply(params, x, h, key).log_prob.shape
    (2,)
  """

  def attend(self, logits, features, h, key, deterministic):
    """See `Attention.attend`."""
    del h
    key = require_key(key, deterministic, 'reinforce')
    pick, _ = stochastic.gumbel_softmax(key, jax.lax.stop_gradient(logits), 1.0)
    weights = jax.nn.one_hot(pick, self.num_locations, dtype=logits.dtype)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    log_prob = jnp.take_along_axis(log_p, pick[..., None], axis=-1)[..., 0]
    return AttentionOutput(
      context=self.picked(features, weights, pick),
      weights=weights,
      log_prob=jnp.zeros_like(log_prob) if key is None else log_prob,
      temperature=jnp.ones_like(log_prob),
      entropy=stochastic.categorical_entropy(logits),
    )
