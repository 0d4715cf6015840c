"""Extractor `none`: pixels of cells."""

import numpy as np

from data.raw_patches import RawPatches


def test_each_cell_holds_its_pixels():
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (3, 56, 56, 3), np.uint8)
  features = RawPatches().extract(frames)
  assert features.shape == (3, *RawPatches.feature_shape)
  assert features.dtype == np.float16
  for t in range(3):
    for row in range(7):
      for column in range(7):
        cell = frames[t, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8]
        np.testing.assert_array_equal(
          features[t, 7 * row + column], (cell.ravel() / 255).astype(np.float16)
        )


def test_no_pixel_is_lost():
  """Float16 tells all 256 levels apart."""
  levels = np.arange(256, dtype=np.uint8)
  frames = np.resize(levels, (1, 56, 56, 3))
  features = RawPatches().extract(frames)
  assert len(np.unique(features)) == 256
  assert features.min() == 0 and features.max() == 1
  np.testing.assert_array_equal(
    np.rint(np.sort(features.ravel()).astype(float) * 255),
    np.sort(frames.ravel()),
  )
