"""Composite actions, generated on the spot: about 5 minutes on two cores.

Differences from the paper: the content scorer and position codes (the paper's
location-only scorer never looks at the frame, so it cannot follow a moving
thing), a smaller network and a larger learning rate.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  """HM-AN with adaptive Gumbel-softmax attention on composite actions."""
  config = default.get_config()
  config.data.name = 'composite_actions'
  config.data.num_frames = 40

  config.model.scorer = 'content'
  config.model.position_code = 'sincos'
  config.model.scorer_size = 32
  config.model.hidden_size = 64

  config.train.batch_size = 32
  config.train.num_steps = 2000
  config.train.optimizer = 'adamw'
  config.train.learning_rate = 3e-3
  config.train.schedule = 'cosine'
  config.train.warmup_steps = 50
  config.train.eval_every = 250
  config.train.quick_compile = True

  config.eval.batch_size = 128
  config.checkpoint.every = 250
  return config
