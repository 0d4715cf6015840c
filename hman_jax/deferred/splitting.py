"""Splitting T steps into about sqrt(T) segments, for less memory."""

import math

from hman_jax.types import Array


def segments(length: int) -> list[tuple[int, int, int]]:
  """Splits `length` steps into about sqrt(length) segments.

  Args:
    length: number of steps, at least 1.

  Returns:
    A list of (first, count, size): `count` segments of `size` steps from step
    `first` on; one or two entries, which cover all steps in order.

  Example:
    >>> segments(11)
    [(0, 2, 4), (8, 1, 3)]
  """
  size = math.isqrt(length - 1) + 1
  count, rest = divmod(length, size)
  parts = [(0, count, size)]
  return parts + [(count * size, 1, rest)] if rest else parts


def split(x: Array, part: tuple[int, int, int]) -> Array:
  """The steps of one entry of `segments`: `[T, ...]` to `[count, size, ...]`.

  Args:
    x: array `[T, ...]`.
    part: (first, count, size).

  Returns:
    Array `[count, size, ...]`.

  Example:
    >>> import jax.numpy as jnp
    >>> split(jnp.arange(11), (0, 2, 4)).tolist()
    [[0, 1, 2, 3], [4, 5, 6, 7]]
  """
  first, count, size = part
  x = x[first : first + count * size]
  return x.reshape(count, size, *x.shape[1:])
