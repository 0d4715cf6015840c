"""The training step's gradient against its peers and this machine's floor.

  python -m benchmarks.train_step [--json=OUT] [--steps=60] ...

One run times, in turn: ours (deferred backward), ours by autodiff, the naive
flax cell in `nn.RNN`, eager PyTorch in float32 and autocast bfloat16 where
PyTorch can be imported, and the two measurements behind the floor. Parameters
are copied across and logits compared first, so that the work is the same.
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import measure, naive_flax, torch_eager
from hman_jax import models

_TOLERANCE = 1e-3


def parse(argv: list[str] | None) -> argparse.Namespace:
  """Reads the flags; the sizes' defaults are the paper's."""
  parser = argparse.ArgumentParser(
    prog='python -m benchmarks.train_step', description=__doc__.splitlines()[0]
  )

  def positive(text: str) -> int:
    value = int(text)
    if value < 1:
      raise argparse.ArgumentTypeError(f'expected at least 1, got {value}')
    return value

  sizes = {
    'batch': (64, 'clips in a batch'),
    'steps': (60, 'frames in a clip'),
    'locations': (49, 'locations of a feature map'),
    'size': (2048, 'numbers in a feature'),
    'hidden': (512, 'units of a layer'),
    'layers': (3, 'layers'),
    'classes': (51, 'classes'),
    'repeats': (7, 'counted repeats of each'),
  }
  for name, (default, text) in sizes.items():
    parser.add_argument(
      f'--{name}', type=positive, default=default, help=f'{text} ({default})'
    )
  parser.add_argument(
    '--attention',
    choices=('gumbel_adaptive', 'soft'),
    default='gumbel_adaptive',
    help='attention module (gumbel_adaptive)',
  )
  parser.add_argument(
    '--clock',
    choices=tuple(measure.CLOCKS),
    default='wall',
    help='cpu: seconds of processor time, for a busy machine (wall)',
  )
  parser.add_argument('--json', metavar='OUT', help='file for the result')
  args = parser.parse_args(argv)
  if args.json and not os.path.isdir(os.path.dirname(args.json) or '.'):
    parser.error(f'--json: expected a file in an existing folder, got '
                 f'{args.json!r}')  # fmt: skip
  return args


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
    backward: models.create(
      args.classes,
      hidden_sizes=sizes,
      attention=args.attention,
      attention_options={'num_locations': args.locations},
      backward=backward,
    )
    for backward in ('deferred', 'autodiff')
  }
  naive = lambda deterministic: naive_flax.Recogniser(
    args.classes, sizes, args.attention, deterministic
  )
  x = jnp.asarray(features)
  variables = jax.jit(ours['deferred'].init)(jax.random.key(0), x)
  copied = naive_flax.copied(naive(True), variables['params'], x)
  torch, peer = _torch(variables['params'], args)
  _check_same_work(
    ours['deferred'], naive(True), variables, copied, torch, peer, x, features
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
  if peer is not None:
    xt, yt = torch.from_numpy(features), torch.from_numpy(labels)
    runs['torch_f32'] = lambda: peer.gradients(xt, yt, bfloat16=False)
    runs['torch_bf16'] = lambda: peer.gradients(xt, yt, bfloat16=True)
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
  against = lambda name: (
    seconds['deferred'] / seconds[name] if name in seconds else None
  )
  names = ('naive_flax', 'torch_f32', 'torch_bf16', 'floor', 'autodiff')
  return {
    'ratios': {name: against(name) for name in names},
    'memory_ratio': memory['deferred'] / memory['naive_flax'],
    'compile_ratio': compilation['deferred'] / compilation['naive_flax'],
    'seconds': seconds,
    'temporary_bytes': memory,
    'compile_seconds': compilation,
    'floor': {'flops': flops, 'bytes': num_bytes, **rates},
    'torch': getattr(torch, '__version__', None),
    'setting': {
      **{k: v for k, v in vars(args).items() if k != 'json'},
      'device': jax.devices()[0].device_kind,
      'cores': len(os.sched_getaffinity(0)),
      'machine': platform.machine(),
      'jax': jax.__version__,
    },
  }


def _torch(params, args):
  """(module, peer), or (None, None) where PyTorch cannot be imported."""
  if importlib.util.find_spec('torch') is None:
    return None, None
  import torch

  torch.manual_seed(0)
  return torch, torch_eager.Recogniser(torch, params, args.attention)


def _check_same_work(model, naive, variables, copied, torch, peer, x, features):
  """SystemExit unless all compute the same logits from the same parameters."""
  few = slice(0, 2), slice(0, 5)
  expected = jax.jit(
    lambda v, x: model.apply(v, x, deterministic=True).logits
  )(variables, x[few])  # fmt: skip
  found = {'naive_flax': jax.jit(naive.apply)(copied, x[few])}
  if peer is not None:
    with torch.no_grad():
      found['torch'] = peer.logits(
        torch.from_numpy(features[few]), True
      ).numpy()
  for name, logits in found.items():
    error = float(np.max(np.abs(np.asarray(logits) - expected)))
    if not error < _TOLERANCE:
      sys.exit(
        f'train_step: {name} computes other logits than ours (they differ by '
        f'{error:.2g}), so their times cannot be compared.'
      )


def table(result: dict[str, Any]) -> str:
  """The result as text."""
  seconds, memory = result['seconds'], result['temporary_bytes']
  setting = result['setting']
  lines = [
    'gradient of one batch: B={batch} T={steps} N={locations} D={size} '
    'H={hidden} L={layers}, {attention}, {device}, {cores} cores; median of '
    '{repeats}, {clock} clock'.format(**setting),
    f'{"":12}{"seconds":>9}{"ours/it":>9}{"temporary":>12}',
  ]
  for name in (
    'deferred', 'autodiff', 'naive_flax', 'torch_f32', 'torch_bf16', 'floor',
  ):  # fmt: skip
    if name not in seconds:
      lines.append(f'{name:12}  not measured: PyTorch cannot be imported')
      continue
    size = f'{memory[name] / 1e6:9.0f} MB' if name in memory else ''
    ratio = seconds['deferred'] / seconds[name]
    lines.append(f'{name:12}{seconds[name]:9.3f}{ratio:9.2f}{size:>12}')
  lines.append(
    'floor: {flops:.3g} FLOPs at {flops_per_second:.3g}/s, {bytes:.3g} bytes '
    'at {bytes_per_second:.3g}/s, the larger'.format(**result['floor'])
  )
  lines.append(
    f'of naive_flax: temporary memory {result["memory_ratio"]:.2f}, '
    f'compilation {result["compile_ratio"]:.2f}'
  )
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  args = parse(argv)
  result = run(args)
  print(table(result))
  if args.json:
    with open(args.json, 'w', encoding='utf-8') as file:
      json.dump(result, file, indent=2)
      file.write('\n')


if __name__ == '__main__':
  main()
