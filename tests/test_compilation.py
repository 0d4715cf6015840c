"""What is compiled, and how often: in a run, and when it is continued."""

import collections
import shutil

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

from experiments import runtime
from experiments.reporting import RunLog

from tiny_runs import tiny_config, train_in

_COMPILED = '/jax/core/compile/backend_compile_duration'
_HIT = '/jax/compilation_cache/cache_hits'
_MISS = '/jax/compilation_cache/cache_misses'


@pytest.fixture
def events():
  """Counts of JAX's events by name, from here on."""
  counts = collections.Counter()
  add = lambda name, *_, **__: counts.update([name])
  jax.monitoring.register_event_listener(add)
  jax.monitoring.register_event_duration_secs_listener(add)
  yield counts
  jax.monitoring.unregister_event_listener(add)
  jax.monitoring.unregister_event_duration_listener(add)


@pytest.fixture
def cache(tmp_path, monkeypatch):
  """The programs' compilation cache, empty; it is there by default."""
  names = (
    'jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs',
  )  # fmt: skip
  before = {name: getattr(jax.config, name) for name in names}
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  runtime.enable_compilation_cache()
  compilation_cache.reset_cache()
  jax.clear_caches()  # what tests before this one compiled is not on disk
  yield
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()


@pytest.mark.slow
def test_nothing_is_compiled_twice(tmp_path, monkeypatch, events, cache):
  seen = []
  record = RunLog.evaluation

  def evaluation(self, step, split, scores):
    record(self, step, split, scores)
    seen.append((step, split, events[_COMPILED]))

  monkeypatch.setattr(RunLog, 'evaluation', evaluation)
  config = tiny_config(**{'train.num_steps': 9})
  run = train_in(tmp_path / 'run', config)
  (*validations, test) = seen
  assert [step for step, *_ in validations] == [3, 6, 9]
  assert len({count for *_, count in validations}) == 1
  # The last table draws boundaries too, which is another program.
  assert test[2] <= validations[0][2] + 1

  # Stopped after step 8, and continued by a new process: both functions are
  # made anew, and come from disk.
  shutil.rmtree(run / 'checkpoints' / '9')
  shutil.rmtree(run / 'best')
  jax.clear_caches()
  assert events[_MISS] > 2  # the step, and the evaluation
  events.clear()
  train_in(run, config)
  assert events[_HIT] > 2 and not events[_MISS]
