"""Runs of several processes on this machine, and what befalls one of them."""

import multiprocessing
import os
import pathlib
import socket
import time

import numpy as np

import child_runs

# 13 and 11 clips in batches of 4: the last batch is uneven.
UNEVEN = {'data.num_validation': 13, 'data.num_test': 11}
AT_STEP = 7


def _peer(what, process_id, argv, output, environment) -> None:
  """A child that something befalls; see `BEFALLS`."""
  os.chdir(child_runs.ROOT)
  if what is not None:
    BEFALLS[what](process_id)
  child_runs._child(argv, output, environment)


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


BEFALLS = {
  'other_code': _other_code,
  'other_data': _other_data,
  'poisoned': lambda process_id: _from_step(process_id, _poison),
  'stuck': lambda process_id: _from_step(process_id, _sleep),
}


def start(
  folder: pathlib.Path,
  workdir: pathlib.Path,
  count: int,
  *flags: str,
  what: str | None = None,
  by_process=lambda process_id: {},
  **changes,
) -> list[child_runs.Run]:
  """Starts a run of several processes.

  Args:
    folder: for their output and the compilation cache.
    workdir: of the run.
    count: how many processes.
    *flags: of each.
    what: befalls the processes but the first, of `BEFALLS`.
    by_process: changes of the config of a process.
    **changes: of the config.
  """
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  context = multiprocessing.get_context('forkserver')
  runs = []
  for i in range(count):
    place = (
      f'--coordinator_address=localhost:{port}',
      f'--num_processes={count}',
      f'--process_id={i}',
    )
    own = {**UNEVEN, **changes, **by_process(i)}
    argv = child_runs.arguments(
      workdir, *flags, *(place if count > 1 else ()), **own
    )
    output = folder / f'output_{workdir.name}_{time.monotonic_ns()}_{i}.txt'
    output.write_text('')
    process = context.Process(
      target=_peer,
      args=(what, i, argv, str(output), child_runs.environment(folder)),
    )
    process.start()
    runs.append(child_runs.Run(process, output))
  return runs


def finish(folder, workdir, count, *flags, **changes) -> list[child_runs.Run]:
  """Runs them to their end."""
  runs = start(folder, workdir, count, *flags, **changes)
  codes = [run.wait() for run in runs]
  assert codes == [0] * count, [run.output() for run in runs]
  return runs


def arrays(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """The last state of a run, by path."""
  import jax

  from experiments import trained
  from experiments.checkpoint import Checkpoints

  read = trained.read(workdir, checkpoint='latest')
  config = read.config
  from experiments import train

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
