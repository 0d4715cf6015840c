"""Several processes and devices: the parts that one process can test."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import chex
import jax
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from data import pipeline
from data.composite_actions import CompositeActions
from data.errors import DataError
from experiments import distributed, evaluation, sharding, train, watchdog
from experiments.errors import ConfigError
from experiments.step_watch import StepWatch
from experiments.stopping import SIGNALS, Stop
from experiments.watchdog import Peer

from tiny_runs import tiny_config

ROOT = pathlib.Path(__file__).parent.parent
SLURM = {
  'SLURM_JOB_ID': '4097',
  'SLURM_STEP_NODELIST': 'node[003-004]',
  'SLURM_NTASKS': '2',
  'SLURM_PROCID': '1',
  'SLURM_LOCALID': '0',
}


# --- where a process stands ---------------------------------------------------


@pytest.mark.parametrize(
  ('flags', 'environment', 'expected'),
  [
    ((None, None, None), {}, None),
    (('h:1', 1, 0), {}, None),
    (('h:1', 4, 3), {}, ('h:1', 4, 3, None)),
    (
      (None, None, None),
      {
        'JAX_COORDINATOR_ADDRESS': '10.0.0.1:80',
        'JAX_NUM_PROCESSES': '2',
        'JAX_PROCESS_ID': '0',
      },
      ('10.0.0.1:80', 2, 0, None),
    ),
    # A flag wins over the environment.
    (('h:1', 2, 1), {'JAX_PROCESS_ID': '0'}, ('h:1', 2, 1, None)),
  ],
)
def test_where_a_process_stands(flags, environment, expected):
  assert distributed.place(*flags, environment=environment) == expected


@pytest.mark.parametrize(
  ('flags', 'environment', 'message'),
  [
    (('h:1', 2, None), {}, '--process_id: missing .or JAX_PROCESS_ID'),
    ((None, 2, 0), {}, '--coordinator_address: missing'),
    (('h:1', 2, 2), {}, '--process_id: expected an integer >= 0 and < --num'),
    (('h', 2, 0), {}, 'expected HOST:PORT'),
    (('h:99999', 2, 0), {}, 'expected HOST:PORT'),
    (('h:1', 2, None), {'JAX_PROCESS_ID': 'one'}, "integer >= 0, got 'one'"),
  ],
)
def test_a_wrong_place_is_told(flags, environment, message):
  with pytest.raises(ConfigError, match=message):
    distributed.place(*flags, environment=environment)


def test_a_launcher_tells_the_place(monkeypatch):
  with pytest.raises(ConfigError, match='neither SLURM'):
    distributed.place(detect=True)
  for name, value in SLURM.items():
    monkeypatch.setenv(name, value)
  place = distributed.place(detect=True)
  assert place == ('node003:61441', 2, 1, [0])  # 65535 - 4096 + 1 + 4097 % 4096


# --- the watchdog -------------------------------------------------------------


def _peers(*changes, **of_last):
  """Three processes: turns 7, heard 1 s ago; the last one is changed."""
  where = 'computing step 7'
  peers = {
    i: Peer(f'process {i}', 7, 9, where, '', 0, changed=99.0, moved=30.0)
    for i in range(3)
  }
  peers[2] = peers[2]._replace(**of_last)
  return peers


@pytest.mark.parametrize(
  ('last', 'answered', 'suspicious', 'message', 'code'),
  [
    ({'moved': 99.0}, 99.0, False, None, 0),
    ({'moved': 99.0, 'changed': 80.0}, 99.0, False, None, 0),
    ({'changed': 70.0}, 99.0, False, '2 has not been heard from for 30', 3),
    ({'changed': 90.0}, 99.0, True, '2 has not been heard from for 10', 3),
    ({'note': 'full', 'changed': 98.0, 'moved': 98.0}, 99.0, False, None, 0),
    (
      {'note': 'full', 'code': 4, 'changed': 70.0}, 99.0, False,
      'process 2 ended: full', 3,
    ),
    (
      {'note': 'stopped by SIGINT.', 'code': 130, 'changed': 90.0}, 99.0, False,
      'process 2 ended: stopped by SIGINT.', 130,
    ),
    (
      {'turns': 6, 'where': 'reading the batch of step 7'}, 99.0, False,
      'wait for it: process 2 (reading the batch of step 7)', 3,
    ),
    ({}, 99.0, False, 'stand at the same place: computing step 7', 3),
    ({'turns': 6, 'moved': 50.0}, 99.0, False, None, 0),
    # Who is waited for computes; nobody else gets on.
    ({'turns': 6, 'moved': 99.0}, 99.0, False, None, 0),
    # All are heard until the coordinator is not.
    ({'moved': 79.0, 'changed': 78.5}, 79.5, False, 'coordinator has not', 3),
    ({'moved': 90.0, 'changed': 89.5}, 90.5, True, 'coordinator has not', 3),
    ({'moved': 90.0, 'changed': 69.5}, 81.0, False, None, 0),
  ],
)  # fmt: skip
def test_what_is_wrong(last, answered, suspicious, message, code):
  verdict = watchdog.judge(
    0, _peers(**last), 100.0, answered, stuck_s=60.0, suspicious=suspicious
  )
  if message is None:
    assert verdict is None
  else:
    assert verdict is not None and message in verdict.message
    assert verdict.code == code


class _Store:
  """The key-value store of the coordination service, for threads."""

  def __init__(self):
    self._values = {}
    self._changed = threading.Condition()

  def key_value_set(self, key, value, allow_overwrite=False):
    with self._changed:
      assert allow_overwrite or key not in self._values
      self._values[key] = value
      self._changed.notify_all()

  def key_value_dir_get(self, key):
    with self._changed:
      return [(k, v) for k, v in self._values.items() if k.startswith(key)]

  def key_value_delete(self, key):
    with self._changed:
      del self._values[key]

  def blocking_key_value_get(self, key, timeout_ms):
    with self._changed:
      self._changed.wait_for(lambda: key in self._values, timeout_ms / 1000)
      if key not in self._values:
        raise RuntimeError('DEADLINE_EXCEEDED: not there')
      return self._values[key]

  def size(self):
    return len(self._values)


def test_processes_hear_of_each_other(monkeypatch):
  store, ends = _Store(), []
  monkeypatch.setattr(watchdog, 'BEAT_S', 0.01)
  monkeypatch.setattr(watchdog, 'GRACE_S', 0.02)
  monkeypatch.setattr(
    watchdog.Watchdog, '_end', lambda self, v: ends.append((self._index, v))
  )
  dogs = [watchdog.Watchdog(store, i, 2, 60.0) for i in range(2)]
  for dog in dogs:
    dog.start()
    dog.beat('computing step 1')
  dogs[1].leave('step 1: not finite', 4)
  waited = threading.Event()
  for _ in range(1000):
    if ends:
      break
    waited.wait(0.01)
  for dog in dogs:
    dog.close()
  index, verdict = ends[0]
  assert index == 0 and not verdict.stacks
  assert f'process 1 (process id {os.getpid()} on ' in verdict.message
  assert verdict.message.endswith('ended: step 1: not finite')


def test_a_process_for_itself_gets_on_while_it_computes(monkeypatch):
  monkeypatch.setattr(watchdog, 'BEAT_S', 0.05)
  dog = watchdog.Watchdog(_Store(), 0, 1, 60.0)
  dog.start()

  def moves(wait):
    before = dog._moves
    end = time.monotonic() + 0.4
    while time.monotonic() < end:
      wait()
    return dog._moves - before

  sleep = lambda: time.sleep(0.4)
  dog.beat('compiling', alone=True)
  assert moves(lambda: None) >= 2
  time.sleep(0.1)
  assert moves(sleep) == 0  # a stuck one
  dog.beat('computing step 1')
  time.sleep(0.1)
  assert moves(lambda: None) == 0  # waits in a collective, which may spin
  dog.close()


def _program(text, **options):
  return subprocess.Popen(
    [sys.executable, '-c', text], cwd=ROOT, stderr=subprocess.PIPE,
    text=True, **options,
  )  # fmt: skip


@pytest.mark.parametrize('code', [3, 143])
def test_the_watchdog_ends_also_where_nothing_can_be_told(code):
  process = _program(
    'import os; from experiments import watchdog as w\n'
    'os.dup2(os.open("/dev/full", os.O_WRONLY), 2)\n'
    f'w.Watchdog(None, 0, 2, 60.0)._end(w.Verdict("dead", True, {code}))'
  )
  with process:
    assert process.wait(30) == code


@pytest.mark.parametrize('number', SIGNALS)
def test_with_nothing_to_save_a_signal_ends_the_process(number):
  """Wherever it is: in a call of C, Python's own handlers have to wait."""
  process = _program(
    'import hashlib; from experiments.stopping import Stop\n'
    'stop = Stop(); stop.install(); stop.release()\n'
    'print("here", flush=True)\n'
    'hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)',
    stdout=subprocess.PIPE,
  )
  with process:
    assert process.stdout.readline() == 'here\n'
    process.send_signal(number)
    _, told = process.communicate(timeout=10)
  assert process.returncode == 128 + number
  name = signal.Signals(number).name
  assert f'stopped by {name}. The same command goes on from here.' in told


def test_a_signal_from_before_ends_it_once_all_is_saved():
  process = _program(
    'from experiments.stopping import Stop\n'
    'stop = Stop(); stop.signal = 15; stop.hold(); stop.release()'
  )
  with process:
    assert process.wait(30) == 143


def test_a_signal_is_no_metric_of_a_step():
  stop = Stop()
  watch = StepWatch(tiny_config().train, None, stop, lambda: 5)
  steps = [{'nonfinite': 0.0, 'signal': n} for n in (15, 0)]
  for step, metrics in enumerate(steps, start=1):
    watch.add(step, metrics, {'clip': np.zeros(1, np.int32)})
    assert 'signal' not in metrics
  assert stop.agreed == 15


def test_processes_agree(monkeypatch):
  """Two threads as two processes."""
  store = _Store()
  own = threading.local()

  class Group(distributed._Group):
    pass

  class Quiet:
    def beat(self, where='', alone=False):
      pass

  groups = [
    Group(distributed.Place('h:1', 2, i), store, Quiet(), None) for i in (0, 1)
  ]

  class Current:
    """Each thread's own group, behind the one name of the module."""

    def __getattr__(self, name):
      return getattr(own.group, name)

    def __setattr__(self, name, value):
      setattr(own.group, name, value)

  monkeypatch.setattr(distributed, '_group', Current())
  found = {}

  def run(i):
    own.group = groups[i]
    found[i, 'all'] = [distributed.exchange([i, n]) for n in range(5)]
    found[i, 'first'] = distributed.from_first(f'of {i}')
    distributed.check_same({'seed': 3})
    try:
      distributed.check_same({'seed': 3, 'config.train.batch_size': 4 + i})
    except ConfigError as e:
      found[i, 'error'] = str(e)
    stop = Stop()
    stop.signal = 15 if i else None
    stop.check()  # nobody else knows of it
    try:
      stop.agree()
    except Exception as e:
      found[i, 'code'] = e.exit_code

  threads = [threading.Thread(target=run, args=(i,)) for i in (0, 1)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(30)
  for i in (0, 1):
    assert found[i, 'all'] == [[[0, n], [1, n]] for n in range(5)]
    assert found[i, 'first'] == 'of 0'
    line = 'config.train.batch_size: 4 in process 0; 5 in process 1'
    assert line in found[i, 'error'] and 'seed' not in found[i, 'error']
    assert found[i, 'code'] == 143
  assert store.size() <= 4  # what all have read is gone


# --- shares of a batch, and of the state --------------------------------------


@pytest.mark.parametrize('num_shards', [1, 2, 4])
def test_shares_of_evaluation_are_the_batches(num_shards):
  source = CompositeActions('test', num_clips=5)  # an uneven last batch
  options = {'batch_size': 4, 'num_frames': 12}
  whole = list(pipeline.eval_batches(source, **options))
  shards = [
    pipeline.eval_batches(source, **options, num_shards=num_shards, shard=i)
    for i in range(num_shards)
  ]
  for batch, *parts in zip(whole, *shards, strict=True):
    for name, x in batch.items():
      np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), x)
  with pytest.raises(DataError, match='multiple of num_shards=3'):
    pipeline.eval_batches(source, **options, num_shards=3)


def test_evaluation_over_devices_is_that_of_one():
  config = tiny_config(
    **{'model.name': 'softmax_regression', 'eval.batch_size': 6}
  )
  source = CompositeActions('test', num_clips=7)
  model = train.make_model(config, 8, source.feature_shape)
  optimizer = train.make_optimizer(config.train)
  state = train.init_state(config, model, optimizer, source.feature_shape)
  mesh = sharding.make_mesh(config.train)  # 4 devices: batches of 8
  placed = jax.device_put(state.params, sharding.everywhere(mesh))
  one = evaluation.Evaluator(config, model).run(state.params, source)
  four = evaluation.Evaluator(config, model, mesh).run(placed, source)
  assert one[0].keys() == four[0].keys()
  for name, x in one[0].items():
    if name != 'row':  # of the batch, which is another
      np.testing.assert_allclose(four[0][name], x, atol=1e-5, err_msg=name)


def test_evaluation_is_compiled_ahead(caplog):
  config = tiny_config(**{'model.name': 'softmax_regression'})
  source = CompositeActions('test', num_clips=2)
  model = train.make_model(config, 8, source.feature_shape)
  params = model.init(jax.random.key(0), np.zeros((1, 1, 49, 64)))
  evaluator = evaluation.Evaluator(config, model)
  compiled = lambda: 'compilation of jit(_apply)' in caplog.text
  caplog.set_level('WARNING')  # programs, in tests before this, ask for errors
  with jax.log_compiles(True):
    evaluator.compile(params, source)
    assert compiled()
    caplog.clear()
    evaluator.score(params, source)
    assert not compiled()


def _tiny_state(**changes):
  config = tiny_config(**{'train.ema_decay': 0.9, **changes})
  source = CompositeActions('train', num_clips=4)
  model = train.make_model(config, 8, source.feature_shape)
  make = lambda: train.init_state(
    config, model, train.make_optimizer(config.train), source.feature_shape
  )
  return config, jax.eval_shape(make)


def test_rules_say_what_is_where():
  config, state = _tiny_state(**{'train.model_devices': 2})
  mesh = sharding.make_mesh(config.train)
  assert mesh.shape == {'data': 2, 'model': 2}
  places = sharding.of_state(state, mesh)
  split = {
    jax.tree_util.keystr(path, simple=True, separator='/')
    for path, place in jax.tree.flatten_with_path(places)[0]
    if place.spec != PartitionSpec()
  }
  of_cell = {
    'layers/0/bottom_up', 'layers/0/recurrent', 'layers/0/top_down',
    'layers/1/bottom_up', 'layers/1/recurrent',
  }  # fmt: skip
  parts = ('params', 'averaged', 'opt_state/1/0/mu', 'opt_state/1/0/nu')
  assert split == {f'{p}/params/cell/{x}' for p in parts for x in of_cell}
  alone = sharding.make_mesh(tiny_config().train)
  every = jax.tree.leaves(sharding.of_state(state, alone))
  assert all(place.spec == PartitionSpec() for place in every)
  rules = ((r'params/head/bias$', PartitionSpec('model')),)
  odd = {'params': {'head': {'bias': np.zeros(7)}}}
  with pytest.raises(ConfigError, match='does not divide params/head/bias'):
    sharding.of_state(odd, mesh, rules)


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'train.batch_size': 6}, 'batch_size: expected a multiple of the 4 dev'),
    ({'train.model_devices': 3}, 'expected a divisor of the 4 devices'),
  ],
)
def test_a_mesh_that_does_not_fit_is_told(changes, message):
  with pytest.raises(ConfigError, match=message):
    sharding.make_mesh(tiny_config(**changes).train)


# --- devices ------------------------------------------------------------------


@pytest.fixture(scope='module')
def on_devices(tmp_path_factory):
  """Runs of 20 steps on 1, 2, 4 and 8 virtual devices, and on 2 x 2."""
  folder = tmp_path_factory.mktemp('devices')
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'PYTHONPATH': f'{ROOT}:{ROOT / "tests"}',
    'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false '
    '--xla_force_host_platform_device_count=8',
  }
  done = subprocess.run(
    [sys.executable, '-m', 'device_runs', str(folder)],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=1800,
  )
  assert done.returncode == 0, done.stderr
  return folder


def _of(folder, name):
  run = json.loads((folder / f'{name}.json').read_text())
  return run['clips'], dict(np.load(folder / f'{name}.npz'))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['2x1', '4x1', '8x1', '2x2', '1x4'])
def test_devices_change_nothing(on_devices, name, capsys):
  clips, params = _of(on_devices, '1x1')
  assert len(clips) == 20 and len(clips[0]) == 8
  other_clips, other = _of(on_devices, name)
  assert other_clips == clips
  chex.assert_trees_all_close(other, params, atol=1e-5, rtol=0)
  apart = max(float(np.abs(other[k] - params[k]).max()) for k in params)
  with capsys.disabled():
    print(f'\n{name} devices: parameters within {apart:.1e} of one device')


@pytest.mark.slow
@pytest.mark.parametrize('name', ['1x1', '8x1', '2x2'])
def test_the_same_devices_give_the_same_bits(on_devices, name):
  _, params = _of(on_devices, name)
  _, again = _of(on_devices, f'{name}_again')
  chex.assert_trees_all_equal(again, params)
  first = dict(np.load(on_devices / f'{name}_start.npz'))
  moved = max(float(np.abs(first[k] - params[k]).max()) for k in params)
  assert moved > 1e-2
