"""Heads: from the hidden states of all layers to class logits."""

import dataclasses
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from hman_jax import precision, stochastic
from hman_jax.cells import base
from hman_jax.types import Array, Key


class Head(Protocol):
  """The contract of a head."""

  def init(
    self, key: Key, hidden_sizes: tuple[int, ...], num_classes: int
  ) -> Any:
    """Draws parameters."""
    ...

  def apply(self, params: Any, h: Array) -> Array:
    """Logits `[..., C]` from the hidden states `[..., sum(H_l)]`."""
    ...


def init_dense(key: Key, rows: int, columns: int) -> dict[str, Array]:
  """LeCun normal kernel `[rows, columns]` and zero bias."""
  kernel = jax.nn.initializers.lecun_normal()(
    stochastic.as_key(key), (rows, columns), jnp.float32
  )
  return {'kernel': kernel, 'bias': jnp.zeros(columns)}


def dense(
  params: dict[str, Array], x: Array, dtype: precision.Dtype = 'float32'
) -> Array:
  """x W + b, the product of factors in a dtype (see `precision.dot`)."""
  product = precision.dot(x, params['kernel'], dtype)
  return base.add_bias(product, params['bias'])


@dataclasses.dataclass(frozen=True)
class Concat:
  """logits = W [h^1; ...; h^L] + b (HM-AN, arXiv 1708.07590, section 3).

  Attributes:
    dtype: of the factors of matrix products (see `precision.dot`).
  """

  dtype: precision.Dtype = 'float32'

  def init(self, key, hidden_sizes, num_classes):
    """Draws `{'kernel', 'bias'}`."""
    return init_dense(key, sum(hidden_sizes), num_classes)

  def apply(self, params, h):
    """Logits `[..., C]`."""
    return dense(params, h, self.dtype)


@dataclasses.dataclass(frozen=True)
class GatedEmbedding:
  """A gated ReLU embedding of the layers before the logits.

      g_l = sigmoid(w_l . [h^1; ...; h^L]),  e = relu(sum_l g_l W_l h^l)
      logits = W e + b

  (Chung, Ahn, Bengio, arXiv 1609.01704, section 4: the output module.)

  Attributes:
    dtype: of the factors of matrix products (see `precision.dot`).
    size: width of e; None: that of the top layer.
  """

  dtype: precision.Dtype = 'float32'
  size: int | None = None

  def init(self, key, hidden_sizes, num_classes):
    """Draws `{'gates', 'embeddings', 'logits'}`."""
    size = self.size or hidden_sizes[-1]
    keys = jax.random.split(stochastic.as_key(key), len(hidden_sizes) + 2)
    lecun = jax.nn.initializers.lecun_normal()
    return {
      'gates': lecun(keys[0], (sum(hidden_sizes), len(hidden_sizes))),
      'embeddings': tuple(
        lecun(k, (h, size)) for k, h in zip(keys[2:], hidden_sizes)
      ),
      'logits': init_dense(keys[1], size, num_classes),
    }

  def apply(self, params, h):
    """Logits `[..., C]`."""
    gates = jax.nn.sigmoid(precision.dot(h, params['gates'], self.dtype))
    start, embedding = 0, 0.0
    for l, kernel in enumerate(params['embeddings']):
      part = h[..., start : start + kernel.shape[0]]
      shown = precision.dot(part, kernel, self.dtype)
      embedding += gates[..., l : l + 1] * shown
      start += kernel.shape[0]
    return dense(params['logits'], jax.nn.relu(embedding), self.dtype)


HEADS: dict[str, type] = {'concat': Concat, 'gated_embedding': GatedEmbedding}
