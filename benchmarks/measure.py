"""Interleaved timing, and what this machine can do at best."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

CLOCKS = {'wall': time.perf_counter, 'cpu': time.process_time}


def interleaved(
  runs: Mapping[str, Callable[[], Any]], repeats: int, clock: str
) -> dict[str, float]:
  """Median seconds of each run; one of each in turn, after one not counted.

  Args:
    runs: functions that return when their work is done.
    repeats: counted repeats, at least 1.
    clock: 'wall', or 'cpu': seconds of processor time of this process, which
      other programs on the machine disturb less.

  Returns:
    Median seconds by name.
  """
  now = CLOCKS[clock]
  times: dict[str, list[float]] = {name: [] for name in runs}
  for repeat in range(repeats + 1):
    for name, run in runs.items():
      start = now()
      run()
      if repeat:
        times[name].append(now() - start)
  return {name: statistics.median(t) for name, t in times.items()}


def blocking(function: Callable[..., Any], *args) -> Callable[[], Any]:
  """A function of nothing that waits for the result of a JAX function."""
  return lambda: jax.block_until_ready(function(*args))


def product_run(size: int = 2048) -> tuple[Callable[[], Any], float]:
  """A square float32 matrix product, and its floating-point operations."""
  x = jnp.ones((size, size), jnp.float32)
  return blocking(jax.jit(jnp.matmul), x, x), 2.0 * size**3


def reading_run(num_bytes: int = 1 << 28) -> tuple[Callable[[], Any], float]:
  """A sum over an array larger than the caches, and its bytes."""
  x = jnp.ones((num_bytes // 4,), jnp.float32)
  return blocking(jax.jit(jnp.sum), x), float(num_bytes)
