"""A stack of LSTM layers as pure functions: the baseline's cell."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hman_jax import precision, stochastic
from hman_jax.cells import base
from hman_jax.types import Array, Key


class LSTMLayerParams(NamedTuple):
  """Parameters of one layer; gate columns are in the order i, f, o, g.

  Attributes:
    bottom_up: `[D_in, 4H]`.
    recurrent: `[H, 4H]`.
    bias: `[4H]`.
  """

  bottom_up: Array
  recurrent: Array
  bias: Array


class LSTMParams(NamedTuple):
  """Parameters of the stack: one `LSTMLayerParams` a layer, bottom first."""

  layers: tuple[LSTMLayerParams, ...]


class LSTMState(NamedTuple):
  """What the stack carries: c and h, one `[..., H_l]` a layer."""

  c: tuple[Array, ...]
  h: tuple[Array, ...]


class LSTMOutput(NamedTuple):
  """What one step shows; an LSTM has no boundaries.

  Attributes:
    h: `[..., H_1 + ... + H_L]`, the hidden states of all layers, bottom first.
    z, boundary_prob, operation: None.
  """

  h: Array
  z: None = None
  boundary_prob: None = None
  operation: None = None


@dataclasses.dataclass(frozen=True)
class LSTM:
  """A stack of LSTM layers, described by static options.

      i, f, o = sigmoid(s), g = tanh(s), s = W x_t + U h_{t-1} + b
      c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)

  and x_t of a layer is h_t of the layer below (Hochreiter, Schmidhuber 1997,
  with the forget gate of Gers et al. 2000; no peepholes).

  Attributes:
    hidden_sizes: units of each layer, bottom first.
    forget_bias: initial bias of the forget gate.
    dtype: of the factors of matrix products: 'float32', or 'bfloat16' (see
      `precision.dot`).

  Example:
    >>> import jax
    >>> cell = LSTM(hidden_sizes=(8,))
    >>> params = cell.init(jax.random.key(0), input_size=5)
    >>> x = jax.numpy.ones((2, 5))
    >>> state, out = cell.step(params, cell.initial_state((2,)), x)
    >>> out.h.shape
    (2, 8)
  """

  hidden_sizes: tuple[int, ...] = (512,)
  forget_bias: float = 1.0
  dtype: precision.Dtype = 'float32'

  def __post_init__(self):
    object.__setattr__(
      self, 'hidden_sizes', base.check_sizes(self.hidden_sizes)
    )
    base.check_choice('dtype', self.dtype, precision.DTYPES)

  @property
  def num_layers(self) -> int:
    """L, the number of layers."""
    return len(self.hidden_sizes)

  @property
  def output_size(self) -> int:
    """The size of `LSTMOutput.h`."""
    return sum(self.hidden_sizes)

  @property
  def stochastic(self) -> bool:
    """Whether a training step draws noise: never."""
    return False

  def init(self, key: Key, input_size: int, dtype=jnp.float32) -> LSTMParams:
    """Draws parameters: LeCun normal, orthogonal recurrent, forget bias.

    Args:
      key: one PRNG key.
      input_size: D, the size of x.
      dtype: floating dtype of the parameters.

    Returns:
      `LSTMParams`.
    """
    layers = []
    for l, size in enumerate(self.hidden_sizes):
      below = input_size if l == 0 else self.hidden_sizes[l - 1]
      keys = jax.random.split(stochastic.fold_in(key, l), 2)
      layers.append(
        LSTMLayerParams(
          bottom_up=base.gate_kernel(keys[0], below, size, dtype),
          recurrent=base.recurrent_kernel(keys[1], size, dtype),
          bias=base.gate_bias(size, self.forget_bias, dtype),
        )
      )
    return LSTMParams(tuple(layers))

  def initial_state(
    self, batch_shape=(), dtype=jnp.float32, *, like: Array | None = None
  ) -> LSTMState:
    """The zero state.

    Args:
      batch_shape: leading shape, for example `(B,)`.
      dtype: floating dtype of the state.
      like: array `[..., F]` from which leading shape and sharding are taken
        instead, so that the state works inside `shard_map`.

    Returns:
      `LSTMState` of zeros.
    """
    zeros = base.zeros_of(batch_shape, dtype, like)
    sizes = self.hidden_sizes
    return LSTMState(
      c=tuple(zeros(s) for s in sizes), h=tuple(zeros(s) for s in sizes)
    )

  def step(
    self,
    params: LSTMParams,
    state: LSTMState,
    x: Array,
    key: Key | None = None,
    *,
    deterministic: bool = False,
    slope: float | Array = 1.0,
    noise: float | Array = 1.0,
    boundaries: Array | None = None,
  ) -> tuple[LSTMState, LSTMOutput]:
    """One step of the whole stack.

    Args:
      params: from `init`.
      state: from `initial_state` or the step before.
      x: `[..., D]` input.
      key, deterministic, slope, noise: unused; part of the contract of cells.
      boundaries: must be None.

    Returns:
      (state, output): `LSTMState`, `LSTMOutput`.

    Raises:
      ValueError: if boundaries are given.
    """
    del key, deterministic, slope, noise
    if boundaries is not None:
      raise ValueError('boundaries: expected None, since an LSTM has none.')
    below = x.astype(state.c[0].dtype)
    cs, hs = [], []
    for layer, c, h in zip(params.layers, state.c, state.h):
      gates = precision.dot(below, layer.bottom_up, self.dtype)
      gates += precision.dot(h, layer.recurrent, self.dtype)
      i, f, o, g = base.split_gates(base.add_bias(gates, layer.bias))
      c = f * c + i * g
      below = o * jnp.tanh(c)
      cs.append(c)
      hs.append(below)
    output = LSTMOutput(h=jnp.concatenate(hs, axis=-1))
    return LSTMState(tuple(cs), tuple(hs)), output
