"""Runs of several processes on this machine, and what befalls one of them."""

import functools
import os
import pathlib
import socket
import time

import numpy as np

import child_hooks
import child_runs

# 13 and 11 clips in batches of 4: the last batch is uneven.
UNEVEN = {
  **child_runs.SIMPLE,
  'data.num_test': 11,
  'data.num_validation': 13,
}
AT_STEP = 7
SLOW_S = 45.0


def _from_step(process_id: int, change) -> None:
  """Changes the batches of one process, the last, before its step AT_STEP."""
  from data import pipeline

  if process_id == 0:
    return
  train_batches = pipeline.train_batches

  def changed(*args, start_step=0, **kwargs):
    batches = train_batches(*args, start_step=start_step, **kwargs)
    for step, batch in enumerate(batches, start=start_step + 1):
      yield change(batch) if step == AT_STEP else batch

  pipeline.train_batches = changed


def _sleep(batch):
  time.sleep(600)
  return batch


def _poison(batch):
  features = batch['features'].copy()
  features[0, 0, 0, 0] = np.inf
  return {**batch, 'features': features}


def _other_code(process_id: int) -> None:
  from experiments import distributed

  if process_id:
    distributed.code_digest = lambda: 'f' * 64


def _other_data(process_id: int) -> None:
  from data import composite_actions

  if process_id:
    init = composite_actions.CompositeActions.__init__

    def changed(self, split, *, num_clips, seed):
      init(self, split, num_clips=num_clips, seed=seed + 1)

    composite_actions.CompositeActions.__init__ = changed


def _poisoned(process_id: int) -> None:
  _from_step(process_id, _poison)


def _stuck(process_id: int) -> None:
  _from_step(process_id, _sleep)


def _slow_data(process_id: int) -> None:
  if process_id == 0:
    child_hooks.hangs('experiments.datasets', 'load')


def _slow_compile(process_id: int) -> None:
  """Longer than the watchdog's time, and than a collective waits."""
  from experiments import evaluation

  class Slow:
    def __init__(self, function):
      self._function, self._slow_s = function, SLOW_S

    def __call__(self, *args):
      return self._function(*args)

    def lower(self, *args):
      end = time.monotonic() + self._slow_s
      while time.monotonic() < end:
        pass
      self._slow_s = 0.0
      return self._function.lower(*args)

  if process_id:
    evaluation._apply = Slow(evaluation._apply)


BEFALLS = {
  'other_code': _other_code,
  'other_data': _other_data,
  'poisoned': _poisoned,
  'slow_compile': _slow_compile,
  'slow_data': _slow_data,
  'stuck': _stuck,
}


def start(
  server: child_runs.Server,
  workdir: pathlib.Path,
  count: int,
  *flags: str,
  what: str | None = None,
  slurm: bool = False,
  by_process=lambda process_id: {},
  **changes,
) -> list[child_runs.Run]:
  """Starts a run of several processes.

  Args:
    server: of the children.
    workdir: of the run.
    count: how many processes.
    *flags: of each.
    what: befalls the processes but the first, of `BEFALLS`.
    slurm: start them as SLURM does.
    by_process: changes of the config of a process.
    **changes: of the config.
  """
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  runs = []
  for i in range(count):
    place: dict = {
      'JAX_COORDINATOR_ADDRESS': f'localhost:{port}',
      'JAX_NUM_PROCESSES': count,
      'JAX_PROCESS_ID': i,
    }
    if slurm:
      place = {
        'SLURM_JOB_ID': os.getpid(),
        'SLURM_LOCALID': i,
        'SLURM_NTASKS': count,
        'SLURM_PROCID': i,
        'SLURM_STEP_NODELIST': 'localhost',
      }
    before = (functools.partial(BEFALLS[what], i),) if what else ()
    runs.append(
      server.start(
        workdir,
        *flags,
        *(('--distributed',) if slurm else ()),
        environment=place,
        before=before,
        **{**UNEVEN, **changes, **by_process(i)},
      )
    )
  return runs


def finish(server, workdir, count, *flags, **changes) -> list[child_runs.Run]:
  """Runs them to their end."""
  runs = start(server, workdir, count, *flags, **changes)
  codes = [run.wait() for run in runs]
  assert codes == [0] * count, [run.output() for run in runs]
  return runs


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """The last state of a run, by path."""
  import jax

  from experiments import train, trained
  from experiments.checkpoint import Checkpoints

  read = trained.read(workdir, checkpoint='latest')
  config = read.config
  like = train.init_state(
    config,
    read.model,
    train.make_optimizer(config.train),
    read.feature_shape,
  )
  checkpoints = Checkpoints(workdir, config.checkpoint.keep, read_only=True)
  state = checkpoints.restore_latest(like)
  checkpoints.close()
  leaves = jax.tree.flatten_with_path(state)[0]
  return {jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves}
