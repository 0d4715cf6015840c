"""Hierarchical multiscale recurrent attention networks in JAX and Flax."""

from hman_jax import attention, cells, models, stochastic, streaming, types
from hman_jax._version import __version__
from hman_jax.attention import AttentionOutput
from hman_jax.cells import HMLSTM, LSTM
from hman_jax.models import Recogniser, RecogniserOutput
from hman_jax.recognition import FeatureRecogniser, FrameOutput
from hman_jax.unroll import unroll

__all__ = [
  'HMLSTM',
  'LSTM',
  'AttentionOutput',
  'FeatureRecogniser',
  'FrameOutput',
  'Recogniser',
  'RecogniserOutput',
  '__version__',
  'attention',
  'cells',
  'models',
  'stochastic',
  'streaming',
  'types',
  'unroll',
]
