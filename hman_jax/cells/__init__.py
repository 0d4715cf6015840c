"""Recurrent cells: static options, and `init`, `initial_state`, `step`."""

from hman_jax.cells.base import Cell
from hman_jax.cells.hm_lstm import (
  COPY,
  FLUSH,
  HMLSTM,
  OPERATION_NAMES,
  UPDATE,
  HMLSTMLayerParams,
  HMLSTMOutput,
  HMLSTMParams,
  HMLSTMState,
)
from hman_jax.cells.lstm import (
  LSTM,
  LSTMLayerParams,
  LSTMOutput,
  LSTMParams,
  LSTMState,
)

CELLS = {'hm_lstm': HMLSTM, 'lstm': LSTM}

__all__ = [
  'CELLS',
  'COPY',
  'FLUSH',
  'HMLSTM',
  'LSTM',
  'OPERATION_NAMES',
  'UPDATE',
  'Cell',
  'HMLSTMLayerParams',
  'HMLSTMOutput',
  'HMLSTMParams',
  'HMLSTMState',
  'LSTMLayerParams',
  'LSTMOutput',
  'LSTMParams',
  'LSTMState',
]
