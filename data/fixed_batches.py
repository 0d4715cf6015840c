"""Runs a compiled network on any number of frames: one shape, one program."""

from collections.abc import Callable

import jax
import numpy as np

_CPU = 8  # as fast a frame as 64
_ACCELERATED = 64


def default_size() -> int:
  """Frames in one call, on this machine."""
  return _CPU if jax.default_backend() == 'cpu' else _ACCELERATED


def run(
  network: Callable[[np.ndarray], jax.Array], frames: np.ndarray, size: int
) -> np.ndarray:
  """Calls a network on batches of one size; the last is filled with zeros.

  Args:
    network: `[size, ...]` -> `[size, ...]`, each row for itself.
    frames: `[T, ...]`, T >= 1.
    size: of a batch, >= 1.

  Returns:
    `[T, ...]`.

  Example:
    >>> run(lambda x: x.sum(axis=1), np.ones((3, 2)), size=2).tolist()
    [2.0, 2.0, 2.0]
  """
  parts = []
  for first in range(0, len(frames), size):
    batch = frames[first : first + size]
    count = len(batch)
    if count < size:
      batch = np.pad(batch, ((0, size - count), *((0, 0),) * (batch.ndim - 1)))
    parts.append(np.asarray(network(batch))[:count])
  return np.concatenate(parts)
