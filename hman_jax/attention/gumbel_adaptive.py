"""Hard attention by Gumbel-softmax at a temperature learned from the state."""

import flax.linen as nn

from hman_jax.attention.gumbel import Gumbel
from hman_jax.types import Array


class GumbelAdaptive(Gumbel):
  """`Gumbel` with tau = 1 / (softplus(w . h_{t-1} + b) + 1), in (0, 1).

  One scalar for each clip and step (HM-AN, arXiv 1708.07590, eq. 21, from the
  state before the step: the printed h_t depends on x_t, which depends on tau).
  `constant_temperature` is unused. Attributes: see `Attention`.

  Example:
    >>> import jax
    >>> attention = GumbelAdaptive(num_locations=4)
    >>> x, h = jax.numpy.ones((2, 4, 3)), jax.numpy.ones((2, 8))
    >>> key = jax.random.key(0)
    >>> params = attention.init(key, x, h, key)
    >>> attention.apply(params, x, h, key).temperature.shape
    (2,)
  """

  def setup(self):
    """Creates the scorer and the temperature's affine map."""
    super().setup()
    self.inverse_temperature = nn.Dense(1)

  def temperature(self, h: Array) -> Array:
    """The temperature tau `[B]` in (0, 1) from the state h `[B, H]`."""
    return 1.0 / (nn.softplus(self.inverse_temperature(h)[..., 0]) + 1.0)
