"""Working directories as after training, made quickly, without it."""

import json
import pathlib

import jax

from configs import quickstart
from experiments import datasets, train, workdir
from experiments.checkpoint import Checkpoints

from tiny_runs import tiny_config

NUM_STEPS = 6


def make(directory: pathlib.Path, recipe=quickstart, **changes) -> pathlib.Path:
  """A run whose best model is a random one.

  Args:
    directory: to make.
    recipe: a module of `configs`.
    **changes: of the config, by full name.

  Returns:
    The directory.
  """
  config = tiny_config(recipe, **changes)
  splits = datasets.load(config)
  directory.mkdir()
  workdir.claim(directory, config, splits)
  model = train.make_model(
    config, len(splits.test.class_names), splits.test.feature_shape
  )
  state = train.init_state(
    config,
    model,
    train.make_optimizer(config.train),
    splits.test.feature_shape,
  )
  checkpoints = Checkpoints(directory, config.checkpoint.keep)
  checkpoints.save_best(NUM_STEPS, state, 0.5)
  checkpoints.close()
  lines = [json.dumps(record) + '\n' for record in records()]
  (directory / 'metrics.jsonl').write_text(''.join(lines))
  return directory


def records() -> list[dict]:
  """What training would have recorded, made up."""
  noise = jax.random.uniform(jax.random.key(0), (NUM_STEPS, 8)).tolist()
  made = []
  for step, x in enumerate(noise, start=1):
    common = {
      'step': step,
      'loss': 2.0 / step,
      'attention/entropy': x[0],
      'attention/temperature': x[1],
      **{f'boundary/rate_{n}': x[n] for n in (1, 2, 3)},
    }
    made.append(
      {'mode': 'train', **common, 'acc/step': x[4], 'grad_norm': 9 + 90 * x[5]}
    )
    f1 = {
      f'boundary/f1{layer}{end}': x[6]
      for layer in ('', '_2', '_3')
      for end in ('', '_chance')
    }
    hits = {'attention/hit_rate': x[7], 'attention/hit_rate_chance': 1 / 49}
    made.append(
      {'mode': 'validation', **common, 'acc/top1': x[4], **f1, **hits}
    )
  return made
