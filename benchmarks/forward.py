"""Evaluation of a batch: hard attention, which reads one location, and soft.

  python -m benchmarks.forward [--json=OUT] [--steps=60] ...

`as_soft` is hard attention as one would write it first: a weighted sum over
all locations with one-hot weights.
"""

import argparse
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command, measure, naive_flax
from hman_jax import models


def parse(argv: list[str] | None) -> argparse.Namespace:
  """Reads the flags; the sizes' defaults are the paper's."""
  return command.parse(command.parser('forward', __doc__), argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures everything; returns what `--json` writes."""
  rng = np.random.default_rng(0)
  shape = (args.batch, args.steps, args.locations, args.size)
  x = jnp.asarray(rng.random(shape, np.float32))
  sizes = (args.hidden,) * args.layers
  runs, memory = {}, {}

  def add(name, function, variables):
    compiled = jax.jit(function).lower(variables, x).compile()
    memory[name] = compiled.memory_analysis().temp_size_in_bytes
    runs[name] = measure.blocking(compiled, variables, x)

  for name, attention in (
    ('hard', 'gumbel_adaptive'),
    ('reinforce', 'reinforce'),
    ('soft', 'soft'),
  ):
    model = models.create(
      args.classes,
      hidden_sizes=sizes,
      attention=attention,
      attention_options={'num_locations': args.locations},
    )
    variables = jax.jit(model.init)(jax.random.key(0), x)
    add(
      name,
      lambda v, x, m=model: m.apply(v, x, deterministic=True).logits,
      variables,
    )
    if name == 'hard':
      naive = naive_flax.Recogniser(args.classes, sizes, attention, True)
      copied = naive_flax.copied(naive, variables['params'], x)
      add('as_soft', naive.apply, copied)
  seconds = measure.interleaved(runs, args.repeats, args.clock)
  return {
    'ratios': {name: s / seconds['soft'] for name, s in seconds.items()},
    'seconds': seconds,
    'temporary_bytes': memory,
    'setting': command.setting(args),
  }


def table(result: dict[str, Any]) -> str:
  """The result as text."""
  memory = result['temporary_bytes']
  lines = [
    command.heading('evaluation of one batch', result['setting']),
    *command.columns(
      [
        ('', '{:<12}'),
        ('seconds', '{:9.3f}'),
        ('of soft', '{:9.2f}'),
        ('temporary', '{:9.0f} MB'),
      ],
      (
        (name, seconds, result['ratios'][name], memory[name] / 1e6)
        for name, seconds in result['seconds'].items()
      ),
    ),
  ]
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  args = parse(argv)
  command.finish(args, run(args), table)


if __name__ == '__main__':
  main()
