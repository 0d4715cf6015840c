"""How time and memory of the gradient grow with T, B, H and L.

  python -m benchmarks.scaling [--json=OUT] [--sweeps=T,B,H,L] ...

One size at a time runs from its flag to 16 times that, the others as the flags
say. The exponent p of cost ~ size^p is the slope of a line through the
logarithms; `slope` is that from the size before, for time. A part does not
grow, such as one step's work in memory: the exponent of what grows,
p of a + b size^p, is the slope through the logarithms of the differences
between sizes (of memory; of time these are noise). `remat` is the gradient of
the last state, which is all that is kept then beside the inputs, in memory
O(sqrt T).
"""

import argparse
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import command, measure
from hman_jax import models

FACTORS = (1, 2, 4, 8, 16)
SWEEPS = {'T': 'steps', 'B': 'batch', 'H': 'hidden', 'L': 'layers'}


def parse(argv: list[str] | None) -> argparse.Namespace:
  """Reads the flags."""
  made = command.parser(
    'scaling', __doc__,
    batch=64, steps=32, size=256, hidden=128, layers=1,
  )  # fmt: skip
  made.add_argument(
    '--sweeps', type=_sweeps, default='T,B,H,L', help='which sizes (T,B,H,L)'
  )
  made.add_argument(
    '--factors',
    type=command.positive,
    default=len(FACTORS),
    help='how many of 1, 2, 4, 8, 16 (5)',
  )
  return command.parse(made, argv)


def _sweeps(text: str) -> list[str]:
  unknown = set(text.split(',')) - set(SWEEPS)
  if unknown:
    raise argparse.ArgumentTypeError(
      f'expected some of {",".join(SWEEPS)}, got {text!r}'
    )
  return text.split(',')


def _gradient(args: argparse.Namespace, remat: bool):
  """The gradient's function, and its arguments."""
  model = models.create(
    args.classes,
    hidden_sizes=(args.hidden,) * args.layers,
    attention_options={'num_locations': args.locations},
    remat=remat,
  )
  shape = (args.batch, args.steps, args.locations, args.size)
  features = jax.ShapeDtypeStruct(shape, jnp.float32)
  variables = jax.eval_shape(model.init, jax.random.key(0), features)

  def loss(variables, features):
    out = model.apply(variables, features, key=jax.random.key(1))
    if remat:
      return sum(jnp.sum(h) for h in out.state.h)
    return jnp.mean(jnp.square(out.logits))

  return jax.jit(jax.grad(loss)), (variables, features)


def _drawn(shapes: Any) -> Any:
  """Small random arrays of these shapes."""
  rng = np.random.default_rng(0)
  return jax.tree.map(
    lambda s: jnp.asarray(0.1 * rng.random(s.shape, np.float32)), shapes
  )


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures everything; returns what `--json` writes."""
  sweeps = {}
  for letter in args.sweeps:
    name = SWEEPS[letter]
    sizes = [getattr(args, name) * f for f in FACTORS[: args.factors]]
    costs: dict[str, list[float]] = {'seconds': [], 'bytes': []}
    if letter == 'T':
      costs['remat_bytes'] = []
    runs = {}
    for size in sizes:
      at = argparse.Namespace(**{**vars(args), name: size})
      function, shapes = _gradient(at, remat=False)
      compiled = function.lower(*shapes).compile()
      costs['bytes'].append(compiled.memory_analysis().temp_size_in_bytes)
      runs[str(size)] = functools.partial(_once, compiled, shapes)
      if letter == 'T':
        function, shapes = _gradient(at, remat=True)
        memory = function.lower(*shapes).compile().memory_analysis()
        costs['remat_bytes'].append(memory.temp_size_in_bytes)
    seconds = measure.interleaved(
      {k: r() for k, r in runs.items()}, args.repeats, args.clock
    )
    costs['seconds'] = list(seconds.values())
    sweeps[letter] = {
      'sizes': sizes,
      **costs,
      'exponents': {k: exponent(sizes, v) for k, v in costs.items()},
      'growth_exponents': {
        k: growth_exponent(sizes, v)
        for k, v in costs.items()
        if k != 'seconds' and len(sizes) > 2
      },
    }
  return {'sweeps': sweeps, 'setting': command.setting(args)}


def _once(compiled, shapes):
  """A run of a compiled gradient, with arrays of its own."""
  return measure.blocking(compiled, *_drawn(shapes))


def exponent(sizes, costs) -> float:
  """The slope of log cost over log size, by least squares."""
  return float(np.polyfit(np.log(sizes), np.log(costs), 1)[0])


def growth_exponent(sizes, costs) -> float | None:
  """p of a + b size^p, of sizes that double; None if not all costs grow."""
  growth = np.diff(costs)
  return exponent(sizes[:-1], growth) if (growth > 0).all() else None


def table(result: dict[str, Any]) -> str:
  """The result as text."""
  lines = [command.heading('gradient of one batch', result['setting'])]
  rows = (
    ('seconds', 1.0, '.4f'),
    ('bytes', 1e-6, '.2f'),
    ('remat_bytes', 1e-6, '.2f'),
  )
  for letter, sweep in result['sweeps'].items():
    sizes = [(size, '{:>12}') for size in sweep['sizes']]
    measured = [
      (
        name.replace('bytes', 'MB'),
        *(format(scale * value, form) for value in sweep[name]),
        sweep['exponents'][name],
        sweep['growth_exponents'].get(name),
      )
      for name, scale, form in rows
      if name in sweep
    ]
    logs = np.log([sweep['sizes'], sweep['seconds']])
    slopes = np.divide(*np.diff(logs)[::-1])
    line = ('slope', '', *(f'{slope:.2f}' for slope in slopes), None, None)
    measured.insert(1, line)
    titles = [
      (letter, '{:<12}'),
      *sizes,
      ('exponent', '{:12.2f}'),
      ('of growth', '{:12.2f}'),
    ]
    lines += ['', *command.columns(titles, measured)]
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  args = parse(argv)
  command.finish(args, run(args), table)


if __name__ == '__main__':
  main()
