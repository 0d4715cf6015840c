"""HMDB51, or any subset of its classes: `--config.data.root=FOLDER`.

Below FOLDER: `<class>/<clip>.avi` or `videos/<class>/<clip>.avi`, and the
official lists in `splits/` or `testTrainMulti_7030_splits/`.

Differences from the paper: the content scorer and position codes, features
standardised by channel, an initial state from the mean feature, dropout, a
smaller network and a shorter training at a larger rate. They were chosen on
clips held out of the training lists of J-HMDB.
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
  config.model.scorer_size = 32
  config.model.hidden_size = 128
  config.model.initial_state = 'mean_features'
  config.model.feature_norm = 'standard'
  config.model.dropout = 0.5
  config.model.input_dropout = 0.8

  config.train.batch_size = 16
  config.train.num_steps = 3000  # about 14 epochs of a split
  config.train.optimizer = 'adamw'
  config.train.weight_decay = 0.1
  config.train.learning_rate = 1e-3
  config.train.schedule = 'cosine'
  config.train.warmup_steps = 20
  config.train.ema_decay = 0.98
  config.train.eval_every = 500

  config.eval.batch_size = 32
  config.checkpoint.every = 250
  return config
