"""Runs of a few steps, in this process, for tests of the programs."""

import pathlib

import jax

from configs import quickstart
from experiments import config as config_lib
from experiments import datasets, train, workdir
from experiments.checkpoint import Checkpoints
from experiments.reporting import RunLog
from experiments.stopping import Stop

TINY = {
  'data.num_train': 24,
  'data.num_validation': 8,
  'data.num_test': 8,
  'data.num_frames': 12,
  'model.hidden_size': 8,
  'model.num_layers': 2,
  'model.scorer_size': 8,
  'train.batch_size': 8,
  'train.num_steps': 6,
  'train.warmup_steps': 0,
  'train.eval_every': 3,
  'train.log_every': 1,
  'checkpoint.every': 2,
  'eval.batch_size': 8,
}


def tiny_config(recipe=quickstart, **changes):
  """A resolved config of a recipe, made tiny."""
  config = recipe.get_config()
  config.update_from_flattened_dict({**TINY, **changes})
  return config_lib.resolve(config)


def untrained_in(directory: pathlib.Path, config) -> pathlib.Path:
  """A run that stands at its first parameters: all that programs read."""
  splits = datasets.load(config)
  directory.mkdir(parents=True, exist_ok=True)
  workdir.claim(directory, config, splits)
  shape = splits.train.feature_shape
  model = train.make_model(config, len(splits.train.class_names), shape)
  optimizer = train.make_optimizer(config.train)
  state = train.init_state(config, model, optimizer, shape)
  checkpoints = Checkpoints(
    directory, config.checkpoint.keep, workdir.fingerprint(config, splits)
  )
  checkpoints.save_best(0, state, 0.5)
  checkpoints.save(0, state)
  checkpoints.close()
  return directory


def train_in(directory: pathlib.Path, config) -> pathlib.Path:
  """Trains as `experiments.main` does, on one device."""
  splits = datasets.load(config)
  directory.mkdir(parents=True, exist_ok=True)
  workdir.claim(directory, config, splits)
  mesh = jax.make_mesh(
    (1,),
    ('data',),
    axis_types=(jax.sharding.AxisType.Auto,),
    devices=jax.devices()[:1],
  )
  checkpoints = Checkpoints(
    directory, config.checkpoint.keep, workdir.fingerprint(config, splits)
  )
  log = RunLog(directory, config.train.log_every, config.train.log_seconds)
  train.run(config, splits, mesh, checkpoints, log, Stop())
  text, scores = train.final_evaluation(
    config, splits, mesh, checkpoints, log, Stop()
  )
  workdir.finish(directory, scores, text)
  log.close()
  checkpoints.close()
  return directory
