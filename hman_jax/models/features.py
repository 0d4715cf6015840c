"""Normalisation of features before they are attended to."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from hman_jax.types import Array

FEATURE_NORMS = ('none', 'layer', 'standard')
_EPSILON = 1e-6


def init_statistics(name: str, size: int) -> dict[str, dict[str, Array]]:
  """Parameters of a normalisation, as a part of a model's parameters.

  Args:
    name: one of `FEATURE_NORMS`.
    size: D.

  Returns:
    For 'standard' `{'features': {'mean': [D], 'scale': [D]}}`, zeros and ones
    until `with_statistics` replaces them; for the others `{}`.

  Example:
    >>> init_statistics('standard', 2)['features']['scale'].tolist()
    [1.0, 1.0]
  """
  if name != 'standard':
    return {}
  return {'features': {'mean': jnp.zeros(size), 'scale': jnp.ones(size)}}


def with_statistics(variables: Any, mean: Array, scale: Array) -> Any:
  """The variables of a 'standard' model with the statistics of its data.

  Args:
    variables: from `init` of a model with feature_norm='standard'.
    mean: `[D]`, of the training features.
    scale: `[D]`, above 0: what to divide by.

  Returns:
    New variables; the given ones are not changed.

  Raises:
    ValueError: if the model has no statistics, or a shape is wrong.

  Example:
    >>> old = {'params': init_statistics('standard', 2)}
    >>> new = with_statistics(old, jnp.array([1.0, 2.0]), jnp.array([2.0, 2.0]))
    >>> new['params']['features']['mean'].tolist()
    [1.0, 2.0]
  """
  params = variables['params']
  if 'features' not in params:
    raise ValueError(
      "variables: expected those of a model with feature_norm='standard'."
    )
  shape = params['features']['mean'].shape
  new = {'mean': jnp.asarray(mean), 'scale': jnp.asarray(scale)}
  for name, value in new.items():
    if value.shape != shape:
      raise ValueError(f'{name}: expected shape {shape}, got {value.shape}.')
  return {**variables, 'params': {**params, 'features': new}}


def normalise(features: Array, name: str, params: Mapping) -> Array:
  """Normalises the features of all locations.

  `layer`: (x - mean) / sqrt(variance + 1e-6) over the D numbers of a location,
  without parameters. `standard`: (x - mean_d) / scale_d, with the mean and the
  spread of each of the D channels over the training data, which no gradient
  changes. Features after a ReLU are all positive: their common part moves
  every gate and boundary at once, and centring takes it away.

  Args:
    features: `[..., D]`.
    name: one of `FEATURE_NORMS`.
    params: the model's parameters; 'standard' reads `params['features']`.

  Returns:
    Array of the shape of `features`, computed in float32; of its dtype, or
    float32 if that is an integer.

  Example:
    >>> normalise(jnp.array([1.0, 3.0]), 'layer', {}).round(3).tolist()
    [-1.0, 1.0]
  """
  if name == 'none':
    return features
  floating = jnp.issubdtype(features.dtype, jnp.floating)
  x = features.astype(jnp.promote_types(features.dtype, jnp.float32))
  if name == 'layer':
    x = x - x.mean(axis=-1, keepdims=True)
    variance = jnp.square(x).mean(axis=-1, keepdims=True)
    x = x * jax.lax.rsqrt(variance + _EPSILON)
  else:
    statistics = jax.lax.stop_gradient(params['features'])
    ones = (1,) * (x.ndim - 1)  # rank promotion is an error in our tests
    mean = statistics['mean'].reshape(*ones, -1)
    x = (x - mean) / statistics['scale'].reshape(*ones, -1)
  return x.astype(features.dtype if floating else x.dtype)
