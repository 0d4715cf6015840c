"""SIGTERM and SIGINT in any phase: saved, left with 143 or 130, goes on.

HMAN_SIGNALS sets how often at random moments (default 10).
"""

import os
import re
import signal
import time

import child_runs
import numpy as np
import pytest

SIGNALS = int(os.environ.get('HMAN_SIGNALS', '10'))
LIMIT_S = 10.0


def _compiled(run):
  return 'compiled in' in run.output()


def _stop(run, number=signal.SIGTERM):
  """Sends a signal; seconds to the end, and the exit code."""
  sent = time.monotonic()
  run.signal(number)
  code = run.wait()
  return time.monotonic() - sent, code


@pytest.mark.slow
def test_random_moments(server, undisturbed, tmp_path, capsys):
  rng = np.random.default_rng(0)
  workdir, times, number = tmp_path / 'run_0', [], 0
  while len(times) < SIGNALS:
    run = server.start(workdir)
    at = int(rng.integers(1, 6))
    told = lambda run, at=at: len(run.steps()) >= at
    if not run.wait_for(told):
      run.wait()
      assert child_runs.result(workdir) == undisturbed
      number += 1
      workdir = tmp_path / f'run_{number}'
      continue
    time.sleep(rng.uniform(0, 0.3))
    taken, code = _stop(run)
    if code == 0:  # it was done before it could look
      continue
    assert code == 128 + signal.SIGTERM, run.output()
    saved = re.search(r'step (\d+) is saved', run.output())
    if saved is None:  # in the final evaluation everything is saved already
      assert f'step {child_runs.NUM_STEPS}: validation' in run.output()
    else:
      assert int(saved[1]) >= run.steps()[-1]
      assert (workdir / 'checkpoints' / saved[1] / 'manifest.json').exists()
    assert 'Traceback' not in run.output()
    times.append(taken)
  run = server.finish(workdir)
  assert child_runs.result(workdir) == undisturbed
  assert max(times) <= LIMIT_S
  with capsys.disabled():
    print(
      f'\n{len(times)} SIGTERMs: all saved; seconds to the end: median '
      f'{np.median(times):.2f}, longest {max(times):.2f}'
    )


@pytest.mark.slow
def test_sigint_leaves_with_130(server, undisturbed, tmp_path):
  run = server.start(tmp_path / 'run')
  assert run.wait_for(_compiled)
  taken, code = _stop(run, signal.SIGINT)
  assert code == 130 and taken <= LIMIT_S
  server.finish(tmp_path / 'run')
  assert child_runs.result(tmp_path / 'run') == undisturbed


@pytest.mark.slow
def test_a_second_signal_ends_at_once(server, undisturbed, tmp_path):
  run = server.start(tmp_path / 'run')
  assert run.wait_for(_compiled)
  run.signal(signal.SIGTERM)
  run.signal(signal.SIGTERM)
  assert run.wait() == 143
  run = server.start(tmp_path / 'run')  # SIGTERM, then kill -9
  assert run.wait_for(_compiled)
  run.signal(signal.SIGTERM)
  time.sleep(0.02)
  run.kill()
  server.finish(tmp_path / 'run')
  assert child_runs.result(tmp_path / 'run') == undisturbed


@pytest.mark.slow
def test_one_owner_a_working_directory(server, tmp_path):
  run = server.start(tmp_path / 'run')
  assert run.wait_for(_compiled)
  second = server.start(tmp_path / 'run')
  assert second.wait() == 3
  assert f'in use by process {run.pid} on' in second.output()
  assert 'Traceback' not in second.output()
  run.kill()
  third = server.finish(tmp_path / 'run')  # the kernel gave the lock back
  assert 'top-1 accuracy' in third.output()


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(server, tmp_path):
  server.finish(tmp_path / 'run')
  stamps = lambda: {
    p: p.stat().st_mtime_ns for p in (tmp_path / 'run').rglob('*')
  }
  before = stamps()
  again = server.start(tmp_path / 'run')
  assert again.wait() == 0
  assert f'already complete at step {child_runs.NUM_STEPS}' in again.output()
  assert stamps() == before
