"""Settings of JAX that belong to programs, not to the library."""

import os
import pathlib

import jax

# XLA's older code generator for CPUs, LLVM's -O1, and each sum as one program.
_QUICK = {
  'xla_cpu_use_fusion_emitters': False,
  'xla_backend_optimization_level': 1,
  'xla_disable_hlo_passes': 'tree_reduction_rewriter',
}


def cache_home() -> pathlib.Path:
  """Where programs keep what they can make again."""
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(home).expanduser() / 'hman_jax'


def enable_compilation_cache() -> None:
  """Keeps compiled programs on disk: a second start compiles nothing."""
  jax.config.update('jax_compilation_cache_dir', str(cache_home() / 'xla'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)


def quick_compilation(wanted: bool) -> dict[str, bool | int | str]:
  """`compiler_options` of `jax.jit` for a program that runs for minutes.

  On a CPU it compiles in two thirds of the time or less, and steps of large
  models take 2 to 10 % longer (benchmarks/README.md, "Compile time").

  Args:
    wanted: otherwise XLA's own options.

  Returns:
    Options; none on other devices, and, with a warning, none if this jaxlib
    does not know them.
  """
  if not wanted or jax.default_backend() != 'cpu':
    return {}
  try:
    jax.jit(lambda: 0, compiler_options=_QUICK)()
  except jax.errors.JaxRuntimeError as error:
    print(
      f'WARNING: config.train.quick_compile is without effect: {error}',
      flush=True,
    )
    return {}
  return dict(_QUICK)
