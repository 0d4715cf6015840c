"""Runs of the trainer in child processes that a test may kill.

A fork server imports everything once, so that a child starts in a second.
"""

import json
import multiprocessing
import os
import pathlib
import re
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_STEPS = 24
SAVE_EVERY = 4
# 97 clips: 8 does not divide an epoch.
TINY = {
  'data.num_train': 97,
  'data.num_validation': 12,
  'data.num_test': 12,
  'data.num_frames': 8,
  'model.name': 'hm_reinforce',  # whose baseline is a part of the state
  'model.hidden_size': 32,
  'model.num_layers': 2,
  'model.scorer_size': 8,
  'model.dropout': 0.1,
  'train.batch_size': 8,
  'train.num_steps': NUM_STEPS,
  'train.warmup_steps': 0,
  'train.ema_decay': 0.9,
  'train.eval_every': 6,
  'train.log_every': 1,
  'train.log_seconds': 0.0,
  'checkpoint.every': SAVE_EVERY,
  'checkpoint.keep': 2,
  'eval.batch_size': 4,
}
PRELOADED = (
  'data.composite_actions',
  'experiments.checkpoint',
  'experiments.datasets',
  'experiments.evaluation',
  'experiments.main',
  'experiments.reporting',
  'experiments.train',
  'experiments.workdir',
)
_TIMES = ('time', 'data_time')
_LIMIT_S = 240.0


def _child(argv: list[str], output: str, environment: dict[str, str]) -> None:
  """Becomes `python -m experiments.main`, writing to a file."""
  os.environ.update(environment)
  os.chdir(ROOT)
  descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
  os.dup2(descriptor, 1)
  os.dup2(descriptor, 2)
  sys.argv = ['experiments.main', *argv]
  from experiments import main

  main.run()


PROGRAM = (sys.executable, '-m', 'experiments.main')


def arguments(workdir: pathlib.Path, *flags: str, **changes) -> list[str]:
  """The command line of a tiny run."""
  argv = ['--config=configs/quickstart.py', f'--workdir={workdir}', *flags]
  return argv + [f'--config.{k}={v}' for k, v in {**TINY, **changes}.items()]


def environment(folder: pathlib.Path) -> dict[str, str]:
  """What a child's environment has besides; the cache is in `folder`."""
  return {
    'JAX_PLATFORMS': 'cpu',
    'XDG_CACHE_HOME': str(folder / 'cache'),
    'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false',
  }


class Server:
  """Starts children.

  Args:
    folder: for their output and the compilation cache.
  """

  def __init__(self, folder: pathlib.Path):
    self._context = multiprocessing.get_context('forkserver')
    self._context.set_forkserver_preload(list(PRELOADED))
    self._folder = folder
    self._count = 0

  def start(self, workdir: pathlib.Path, *flags: str, **changes) -> 'Run':
    """Starts the trainer on a working directory."""
    self._count += 1
    output = self._folder / f'output_{self._count}.txt'
    output.write_text('')
    process = self._context.Process(
      target=_child,
      args=(
        arguments(workdir, *flags, **changes),
        str(output),
        environment(self._folder),
      ),
    )
    process.start()
    return Run(process, output)

  def finish(self, workdir: pathlib.Path, *flags: str, **changes) -> 'Run':
    """Runs the trainer to its end."""
    run = self.start(workdir, *flags, **changes)
    run.wait()
    return run


class Run:
  """A child; see `Server.start`."""

  def __init__(self, process, output: pathlib.Path):
    self._process = process
    self._output = output
    self.pid: int = process.pid

  def output(self) -> str:
    """What it has written so far."""
    return self._output.read_text()

  def steps(self) -> list[int]:
    """The steps that it has told of."""
    return [int(n) for n in re.findall(r'^step (\d+)/', self.output(), re.M)]

  def wait_for(self, condition) -> bool:
    """Waits until a condition on the run holds; False if it ended before."""
    end = time.monotonic() + _LIMIT_S
    while not condition(self):
      if not self._process.is_alive():
        return False
      assert time.monotonic() < end, self.output()
      time.sleep(0.005)
    return True

  def wait(self) -> int:
    """Waits for the end; the exit code, negative for a signal."""
    self._process.join(_LIMIT_S)
    assert self._process.exitcode is not None, self.output()
    return self._process.exitcode

  def kill(self) -> None:
    """SIGKILL, and waits."""
    self._process.kill()
    self.wait()

  def signal(self, number: int) -> None:
    """Sends a signal."""
    os.kill(self.pid, number)


def digests(workdir: pathlib.Path) -> dict[str, dict]:
  """SHA-256 of every array of the last and the best state."""
  found = {}
  for folder in ('checkpoints', 'best'):
    step = max(
      (p for p in (workdir / folder).iterdir() if p.name.isdigit()),
      key=lambda p: int(p.name),
    )
    record = next((step / 'integrity').iterdir())
    arrays = json.loads(record.read_text())['arrays']
    found[f'{folder}/{step.name}'] = {k: a['sha256'] for k, a in arrays.items()}
  return found


def records(workdir: pathlib.Path) -> list[dict]:
  """The run's log without the times."""
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [
    {k: v for k, v in json.loads(line).items() if k not in _TIMES}
    for line in lines
  ]


def result(workdir: pathlib.Path) -> dict:
  """All that must not depend on how often a run was stopped."""
  return {
    'digests': digests(workdir),
    'records': records(workdir),
    'scores': json.loads((workdir / 'metrics.json').read_text()),
    'table': (workdir / 'table.txt').read_text(),
  }
