"""Raw pixels as features: the 7 x 7 cells of a small frame, without weights.

A frame is resized to 56 x 56, so that a cell has 8 x 8 pixels, as those of the
generated clips of `data.composite_actions` do. A baseline, and what an
attention over no features at all can do.
"""

import numpy as np

SIDE = 7  # cells on a side of the frame
CELL = 8  # pixels on a side of a cell
IMAGE_SIZE = SIDE * CELL
_SHAPE = (SIDE * SIDE, CELL * CELL * 3)


class RawPatches:
  """Extractor `none`; see `data.features.Extractor`."""

  image_size = (IMAGE_SIZE, IMAGE_SIZE)
  feature_shape = _SHAPE
  batch_size = 64
  identity = {  # noqa: RUF012 (shared by all, never changed)
    'extractor': 'none',
    'image_size': IMAGE_SIZE,
    'feature_shape': list(_SHAPE),
    'dtype': 'float16',
  }

  def extract(self, frames: np.ndarray) -> np.ndarray:
    """The pixels of each cell, row by row, red, green and blue of each.

    Args:
      frames: uint8 `[T, 56, 56, 3]`, RGB.

    Returns:
      float16 `[T, 49, 192]` in [0, 1], locations row by row.

    Example:
      >>> frames = np.zeros((1, 56, 56, 3), np.uint8)
      >>> frames[0, 8, 48] = 255  # first row of the cell below, last column
      >>> features = RawPatches().extract(frames)
      >>> features.shape, np.unique(np.nonzero(features)[1]).tolist()
      ((1, 49, 192), [13])
    """
    cells = frames.reshape(-1, SIDE, CELL, SIDE, CELL, 3).swapaxes(2, 3)
    values = (cells / np.float32(255)).astype(np.float16)
    return values.reshape(len(frames), *_SHAPE)
