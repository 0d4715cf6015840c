"""What the recurrent cells share: the contract, initialisers and checks."""

import difflib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from hman_jax.types import Array, Key


class Cell(Protocol):
  """The contract of a recurrent cell: static options and three pure methods.

  A cell is hashable (a frozen dataclass), so it is a static argument of jit.
  Its state is a NamedTuple with a field `h`, one `[..., H_l]` a layer; its
  output a NamedTuple with `h` (all layers concatenated), `z`, `boundary_prob`
  and `operation` (None in cells without boundaries).
  """

  @property
  def hidden_sizes(self) -> tuple[int, ...]:
    """Units of each layer, bottom first."""
    ...

  @property
  def output_size(self) -> int:
    """The size of the output's `h`."""
    ...

  @property
  def stochastic(self) -> bool:
    """Whether a training step draws noise."""
    ...

  def init(self, key: Key, input_size: int, dtype: Any = ...) -> Any:
    """Draws parameters for inputs `[..., input_size]`."""
    ...

  def initial_state(
    self, batch_shape: Any = ..., dtype: Any = ..., *, like: Any = ...
  ) -> Any:
    """The state before the first step."""
    ...

  def step(
    self,
    params: Any,
    state: Any,
    x: Array,
    key: Key | None = None,
    *,
    deterministic: bool = False,
    slope: float | Array = 1.0,
    noise: float | Array = 1.0,
    boundaries: Array | None = None,
  ) -> tuple[Any, Any]:
    """One step: (state, output)."""
    ...


def check_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
  """Returns `sizes` as a tuple; ValueError unless all are positive ints."""
  sizes = tuple(sizes)
  if not sizes or any(not isinstance(s, int) or s < 1 for s in sizes):
    raise ValueError(
      f'hidden_sizes: expected one positive int a layer, got {sizes}.'
    )
  return sizes


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
  """ValueError, with the nearest choice, unless `value` is in `choices`."""
  if value in choices:
    return
  near = difflib.get_close_matches(str(value), choices, n=1)
  hint = f' Did you mean {near[0]!r}?' if near else ''
  raise ValueError(
    f'{name}: expected one of {tuple(choices)}, got {value!r}.{hint}'
  )


def zeros_of(batch_shape, dtype, like: Array | None) -> Callable[[int], Array]:
  """Returns a maker of zeros `[..., size]`, shaped and sharded as `like`."""
  if like is None:
    return lambda size: jnp.zeros((*batch_shape, size), dtype)
  column = jnp.zeros_like(like[..., :1], dtype=dtype)
  return lambda size: jnp.tile(column, (1,) * (like.ndim - 1) + (size,))


def add_bias(x: Array, bias: Array) -> Array:
  """x `[..., F]` plus a bias `[F]`."""
  return x + bias.reshape((1,) * (x.ndim - 1) + bias.shape)


def split_gates(gates: Array) -> tuple[Array, Array, Array, Array]:
  """sigmoid(i), sigmoid(f), sigmoid(o), tanh(g) of `[..., 4H]`."""
  size = 3 * gates.shape[-1] // 4  # one sigmoid: fewer programs to compile
  i, f, o = jnp.split(jax.nn.sigmoid(gates[..., :size]), 3, axis=-1)
  return i, f, o, jnp.tanh(gates[..., size:])


def gate_kernel(key: Key, rows: int, size: int, dtype) -> Array:
  """LeCun normal kernel `[rows, 4 * size]`."""
  return jax.nn.initializers.lecun_normal()(key, (rows, 4 * size), dtype)


def recurrent_kernel(key: Key, size: int, dtype) -> Array:
  """Four orthogonal blocks `[size, 4 * size]`."""
  orthogonal = jax.nn.initializers.orthogonal()
  wide = jnp.promote_types(dtype, jnp.float32)  # LAPACK knows no bfloat16
  blocks = [orthogonal(k, (size, size), wide) for k in jax.random.split(key, 4)]
  return jnp.concatenate(blocks, axis=1).astype(dtype)


def gate_bias(size: int, forget_bias: float, dtype) -> Array:
  """Zeros `[4 * size]`, and `forget_bias` for the forget gate."""
  return jnp.zeros(4 * size, dtype).at[size : 2 * size].set(forget_bias)
