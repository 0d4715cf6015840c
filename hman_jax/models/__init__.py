"""Recognisers assembled from a cell, an attention and a head, by name."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

from hman_jax import attention as attentions
from hman_jax.cells import CELLS
from hman_jax.cells.base import check_choice
from hman_jax.models.features import FEATURE_NORMS, with_statistics
from hman_jax.models.heads import HEADS, Concat, GatedEmbedding, Head
from hman_jax.models.recogniser import (
  INITIAL_STATES,
  Recogniser,
  RecogniserOutput,
  fixed_boundaries,
  mean_features,
)
from hman_jax.models.softmax_regression import SoftmaxRegression
from hman_jax.precision import DTYPES, Dtype
from hman_jax.unroll import Backward


def create(
  num_classes: int,
  *,
  cell: str = 'hm_lstm',
  attention: str = 'gumbel_adaptive',
  head: str = 'concat',
  hidden_sizes: Sequence[int] = (512, 512, 512),
  cell_options: Mapping[str, Any] | None = None,
  attention_options: Mapping[str, Any] | None = None,
  initial_state: str = 'zeros',
  input_dropout: float = 0.0,
  dropout: float = 0.0,
  feature_norm: str = 'none',
  global_context: bool = False,
  backward: Backward | Literal['pallas'] = 'deferred',
  remat: bool = False,
  dtype: Dtype = 'float32',
  boundary_period: int = 0,
) -> Recogniser | SoftmaxRegression:
  """Assembles a recogniser from named parts.

  Args:
    num_classes: C, at least 1.
    cell: 'hm_lstm', 'lstm', or 'none' for softmax regression on frames.
    attention: 'soft', 'reinforce', 'gumbel', 'gumbel_adaptive', or 'none' for
      average pooling over locations.
    head: 'concat' or 'gated_embedding'.
    hidden_sizes: units of each layer of the cell, bottom first.
    cell_options: further options of the cell, for example
      `{'layer_norm': True}`.
    attention_options: options of the attention, for example
      `{'scorer': 'content', 'position_code': 'onehot'}`.
    initial_state: 'zeros' or 'mean_features'.
    input_dropout: dropout rate on the attended feature, in [0, 1).
    dropout: dropout rate before the head, in [0, 1).
    feature_norm: 'none', 'layer' or 'standard'; the last needs
      `with_statistics` of the training features.
    global_context: whether the cell reads the mean over the locations beside
      what is attended to.
    backward: 'deferred' (fast) or 'autodiff' (its reference): how gradients
      through time are formed; softmax regression has none. 'pallas':
      'deferred' with the layers of 'hm_lstm' as kernels on one NVIDIA GPU, see
      `pallas_hm_lstm`.
    remat: backward in memory O(sqrt T) beside inputs and outputs.
    dtype: of the factors of matrix products: 'float32', or 'bfloat16', summed
      in float32. Parameters, states, boundaries, softmax and all else are
      float32 (see `precision.dot`).
    boundary_period: p >= 1: boundaries of a cell with boundary='given' by the
      clock, every p^l frames in layer l; 0: the caller gives them.

  Returns:
    A `Recogniser`, or a `SoftmaxRegression` for cell='none'.

  Raises:
    ValueError: if a name is unknown or a number is out of range.

  Example:
    >>> create(8, cell='lstm', attention='soft', hidden_sizes=(16,)).cell
    LSTM(hidden_sizes=(16,), forget_bias=1.0, dtype='float32')
  """
  if num_classes < 1:
    raise ValueError(f'num_classes: expected >= 1, got {num_classes}.')
  for name, rate in (('input_dropout', input_dropout), ('dropout', dropout)):
    if not 0 <= rate < 1:
      raise ValueError(f'{name}: expected in [0, 1), got {rate}.')
  if boundary_period < 0:
    raise ValueError(f'boundary_period: expected >= 0, got {boundary_period}.')
  check_choice('cell', cell, (*CELLS, 'none'))
  check_choice('attention', attention, tuple(attentions.ATTENTIONS))
  check_choice('head', head, tuple(HEADS))
  check_choice('initial_state', initial_state, INITIAL_STATES)
  check_choice('feature_norm', feature_norm, FEATURE_NORMS)
  check_choice('backward', backward, (*get_args(Backward), 'pallas'))
  check_choice('dtype', dtype, DTYPES)
  if cell == 'none':
    if attention != 'none':
      raise ValueError(
        f"attention: expected 'none' with cell='none', got {attention!r}: "
        'softmax regression has no state to attend from.'
      )
    return SoftmaxRegression(num_classes, input_dropout, feature_norm, dtype)
  recurrent = CELLS[cell](
    hidden_sizes=tuple(hidden_sizes), dtype=dtype, **(cell_options or {})
  )
  if backward == 'pallas':
    # Here: it takes a part of JAX that is experimental, and time to import.
    from hman_jax import pallas_hm_lstm

    recurrent, backward = pallas_hm_lstm.with_kernel(recurrent), 'deferred'
  return Recogniser(
    num_classes=num_classes,
    cell=recurrent,
    attention=attentions.create(
      attention, dtype=dtype, **(attention_options or {})
    ),
    head=HEADS[head](dtype),
    initial_state=initial_state,
    input_dropout=input_dropout,
    dropout=dropout,
    feature_norm=feature_norm,
    global_context=global_context,
    backward=backward,
    remat=remat,
    dtype=dtype,
    boundary_period=boundary_period,
  )


__all__ = [
  'FEATURE_NORMS',
  'HEADS',
  'INITIAL_STATES',
  'Concat',
  'GatedEmbedding',
  'Head',
  'Recogniser',
  'RecogniserOutput',
  'SoftmaxRegression',
  'create',
  'fixed_boundaries',
  'mean_features',
  'with_statistics',
]
