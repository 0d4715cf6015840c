"""A recogniser of actions: an attention, a recurrent cell and a head."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hman_jax import precision, stochastic
from hman_jax.attention import Attention, AttentionOutput
from hman_jax.cells import Cell
from hman_jax.models import heads
from hman_jax.models.features import init_statistics, normalise
from hman_jax.types import Array, Key
from hman_jax.unroll import Backward, unroll

INITIAL_STATES = ('zeros', 'mean_features')

# What the key of one step is folded with, for each use of it.
_ATTENTION, _CELL, _INPUT_DROPOUT, _OUTPUT_DROPOUT = range(4)


class RecogniserOutput(NamedTuple):
  """What a recogniser returns for a batch of clips.

  Attributes:
    logits: float32 `[B, T, C]`, one prediction a step.
    attention: `AttentionOutput` of arrays `[B, T, ...]`; None without one.
    cell: output of the cell, arrays `[B, T, ...]`; None without one.
    state: the cell's state after the last valid step; None without a cell.
  """

  logits: Array
  attention: AttentionOutput | None
  cell: Any
  state: Any


@dataclasses.dataclass(frozen=True)
class Recogniser:
  """At each step: attend, update the cell, classify from all its layers.

      x_t = attention(X_t, h^1_{t-1});  state_t = cell(state_{t-1}, x_t)
      logits_t = head([h^1_t; ...; h^L_t])

  (HM-AN, arXiv 1708.07590, section 3.) Static options only; parameters are a
  pytree `{'params': {'attention', 'cell', 'head'[, 'initial_state'][,
  'features']}}`.

  Attributes:
    num_classes: C.
    cell: an `HMLSTM`, `LSTM`, or another `Cell`.
    attention: a module from `hman_jax.attention`.
    head: an object with `init` and `apply` (see `heads`).
    initial_state: 'zeros', or 'mean_features': c_0, h_0 = tanh(affine(mean of
      X over time and locations)) for each layer (Sharma et al., arXiv
      1511.04119).
    input_dropout: dropout rate on x_t, in [0, 1).
    dropout: dropout rate on the hidden states that the head reads, in [0, 1).
    feature_norm: 'none', 'layer' or 'standard' (see `features.normalise`).
    global_context: the cell reads the mean of X_t over the locations beside
      x_t; not in the paper. A hard pick sees one location and nothing else.
    backward: 'deferred' (fast) or 'autodiff' (its reference); see `unroll`.
    remat: backward in memory O(sqrt T) beside inputs and outputs; see `unroll`.
    dtype: of the factors of the initial state's matrix products (see
      `precision.dot`); cell, attention and head have one of their own.
    boundary_period: p, for a cell with boundary='given' that is given none:
      layer l ends a segment every p^l frames (see `fixed_boundaries`); 0: none.

  Example:
    >>> import jax
    >>> from hman_jax import models
    >>> model = models.create(5, hidden_sizes=(8, 8))
    >>> x = jax.numpy.ones((2, 3, 49, 16))
    >>> variables = model.init(jax.random.key(0), x)
    >>> model.apply(variables, x, deterministic=True).logits.shape
    (2, 3, 5)
  """

  num_classes: int
  cell: Cell
  attention: Attention
  head: heads.Head
  initial_state: str = 'zeros'
  input_dropout: float = 0.0
  dropout: float = 0.0
  feature_norm: str = 'none'
  global_context: bool = False
  backward: Backward = 'deferred'
  remat: bool = False
  dtype: precision.Dtype = 'float32'
  boundary_period: int = 0

  def init(self, key: Key, features: Array, mask: Array | None = None):
    """Draws parameters for features of this shape.

    Args:
      key: one PRNG key.
      features: `[B, T, N, D]`; only the shape is used.
      mask: unused; accepted so that `init` and `apply` take the same arrays.

    Returns:
      `{'params': ...}`.
    """
    del mask
    keys = jax.random.split(stochastic.as_key(key), 4)
    batch, _, num_locations, size = features.shape
    step_features = jnp.zeros((batch, num_locations, size))
    h = jnp.zeros((batch, self.cell.hidden_sizes[0]))
    attend = self.attention.init_with_output
    attended, variables = attend(keys[0], step_features, h, deterministic=True)
    context_size = attended[0].shape[-1]  # of AttentionOutput
    context_size += size if self.global_context else 0
    params = {
      'attention': variables.get('params', {}),
      'cell': self.cell.init(keys[1], context_size),
      'head': self.head.init(keys[2], self.cell.hidden_sizes, self.num_classes),
      **init_statistics(self.feature_norm, size),
    }
    if self.initial_state == 'mean_features':
      params['initial_state'] = tuple(
        {
          name: heads.init_dense(jax.random.fold_in(k, i), size, hidden)
          for i, name in enumerate(('c', 'h'))
        }
        for k, hidden in zip(
          jax.random.split(keys[3], len(self.cell.hidden_sizes)),
          self.cell.hidden_sizes,
        )
      )
    return {'params': params}

  def apply(
    self,
    variables: Any,
    features: Array,
    mask: Array | None = None,
    *,
    key: Key | None = None,
    deterministic: bool = False,
    sample_boundaries: bool | None = None,
    boundary_slope: float | Array = 1.0,
    boundary_noise: float | Array = 1.0,
    boundaries: Array | None = None,
    state: Any = None,
    start: int | Array = 0,
  ) -> RecogniserOutput:
    """Runs the recogniser over clips, or over the next frames of streams.

    Args:
      variables: from `init`.
      features: `[B, T, N, D]` floating; read in float32.
      mask: bool `[B, T]`, True where valid; None: all valid.
      key: one key, or one key a row; needed wherever noise is drawn.
      deterministic: no dropout, hard attentions take the argmax.
      sample_boundaries: whether stochastic boundaries are drawn; None: exactly
        when not deterministic. True with `deterministic=True` is the sampled
        evaluation.
      boundary_slope: slope of the 'straight_through' boundaries.
      boundary_noise: scale of the noise of 'gumbel' boundaries.
      boundaries: `[B, T, L]`, for a cell with boundary='given' only; None
        there: those of `boundary_period`.
      state: `RecogniserOutput.state` of the frames before; None at the start.
      start: number of frames already run, which the keys of steps count on.

    Returns:
      `RecogniserOutput`; everything in padding is zero but the logits, which
      are those of a zero hidden state.

    Raises:
      ValueError: if a key is missing where noise is drawn.
    """
    params = variables['params']
    if sample_boundaries is None:
      sample_boundaries = not deterministic
    self._check_key(key, deterministic)
    normalised = normalise(features, self.feature_norm, params)
    if boundaries is None and self.boundary_period:
      boundaries = fixed_boundaries(
        self.boundary_period, len(self.cell.hidden_sizes), start, features
      )
    if state is None:
      state = self._first_state(params, normalised, mask)
    inputs = {
      # Normalised once more step by step: a hard attention then reads one
      # location, and no normalised copy of the clips is kept for backward.
      'features': features,
      'mean': _mean_location(normalised) if self.global_context else None,
      'projected': self._attend(params, normalised, method='project'),
      'boundaries': boundaries,
    }

    def step(state, at_step, key_t):
      keys: list[Any] = [None] * 4
      if key_t is not None:
        fold = jax.vmap(stochastic.fold_in, (None, 0))
        keys = list(fold(key_t, jnp.arange(4)))
      attended = self._attend(
        params,
        normalise(at_step['features'], self.feature_norm, params),
        state.h[0],
        keys[_ATTENTION],
        projected=at_step['projected'],
        deterministic=deterministic,
      )
      context = attended.context
      if self.global_context:
        context = jnp.concatenate([context, at_step['mean']], axis=-1)
      if self.input_dropout and not deterministic:
        context = stochastic.dropout(
          keys[_INPUT_DROPOUT], context, self.input_dropout
        )
      state, out = self.cell.step(
        params['cell'],
        state,
        context,
        keys[_CELL],
        deterministic=not sample_boundaries,
        slope=boundary_slope,
        noise=boundary_noise,
        boundaries=at_step['boundaries'],
      )
      shown = out.h
      if self.dropout and not deterministic:
        shown = stochastic.dropout(keys[_OUTPUT_DROPOUT], shown, self.dropout)
      return state, (attended, out, shown)

    state, (attended, out, shown) = unroll(
      step,
      state,
      inputs,
      mask=mask,
      key=key,
      start=start,
      backward=self.backward,
      remat=self.remat,
    )
    logits = self.head.apply(params['head'], shown)
    return RecogniserOutput(logits, attended, out, state)

  def first_state(
    self, variables: Any, features: Array, mask: Array | None = None
  ) -> Any:
    """The cell's state before the first frame.

    Args:
      variables: from `init`.
      features: `[B, T, N, D]`, the first frames, which initial_state
        'mean_features' reads; of others only the shape is used.
      mask: bool `[B, T]`, True where valid; None: all valid.

    Returns:
      The state, as `apply` takes it.
    """
    params = variables['params']
    features = normalise(features, self.feature_norm, params)
    return self._first_state(params, features, mask)

  def _attend(self, params, *args, **kwargs) -> Any:
    return self.attention.apply(
      {'params': params['attention']}, *args, **kwargs
    )

  def _check_key(self, key, deterministic):
    if (
      key is None and not deterministic and (self.dropout or self.input_dropout)
    ):
      raise ValueError(
        'key: expected a PRNG key, since dropout draws noise at each step; '
        'got None. Pass a key, or deterministic=True.'
      )

  def _first_state(self, params, features, mask):
    state = self.cell.initial_state(like=features[:, 0, 0].astype(jnp.float32))
    if self.initial_state == 'zeros':
      return state
    mean = mean_features(features, mask)
    affine = params['initial_state']
    start = lambda name: tuple(
      jnp.tanh(heads.dense(layer[name], mean, self.dtype)) for layer in affine
    )
    return state._replace(c=start('c'), h=start('h'))


def fixed_boundaries(
  period: int, num_layers: int, start: int | Array, like: Array
) -> Array:
  """Boundaries by the clock: z_t^l = 1 at every p^l-th frame.

  p = 1 is no hierarchy: every layer ends a segment at every frame. Larger p is
  a fixed skip: layer l + 1 moves on p times less often than layer l.

  Args:
    period: p, at least 1.
    num_layers: L.
    start: number of frames already run.
    like: `[B, T, ...]`, of which B and T are taken.

  Returns:
    float32 `[B, T, L]` of 0 and 1.

  Example:
    >>> z = fixed_boundaries(2, 2, 0, jnp.zeros((1, 4)))
    >>> z[0].T.tolist()
    [[0.0, 1.0, 0.0, 1.0], [0.0, 0.0, 0.0, 1.0]]
  """
  frames = jnp.arange(like.shape[1])[:, None] + start + 1
  longest = jnp.iinfo(jnp.int32).max
  periods = [min(period**l, longest) for l in range(1, num_layers + 1)]
  ends = frames % jnp.array(periods)[None] == 0
  shape = (*like.shape[:2], num_layers)
  return jnp.broadcast_to(ends[None], shape).astype(jnp.float32)


def mean_features(features: Array, mask: Array | None) -> Array:
  """Mean over the valid steps and all locations.

  Args:
    features: `[B, T, N, D]`.
    mask: bool `[B, T]`, or None: all valid.

  Returns:
    float32 `[B, D]`; zeros for a clip without a valid step.

  Example:
    >>> mean_features(jnp.ones((1, 2, 3, 4)), None).tolist()
    [[1.0, 1.0, 1.0, 1.0]]
  """
  per_step = _mean_location(features)
  if mask is None:
    return per_step.mean(axis=1)
  valid = mask.astype(jnp.float32)
  count = jnp.maximum(valid.sum(axis=1, keepdims=True), 1.0)
  return jnp.einsum('btd,bt->bd', per_step, valid / count)


def _mean_location(features: Array) -> Array:
  """Mean over the locations, float32 `[B, T, D]`."""
  return jnp.mean(features, axis=2, dtype=jnp.float32)
