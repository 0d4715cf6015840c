"""The hierarchical multiscale LSTM (HM-LSTM) as pure functions.

A stack of L layers in which each layer detects the ends of its segments: a
boundary bit z decides whether the layer above moves on (UPDATE), waits (COPY),
and whether the layer itself starts afresh at the next step (FLUSH).
"""

import dataclasses
import functools
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp

from hman_jax import precision, stochastic
from hman_jax.cells import base
from hman_jax.types import Array, Key

COPY, UPDATE, FLUSH = 0, 1, 2
OPERATION_NAMES = ('COPY', 'UPDATE', 'FLUSH')

Boundary = Literal['gumbel', 'straight_through', 'soft', 'given']
CopiedBoundary = Literal['recompute', 'zero']
OutputActivation = Literal['tanh', 'identity']

_NORM_EPSILON = 1e-6


class HMLSTMLayerParams(NamedTuple):
  """Parameters of one layer; gate columns are in the order i, f, o, g.

  The column of the boundary logit is kept apart from the 4H gate columns: a
  matrix product of width 4H + 1 is slow.

  Attributes:
    bottom_up: W `[D_in, 4H]`.
    recurrent: U `[H, 4H]`.
    top_down: V `[H_above, 4H]`, or None in the top layer.
    bias: b `[4H]`.
    bottom_up_z, recurrent_z, top_down_z: `[D_in]`, `[H]`, `[H_above]`, and
    bias_z `[]`: the same for the boundary logit a; None without a detector.
    norm_scale, norm_bias: `[4H]`, or None without layer normalisation.
  """

  bottom_up: Array
  recurrent: Array
  top_down: Array | None
  bias: Array
  bottom_up_z: Array | None
  recurrent_z: Array | None
  top_down_z: Array | None
  bias_z: Array | None
  norm_scale: Array | None
  norm_bias: Array | None


class HMLSTMParams(NamedTuple):
  """Parameters of the stack: one `HMLSTMLayerParams` a layer, bottom first."""

  layers: tuple[HMLSTMLayerParams, ...]


class HMLSTMState(NamedTuple):
  """What the stack carries from step to step.

  Attributes:
    c: cell states, one `[..., H_l]` a layer.
    h: hidden states, one `[..., H_l]` a layer.
    z: `[..., L]` boundary bits of the step before.
  """

  c: tuple[Array, ...]
  h: tuple[Array, ...]
  z: Array


class HMLSTMOutput(NamedTuple):
  """What one step shows.

  Attributes:
    h: `[..., H_1 + ... + H_L]`, the hidden states of all layers, bottom first.
    z: `[..., L]` boundaries found at this step, 0 or 1 (in [0, 1] for 'soft').
    boundary_prob: `[..., L]` probability of a boundary before the choice.
    operation: `[..., L]` int32: 0 COPY, 1 UPDATE, 2 FLUSH.
  """

  h: Array
  z: Array
  boundary_prob: Array
  operation: Array


@dataclasses.dataclass(frozen=True)
class HMLSTM:
  """A stack of HM-LSTM layers, described by static options.

  For each step t and layer l = 1..L, with z_t^0 = 1 and h_t^0 = x_t:

      s = U h_{t-1}^l + z_{t-1}^l V h_{t-1}^{l+1} + z_t^{l-1} W h_t^{l-1} + b
      i, f, o = sigmoid(s), g = tanh(s), a = the boundary logit
      c_t = z_{t-1} i g + (1 - z_{t-1}) [z_t^{l-1} (f c_{t-1} + i g)
                                         + (1 - z_t^{l-1}) c_{t-1}]
      h_t = h_{t-1} if COPY else o tanh(c_t)

  (Chung, Ahn, Bengio, arXiv 1609.01704, eq. 1-6; HM-AN, arXiv 1708.07590,
  eq. 1-11, whose eq. 3 lacks the tanh and whose eq. 7 prints h_t^{l+1} for
  h_t^{l-1}). Layer 1 never COPYs; the top layer has no top-down term.

  Attributes:
    hidden_sizes: units of each layer, bottom first; any number of layers.
    top_detector: whether the top layer has a boundary detector (HM-AN: True;
      Chung: False).
    copied_boundary: the boundary of a layer that COPYs is found anew
      ('recompute') or forced to 0 ('zero', Chung's "whenever needed").
    boundary: how z follows from a: 'gumbel' (binary concrete, HM-AN eq. 9-11),
      'straight_through' (hard sigmoid with a slope), 'soft' (no threshold), or
      'given' (by the caller at each step).
    temperature: tau of 'gumbel' and 'soft'; positive.
    layer_norm: layer normalisation of each gate's summed pre-activation; the
      boundary logit is left alone.
    output_activation: h = o * tanh(c), or o * c ('identity', the printed
      eq. 3).
    boundary_rate: initial bias of a, as the probability sigmoid(bias); (0, 1).
    forget_bias: initial bias of the forget gate.
    dtype: of the factors of the gates' matrix products: 'float32', or
      'bfloat16' (see `precision.dot`). Boundaries are decided in float32.
    skip_copies: make no product that boundaries of 0 in all rows erase, so
      that a layer that COPYs costs nothing; the same numbers, and no
      gradients. For one clip at a time (`hman_jax.streaming`).

  Example:
    >>> import jax
    >>> cell = HMLSTM(hidden_sizes=(8, 8, 8))
    >>> params = cell.init(jax.random.key(0), input_size=5)
    >>> state = cell.initial_state((2,))
    >>> x = jax.numpy.ones((2, 5))
    >>> state, out = cell.step(params, state, x, jax.random.key(1))
    >>> out.h.shape, out.z.shape
    ((2, 24), (2, 3))
  """

  hidden_sizes: tuple[int, ...] = (512, 512, 512)
  top_detector: bool = True
  copied_boundary: CopiedBoundary = 'recompute'
  boundary: Boundary = 'gumbel'
  temperature: float = 0.3
  layer_norm: bool = False
  output_activation: OutputActivation = 'tanh'
  boundary_rate: float = 0.5
  forget_bias: float = 1.0
  dtype: precision.Dtype = 'float32'
  skip_copies: bool = False

  def __post_init__(self):
    object.__setattr__(
      self, 'hidden_sizes', base.check_sizes(self.hidden_sizes)
    )
    base.check_choice('boundary', self.boundary, get_args(Boundary))
    base.check_choice(
      'copied_boundary', self.copied_boundary, get_args(CopiedBoundary)
    )
    base.check_choice(
      'output_activation', self.output_activation, get_args(OutputActivation)
    )
    base.check_choice('dtype', self.dtype, precision.DTYPES)
    if not self.temperature > 0:
      raise ValueError(f'temperature: expected > 0, got {self.temperature}.')
    if not 0 < self.boundary_rate < 1:
      raise ValueError(
        f'boundary_rate: expected in (0, 1), got {self.boundary_rate}.'
      )

  @property
  def num_layers(self) -> int:
    """L, the number of layers."""
    return len(self.hidden_sizes)

  @property
  def output_size(self) -> int:
    """The size of `HMLSTMOutput.h`."""
    return sum(self.hidden_sizes)

  @property
  def stochastic(self) -> bool:
    """Whether a training step draws noise."""
    return self.boundary == 'gumbel'

  def init(self, key: Key, input_size: int, dtype=jnp.float32) -> HMLSTMParams:
    """Draws parameters: LeCun normal, orthogonal recurrent, forget bias.

    Args:
      key: one PRNG key.
      input_size: D, the size of x.
      dtype: floating dtype of the parameters.

    Returns:
      `HMLSTMParams`.
    """
    layers = []
    for l, size in enumerate(self.hidden_sizes):
      below = input_size if l == 0 else self.hidden_sizes[l - 1]
      is_top = l == self.num_layers - 1
      above = None if is_top else self.hidden_sizes[l + 1]
      layers.append(
        self._init_layer(stochastic.fold_in(key, l), below, size, above, dtype)
      )
    return HMLSTMParams(tuple(layers))

  def _init_layer(self, key, below, size, above, dtype) -> HMLSTMLayerParams:
    keys = jax.random.split(stochastic.as_key(key), 6)
    detects = above is not None or self.top_detector
    column = jax.nn.initializers.lecun_normal()

    def boundary_column(k, rows):
      if rows is None or not detects:
        return None
      return column(k, (rows, 1), dtype)[:, 0]

    rate = jnp.asarray(self.boundary_rate, dtype)
    return HMLSTMLayerParams(
      bottom_up=base.gate_kernel(keys[0], below, size, dtype),
      recurrent=base.recurrent_kernel(keys[1], size, dtype),
      top_down=(
        None if above is None else base.gate_kernel(keys[2], above, size, dtype)
      ),
      bias=base.gate_bias(size, self.forget_bias, dtype),
      bottom_up_z=boundary_column(keys[3], below),
      recurrent_z=boundary_column(keys[4], size),
      top_down_z=boundary_column(keys[5], above),
      bias_z=jnp.log(rate) - jnp.log1p(-rate) if detects else None,
      norm_scale=jnp.ones(4 * size, dtype) if self.layer_norm else None,
      norm_bias=jnp.zeros(4 * size, dtype) if self.layer_norm else None,
    )

  def initial_state(
    self, batch_shape=(), dtype=jnp.float32, *, like: Array | None = None
  ) -> HMLSTMState:
    """The zero state.

    Args:
      batch_shape: leading shape, for example `(B,)`.
      dtype: floating dtype of the state.
      like: array `[..., F]` from which leading shape and sharding are taken
        instead, so that the state works inside `shard_map`.

    Returns:
      `HMLSTMState` of zeros.
    """
    zeros = base.zeros_of(batch_shape, dtype, like)
    sizes = self.hidden_sizes
    return HMLSTMState(
      c=tuple(zeros(s) for s in sizes),
      h=tuple(zeros(s) for s in sizes),
      z=zeros(self.num_layers),
    )

  def step(
    self,
    params: HMLSTMParams,
    state: HMLSTMState,
    x: Array,
    key: Key | None = None,
    *,
    deterministic: bool = False,
    slope: float | Array = 1.0,
    noise: float | Array = 1.0,
    boundaries: Array | None = None,
  ) -> tuple[HMLSTMState, HMLSTMOutput]:
    """One step of the whole stack.

    Args:
      params: from `init`.
      state: from `initial_state` or the step before.
      x: `[..., D]` input.
      key: one key, or one key a row; needed by 'gumbel' in training only.
      deterministic: z = [a > 0] for 'gumbel', without noise.
      slope: slope of the hard sigmoid ('straight_through').
      noise: scale of the noise ('gumbel'); 1 in the paper, 0 is deterministic.
      boundaries: `[..., L]` in [0, 1], needed by 'given' and only there.

    Returns:
      (state, output): `HMLSTMState`, `HMLSTMOutput`.

    Raises:
      ValueError: if a key or boundaries are missing, or boundaries are given
        to a cell that finds its own.
    """
    self._check_step(state, key, deterministic, boundaries)
    draws = self.stochastic and not deterministic
    dtype = state.c[0].dtype
    below, z_below = x.astype(dtype), jnp.ones(x.shape[:-1], dtype)
    noises = [None] * self.num_layers
    if draws and key is not None:
      noises = noise * self._draw(key, x.shape[:-1])
    cs, hs, zs, probs, operations = [], [], [], [], []
    for l, layer in enumerate(params.layers):
      z_before = state.z[..., l]
      above = state.h[l + 1] if l + 1 < self.num_layers else None
      copy = (1 - z_before) * (1 - z_below)
      c, h, logit = self._layer(
        layer, state.c[l], state.h[l], above, below, z_before, z_below, copy
      )
      z, prob = self._detect(
        logit,
        z_before,
        noises[l],
        slope,
        None if boundaries is None else boundaries[..., l],
      )
      if self.copied_boundary == 'zero':
        z = z * (1 - copy)
      operations.append(
        jnp.where(z_before > 0.5, FLUSH, jnp.where(z_below > 0.5, UPDATE, COPY))
      )
      cs.append(c)
      hs.append(h)
      zs.append(z)
      probs.append(prob)
      below, z_below = h, z
    stack = lambda parts: jnp.stack(parts, axis=-1)
    state = HMLSTMState(tuple(cs), tuple(hs), stack(zs))
    output = HMLSTMOutput(
      h=jnp.concatenate(hs, axis=-1),
      z=state.z,
      boundary_prob=stack(probs),
      operation=stack(operations).astype(jnp.int32),
    )
    return state, output

  def _draw(self, key, batch_shape) -> Array:
    """Logistic noise `[L, ...]`, that of layer l by `fold_in(key, l)`."""
    keys = jax.vmap(stochastic.fold_in, (None, 0))(
      stochastic.as_key(key), jnp.arange(self.num_layers)
    )
    draw = lambda k: stochastic.sample_logistic(k, batch_shape, (1,))[..., 0]
    return jax.vmap(draw)(keys)

  def _check_step(self, state, key, deterministic, boundaries) -> None:
    """ValueError unless a step has the key and the boundaries it needs."""
    if (boundaries is not None) != (self.boundary == 'given'):
      raise ValueError(
        "boundaries: expected exactly with boundary='given', got "
        f'boundary={self.boundary!r} and boundaries='
        f'{"None" if boundaries is None else "an array"}.'
      )
    if boundaries is not None and boundaries.shape != state.z.shape:
      raise ValueError(
        f'boundaries: expected shape {state.z.shape}, got {boundaries.shape}.'
      )
    if self.stochastic and not deterministic and key is None:
      raise ValueError(
        "key: expected a PRNG key, since boundary='gumbel' draws noise at each "
        'step; got None. Pass a key, or deterministic=True.'
      )

  def _layer(self, layer, c, h, above, below, z_before, z_below, copy):
    """c and h `[..., H]` of a layer, and its boundary logit (None without)."""
    gates, logit = self._preactivations(
      layer, h, z_before, above, z_below, below
    )
    gates = base.split_gates(gates)
    c, h = self._combine(gates, c, h, z_before, z_below, copy)
    return c, h, logit

  def _preactivations(self, layer, h, z_before, above, z_below, below):
    """The gates `[..., 4H]` and the boundary logit `[...]` (None without)."""
    # z (x W) = (z x) W, on H numbers a row instead of 4H; a gate is then one
    # sum of products, which `deferred.scan` needs the gradient of only once.
    below = z_below[..., None] * below
    moves = jnp.maximum(z_before, z_below)
    gates = self._dot(h, layer.recurrent, moves)
    gates += self._dot(below, layer.bottom_up, z_below)
    if above is not None:
      above = z_before[..., None] * above
      gates += self._dot(above, layer.top_down, z_before)
    gates = base.add_bias(gates, layer.bias)
    if layer.norm_scale is not None:
      gates = _normalise_gates(gates, layer.norm_scale, layer.norm_bias)
    if layer.bias_z is None:
      return gates, None
    logit = precision.dot(h, layer.recurrent_z) + layer.bias_z
    logit += precision.dot(below, layer.bottom_up_z)
    if above is not None:
      logit += precision.dot(above, layer.top_down_z)
    return gates, logit

  def _dot(self, x, kernel, needed):
    """x W; zeros instead, if they are skipped, where no row has `needed`."""
    if not self.skip_copies:
      return precision.dot(x, kernel, self.dtype)
    return _dot_where(jnp.any(needed != 0), x, kernel, self.dtype)

  def _combine(self, gates, c, h, z_before, z_below, copy):
    """FLUSH, UPDATE or COPY, as a polynomial in the boundaries.

    A polynomial, not `where`: the gradient must reach the boundaries.
    """
    i, f, o, g = gates
    # Spread over the units once each: their gradients are then one sum each.
    spread = lambda v: jnp.broadcast_to(v[..., None], c.shape)
    copy, update = spread(copy), spread((1 - z_before) * z_below)
    new_c = (1 - copy) * (i * g) + (update * f + copy) * c
    shown = jnp.tanh(new_c) if self.output_activation == 'tanh' else new_c
    return new_c, copy * h + (1 - copy) * (o * shown)

  def _detect(self, logit, z_before, noise, slope, given):
    """The boundary z `[...]` and its probability `[...]`."""
    if given is not None:
      given = given.astype(z_before.dtype)
      return given, given
    if logit is None:  # a top layer without detector
      return jnp.zeros_like(z_before), jnp.zeros_like(z_before)
    if self.boundary == 'straight_through':
      sample = stochastic.hard_sigmoid_boundary(logit, slope)
      return sample.value, sample.soft
    if self.boundary == 'soft':
      soft = jax.nn.sigmoid(logit / self.temperature)
      return soft, soft
    noisy = logit if noise is None else logit + noise.astype(logit.dtype)
    sample = stochastic.binary_concrete(None, noisy, self.temperature)
    return sample.value, jax.nn.sigmoid(logit)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _dot_where(needed: Array, x: Array, kernel: Array, dtype) -> Array:
  """x W if `needed`, else zeros."""
  dot = lambda x, kernel: precision.dot(x, kernel, dtype)
  shape = jax.eval_shape(dot, x, kernel)
  zeros = lambda x, kernel: jnp.zeros(shape.shape, shape.dtype)
  return jax.lax.cond(needed, dot, zeros, x, kernel)


@_dot_where.defjvp
def _no_gradient(dtype, primals, tangents):
  raise ValueError(
    'skip_copies: expected False where gradients are taken: a product that is '
    'left out still has one.'
  )


def _normalise_gates(gates: Array, scale: Array, bias: Array) -> Array:
  """Layer normalisation of each of the four gates `[..., 4H]` by itself."""
  parts = gates.reshape(*gates.shape[:-1], 4, -1)
  mean = parts.mean(axis=-1, keepdims=True)
  variance = jnp.square(parts - mean).mean(axis=-1, keepdims=True)
  parts = (parts - mean) * jax.lax.rsqrt(variance + _NORM_EPSILON)
  return base.add_bias(parts.reshape(gates.shape) * _row(scale, gates), bias)


def _row(v: Array, like: Array) -> Array:
  return v.reshape((1,) * (like.ndim - 1) + v.shape)
