"""Our cells as flax.nnx RNN cells, for `flax.nnx.RNN`."""

from typing import Any

import jax
from flax import nnx

from hman_jax import cells
from hman_jax.adapters import RNG_STREAM, Carry, initial_carry, keys_of


class _Cell(nnx.RNNCellBase):
  """Holds the parameters of a pure cell and calls its step."""

  def __init__(
    self,
    cell: Any,
    in_features: int,
    *,
    deterministic: bool,
    full_output: bool,
    rngs: nnx.Rngs,
  ):
    self.pure = cell
    self.deterministic = deterministic
    self.full_output = full_output
    params = cell.init(rngs.params(), in_features)
    self.params = nnx.data(jax.tree.map(nnx.Param, params))
    if cell.stochastic and not deterministic:
      self._check_stream(rngs)
      self.rngs = nnx.data(rngs[RNG_STREAM].fork())
    else:
      self.rngs = nnx.data(None)

  def _check_stream(self, rngs: nnx.Rngs) -> None:
    if RNG_STREAM not in rngs:
      raise ValueError(
        f'{type(self).__name__} draws noise at each step and got no RNG stream '
        f'{RNG_STREAM!r}. Pass rngs=nnx.Rngs(0, {RNG_STREAM}=1), or '
        'deterministic=True.'
      )

  def __call__(self, carry: Carry, inputs):
    """One step.

    Args:
      carry: from `initialize_carry` or the step before.
      inputs: `[B, D]`.

    Returns:
      (carry, output): the output is `[B, sum of the layers' sizes]`, or the
      cell's NamedTuple with `full_output`.
    """
    params = jax.tree.map(
      lambda p: p[...],
      self.params,
      is_leaf=lambda p: isinstance(p, nnx.Variable),
    )
    stream = None if self.deterministic else self.rngs
    key = None if stream is None else keys_of(stream(), carry.step)
    state, output = self.pure.step(
      params, carry.state, inputs, key, deterministic=key is None
    )
    shown = output if self.full_output else output.h
    return Carry(state, carry.step + 1), shown

  def initialize_carry(self, input_shape, rngs=None, carry_init=None):
    """The zero carry for inputs `input_shape` = `[B, D]`.

    Args:
      input_shape: `[B, D]`.
      rngs: unused.
      carry_init: must be None: the carry starts at zero.

    Returns:
      `Carry`.

    Raises:
      ValueError: if `carry_init` is given.
    """
    del rngs
    if carry_init is not None:
      raise ValueError(
        'carry_init: expected None; pass another start as initial_carry.'
      )
    return initial_carry(self.pure, input_shape)

  @property
  def num_feature_axes(self) -> int:
    """1: inputs are `[..., D]`."""
    return 1


class HMLSTMCell(_Cell):
  """The HM-LSTM stack of `hman_jax.cells.HMLSTM`.

  Args:
    in_features: D, the size of the inputs.
    hidden_sizes: units of each layer, bottom first.
    deterministic: draw no noise.
    full_output: return the `HMLSTMOutput` instead of its `h`.
    rngs: streams 'params' and, unless deterministic, 'boundary'.
    **options: further options of `hman_jax.cells.HMLSTM`.

  Example:
    >>> import jax
    >>> from flax import nnx
    >>> rngs = nnx.Rngs(0, boundary=1)
    >>> rnn = nnx.RNN(HMLSTMCell(3, (8, 8), rngs=rngs))
    >>> rnn(jax.numpy.ones((2, 5, 3))).shape
    (2, 5, 16)
  """

  def __init__(
    self,
    in_features: int,
    hidden_sizes: tuple[int, ...] = (512, 512, 512),
    *,
    deterministic: bool = False,
    full_output: bool = False,
    rngs: nnx.Rngs,
    **options: Any,
  ):
    super().__init__(
      cells.HMLSTM(hidden_sizes=tuple(hidden_sizes), **options),
      in_features,
      deterministic=deterministic,
      full_output=full_output,
      rngs=rngs,
    )


class LSTMCell(_Cell):
  """The LSTM stack of `hman_jax.cells.LSTM`.

  Args:
    in_features: D, the size of the inputs.
    hidden_sizes: units of each layer, bottom first.
    full_output: return the `LSTMOutput` instead of its `h`.
    rngs: stream 'params'.
    **options: further options of `hman_jax.cells.LSTM`.

  Example:
    >>> import jax
    >>> from flax import nnx
    >>> rnn = nnx.RNN(LSTMCell(3, (8,), rngs=nnx.Rngs(0)))
    >>> rnn(jax.numpy.ones((2, 5, 3))).shape
    (2, 5, 8)
  """

  def __init__(
    self,
    in_features: int,
    hidden_sizes: tuple[int, ...] = (512,),
    *,
    full_output: bool = False,
    rngs: nnx.Rngs,
    **options: Any,
  ):
    super().__init__(
      cells.LSTM(hidden_sizes=tuple(hidden_sizes), **options),
      in_features,
      deterministic=True,
      full_output=full_output,
      rngs=rngs,
    )
