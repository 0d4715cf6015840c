"""Working directories as after training, made quickly, without it."""

import json
import pathlib

import jax

from configs import quickstart

from tiny_runs import tiny_config, untrained_in

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
  untrained_in(directory, tiny_config(recipe, **changes))
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
