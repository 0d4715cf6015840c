"""What the Flax adapters (`linen`, `nnx`) share: their carry and their keys."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hman_jax import stochastic
from hman_jax.types import Array, Key

RNG_STREAM = 'boundary'


class Carry(NamedTuple):
  """The carry of a Flax RNN cell; every leaf is `[B, ...]`.

  Attributes:
    state: the state of the pure cell.
    step: int32 `[B]`, steps run. It goes into the noise, so that two steps
      draw different noise even where Flax hands every step the same key.
  """

  state: Any
  step: Array


def initial_carry(cell: Any, input_shape: tuple[int, ...]) -> Carry:
  """The zero carry for inputs of shape `[..., D]`."""
  batch_shape = tuple(input_shape[:-1])
  return Carry(
    cell.initial_state(batch_shape), jnp.zeros(batch_shape, jnp.int32)
  )


def keys_of(key: Key, step: Array) -> Key:
  """One key for each row, of the row's index and its step: `[B]`."""
  rows = jnp.arange(step.size)
  fold = lambda row, at: jax.random.fold_in(
    jax.random.fold_in(stochastic.as_key(key), row), at
  )
  return jax.vmap(fold)(rows, step.reshape(-1)).reshape(step.shape)
