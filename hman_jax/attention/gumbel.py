"""Hard attention trained by straight-through Gumbel-softmax."""

import jax
import jax.numpy as jnp

from hman_jax import stochastic
from hman_jax.attention.base import Attention, AttentionOutput, require_key
from hman_jax.types import Array


class Gumbel(Attention):
  """One-hot forward, softmax((e + g) / tau) backward (HM-AN eq. 20).

  A constant temperature; in evaluation the argmax of e. HM-AN: arXiv
  1708.07590.

  Attributes:
    constant_temperature: tau, positive; 0.3 in the paper.
    scorer, position_code, num_locations, scorer_size, dtype: see `Attention`.

  Example:
    >>> import jax
    >>> attention = Gumbel(num_locations=4)
    >>> x, h = jax.numpy.ones((2, 4, 3)), jax.numpy.ones((2, 8))
    >>> key = jax.random.key(0)
    >>> params = attention.init(key, x, h, key)
    >>> attention.apply(params, x, h, key).weights.sum(-1).tolist()
    [1.0, 1.0]
  """

  constant_temperature: float = 0.3

  def temperature(self, h: Array) -> Array:
    """The temperature tau `[B]` from the state h `[B, H]`."""
    return jnp.full(h.shape[:-1], self.constant_temperature, h.dtype)

  def attend(self, logits, features, h, key, deterministic):
    """See `Attention.attend`."""
    key = require_key(key, deterministic, 'gumbel')
    temperature = self.temperature(h)
    pick, soft = stochastic.gumbel_softmax(key, logits, temperature[..., None])
    one_hot = jax.nn.one_hot(pick, self.num_locations, dtype=logits.dtype)
    log_p = jax.nn.log_softmax(logits, axis=-1)
    log_prob = jnp.take_along_axis(log_p, pick[..., None], axis=-1)[..., 0]
    return AttentionOutput(
      context=self.picked(features, soft, pick),
      weights=stochastic.straight_through(one_hot, soft),
      log_prob=jnp.zeros_like(log_prob) if key is None else log_prob,
      temperature=temperature,
      entropy=stochastic.categorical_entropy(logits),
    )
