"""Latency of one frame at batch 1, against how often boundaries fire.

  python -m benchmarks.streaming [--json=OUT] [--hidden=1024] ...

Boundaries are given: each layer's fires in as many frames as the rate says, in
an order of its own. A layer above a silent one COPYs and is skipped.
"""

import argparse
from typing import Any

import jax
import numpy as np

from benchmarks import command, measure
from hman_jax import models, streaming

RATES = (1.0, 0.5, 0.1, 0.0)


def parse(argv: list[str] | None) -> argparse.Namespace:
  """Reads the flags."""
  made = command.parser('streaming', __doc__, batch=0, steps=0, hidden=1024)
  made.add_argument(
    '--frames', type=command.positive, default=40, help='of a repeat (40)'
  )
  return command.parse(made, argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures everything; returns what `--json` writes."""
  model = models.create(
    args.classes,
    hidden_sizes=(args.hidden,) * args.layers,
    attention_options={'num_locations': args.locations},
    cell_options={'boundary': 'given'},
  )
  rng = np.random.default_rng(0)
  shape = (args.frames, 1, args.locations, args.size)
  frames = list(jax.device_put(rng.random(shape, np.float32)))
  shapes = jax.eval_shape(model.init, jax.random.key(0), frames[0][None])
  variables = jax.tree.map(
    lambda p: jax.device_put(0.02 * rng.standard_normal(p.shape, p.dtype)),
    shapes,
  )
  next_frame = streaming.compiled_step(model, deterministic=True)

  def stream(rate):
    fires = np.arange(args.frames) < round(rate * args.frames)
    shuffled = [rng.permutation(fires) for _ in range(args.layers)]
    bits = np.stack(shuffled, axis=-1)[:, None].astype(np.float32)
    boundaries = list(jax.device_put(bits))

    def once():
      carried = streaming.start(model, variables, frames[0][None])
      for x, z in zip(frames, boundaries):
        carried, output = next_frame(variables, carried, x, boundaries=z)
        jax.block_until_ready(output)

    return once

  seconds = measure.interleaved(
    {str(rate): stream(rate) for rate in RATES}, args.repeats, args.clock
  )
  seconds = {rate: total / args.frames for rate, total in seconds.items()}
  return {
    'ratios': {rate: s / seconds['1.0'] for rate, s in seconds.items()},
    'seconds': seconds,
    'compiled': next_frame._cache_size(),
    'setting': command.setting(args),
  }


def table(result: dict[str, Any]) -> str:
  """The result as text."""
  lines = [
    command.heading('one frame of a stream', result['setting']),
    *command.columns(
      [
        ('boundary rate', '{:>13}'),
        ('milliseconds', '{:15.3f}'),
        ('of rate 1.0', '{:14.2f}'),
      ],
      (
        (rate, 1e3 * seconds, result['ratios'][rate])
        for rate, seconds in result['seconds'].items()
      ),
    ),
  ]
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  args = parse(argv)
  command.finish(args, run(args), table)


if __name__ == '__main__':
  main()
