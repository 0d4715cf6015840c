"""Training steps with their input pipeline, against the steps alone.

  python -m benchmarks.pipeline [--json=OUT] [--batch=16] ...

Clips are files of float16 features, as the store of features keeps them; a
batch is made by `data.pipeline.train_batches`, beside the step that runs.
"""

import argparse
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np

from benchmarks import command, measure
from configs import default
from data import pipeline, store
from data.features import VideoFeatures
from experiments import config as config_lib
from experiments import sharding, train


def parse(argv: list[str] | None) -> argparse.Namespace:
  """Reads the flags."""
  made = command.parser('pipeline', __doc__, batch=16, steps=40, size=1280)
  made.add_argument(
    '--clips', type=command.positive, default=64, help='on disk (64)'
  )
  made.add_argument(
    '--per_repeat', type=command.positive, default=4, help='steps (4)'
  )
  return command.parse(made, argv)


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures everything; returns what `--json` writes."""
  with tempfile.TemporaryDirectory() as folder:
    return _run(args, _source(args, pathlib.Path(folder)))


def _source(args: argparse.Namespace, folder: pathlib.Path) -> VideoFeatures:
  """Clips of T to 2 T frames on disk."""
  rng = np.random.default_rng(0)
  paths = [folder / f'{i}.npy' for i in range(args.clips)]
  for path in paths:
    length = int(rng.integers(args.steps, 2 * args.steps + 1))
    shape = (length, args.locations, args.size)
    writer = store.Writer(path, shape[1:], 'float16')
    writer.append(rng.random(shape, np.float32).astype(np.float16))
    writer.commit({'name': 'benchmark'}, length, length)
  return VideoFeatures(
    [path.stem for path in paths],
    paths,
    rng.integers(args.classes, size=args.clips),
    class_names=[str(c) for c in range(args.classes)],
    identity={'name': 'benchmark'},
  )


def _run(args: argparse.Namespace, source: VideoFeatures) -> dict[str, Any]:
  config = default.get_config()
  config.model.hidden_size = args.hidden
  config.model.num_layers = args.layers
  config.train.batch_size = args.batch
  config = config_lib.resolve(config)
  shape = source.feature_shape
  model = train.make_model(config, args.classes, shape)
  optimizer = train.make_optimizer(config.train)
  batches = pipeline.train_batches(
    source, batch_size=args.batch, num_frames=args.steps, seed=0
  )
  key = jax.random.key(0)
  step = jax.jit(
    train.make_train_step(config, model, optimizer, 1.0), donate_argnums=0
  )
  fixed = jax.device_put(next(batches))
  state = train.init_state(config, model, optimizer, shape)
  mesh = sharding.make_mesh(config.train, jax.devices()[:1])
  state = train.moments_of(config.train, state.params, mesh).stacked(state)
  step = step.lower(state, fixed, key).compile()

  def steps(next_batch):
    def once():
      nonlocal state
      metrics = None
      for _ in range(args.per_repeat):
        state, metrics = step(state, next_batch(), key)
      jax.block_until_ready((state, metrics))

    return once

  def drain():
    for _ in range(args.per_repeat):
      next(batches)

  seconds = measure.interleaved(
    {
      'step': steps(lambda: fixed),
      'step_and_pipeline': steps(lambda: jax.device_put(next(batches))),
      'pipeline': drain,
    },
    args.repeats,
    args.clock,
  )
  seconds = {name: s / args.per_repeat for name, s in seconds.items()}
  return {
    'ratios': {name: s / seconds['step'] for name, s in seconds.items()},
    'seconds': seconds,
    'megabytes': fixed['features'].nbytes / 1e6,
    'setting': command.setting(args),
  }


def table(result: dict[str, Any]) -> str:
  """The result as text."""
  lines = [
    command.heading('one training step', result['setting']),
    *command.columns(
      [('', '{:<20}'), ('seconds', '{:9.3f}'), ('of step', '{:9.2f}')],
      (
        (name, seconds, result['ratios'][name])
        for name, seconds in result['seconds'].items()
      ),
    ),
    f'features of a batch: {result["megabytes"]:.0f} MB',
  ]
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  args = parse(argv)
  command.finish(args, run(args), table)


if __name__ == '__main__':
  main()
