"""What the parts of a gradient take by themselves: what XLA's CPU can reach.

  python -m benchmarks.parts [--size=2048] [--hidden=128] [--json=OUT] ...

The products with weights, and the reading of the features for the gradient of
the attention, each in a loop of T steps of its own where each step waits for
the one before, in the layout in which it is faster; layers do not wait for each
other, and there are no gates, no noise, no state, and nothing saved. Their sum
is what is left if all else takes no time, over the floor of
`benchmarks.train_step`.
"""

import argparse
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import command, measure, train_step

# Parts, and the subjects of which the fastest counts.
_PARTS = {
  'x W, ds W^T': ('x_rows', 'x_columns'),
  'h U, ds U^T': ('h_rows', 'h_columns'),
  'dW': ('weights',),
  'reading': ('read_in_place', 'read_copied'),
}


def parse(argv: list[str] | None) -> argparse.Namespace:
  """Reads the flags; the sizes' defaults are the paper's, but for H."""
  args = command.parse(command.parser('parts', __doc__, hidden=128), argv)
  args.attention = 'gumbel_adaptive'
  return args


def _chain(steps: int, weights: list, x: jax.Array, columns: bool):
  """T times: x through all W at once, and back through W^T."""

  def run(x, weights):
    def once(_, x):
      return sum(
        w @ (w_t @ x) if columns else (x @ w) @ w.T for w, w_t in weights
      )

    return jax.lax.fori_loop(0, steps, once, x)

  return measure.blocking(jax.jit(run), x.T if columns else x, weights)


def _reading(features: jax.Array, d_context: jax.Array, in_place: bool):
  """d_weights = d_context . X_n of each step; the next step needs it."""
  batch, steps, locations, size = features.shape
  count = math.gcd(size, 8)  # slices, summed by themselves where they lie
  part = size // count

  def slice_of(features, t, k):
    start, sizes = (0, t, 0, k * part), (batch, 1, locations, part)
    return jax.lax.dynamic_slice(features, start, sizes)[:, 0]

  def run(features, d):
    def step(d, t):
      if in_place:
        parts = [d[:, None, k * part : (k + 1) * part] for k in range(count)]
        sums = sum(slice_of(features, t, k) * p for k, p in enumerate(parts))
        d_weights = jnp.sum(sums, axis=-1)
      else:
        x = jax.lax.dynamic_index_in_dim(features, t, 1, keepdims=False)
        sums = d_weights = jnp.einsum('bd,bnd->bn', d, x)
      return d * (1 + 1e-6 * jnp.mean(sums)), d_weights

    return jax.lax.scan(step, d, jnp.arange(steps))

  return measure.blocking(jax.jit(run), features, d_context)


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures everything; returns what `--json` writes."""
  b, t, d, h = args.batch, args.steps, args.size, args.hidden
  keys = (jax.random.key(seed) for seed in itertools.count())
  draw = lambda *shape: 0.01 * jax.random.normal(next(keys), shape)
  both = lambda w: (w, jnp.array(w.T))
  of_x = [both(draw(d, 4 * h))]
  # Of L layers: recurrent ones, and those from below and from above.
  of_h = [both(draw(h, 4 * h)) for _ in range(3 * args.layers - 2)]
  x, state = draw(b, d), draw(b, h)
  rows = [draw(b * t, d), *(draw(b * t, h) for _ in of_h)], draw(b * t, 4 * h)
  rule = (((0,), (0,)), ((), ()))
  weights = jax.jit(
    lambda values, ds: [jax.lax.dot_general(v, ds, rule) for v in values]
  )
  features = draw(b, t, args.locations, d)
  runs: dict[str, Callable[[], Any]] = {
    'x_rows': _chain(t, of_x, x, columns=False),
    'x_columns': _chain(t, of_x, x, columns=True),
    'h_rows': _chain(t, of_h, state, columns=False),
    'h_columns': _chain(t, of_h, state, columns=True),
    'weights': measure.blocking(weights, *rows),
    'read_in_place': _reading(features, x, in_place=True),
    'read_copied': _reading(features, x, in_place=False),
  }
  runs['product'], product_flops = measure.product_run()
  runs['reading'], reading_bytes = measure.reading_run()
  seconds = measure.interleaved(runs, args.repeats, args.clock)
  flops, num_bytes = train_step.floor_work(args)
  floor = max(
    flops * seconds.pop('product') / product_flops,
    num_bytes * seconds.pop('reading') / reading_bytes,
  )
  parts = {
    name: min(seconds[subject] for subject in subjects)
    for name, subjects in _PARTS.items()
  }
  return {
    'ratio': sum(parts.values()) / floor,
    'parts': parts,
    'floor': floor,
    'seconds': seconds,
    'setting': command.setting(args),
  }


def table(result: dict[str, Any]) -> str:
  """The result as text."""
  steps = result['setting']['steps']
  floor = result['floor']
  rows = {**result['parts'], 'all': floor * result['ratio'], 'floor': floor}
  return '\n'.join(
    [
      command.heading('parts of the gradient', result['setting']),
      *command.columns(
        [('', '{:<14}'), ('ms a step', '{:11.2f}'), ('of floor', '{:11.2f}')],
        ((k, 1e3 * s / steps, s / floor) for k, s in rows.items()),
      ),
    ]
  )


def main(argv: list[str] | None = None) -> None:
  args = parse(argv)
  command.finish(args, run(args), table)


if __name__ == '__main__':
  main()
