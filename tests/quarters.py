"""An extractor for tests, of no weights, and what it makes."""

import numpy as np

from data import extract, features


class Quarters:
  """The mean colour of each quarter of a frame.

  Attributes:
    num_frames: extracted so far.
  """

  image_size = (32, 32)
  feature_shape = (4, 3)
  batch_size = 5

  def __init__(self, version=1):
    self.identity = {'extractor': 'quarters', 'version': version}
    self.num_frames = 0

  def extract(self, frames):
    self.num_frames += len(frames)
    parts = frames.reshape(len(frames), 2, 16, 2, 16, 3).mean(axis=(2, 4))
    return parts.reshape(len(frames), 4, 3).astype(np.float16)


def prepare(videos, extractor, store, **options):
  """{video: its record}, made quietly."""
  return extract.prepare(
    videos, extractor, store, **{'progress': False, **options}
  ).paths


def source(paths, **options):
  """Records as a clip source; every second clip is a wave."""
  paths = list(paths)
  return features.VideoFeatures(
    [f'wave/{k}.avi' for k in range(len(paths))],
    paths,
    [k % 2 for k in range(len(paths))],
    **{'class_names': ('sit', 'wave'), 'identity': {'name': 'x'}, **options},
  )
