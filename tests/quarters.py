"""An extractor for tests, of no weights."""

import numpy as np


class Quarters:
  """The mean colour of each quarter of a frame."""

  image_size = (32, 32)
  feature_shape = (4, 3)
  batch_size = 8
  identity = {'extractor': 'quarters'}  # noqa: RUF012

  def extract(self, frames):
    parts = frames.reshape(len(frames), 2, 16, 2, 16, 3).mean(axis=(2, 4))
    return parts.reshape(len(frames), 4, 3).astype(np.float16)
