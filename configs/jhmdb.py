"""The classes of J-HMDB: `--config.data.root=FOLDER`, laid out as HMDB51.

J-HMDB is a small part of HMDB51 (clips of 15 to 40 frames, up to 21 classes),
so this is the recipe of HMDB51 with fewer steps.
"""

import ml_collections

from configs import hmdb51


def get_config() -> ml_collections.ConfigDict:
  """HM-AN with adaptive Gumbel-softmax attention on split 1."""
  config = hmdb51.get_config()
  config.data.validation_fraction = 0.05  # by source video: a little more
  config.train.num_steps = 300
  config.train.eval_every = 300  # too few clips to choose the best step by
  config.checkpoint.every = 100
  return config
