"""Normalisation of features before they are attended to."""

import jax
import jax.numpy as jnp

from hman_jax.types import Array

FEATURE_NORMS = ('none', 'layer')
_EPSILON = 1e-6


def normalise(features: Array, name: str) -> Array:
  """Normalises the feature of each location by itself.

  `layer`: (x - mean) / sqrt(variance + 1e-6) over the D numbers of a location,
  without parameters. Features after a ReLU are all positive: their common part
  moves every gate and boundary at once, and centring takes it away.

  Args:
    features: floating `[..., D]`.
    name: 'none' or 'layer'.

  Returns:
    Array of the shape and dtype of `features`, computed in float32.

  Example:
    >>> normalise(jnp.array([1.0, 3.0]), 'layer').round(3).tolist()
    [-1.0, 1.0]
  """
  if name == 'none':
    return features
  x = features.astype(jnp.promote_types(features.dtype, jnp.float32))
  x = x - x.mean(axis=-1, keepdims=True)
  variance = jnp.square(x).mean(axis=-1, keepdims=True)
  return (x * jax.lax.rsqrt(variance + _EPSILON)).astype(features.dtype)
