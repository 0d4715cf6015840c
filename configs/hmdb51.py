"""HMDB51, or any subset of its classes: `--config.data.root=FOLDER`.

Below FOLDER: `<class>/<clip>.avi` or `videos/<class>/<clip>.avi`, and the
official lists in `splits/` or `testTrainMulti_7030_splits/`.
"""

import ml_collections

from configs import default


def get_config() -> ml_collections.ConfigDict:
  """HM-AN with adaptive Gumbel-softmax attention on HMDB51 split 1."""
  config = default.get_config()
  config.data.name = 'hmdb51'
  config.data.num_frames = 40

  config.model.scorer = 'content'
  config.model.position_code = 'sincos'
  config.model.scorer_size = 64
  config.model.hidden_size = 128
  config.model.dropout = 0.5
  config.model.input_dropout = 0.5

  # Over so few steps a weaker pull does not keep the boundaries alive.
  config.loss.boundary_rate_weight = 30.0

  config.train.batch_size = 32
  config.train.num_steps = 120  # about 10 epochs of J-HMDB: it over-fits soon
  config.train.optimizer = 'adamw'
  config.train.weight_decay = 0.1
  config.train.learning_rate = 1e-3
  config.train.schedule = 'cosine'
  config.train.warmup_steps = 20
  config.train.eval_every = 20

  config.eval.batch_size = 32
  config.checkpoint.every = 40
  return config
