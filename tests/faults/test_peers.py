"""Several processes on this machine: one run, whatever befalls one of them."""

import contextlib
import json
import os
import re
import signal
import time

import numpy as np
import peer_runs
import pytest

import child_runs

pytestmark = pytest.mark.slow
LIMIT_S = 30.0


@pytest.fixture(scope='module')
def one(server, tmp_path_factory):
  """The working directory of one process's run."""
  workdir = tmp_path_factory.mktemp('one') / 'run'
  peer_runs.finish(server, workdir, 1)
  return workdir


@pytest.fixture(scope='module')
def two(server, tmp_path_factory):
  """The working directory of a run of two processes."""
  workdir = tmp_path_factory.mktemp('two') / 'run'
  peer_runs.finish(server, workdir, 2)
  return workdir


def _close(workdir, other):
  """How far apart two runs' last states and scores are."""
  a, b = peer_runs.arrays(workdir), peer_runs.arrays(other)
  assert a.keys() == b.keys()
  apart = max(float(np.abs(a[k] - b[k]).max()) for k in a)
  scores = lambda d: json.loads((d / 'metrics.json').read_text())
  for split, found in scores(workdir).items():
    for name, value in found.items():
      assert value == pytest.approx(scores(other)[split][name], abs=1e-5), name
  steps = [r['step'] for r in child_runs.records(workdir)]
  assert steps == [r['step'] for r in child_runs.records(other)]
  return apart


def _computing(run):
  return len(run.steps()) >= 6


def _ends(runs, sent):
  """Exit codes, and the seconds since `sent`."""
  codes = [run.wait() for run in runs]
  return codes, time.monotonic() - sent


def test_two_processes_are_one_run(one, two, server, tmp_path, capsys):
  apart = _close(two, one)
  assert apart <= 1e-5
  assert [r.keys() for r in child_runs.records(two)] == [
    r.keys() for r in child_runs.records(one)
  ]  # nothing of what the processes tell each other
  peer_runs.finish(server, tmp_path / 'run', 2)
  assert child_runs.result(tmp_path / 'run') == child_runs.result(two)
  with capsys.disabled():
    print(f'\n2 processes: within {apart:.1e} of one; twice: the same bits')


def test_slurm_starts_the_same_run(two, server, tmp_path):
  peer_runs.finish(server, tmp_path / 'run', 2, slurm=True)
  assert child_runs.result(tmp_path / 'run') == child_runs.result(two)


def test_four_processes_are_one_run(server, tmp_path, capsys):
  """Of a network that draws boundaries and looks, with REINFORCE's baseline."""
  model = {'model.name': 'hm_reinforce'}
  for count in (1, 4):
    peer_runs.finish(server, tmp_path / f'run_{count}', count, **model)
  apart = _close(tmp_path / 'run_4', tmp_path / 'run_1')
  assert apart <= 1e-5
  with capsys.disabled():
    print(f'\n4 processes: within {apart:.1e} of one')


@pytest.mark.parametrize('killed', [1, 0])
def test_a_killed_process_is_named(killed, two, server, tmp_path, capsys):
  """0 is the one that starts the coordinator."""
  runs = peer_runs.start(server, tmp_path / 'run', 2)
  assert runs[0].wait_for(_computing)
  sent = time.monotonic()
  runs[killed].kill()
  other = runs[1 - killed]
  codes, taken = _ends([other], sent)
  assert codes == [3] and taken <= LIMIT_S, other.output()
  last = other.output().splitlines()[-1]
  name = f'error: process {1 - killed}: process {killed} (process id '
  assert last.startswith(f'{name}{runs[killed].pid} on '), other.output()
  assert 'Start all processes again' in last
  assert 'Traceback' not in other.output() and '***' not in other.output()
  peer_runs.finish(server, tmp_path / 'run', 2)
  assert child_runs.result(tmp_path / 'run') == child_runs.result(two)
  with capsys.disabled():
    print(f'\nprocess {killed} killed: the other left after {taken:.1f} s')


@pytest.mark.parametrize('stopped', [1, 0])
def test_a_stopped_process_is_named(stopped, server, tmp_path, capsys):
  runs = peer_runs.start(server, tmp_path / 'run', 2)
  assert runs[0].wait_for(_computing)
  sent = time.monotonic()
  runs[stopped].signal(signal.SIGSTOP)
  other = runs[1 - stopped]
  codes, taken = _ends([other], sent)
  runs[stopped].kill()
  assert codes == [3] and taken <= LIMIT_S, other.output()
  last = other.output().splitlines()[-1]
  assert f': process {stopped} (process id {runs[stopped].pid} on ' in last
  assert 'has not been heard from' in last
  assert f'stacks of process {1 - stopped} ' in other.output()
  assert 'experiments/train.py", line' in other.output()
  with capsys.disabled():
    print(f'\nprocess {stopped} stopped: the other left after {taken:.1f} s')


def test_a_stuck_process_is_named(server, tmp_path):
  runs = peer_runs.start(
    server, tmp_path / 'run', 2, '--watchdog_s=90', what='stuck'
  )
  codes, _ = _ends(runs, time.monotonic())
  assert codes == [3, 3]
  where = f'(reading the batch of step {peer_runs.AT_STEP})'
  name = f'process 1 (process id {runs[1].pid} on '
  for run in runs:
    last = run.output().splitlines()[-1]
    assert 'nothing has moved for' in last or 'ended: ' in last, run.output()
  told = ''.join(run.output() for run in runs)
  assert re.search(
    re.escape(f'stuck, the others wait for it: {name}') + '.*'
    + re.escape(where), told,
  )  # fmt: skip
  assert 'in _sleep' in runs[1].output()  # what it was stuck in


@pytest.mark.parametrize('number', [signal.SIGSTOP, signal.SIGKILL])
def test_a_lost_coordinator_is_no_fault_of_a_process(
  number, server, tmp_path, capsys
):
  runs = peer_runs.start(server, tmp_path / 'run', 2)
  assert runs[0].wait_for(_computing)
  (service,) = [
    int(folder.name)
    for folder in child_runs.children(runs[0].pid)
    if b'experiments.coordinator' in (folder / 'cmdline').read_bytes()
  ]
  sent = time.monotonic()
  os.kill(service, number)
  codes, taken = _ends(runs, sent)
  told = [run.output() for run in runs]
  with contextlib.suppress(ProcessLookupError):
    os.kill(service, signal.SIGKILL)
  assert taken <= LIMIT_S, told
  assert 'has not been heard from' not in ''.join(told)
  if number == signal.SIGKILL:  # JAX itself aborts, at once
    assert codes == [-signal.SIGABRT] * 2
    assert all('RPC to coordination service' in text for text in told)
  else:
    assert codes == [3, 3]
    for i, text in enumerate(told):
      message = f'error: process {i}: the coordinator has not answered for '
      assert text.splitlines()[-1].startswith(message)
  with capsys.disabled():
    print(f'\ncoordinator, signal {number}: both left after {taken:.1f} s')


@pytest.mark.parametrize('signalled', [1, 0])
def test_a_signal_to_one_while_data_are_prepared(
  signalled, server, tmp_path, capsys
):
  runs = peer_runs.start(server, tmp_path / 'run', 2, what='slow_data')
  assert runs[0].wait_for_text('PHASE slow'), runs[0].output()
  time.sleep(2)
  sent = time.monotonic()
  runs[signalled].signal(signal.SIGTERM)
  codes, taken = _ends(runs, sent)
  assert codes == [143, 143], [run.output() for run in runs]
  assert taken <= 10.0
  last = runs[1 - signalled].output().splitlines()[-1]
  assert last.startswith(f'stopped: process {1 - signalled}: ')
  assert last.endswith('ended: stopped by SIGTERM.')
  with capsys.disabled():
    print(f'\nSIGTERM to process {signalled}: all left after {taken:.1f} s')


def test_who_compiles_for_long_is_waited_for(two, server, tmp_path):
  peer_runs.finish(
    server, tmp_path / 'run', 2, '--watchdog_s=30', what='slow_compile'
  )
  assert child_runs.result(tmp_path / 'run') == child_runs.result(two)


def test_a_signal_to_one_stops_all_after_the_same_step(two, server, tmp_path):
  runs = peer_runs.start(server, tmp_path / 'run', 2)
  assert runs[0].wait_for(_computing)
  sent = time.monotonic()
  runs[1].signal(signal.SIGTERM)
  codes, taken = _ends(runs, sent)
  assert codes == [143, 143], [run.output() for run in runs]
  saved = [re.findall(r'step (\d+) is saved', r.output()) for r in runs]
  assert saved[0] == saved[1] and len(saved[0]) == 1
  step = tmp_path / 'run' / 'checkpoints' / saved[0][0]
  assert (step / 'manifest.json').exists()
  assert taken <= LIMIT_S
  peer_runs.finish(server, tmp_path / 'run', 2)
  assert child_runs.result(tmp_path / 'run') == child_runs.result(two)


@pytest.mark.parametrize('count', [1, 4])
def test_another_number_of_processes_goes_on(one, server, tmp_path, count):
  """Batches are a function of seed and step: none is lost or seen twice."""
  runs = peer_runs.start(server, tmp_path / 'run', 2)
  assert runs[0].wait_for(_computing)
  for run in runs:
    run.signal(signal.SIGTERM)
  codes, _ = _ends(runs, time.monotonic())
  assert codes == [143, 143], [run.output() for run in runs]
  peer_runs.finish(server, tmp_path / 'run', count)
  assert _close(tmp_path / 'run', one) <= 1e-5


@pytest.mark.parametrize('mode', ['stop', 'skip'])
def test_what_is_not_finite_on_one_is_so_for_all(mode, server, tmp_path):
  runs = peer_runs.start(
    server,
    tmp_path / 'run',
    2,
    what='poisoned',
    **{'train.on_nonfinite': mode},
  )
  codes, _ = _ends(runs, time.monotonic())
  outputs = [run.output() for run in runs]
  assert codes == [4, 4] if mode == 'stop' else [0, 0], outputs
  step = f'step {peer_runs.AT_STEP}: the loss or its gradient is not finite'
  assert all(step in text for text in outputs)
  records = child_runs.records(tmp_path / 'run')
  if mode == 'skip':
    skipped = [r['skipped'] for r in records if r['mode'] == 'train']
    before = peer_runs.AT_STEP - 1
    assert skipped == [0] * before + [1] * (child_runs.NUM_STEPS - before)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    (
      {'by_process': lambda i: {'train.learning_rate': 0.001 * (i + 1)}},
      'config.train.learning_rate: 0.001 in process 0; 0.002 in process 1',
    ),
    ({'what': 'other_code'}, 'code: '),
    ({'what': 'other_data'}, 'data: '),
  ],
)
def test_processes_that_differ_are_refused(options, message, server, tmp_path):
  runs = peer_runs.start(server, tmp_path / 'run', 2, **options)
  codes, _ = _ends(runs, time.monotonic())
  assert codes == [2, 2]
  for run in runs:
    assert f'must be the same:\n  {message}' in run.output(), run.output()
    assert 'Traceback' not in run.output()
  assert not (tmp_path / 'run' / 'checkpoints').exists()


def test_a_directory_that_is_not_shared_is_refused(server, tmp_path):
  """The others look for what process 0 wrote; here it is taken away."""
  from experiments import distributed, errors

  path = tmp_path / '.lock'
  path.write_text('of another run')
  assert os.path.exists(path)
  patch = pytest.MonkeyPatch()
  with patch.context() as m:
    m.setattr(distributed, 'count', lambda: 2)
    m.setattr(distributed, 'index', lambda: 1)
    m.setattr(distributed, 'from_first', lambda text: 'of this run')
    m.setattr(distributed, 'SHARED_S', 0.2)
    with pytest.raises(errors.StorageError, match='does not see what process'):
      distributed.check_shared(path)
