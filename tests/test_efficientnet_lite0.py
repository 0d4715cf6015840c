"""EfficientNet-Lite0: its network, its features."""

import jax
import numpy as np
import pytest
from jax import lax

from data import (
  efficientnet_lite0,
  torch_weights,
)


@pytest.fixture(scope='module')
def weights():
  return torch_weights.read(
    efficientnet_lite0.weights_path(), efficientnet_lite0.SHA256
  )


@pytest.fixture(scope='module')
def photographs():
  """Three photographs, 224 x 224: a coffee cup, a cat, a rocket."""
  data = pytest.importorskip('skimage.data', reason='install scikit-image')
  from skimage.transform import resize

  def square(picture):
    size = min(picture.shape[:2])
    top, left = ((n - size) // 2 for n in picture.shape[:2])
    return resize(
      picture[top : top + size, left : left + size],
      (224, 224),
      preserve_range=True,
      anti_aliasing=True,
    )

  pictures = (data.coffee(), data.chelsea(), data.rocket())
  return np.stack([np.round(square(p)) for p in pictures]).astype(np.uint8)


@pytest.fixture(scope='module')
def extractor():
  return efficientnet_lite0.EfficientNetLite0()


def _plain_network(weights, frames):
  """The network again, from its paper: nothing folded, XLA's convolutions."""

  def conv(x, name, stride=1, groups=1):
    return lax.conv_general_dilated(
      x,
      weights[f'{name}.weight'],
      (stride, stride),
      'SAME',
      dimension_numbers=('NCHW', 'OIHW', 'NCHW'),
      feature_group_count=groups,
    )

  def norm(x, name):
    mean, variance, scale, bias = (
      weights[f'{name}.{field}'].reshape(1, -1, 1, 1)
      for field in ('running_mean', 'running_var', 'weight', 'bias')
    )
    return (x - mean) / jax.numpy.sqrt(variance + 1e-3) * scale + bias

  relu6 = jax.nn.relu6
  x = (frames.astype(np.float32).transpose(0, 3, 1, 2) - 127) / 128
  x = relu6(norm(conv(x, '_conv_stem', 2), '_bn0'))
  block = 0
  # expansion, kernel, stride, channels, repeats
  for expansion, kernel, stride, channels, repeats in (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
  ):
    for repeat in range(repeats):
      name = f'_blocks.{block}'
      y, step = x, stride if repeat == 0 else 1
      if expansion != 1:
        y = relu6(norm(conv(y, f'{name}._expand_conv'), f'{name}._bn0'))
      depthwise = f'{name}._depthwise_conv'
      assert y.shape[1] == expansion * x.shape[1]
      assert weights[f'{depthwise}.weight'].shape[2:] == (kernel, kernel)
      y = relu6(norm(conv(y, depthwise, step, y.shape[1]), f'{name}._bn1'))
      y = norm(conv(y, f'{name}._project_conv'), f'{name}._bn2')
      assert y.shape[1] == channels
      x = y if repeat == 0 else x + y
      block += 1
  x = relu6(norm(conv(x, '_conv_head'), '_bn1'))
  return x.transpose(0, 2, 3, 1)


def test_agrees_with_a_plain_implementation(weights, photographs):
  layers = efficientnet_lite0.fold(weights)
  ours = jax.jit(efficientnet_lite0.network)(layers, photographs)
  plain = jax.jit(_plain_network)(weights, photographs)
  assert ours.shape == (3, 7, 7, 1280)
  assert float(plain.max()) > 5
  np.testing.assert_allclose(ours, plain, atol=1e-4, rtol=0)


def test_photographs_are_recognised(weights, photographs, extractor):
  maps = extractor.extract(photographs).astype(np.float32)
  logits = maps.mean(axis=1) @ weights['_fc.weight'].T + weights['_fc.bias']
  top = np.argsort(-logits, axis=1)
  assert set(top[0, :2]) == {967, 968}  # espresso, cup
  assert set(top[1, :3]) == {281, 282, 285}  # tabby, tiger cat, Egyptian cat
  assert top[2, 0] == 657  # missile


def test_features_of_a_clip(photographs, extractor, weights):
  frames = photographs[[0, 1, 2, 1, 0, 2, 2, 1, 0, 1]]  # more than one call
  maps = extractor.extract(frames)
  assert maps.shape == (10, 49, 1280) == (10, *extractor.feature_shape)
  assert maps.dtype == np.float16
  assert maps.min() >= 0 and maps.max() <= 6
  layers = efficientnet_lite0.fold(weights)
  grid = jax.jit(efficientnet_lite0.network)(layers, photographs)
  rounding = {'rtol': 2e-3, 'atol': 1e-4}
  np.testing.assert_allclose(
    maps[:3].reshape(3, 7, 7, 1280), np.asarray(grid), **rounding
  )
  for a, b in [(0, 4), (0, 8), (1, 9), (2, 6)]:  # alone or not, early or late
    np.testing.assert_allclose(maps[a], maps[b], **rounding)
  np.testing.assert_allclose(
    extractor.extract(frames[1:2]), maps[1:2], **rounding
  )
