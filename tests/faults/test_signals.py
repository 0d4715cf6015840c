"""SIGTERM and SIGINT in any phase: saved, left with 143 or 130, goes on.

HMAN_SIGNALS sets how often at random moments (default 12), HMAN_STOP_S the
seconds that stopping may take (default 10).
"""

import collections
import functools
import os
import re
import signal
import time

import numpy as np
import pytest

import child_hooks
import child_runs
import video_files

SIGNALS = int(os.environ.get('HMAN_SIGNALS', '12'))
LIMIT_S = float(os.environ.get('HMAN_STOP_S', '10'))
SIMPLE = child_runs.SIMPLE
# What a child writes when the phase begins.
PHASES = {
  'training': '\nstep ',
  'evaluation': 'PHASE evaluation',
  'saving': 'PHASE saving',
  'reading back': 'PHASE reading',
}


def _compiled(run):
  return 'compiled in' in run.output()


def _cpu_s(pid):
  """Seconds of processor time of a process, or None if it is gone."""
  try:
    with open(f'/proc/{pid}/stat') as file:
      fields = file.read().rpartition(')')[2].split()
  except OSError:
    return None
  return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')


def _stop(run, number=signal.SIGTERM):
  """Sends a signal; seconds to the end, those of the processor, exit code."""
  before = spent = _cpu_s(run.pid)
  sent = time.monotonic()
  run.signal(number)
  while run.is_alive():
    spent = _cpu_s(run.pid) or spent
    time.sleep(0.005)
  taken = time.monotonic() - sent
  return taken, (spent or 0.0) - (before or 0.0), run.wait()


@pytest.mark.slow
def test_random_moments(server, tmp_path, capsys):
  rng = np.random.default_rng(0)
  expected = server.undisturbed(**SIMPLE)
  times = collections.defaultdict(list)
  workdir, number, count = tmp_path / 'run_0', 0, 0
  while count < SIGNALS:
    phase = list(PHASES)[count % len(PHASES)]
    kind = (signal.SIGTERM, signal.SIGINT)[count // len(PHASES) % 2]
    run = server.start(workdir, before=(child_hooks.tell_phases,), **SIMPLE)
    # Not in the first compilation, nor before it.
    wanted = int(rng.integers(1, 4))
    ready = lambda run, text=PHASES[phase], wanted=wanted: (
      _compiled(run)
      and run.output().partition('compiled in')[2].count(text) >= wanted
    )
    if run.wait_for(ready):
      time.sleep(rng.uniform(0, 0.1))
      taken, cpu, code = _stop(run, kind)
    else:
      code = run.wait()
    if code == 0:  # it was done before it could look
      if (workdir / 'table.txt').exists():
        assert child_runs.result(workdir) == expected
        number += 1
        workdir = tmp_path / f'run_{number}'
      continue
    assert code == 128 + kind, run.output()
    saved = re.search(r'step (\d+) is saved', run.output())
    if saved is None:  # in the final evaluation everything is saved already
      assert f'step {child_runs.NUM_STEPS}: validation' in run.output()
    else:
      assert int(saved[1]) >= run.steps()[-1]
      assert (workdir / 'checkpoints' / saved[1] / 'manifest.json').exists()
    assert 'Traceback' not in run.output(), run.output()
    times[phase].append((taken, cpu))
    count += 1
  if not (workdir / 'table.txt').exists():
    run = server.finish(workdir, **SIMPLE)
    assert run.wait() == 0, run.output()
  assert child_runs.result(workdir) == expected
  with capsys.disabled():
    print(
      f'\n{count} signals, half SIGTERM, half SIGINT: all saved, left with '
      '143 or 130, went on to the same bits. Seconds to the end (of those, '
      'seconds of the processor):'
    )
    for phase, pairs in times.items():
      wall, cpu = np.array(pairs).T
      print(f'  {phase:13} {len(pairs):3} times: median {np.median(wall):5.2f} '
            f'({np.median(cpu):.2f}), longest {wall.max():5.2f} '
            f'({cpu.max():.2f})')  # fmt: skip
  assert max(t for pairs in times.values() for t, _ in pairs) <= LIMIT_S


def _gone(folders):
  """Whether all of them end within seconds."""
  end = time.monotonic() + LIMIT_S
  while any(folder.exists() for folder in folders):
    if time.monotonic() > end:
      return False
    time.sleep(0.05)
  return True


@pytest.mark.slow
def test_while_features_are_prepared(server, tmp_path):
  """Between videos and within one, which takes 50 seconds here."""
  for number in range(18):
    frames = video_files.shades(600 if number == 3 else 6)
    name = f'{"abc"[number % 3]}/clip_{number:02}.mkv'
    video_files.write(tmp_path / 'videos' / name, frames, 'ffv1')
  options = {
    **SIMPLE, 'train.num_steps': 4, 'data.name': 'video_folder',
    'data.root': tmp_path / 'videos', 'data.features_dir': tmp_path / 'store',
  }  # fmt: skip
  slow = (child_hooks.slow_extractor,)
  for wanted, number in ((2, signal.SIGTERM), (9, signal.SIGINT)):
    run = server.start(tmp_path / 'run', before=slow, **options)
    assert run.wait_for_text('PHASE features', wanted), run.output()
    workers = child_runs.children(run.pid)
    taken, _, code = _stop(run, number)
    assert code == 128 + number, run.output()
    assert taken <= LIMIT_S
    assert 'goes on from here' in run.output()
    assert 'Traceback' not in run.output()
    assert _gone(workers), workers
  run = server.start(tmp_path / 'run', before=slow, **options)
  assert run.wait_for_text('PHASE features', 2), run.output()
  workers = child_runs.children(run.pid)
  run.kill()
  assert _gone(workers), workers
  fast = (child_hooks.fast_extractor,)
  run = server.finish(tmp_path / 'run', before=fast, **options)
  assert run.wait() == 0, run.output()
  assert re.search(r'features: 1?\d videos to go', run.output())
  options['data.features_dir'] = tmp_path / 'other_store'
  assert server.finish(tmp_path / 'other', before=fast, **options).wait() == 0
  result = child_runs.result
  assert result(tmp_path / 'run') == result(tmp_path / 'other')


@pytest.mark.slow
@pytest.mark.parametrize(
  ('module', 'name'),
  [
    ('experiments.datasets', 'load'),
    ('experiments.checkpoint', 'Checkpoints.restore_latest'),
    ('data.pipeline', 'feature_statistics'),
    ('experiments.evaluation', 'Evaluator.compile'),
    ('experiments.train', 'final_evaluation'),
  ],
)
def test_where_nothing_is_to_be_saved(module, name, server, tmp_path, capsys):
  options = {**SIMPLE, 'model.feature_norm': 'standard', 'train.num_steps': 8}
  expected = server.undisturbed(**options)
  slow = (functools.partial(child_hooks.hangs, module, name),)
  run = server.start(tmp_path / 'run', before=slow, **options)
  assert run.wait_for_text('PHASE slow'), run.output()
  taken, _, code = _stop(run)
  assert code == 143 and taken <= LIMIT_S, run.output()
  assert 'The same command goes on from here' in run.output()
  assert 'Traceback' not in run.output(), run.output()
  assert server.finish(tmp_path / 'run', **options).wait() == 0
  assert child_runs.result(tmp_path / 'run') == expected
  with capsys.disabled():
    print(f'\nin {name}: left after {taken:.2f} s')


@pytest.mark.slow
def test_while_the_program_compiles(server, tmp_path):
  cold = {'XDG_CACHE_HOME': tmp_path / 'cache'}
  run = server.start(tmp_path / 'run', environment=cold, **SIMPLE)
  assert run.wait_for_text('test clips'), run.output()
  time.sleep(1.5)
  assert not _compiled(run)
  taken, _, code = _stop(run, signal.SIGINT)
  assert code == 130 and taken < 2.0
  assert 'Traceback' not in run.output(), run.output()


@pytest.mark.slow
def test_while_other_processes_are_waited_for(server, tmp_path):
  alone = {
    'JAX_COORDINATOR_ADDRESS': 'localhost:1',
    'JAX_NUM_PROCESSES': 2,
    'JAX_PROCESS_ID': 1,
  }
  run = server.start(
    tmp_path / 'run',
    environment=alone,
    before=(child_hooks.tell_joining,),
    **SIMPLE,
  )
  assert run.wait_for_text('PHASE joining'), run.output()
  time.sleep(0.5)
  taken, _, code = _stop(run)
  assert code == 143 and taken < 2.0, run.output()


@pytest.mark.slow
def test_a_second_signal_ends_at_once(server, tmp_path):
  run = server.start(tmp_path / 'run', **SIMPLE)
  assert run.wait_for(_compiled), run.output()
  run.signal(signal.SIGTERM)
  assert _stop(run, signal.SIGTERM)[2] == 143
  run = server.start(tmp_path / 'run', **SIMPLE)  # SIGTERM, then kill -9
  assert run.wait_for(_compiled), run.output()
  run.signal(signal.SIGTERM)
  time.sleep(0.02)
  run.kill()
  assert server.finish(tmp_path / 'run', **SIMPLE).wait() == 0
  assert child_runs.result(tmp_path / 'run') == server.undisturbed(**SIMPLE)


@pytest.mark.slow
def test_one_owner_a_working_directory(server, tmp_path):
  run = server.start(tmp_path / 'run', **SIMPLE)
  assert run.wait_for_text('test clips'), run.output()
  os.kill(run.pid, signal.SIGSTOP)  # or it may be done before the other looks
  second = server.finish(tmp_path / 'run', **SIMPLE)
  assert second.wait() == 3, second.output()
  assert f'in use by process {run.pid} on' in second.output()
  assert 'Traceback' not in second.output()
  os.kill(run.pid, signal.SIGCONT)
  run.kill()
  third = server.finish(tmp_path / 'run', **SIMPLE)
  assert third.wait() == 0, third.output()  # the kernel gave the lock back


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(server, tmp_path):
  short = {**SIMPLE, 'train.num_steps': 4}
  server.finish(tmp_path / 'run', **short)
  stamps = lambda: {
    p: p.stat().st_mtime_ns for p in (tmp_path / 'run').rglob('*')
  }
  before = stamps()
  again = server.finish(tmp_path / 'run', **short)
  assert again.wait() == 0
  assert 'already complete at step 4' in again.output()
  assert stamps() == before
