"""Our cells as flax.linen RNN cells, for `flax.linen.RNN`."""

import flax.linen as nn

from hman_jax import cells, precision
from hman_jax.adapters import RNG_STREAM, Carry, initial_carry, keys_of
from hman_jax.cells import hm_lstm


class _Cell(nn.RNNCellBase):
  """Holds the parameters of a pure cell and calls its step.

  Attributes:
    deterministic: draw no noise.
    full_output: return the cell's whole output instead of its `h`.
  """

  deterministic: bool = False
  full_output: bool = False

  @nn.nowrap
  def pure(self) -> cells.Cell:
    """The pure cell with this module's options."""
    raise TypeError(f'{type(self).__name__} does not define pure().')

  @nn.compact
  def __call__(self, carry: Carry, inputs):
    """One step.

    Args:
      carry: from `initialize_carry` or the step before.
      inputs: `[B, D]`.

    Returns:
      (carry, output): the output is `[B, sum of the layers' sizes]`, or the
      cell's NamedTuple with `full_output`.

    Raises:
      ValueError: if noise is drawn and no RNG stream 'boundary' arrives.
    """
    cell = self.pure()
    params = self.param('cell', lambda key: cell.init(key, inputs.shape[-1]))
    deterministic = self.deterministic or self.is_initializing()
    draws = cell.stochastic and not deterministic
    key = keys_of(self._stream(), carry.step) if draws else None
    state, output = cell.step(
      params, carry.state, inputs, key, deterministic=deterministic
    )
    shown = output if self.full_output else output.h
    return Carry(state, carry.step + 1), shown

  def _stream(self):
    if not self.has_rng(RNG_STREAM):
      raise ValueError(
        f'{type(self).__name__} draws noise at each step and got no RNG stream '
        f'{RNG_STREAM!r}. Inside flax.linen.RNN pass split_rngs='
        f"{{'params': False, {RNG_STREAM!r}: True}} (RNN drops streams that it "
        f'does not name) and apply with rngs={{{RNG_STREAM!r}: key}}; or use '
        'deterministic=True.'
      )
    return self.make_rng(RNG_STREAM)

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    """The zero carry for inputs `input_shape` = `[B, D]`; `rng` is unused."""
    del rng
    return initial_carry(self.pure(), input_shape)

  @property
  def num_feature_axes(self) -> int:
    """1: inputs are `[..., D]`."""
    return 1


class HMLSTMCell(_Cell):
  """The HM-LSTM stack of `hman_jax.cells.HMLSTM`; options as there.

  A boundary estimator that draws noise ('gumbel') needs the RNG stream
  'boundary' at each step.

  Example:
    >>> import jax, flax.linen as nn
    >>> rnn = nn.RNN(HMLSTMCell(hidden_sizes=(8, 8)),
    ...              split_rngs={'params': False, 'boundary': True})
    >>> x = jax.numpy.ones((2, 5, 3))
    >>> variables = rnn.init(jax.random.key(0), x)
    >>> rnn.apply(variables, x, rngs={'boundary': jax.random.key(1)}).shape
    (2, 5, 16)
  """

  hidden_sizes: tuple[int, ...] = (512, 512, 512)
  top_detector: bool = True
  copied_boundary: hm_lstm.CopiedBoundary = 'recompute'
  boundary: hm_lstm.Boundary = 'gumbel'
  temperature: float = 0.3
  layer_norm: bool = False
  output_activation: hm_lstm.OutputActivation = 'tanh'
  boundary_rate: float = 0.5
  forget_bias: float = 1.0
  dtype: precision.Dtype = 'float32'

  @nn.nowrap
  def pure(self) -> cells.HMLSTM:
    """The pure cell with this module's options."""
    return cells.HMLSTM(
      hidden_sizes=tuple(self.hidden_sizes),
      top_detector=self.top_detector,
      copied_boundary=self.copied_boundary,
      boundary=self.boundary,
      temperature=self.temperature,
      layer_norm=self.layer_norm,
      output_activation=self.output_activation,
      boundary_rate=self.boundary_rate,
      forget_bias=self.forget_bias,
      dtype=self.dtype,
    )


class LSTMCell(_Cell):
  """The LSTM stack of `hman_jax.cells.LSTM`; options as there.

  Example:
    >>> import jax, flax.linen as nn
    >>> rnn = nn.RNN(LSTMCell(hidden_sizes=(8,)))
    >>> x = jax.numpy.ones((2, 5, 3))
    >>> rnn.apply(rnn.init(jax.random.key(0), x), x).shape
    (2, 5, 8)
  """

  hidden_sizes: tuple[int, ...] = (512,)
  forget_bias: float = 1.0
  dtype: precision.Dtype = 'float32'

  @nn.nowrap
  def pure(self) -> cells.LSTM:
    """The pure cell with this module's options."""
    return cells.LSTM(tuple(self.hidden_sizes), self.forget_bias, self.dtype)
