"""Position codes: where a location is, as numbers appended to its feature."""

import math
from collections.abc import Callable

import numpy as np

_NUM_FREQUENCIES = 3


def _onehot(row: np.ndarray, column: np.ndarray, side: int) -> np.ndarray:
  eye = np.eye(side)
  return np.concatenate([eye[row], eye[column]], axis=-1)


def _sincos(row: np.ndarray, column: np.ndarray, side: int) -> np.ndarray:
  waves = []
  for coordinate in (row, column):
    for j in range(_NUM_FREQUENCIES):
      phase = np.pi * 2.0**j * coordinate / side
      waves += [np.sin(phase), np.cos(phase)]
  return np.stack(waves, axis=-1)


def _none(row: np.ndarray, column: np.ndarray, side: int) -> np.ndarray:
  del column, side
  return np.zeros((row.size, 0))


POSITION_CODES: dict[str, Callable[..., np.ndarray]] = {
  'none': _none,
  'onehot': _onehot,
  'sincos': _sincos,
}


def position_code(name: str, num_locations: int) -> np.ndarray:
  """The code of every location of a square map.

  With row r and column q of location n = r K + q, both in 0..K-1:

  - `none`: nothing, P = 0;
  - `onehot`: one-hot of r, then one-hot of q; P = 2 K;
  - `sincos`: sin and cos of pi 2^j r / K for j = 0, 1, 2 (in the order sin,
    cos for each j), then the same of q; P = 12.

  Args:
    name: 'none', 'onehot' or 'sincos'.
    num_locations: N, a square number unless `name` is 'none'.

  Returns:
    float64 array `[N, P]`, to be cast where it is used.

  Raises:
    ValueError: if N is not a square, or the name is unknown.

  Example:
    >>> position_code('onehot', 4)[1].tolist()
    [1.0, 0.0, 0.0, 1.0]
  """
  if name not in POSITION_CODES:
    raise ValueError(
      f'position_code: expected one of {tuple(POSITION_CODES)}, got {name!r}.'
    )
  side = math.isqrt(num_locations)
  if name != 'none' and side * side != num_locations:
    raise ValueError(
      f'num_locations: position_code={name!r} needs a square map (49 for 7 x '
      f'7), got {num_locations} locations.'
    )
  row, column = np.divmod(np.arange(num_locations), max(side, 1))
  return POSITION_CODES[name](row, column, side)
