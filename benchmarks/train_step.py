"""The training step's gradient against its peers and this machine's floor.

  python -m benchmarks.train_step [--json=OUT] [--steps=60] ...

One run times, in turn: ours (deferred backward), ours by autodiff and with
products in bfloat16, the naive flax cell in `nn.RNN`, and, where PyTorch can be
imported, the same in it (float32, autocast bfloat16) and the paper's baseline
(`torch.nn.LSTM`, soft attention); and the two measurements behind the floor.
Parameters are copied across and logits compared first, so that the work is the
same.
"""

import argparse
import functools
import importlib.util
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command, measure, naive_flax, torch_eager
from hman_jax import models

_TOLERANCE = 1e-3
_SUBJECTS = (
  'naive_flax', 'torch_f32', 'torch_bf16', 'torch_compiled', 'torch_lstm',
  'floor', 'autodiff', 'bfloat16',
)  # fmt: skip


def parse(argv: list[str] | None) -> argparse.Namespace:
  """Reads the flags; the sizes' defaults are the paper's."""
  made = command.parser('train_step', __doc__)
  made.add_argument(
    '--attention',
    choices=('gumbel_adaptive', 'soft'),
    default='gumbel_adaptive',
    help='attention module (gumbel_adaptive)',
  )
  made.add_argument(
    '--torch_compile',
    action='store_true',
    help='also PyTorch with its step compiled, which takes minutes',
  )
  return command.parse(made, argv)


def floor_work(args: argparse.Namespace) -> tuple[float, float]:
  """FLOPs and bytes that one gradient cannot do without.

  Each product with a weight is done three times: forward, for its input's
  gradient, and for its weight's. Features are read once for the gradient into
  the attention weights, and for soft attention once forward.
  """
  rows, h = args.batch * args.steps, args.hidden
  widths = args.size * 4 * h  # layer 1, bottom up
  widths += (args.layers - 1) * 2 * h * 4 * h  # the others' bottom up, top down
  widths += args.layers * h * 4 * h  # recurrent
  features = 4.0 * rows * args.locations * args.size
  reads = 2 if args.attention == 'soft' else 1
  return 3 * 2.0 * rows * widths, reads * features


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures everything; returns what `--json` writes."""
  shape = (args.batch, args.steps, args.locations, args.size)
  rng = np.random.default_rng(0)
  features = rng.random(shape, np.float32)
  labels = rng.integers(args.classes, size=args.batch)
  sizes = (args.hidden,) * args.layers
  ours = {
    name: models.create(
      args.classes,
      hidden_sizes=sizes,
      attention=args.attention,
      attention_options={'num_locations': args.locations},
      **options,
    )
    for name, options in (
      ('deferred', {}),
      ('autodiff', {'backward': 'autodiff'}),
      ('bfloat16', {'dtype': 'bfloat16'}),
    )
  }
  naive = lambda deterministic: naive_flax.Recogniser(
    args.classes, sizes, args.attention, deterministic
  )
  x = jnp.asarray(features)
  variables = jax.jit(ours['deferred'].init)(jax.random.key(0), x)
  copied = naive_flax.copied(naive(True), variables['params'], x)
  few = slice(0, 2), slice(0, 5)
  apply = lambda model: jax.jit(
    lambda v, x: model.apply(v, x, deterministic=True).logits
  )  # fmt: skip
  expected = apply(ours['deferred'])(variables, x[few])
  found = jax.jit(naive(True).apply)(copied, x[few])
  _check_same_work('naive_flax', found, expected)
  torch, peers = _torch(
    args, variables['params'], features[few], expected, apply
  )

  key = jax.random.key(1)
  runs, memory, compilation = {}, {}, {}
  for name in (*ours, 'naive_flax'):
    of = copied if name == 'naive_flax' else variables

    def loss(v, x, name=name):
      if name == 'naive_flax':
        out = naive(False).apply(v, x, rngs={'noise': key})
      else:
        out = ours[name].apply(v, x, key=key).logits
      log_p = jax.nn.log_softmax(out)
      return -jnp.mean(log_p[jnp.arange(args.batch), :, labels])

    start = time.process_time()
    compiled = jax.jit(jax.value_and_grad(loss)).lower(of, x).compile()
    compilation[name] = time.process_time() - start
    memory[name] = compiled.memory_analysis().temp_size_in_bytes
    runs[name] = measure.blocking(compiled, of, x)
  if torch is not None:
    xt, yt = torch.from_numpy(features), torch.from_numpy(labels)
  for name, peer in peers.items():
    bfloat16 = name == 'torch_bf16'
    runs[name] = functools.partial(peer.gradients, xt, yt, bfloat16)
  flops, num_bytes = floor_work(args)
  runs['product'], product_flops = measure.product_run()
  runs['reading'], reading_bytes = measure.reading_run()
  seconds = measure.interleaved(runs, args.repeats, args.clock)
  rates = {
    'flops_per_second': product_flops / seconds.pop('product'),
    'bytes_per_second': reading_bytes / seconds.pop('reading'),
  }
  seconds['floor'] = max(
    flops / rates['flops_per_second'], num_bytes / rates['bytes_per_second']
  )
  return {
    'ratios': {name: _ratio(seconds, name) for name in _SUBJECTS},
    'memory_ratio': memory['deferred'] / memory['naive_flax'],
    'compile_ratio': compilation['deferred'] / compilation['naive_flax'],
    'seconds': seconds,
    'temporary_bytes': memory,
    'compile_seconds': compilation,
    'floor': {'flops': flops, 'bytes': num_bytes, **rates},
    'torch': getattr(torch, '__version__', None),
    'setting': command.setting(args),
  }


def _ratio(seconds: dict[str, float], name: str) -> float | None:
  """Ours over another; at bfloat16 where the other is."""
  ours = 'bfloat16' if name == 'torch_bf16' else 'deferred'
  return seconds[ours] / seconds[name] if name in seconds else None


def _torch(args, params, features, expected, apply):
  """(module, peers by name), or (None, {}) where PyTorch is not there."""
  if importlib.util.find_spec('torch') is None:
    return None, {}
  import torch

  torch.manual_seed(0)
  peer = torch_eager.Recogniser(torch, params, args.attention)
  baseline = models.create(
    args.classes,
    cell='lstm',
    attention='soft',
    hidden_sizes=(args.hidden,) * args.layers,
    attention_options={'num_locations': args.locations},
  )
  variables = jax.jit(baseline.init)(jax.random.key(0), features)
  lstm = torch_eager.Baseline(torch, variables['params'])
  of_baseline = apply(baseline)(variables, features)
  for name, found, right in (
    ('torch_f32', peer, expected),
    ('torch_lstm', lstm, of_baseline),
  ):
    with torch.no_grad():
      logits = found.logits(torch.from_numpy(features), True).numpy()
    _check_same_work(name, logits, right)
  peers = {'torch_f32': peer, 'torch_bf16': peer, 'torch_lstm': lstm}
  if args.torch_compile:
    peers['torch_compiled'] = torch_eager.Recogniser(
      torch, params, args.attention, compile_step=True
    )
  return torch, peers


def _check_same_work(name: str, logits, expected) -> None:
  """SystemExit unless both computed the same logits."""
  error = float(np.max(np.abs(np.asarray(logits) - np.asarray(expected))))
  if not error < _TOLERANCE:
    sys.exit(
      f'train_step: {name} computes other logits than ours (they differ by '
      f'{error:.2g}), so their times cannot be compared.'
    )


def table(result: dict[str, Any]) -> str:
  """The result as text."""
  seconds, memory = result['seconds'], result['temporary_bytes']
  lines = [
    command.heading(
      f'gradient of one batch, {result["setting"]["attention"]}',
      result['setting'],
    ),
    *command.columns(
      [
        ('', '{:<14}'),
        ('seconds', '{:9.3f}'),
        ('ours/it', '{:9.2f}'),
        ('temporary', '{:9.0f} MB'),
      ],
      (
        (
          name,
          seconds[name],
          result['ratios'].get(name, 1.0),
          memory[name] / 1e6 if name in memory else None,
        )
        if name in seconds
        else f'{name:14}  not measured'
        for name in ('deferred', *_SUBJECTS)
      ),
    ),
  ]
  lines.append(
    'floor: {flops:.3g} FLOPs at {flops_per_second:.3g}/s, {bytes:.3g} bytes '
    'at {bytes_per_second:.3g}/s, the larger'.format(**result['floor'])
  )
  lines.append(
    f'of naive_flax: temporary memory {result["memory_ratio"]:.2f}, '
    f'compilation {result["compile_ratio"]:.2f}'
  )
  if result['torch'] is None:
    lines.append('PyTorch cannot be imported.')
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  args = parse(argv)
  command.finish(args, run(args), table)


if __name__ == '__main__':
  main()
