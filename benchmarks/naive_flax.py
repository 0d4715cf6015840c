"""The same recogniser as one would write it first: flax cells in `nn.RNN`.

One `nn.Dense` for each gate and each input of it, the weighted sum over all
locations, and JAX's own gradient of the scan.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from hman_jax.attention.position import position_code
from hman_jax.cells import HMLSTMLayerParams

_GATES = 'ifog'


class Cell(nn.RNNCellBase):
  """Attention and HM-LSTM (HM-AN, arXiv 1708.07590), gate by gate.

  Attributes:
    hidden_sizes: units of each layer, bottom first.
    attention: 'soft' or 'gumbel_adaptive'.
    deterministic: draw nothing; else noise comes from the stream 'noise'.
    scorer_size: width of the content scorer; 0: the location scorer.
    position_code: 'none', 'onehot' or 'sincos'.
    temperature: of the boundaries.
  """

  hidden_sizes: tuple[int, ...]
  attention: str = 'gumbel_adaptive'
  deterministic: bool = False
  scorer_size: int = 0
  position_code: str = 'none'
  temperature: float = 0.3

  @nn.compact
  def __call__(self, carry, features):
    """One step over features `[B, N, D]`."""
    cs, hs, zs = carry
    below = self._attend(features, hs[0])
    z_below = jnp.ones_like(zs[0])
    new_cs, new_hs, new_zs = [], [], []
    for l, size in enumerate(self.hidden_sizes):
      above = hs[l + 1] if l + 1 < len(hs) else None

      def affine(name, width, l=l, below=below, z_below=z_below, above=above):
        dense = lambda part, **kw: nn.Dense(
          width, name=f'layer{l}_{name}_{part}', **kw
        )
        total = dense('recurrent')(hs[l])
        total += z_below * dense('bottom_up', use_bias=False)(below)
        if above is not None:
          total += zs[l] * dense('top_down', use_bias=False)(above)
        return total

      i, f, o = (nn.sigmoid(affine(name, size)) for name in 'ifo')
      g = jnp.tanh(affine('g', size))
      copy = (1 - zs[l]) * (1 - z_below)
      c = zs[l] * i * g + (1 - zs[l]) * (
        z_below * (f * cs[l] + i * g) + (1 - z_below) * cs[l]
      )
      h = copy * hs[l] + (1 - copy) * o * jnp.tanh(c)
      z = self._boundary(affine('z', 1))
      new_cs.append(c)
      new_hs.append(h)
      new_zs.append(z)
      below, z_below = h, z
    carry = (tuple(new_cs), tuple(new_hs), tuple(new_zs))
    return carry, jnp.concatenate(new_hs, axis=-1)

  def _attend(self, features, h):
    code = jnp.asarray(
      position_code(self.position_code, features.shape[-2]), features.dtype
    )
    logits = self._scores(features, code, h)
    if self.attention == 'soft':
      weights = nn.softmax(logits)
    else:
      tau = 1 / (nn.softplus(nn.Dense(1, name='temperature_of')(h)) + 1)
      if not self.deterministic:
        key = self.make_rng('noise')
        logits += jax.random.gumbel(key, logits.shape)
      soft = nn.softmax(logits / tau)
      hard = jax.nn.one_hot(jnp.argmax(soft, axis=-1), soft.shape[-1])
      weights = soft + jax.lax.stop_gradient(hard - soft)
    if code.shape[-1]:
      code = jnp.broadcast_to(code, (*features.shape[:-1], code.shape[-1]))
      features = jnp.concatenate([features, code], axis=-1)
    return jnp.einsum('bn,bnd->bd', weights, features)

  def _scores(self, features, code, h):
    if not self.scorer_size:
      return nn.Dense(features.shape[-2], name='location')(h)
    dense = lambda name, **kw: nn.Dense(self.scorer_size, name=name, **kw)
    hidden = dense('feature', use_bias=False)(features)
    if code.shape[-1]:
      hidden += dense('position', use_bias=False)(code)[None]
    hidden += dense('state')(h)[:, None]
    score = nn.Dense(1, use_bias=False, name='score')
    return score(jnp.tanh(hidden))[..., 0]

  def _boundary(self, logit):
    if not self.deterministic:
      logit += jax.random.logistic(self.make_rng('noise'), logit.shape)
    soft = nn.sigmoid(logit / self.temperature)
    hard = (soft > 0.5).astype(soft.dtype)
    return soft + jax.lax.stop_gradient(hard - soft)

  @nn.nowrap
  def initialize_carry(self, rng, input_shape):
    """Zeros for inputs `[B, N, D]`."""
    del rng
    zeros = lambda size: jnp.zeros((input_shape[0], size))
    states = lambda: tuple(zeros(size) for size in self.hidden_sizes)
    return states(), states(), tuple(zeros(1) for _ in self.hidden_sizes)

  @property
  def num_feature_axes(self) -> int:
    """2: inputs are `[..., N, D]`."""
    return 2


class Recogniser(nn.Module):
  """The cell over time, and a dense head.

  Attributes:
    num_classes: C.
    hidden_sizes and the rest: see `Cell`.
  """

  num_classes: int
  hidden_sizes: tuple[int, ...]
  attention: str = 'gumbel_adaptive'
  deterministic: bool = False
  scorer_size: int = 0
  position_code: str = 'none'

  @nn.compact
  def __call__(self, features):
    """Logits `[B, T, C]` of features `[B, T, N, D]`."""
    cell = Cell(
      self.hidden_sizes,
      self.attention,
      self.deterministic,
      self.scorer_size,
      self.position_code,
    )
    split = {'params': False, 'noise': True}
    hidden = nn.RNN(cell, split_rngs=split, name='rnn')(features)
    return nn.Dense(self.num_classes, name='head')(hidden)


def copied(model: Recogniser, params: Any, features: Any) -> Any:
  """Our parameters in this model's layout.

  Args:
    model: the model to fill.
    params: the 'params' of a `hman_jax` recogniser of the same options.
    features: `[B, T, N, D]`; only the shape is used.

  Returns:
    Variables of `model`.
  """
  names = {'params': jax.random.key(0), 'noise': jax.random.key(0)}
  shapes = jax.eval_shape(model.init, names, features)
  attention, cell = params['attention'], params['cell']
  flat = {
    'head': params['head'],
    'location': attention.get('location_logits'),
    'temperature_of': attention.get('inverse_temperature'),
    'feature': attention.get('feature_projection'),
    'position': attention.get('position_projection'),
    'state': attention.get('state_projection'),
  }
  if 'content_weights' in attention:
    column = np.asarray(attention['content_weights'])[:, None]
    flat['score'] = {'kernel': column}
  for l, layer in enumerate(cell.layers):
    flat.update(_layer(f'layer{l}', layer))

  def fill(path, shape):
    *_, module, name = (str(p.key) for p in path)
    value = np.asarray(flat[module][name])
    if value.shape != shape.shape:
      raise ValueError(f'{module}/{name}: {value.shape}, not {shape.shape}.')
    return jnp.asarray(value)

  return jax.tree_util.tree_map_with_path(fill, shapes)


def _layer(prefix: str, layer: HMLSTMLayerParams) -> dict[str, Any]:
  parts = {}
  for part in ('recurrent', 'bottom_up', 'top_down'):
    kernel = getattr(layer, part)
    if kernel is None:
      continue
    for name, columns in zip(_GATES, np.split(np.asarray(kernel), 4, axis=1)):
      parts[f'{prefix}_{name}_{part}'] = {'kernel': columns}
    column = np.asarray(getattr(layer, f'{part}_z'))
    parts[f'{prefix}_z_{part}'] = {'kernel': column[:, None]}
  for name, bias in zip(_GATES, np.split(np.asarray(layer.bias), 4)):
    parts[f'{prefix}_{name}_recurrent']['bias'] = bias
  parts[f'{prefix}_z_recurrent']['bias'] = np.asarray(layer.bias_z)[None]
  return parts
