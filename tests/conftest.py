"""Strict test settings: 4 CPU devices, no silent rank promotion.

What is compiled here runs for milliseconds, so that LLVM's optimisations would
be half of the suite's time: they are off, unless XLA_FLAGS says otherwise, as
.ci/run does for the slow tests.
"""

import os
import pathlib

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
os.environ['XLA_FLAGS'] = ' '.join(  # the last of a kind counts
  [
    '--xla_backend_optimization_level=0',
    os.environ.get('XLA_FLAGS', ''),
    '--xla_force_host_platform_device_count=4',
  ]
)

import jax
import pytest

jax.config.update('jax_numpy_rank_promotion', 'raise')
jax.config.update('jax_threefry_partitionable', True)


@pytest.fixture(scope='session')
def tiny_workdir(tmp_path_factory):
  """A finished run of a few steps on generated clips; copy it to change it."""
  from tiny_runs import tiny_config, train_in

  return train_in(tmp_path_factory.mktemp('tiny') / 'run', tiny_config())


@pytest.fixture
def bad_worker(monkeypatch):
  """Decoders run tests/bad_worker.py, which a video's name makes go wrong."""
  from data import decoding

  monkeypatch.setattr(decoding, '_WORKER', 'bad_worker')
  monkeypatch.setenv('PYTHONPATH', str(pathlib.Path(__file__).parent))


@pytest.fixture(scope='session')
def video_root(tmp_path_factory):
  """Little videos in HMDB51's layout."""
  import video_runs

  return video_runs.write_videos(tmp_path_factory.mktemp('videos') / 'data')


@pytest.fixture(scope='session')
def _video_run(video_root, tmp_path_factory):
  import video_runs

  return video_runs.make(tmp_path_factory.mktemp('video_run'), video_root)


@pytest.fixture
def video_workdir(_video_run, monkeypatch):
  """A run on `video_root`, of an extractor without a network."""
  import video_runs

  video_runs.use_stub(monkeypatch)
  return _video_run
