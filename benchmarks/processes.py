"""The training step in 1 and 2 processes; and, on paper, on GPUs and hosts.

  python -m benchmarks.processes [--json=OUT] [--batch=16] ...

Measured: the step of `experiments.train` on one global batch, by 1 process and
by 2 that share it, each on a core of its own; and, in turn with it, the sum of
arrays like the gradient over the processes alone.

On paper: from operations, bytes and bandwidths, by `on_paper`.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from benchmarks import command, measure, train_step
from configs import default
from experiments import config as config_lib
from experiments import distributed, sharding, train

_CHILD = 'HMAN_BENCHMARK_CHILD'


class Machine(NamedTuple):
  """What is assumed of a host with GPUs; rates are those reached, a second.

  Attributes:
    flops: float32 operations of a GPU.
    memory: bytes that a GPU reads.
    scan: seconds of one layer in one step of time, forward and backward: the
      launches of its kernels, which more rows do not change.
    upload: bytes from a host's memory to one GPU.
    link: bytes that a GPU sends to another of its host.
    network: bytes that a host sends to another.
    hop, far_hop: seconds of a message in a host, and between hosts.
  """

  flops: float = 20e12
  memory: float = 2e12
  scan: float = 100e-6
  upload: float = 20e9
  link: float = 200e9
  network: float = 40e9
  hop: float = 10e-6
  far_hop: float = 30e-6


def ring(size: float, members: int, rate: float, hop: float) -> float:
  """Seconds of a sum over a ring: 2 (n - 1) (size / (n rate) + hop)."""
  return 2 * (members - 1) * (size / (members * rate) + hop)


def on_paper(
  args: argparse.Namespace,
  parameters: int,
  gpus: int,
  hosts: int,
  machine: Machine = Machine(),  # noqa: B008
) -> dict[str, float]:
  """Seconds of a step where each GPU has `args.batch` rows.

  compute = max(operations / flops, bytes read / memory) + T L scan;
  upload = bytes of the rows' float16 features / upload, while the step before
  is computed; sum = ring over a host's GPUs of 4 bytes a parameter, and ring
  over hosts of the same, each GPU having its share of the network.

  Args:
    args: sizes; the rows are those of one GPU.
    parameters: of the model.
    gpus: of a host.
    hosts: how many.
    machine: what is assumed.

  Returns:
    compute, upload, sum, step, and share: sum / step.
  """
  flops, num_bytes = train_step.floor_work(args)
  compute = max(flops / machine.flops, num_bytes / machine.memory)
  compute += args.steps * args.layers * machine.scan
  features = 2.0 * args.batch * args.steps * args.locations * args.size
  upload = features / machine.upload
  gradient = 4.0 * parameters
  total = ring(gradient, gpus, machine.link, machine.hop)
  total += ring(gradient, hosts, machine.network, machine.far_hop)
  step = max(compute + total, upload)
  return {
    'compute': compute,
    'upload': upload,
    'sum': total,
    'step': step,
    'share': total / step,
  }


def parse(argv: list[str] | None) -> argparse.Namespace:
  """Reads the flags."""
  made = command.parser('processes', __doc__, batch=16, steps=20, size=1280)
  args = command.parse(made, argv)
  if args.batch % 2:
    made.error(f'--batch: expected an even number, got {args.batch}')
  return args


def _config(args: argparse.Namespace) -> ml_collections.ConfigDict:
  config = default.get_config()
  config.data.num_frames = args.steps
  config.model.hidden_size, config.model.num_layers = args.hidden, args.layers
  config.train.batch_size = args.batch
  return config_lib.resolve(config)


def time_step(args: argparse.Namespace) -> dict[str, Any]:
  """Times the step and the sum in this process, one of several."""
  config = _config(args)
  shape = (args.locations, args.size)
  model = train.make_model(config, args.classes, shape)
  optimizer = train.make_optimizer(config.train)
  mesh = sharding.make_mesh(config.train)
  state = train.init_state(config, model, optimizer, shape)
  parameters = sum(x.size for x in jax.tree.leaves(state.params))
  rows = args.batch // distributed.count()
  gradient = jax.tree.map(
    lambda x: np.ones((1, *x.shape), np.float32), state.params
  )
  gradient = jax.tree.map(
    lambda x: sharding.put_rows({'x': x}, mesh)['x'], gradient
  )
  state = sharding.put(state, sharding.of_state(state, mesh))
  state = train.moments_of(config.train, state.params, mesh).stacked(state)
  rng = np.random.default_rng(distributed.index())
  row = np.arange(rows, dtype=np.int32) + distributed.index() * rows
  batch = {
    'features': rng.random((rows, args.steps, *shape)).astype(np.float16),
    'mask': np.ones((rows, args.steps), bool),
    'label': rng.integers(args.classes, size=rows).astype(np.int32),
    'row': row,
  }
  batch = sharding.put_rows(batch, mesh)
  key = sharding.put_key(jax.random.key(0), mesh)
  step_fn = jax.jit(
    train.make_train_step(config, model, optimizer, 100.0),
    donate_argnums=0,
    out_shardings=(sharding.of_state(state, mesh), sharding.everywhere(mesh)),
  )
  sum_fn = jax.jit(
    lambda tree: jax.tree.map(lambda x: jnp.sum(x, axis=0), tree),
    out_shardings=sharding.everywhere(mesh),
  )

  step_fn = step_fn.lower(state, batch, key).compile()
  sum_fn = sum_fn.lower(gradient).compile()

  def step():
    nonlocal state
    state, metrics = step_fn(state, batch, key)
    jax.block_until_ready(metrics)

  runs: dict[str, Callable[[], Any]] = {
    'step': step,
    'sum': lambda: jax.block_until_ready(sum_fn(gradient)),
  }
  now = measure.CLOCKS[args.clock]
  times: dict[str, list[float]] = {name: [] for name in runs}
  for repeat in range(args.repeats + 2):  # two are not counted
    for name, run in runs.items():
      distributed.wait()
      start = now()
      run()
      if repeat > 1:
        times[name].append(now() - start)
  medians = {name: statistics.median(t) for name, t in times.items()}
  return {**medians, 'parameters': parameters}


def _child(argv: list[str]) -> None:
  """One of the processes that are measured; the first prints the result."""
  cores = sorted(os.sched_getaffinity(0))
  place = distributed.place()
  process_id = place.process_id if place else 0
  os.sched_setaffinity(0, {cores[process_id % len(cores)]})
  distributed.start(place)
  result = time_step(parse(argv))
  if distributed.is_first():
    print(json.dumps(result), flush=True)
  distributed.finish()


def _run(count: int, argv: list[str]) -> dict[str, Any]:
  """Measures with so many processes."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  children = []
  for i in range(count):
    environment = {
      **os.environ,
      _CHILD: '1',
      'JAX_PLATFORMS': 'cpu',
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': str(count),
      'JAX_PROCESS_ID': str(i),
      'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false',
    }
    children.append(
      subprocess.Popen(
        [sys.executable, '-m', 'benchmarks.processes', *argv],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
      )
    )
  outputs = [child.communicate()[0] for child in children]
  if any(child.returncode for child in children):
    sys.exit('processes: a process failed; see above.')
  return json.loads(outputs[0].splitlines()[-1])


def run(args: argparse.Namespace, argv: list[str]) -> dict[str, Any]:
  """Measures and computes everything; returns what `--json` writes."""
  measured = {str(n): _run(n, argv) for n in (1, 2)}
  paper = train_step.parse([])  # the sizes of the paper
  shape = (paper.locations, paper.size)
  model = train.make_model(_config(paper), paper.classes, shape)
  params = jax.eval_shape(
    lambda: model.init(jax.random.key(0), jnp.zeros((1, 1, *shape)))
  )
  parameters = sum(x.size for x in jax.tree.leaves(params))
  return {
    'measured': measured,
    'setting': command.setting(args),
    'paper': [
      {
        'batch': batch,
        'gpus': gpus,
        'hosts': hosts,
        **on_paper(
          argparse.Namespace(**{**vars(paper), 'batch': batch}),
          parameters,
          gpus,
          hosts,
        ),
      }
      for batch in (paper.batch, paper.batch // 8)
      for gpus, hosts in ((1, 1), (8, 1), (8, 16))
    ],
    'paper_parameters': parameters,
    'machine': Machine()._asdict(),
  }


def table(result: Mapping[str, Any]) -> str:
  """The result as text."""
  measured, setting = result['measured'], result['setting']
  one = measured['1']['step']
  lines = [
    command.heading('training step, a core for each process', setting),
    *command.columns(
      [
        ('processes', '{:>9}'),
        ('step s', '{:9.3f}'),
        ('speed-up', '{:10.2f}'),
        ('sum s', '{:9.3f}'),
        ('share', '{:7.1f}%'),
      ],
      (
        (
          count,
          found['step'],
          one / found['step'],
          found['sum'],
          100 * found['sum'] / found['step'] if count != '1' else 0.0,
        )
        for count, found in measured.items()
      ),
    ),
    f'the sum is over {4 * measured["2"]["parameters"] / 1e6:.0f} MB',
    '',
    'on paper, T=60 N=49 D=2048 H=512 L=3, '
    f'{4 * result["paper_parameters"] / 1e6:.0f} MB of gradient; milliseconds',
    *command.columns(
      [
        ('clips a GPU', '{:>12}'),
        ('GPUs x hosts', '{:>14}'),
        ('compute', '{:9.1f}'),
        ('upload', '{:8.1f}'),
        ('sum', '{:7.2f}'),
        ('step', '{:7.1f}'),
        ('share', '{:7.1f}%'),
        ('clips/s', '{:9.0f}'),
      ],
      (
        (
          f['batch'],
          f'{f["gpus"]} x {f["hosts"]}',
          *(1e3 * f[k] for k in ('compute', 'upload', 'sum', 'step')),
          100 * f['share'],
          f['batch'] * f['gpus'] * f['hosts'] / f['step'],
        )
        for f in result['paper']
      ),
    ),
  ]
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  argv = sys.argv[1:] if argv is None else argv
  if _CHILD in os.environ:
    _child(argv)
    return
  args = parse(argv)
  command.finish(args, run(args, argv), table)


if __name__ == '__main__':
  main()
