"""Runs of the trainer in child processes that a test may kill.

A fork server imports everything once, and what is compiled is kept, so that a
child costs a second or two. It has file_faults.c loaded, which does nothing
unless a child is given FAULT_ROOT. HMAN_LIMIT_S is how long a child may take
(default 900); HMAN_FAULT_CACHE is a folder that keeps compiled programs.
"""

import contextlib
import json
import multiprocessing
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
NUM_STEPS = 28  # more than two epochs: 97 / 8 = 12.1 steps each
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
# The model that starts soonest, where the model does not matter.
SIMPLE = {'model.name': 'softmax_regression'}
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
_LIMIT_S = float(os.environ.get('HMAN_LIMIT_S', '900'))


def _child(argv: list[str], output: str, environment: dict, before) -> None:
  """Becomes `python -m experiments.main`, writing to a file."""
  os.environ.update(environment)
  os.chdir(ROOT)
  descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
  os.dup2(descriptor, 1)
  os.dup2(descriptor, 2)
  sys.argv = ['experiments.main', *argv]
  from experiments import main

  for prepare in before:
    prepare()
  main.run()


def arguments(workdir: pathlib.Path, *flags: str, **changes) -> list[str]:
  """The command line of a tiny run."""
  argv = ['--config=configs/quickstart.py', f'--workdir={workdir}', *flags]
  return argv + [f'--config.{k}={v}' for k, v in {**TINY, **changes}.items()]


class Server:
  """Starts children.

  Args:
    folder: for their output and the compilation cache.
  """

  def __init__(self, folder: pathlib.Path):
    self._folder = folder
    self._count = 0
    kept = os.environ.get('HMAN_FAULT_CACHE')
    self.cache = pathlib.Path(kept) if kept else folder / 'cache'
    self._results: dict[str, dict] = {}
    self._context = multiprocessing.get_context('forkserver')
    self._context.set_forkserver_preload(list(PRELOADED))
    library = _shared_object(folder)
    if library is not None:
      os.environ['LD_PRELOAD'] = str(library)
    try:
      multiprocessing.forkserver.ensure_running()
    finally:
      os.environ.pop('LD_PRELOAD', None)
    self.has_faults = library is not None

  def start(
    self,
    workdir: pathlib.Path,
    *flags: str,
    environment: dict | None = None,
    before=(),
    **changes,
  ) -> 'Run':
    """Starts the trainer on a working directory.

    `before` are functions of a module, called in the child at first.
    """
    self._count += 1
    output = self._folder / f'output_{self._count}.txt'
    output.write_text('')
    process = self._context.Process(
      target=_child,
      args=(
        arguments(workdir, *flags, **changes),
        str(output),
        {
          'JAX_PLATFORMS': 'cpu',
          'XDG_CACHE_HOME': str(self.cache),
          'XLA_FLAGS': '--xla_cpu_multi_thread_eigen=false',
          **{k: str(v) for k, v in (environment or {}).items()},
        },
        before,
      ),
    )
    process.start()
    return Run(process, output)

  def finish(self, workdir: pathlib.Path, *flags: str, **changes) -> 'Run':
    """Runs the trainer to its end."""
    run = self.start(workdir, *flags, **changes)
    run.wait()
    return run

  def undisturbed(self, **changes) -> dict:
    """The result of a run that nothing happens to."""
    key = repr(sorted(changes.items()))
    if key not in self._results:
      workdir = self._folder / f'undisturbed_{len(self._results)}'
      run = self.finish(workdir, **changes)
      assert run.wait() == 0, run.output()
      self._results[key] = result(workdir)
      shutil.rmtree(workdir)
    return self._results[key]


def _shared_object(folder: pathlib.Path) -> pathlib.Path | None:
  compiler = shutil.which('cc') or shutil.which('gcc')
  if compiler is None:
    return None
  library = folder / 'file_faults.so'
  source = pathlib.Path(__file__).with_name('file_faults.c')
  subprocess.run(
    [compiler, '-shared', '-fPIC', '-O1', '-o', library, source, '-ldl'],
    check=True,
  )
  return library


class Run:
  """A child; see `Server.start`."""

  def __init__(self, process, output: pathlib.Path):
    self._process = process
    self._output = output
    self.pid: int = process.pid

  def is_alive(self) -> bool:
    """Whether it still runs."""
    return self._process.is_alive()

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
      if not self.is_alive():
        return False
      assert time.monotonic() < end, self.output()
      time.sleep(0.005)
    return True

  def wait_for_text(self, text: str, times: int = 1) -> bool:
    """Waits until it has written a text so many times."""
    return self.wait_for(lambda run: run.output().count(text) >= times)

  def wait(self) -> int:
    """Waits for the end; the exit code, negative for a signal."""
    self._process.join(_LIMIT_S)
    assert self._process.exitcode is not None, self.output()
    return self._process.exitcode

  def signal(self, number: int) -> None:
    """Sends a signal, if it is there to take it."""
    try:
      os.kill(self.pid, number)
    except ProcessLookupError:
      self.wait()

  def kill(self) -> None:
    """SIGKILL, and waits."""
    self.signal(signal.SIGKILL)
    self.wait()


def children(pid: int) -> list[pathlib.Path]:
  """/proc's folders of the processes that a process has started."""
  found = []
  for folder in pathlib.Path('/proc').iterdir():
    with contextlib.suppress(OSError):
      if folder.name.isdigit():
        fields = (folder / 'stat').read_text().rpartition(')')[2].split()
        if int(fields[1]) == pid and fields[0] != 'Z':
          found.append(folder)
  return found


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
