"""Settings of JAX that belong to programs, not to the library."""

import os
import pathlib

import jax


def cache_home() -> pathlib.Path:
  """Where programs keep what they can make again."""
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(home).expanduser() / 'hman_jax'


def enable_compilation_cache() -> None:
  """Keeps compiled programs on disk: a second start compiles nothing."""
  jax.config.update('jax_compilation_cache_dir', str(cache_home() / 'xla'))
  jax.config.update('jax_persistent_cache_min_compile_time_secs', 0.0)
