"""Kernels that one step of time launches, as XLA compiles it for a GPU.

  python -m benchmarks.launches [--json=OUT] [--dtype=bfloat16] ...

Counts the operations in the bodies of the two loops over time, forward and
backward, of the gradient of a batch: nothing is run. Without a GPU it compiles
for an H100, whose processor an H200 has too; for that it needs JAX's CUDA
plugin with its libraries (`pip install 'jax[cuda12]'`) and `ptxas`.
"""

import argparse
import re
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from benchmarks import command
from hman_jax import models
from hman_jax.precision import DTYPES

SUBJECTS = ('autodiff', 'deferred', 'pallas')

# What XLA must know of a GPU that is not there.
_H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84978434048
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 1 }
runtime_version { major: 12 minor: 9 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

# Operations that launch nothing.
_FREE = (
  'bitcast',
  'constant',
  'get-tuple-element',
  'parameter',
  'tuple',
)


def parse(argv: list[str] | None) -> argparse.Namespace:
  """Reads the flags; the sizes' defaults are the paper's."""
  parser = command.parser('launches', __doc__, repeats=0)
  parser.add_argument('--dtype', choices=DTYPES, default='float32')
  return command.parse(parser, argv)


def gpu() -> Any:
  """The first GPU, or a description of one to compile for.

  Raises:
    SystemExit: if JAX has no CUDA compiler.
  """
  found = [d for d in jax.devices() if d.platform == 'gpu']
  if found:
    return found[0]
  try:
    described = topologies.get_topology_desc(
      platform='cuda', topology='1x1x1', target_config=_H100
    )
  except (NotImplementedError, RuntimeError) as e:
    raise SystemExit(
      f'error: JAX cannot compile for CUDA here ({e}). Expected a GPU, or '
      "JAX's CUDA plugin with its libraries: pip install 'jax[cuda12]'."
    ) from e
  return described.devices[0]


def count(program: str) -> list[int]:
  """Launches in the body of each loop of a compiled program.

  Args:
    program: HLO as text.

  Returns:
    One number a loop, in the order in which they are called.
  """
  bodies = dict(
    re.findall(r'^%?([\w.-]+) \(.*? \{\n(.*?)^\}', program, re.M | re.S)
  )
  loops = re.findall(r' while\(.*?body=%?([\w.-]+)', program)
  operation = re.compile(r' = (?:\(.*?\)|\S+) ([\w-]+)\(')
  return [
    sum(name not in _FREE for name in operation.findall(bodies[loop]))
    for loop in loops
  ]


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Compiles everything; returns what `--json` writes."""
  place = SingleDeviceSharding(gpu())
  shape = (args.batch, args.steps, args.locations, args.size)
  on_gpu = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
  x = on_gpu(jax.ShapeDtypeStruct(shape, jnp.float16))
  launches, memory = {}, {}
  for name in SUBJECTS:
    model = models.create(
      args.classes,
      hidden_sizes=(args.hidden,) * args.layers,
      attention_options={'num_locations': args.locations},
      backward=name,
      dtype=args.dtype,
    )
    variables = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(v, x, seed, model=model):
      out = model.apply(v, x, key=jax.random.key(seed))
      return -jnp.mean(jax.nn.log_softmax(out.logits)[..., 0])

    gradient = jax.jit(
      jax.value_and_grad(loss), in_shardings=place, out_shardings=place
    )
    with mock.patch.object(jax, 'default_backend', lambda: 'gpu'):
      traced = gradient.trace(  # as on a GPU, where no product turns
        jax.tree.map(on_gpu, variables),
        x,
        on_gpu(jax.ShapeDtypeStruct((), jnp.int32)),
      )
    compiled = traced.lower(lowering_platforms=('cuda',)).compile(
      {'xla_gpu_autotune_level': 0}  # the others are timed on a GPU
    )
    launches[name] = count(compiled.as_text())
    memory[name] = compiled.memory_analysis().temp_size_in_bytes
  return {
    'launches': launches,
    'temporary_bytes': memory,
    'setting': command.setting(args),
  }


def table(result: dict[str, Any]) -> str:
  """The result as text."""
  setting = result['setting']
  lines = [
    'launches in one step: B={batch} T={steps} N={locations} D={size} '
    'H={hidden} L={layers}, {dtype}'.format(**setting),
    f'{"":12}{"forward":>9}{"backward":>10}{"both":>6}{"temporary":>12}',
  ]
  for name, (forward, backward) in result['launches'].items():
    size = f'{result["temporary_bytes"][name] / 1e6:9.0f} MB'
    lines.append(
      f'{name:12}{forward:9}{backward:10}{forward + backward:6}{size:>12}'
    )
  return '\n'.join(lines)


def main(argv: list[str] | None = None) -> None:
  args = parse(argv)
  command.finish(args, run(args), table)


if __name__ == '__main__':
  main()
