"""A kill, or a full disk, at every file operation of a run's saves.

A shared object (file_faults.c) counts the operations below a folder, and kills
or fails at the n-th. HMAN_POINTS sets at how many (default 6 of each; 0: all).
"""

import os
import pathlib
import shutil
import subprocess

import child_runs
import numpy as np
import pytest

POINTS = int(os.environ.get('HMAN_POINTS', '6'))
STEPS = 8  # two saves, an evaluation, and the deletion of the first save
SHORT = {'train.num_steps': STEPS, 'checkpoint.keep': 1}


@pytest.fixture(scope='module')
def faulty(tmp_path_factory):
  """A fork server whose children have the shared object loaded."""
  compiler = shutil.which('cc') or shutil.which('gcc')
  if compiler is None:
    pytest.skip('needs a C compiler')
  folder = tmp_path_factory.mktemp('faulty')
  library = folder / 'file_faults.so'
  source = pathlib.Path(__file__).with_name('file_faults.c')
  subprocess.run(
    [compiler, '-shared', '-fPIC', '-O1', '-o', library, source, '-ldl'],
    check=True,
  )
  return folder, {'LD_PRELOAD': str(library)}


def _train(faulty, workdir, **faults):
  """The trainer in a new process with faults; exit code and output."""
  folder, environment = faulty
  argv = child_runs.arguments(workdir, **SHORT)
  done = subprocess.run(
    [*child_runs.PROGRAM, *argv],
    cwd=child_runs.ROOT,
    env={
      **os.environ,
      **child_runs.environment(folder),
      **environment,
      **{name: str(value) for name, value in faults.items()},
    },
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
    text=True,
    timeout=300,
  )
  return done.returncode, done.stdout


@pytest.fixture(scope='module')
def operations(faulty, tmp_path_factory):
  """What a run does to files in its checkpoints; and its result."""
  workdir = tmp_path_factory.mktemp('counted') / 'run'
  log = workdir.parent / 'operations.txt'
  code, output = _train(
    faulty, workdir, FAULT_ROOT=workdir / 'checkpoints', FAULT_LOG=log
  )
  assert code == 0, output
  lines = log.read_text().splitlines()
  assert any('rename' in line for line in lines), lines
  return lines, child_runs.result(workdir)


def _points(count: int) -> list[int]:
  number = min(POINTS or count, count)
  return np.unique(np.linspace(1, count, number).round().astype(int)).tolist()


@pytest.mark.slow
def test_a_kill_at_every_operation(faulty, operations, tmp_path, capsys):
  lines, expected = operations
  points = _points(len(lines))
  for point in points:
    workdir = tmp_path / str(point)
    root = {'FAULT_ROOT': workdir / 'checkpoints'}
    code, output = _train(
      faulty, workdir, **root, FAULT_AT=point, FAULT_KIND='kill'
    )
    assert code in (-9, 0), output  # threads: there may be an operation less
    code, output = _train(faulty, workdir)
    assert code == 0, (lines[point - 1], output)
    assert child_runs.result(workdir) == expected, lines[point - 1]
    shutil.rmtree(workdir)
  with capsys.disabled():
    print(
      f'\nkill -9 at {len(points)} of {len(lines)} file operations of 2 saves: '
      'all resumed to the same bits'
    )


@pytest.mark.slow
def test_a_full_disk_at_every_operation(faulty, operations, tmp_path, capsys):
  lines, expected = operations
  points = _points(len(lines))
  failed = 0
  for point in points:
    workdir = tmp_path / str(point)
    root = {'FAULT_ROOT': workdir / 'checkpoints'}
    code, output = _train(
      faulty, workdir, **root, FAULT_AT=point, FAULT_KIND='full'
    )
    assert code in (3, 0), (lines[point - 1], output)  # 0: only deletions left
    assert 'Traceback' not in output, (lines[point - 1], output)
    if code == 3:
      failed += 1
      assert 'No space' in output or 'no space' in output, output
    code, output = _train(faulty, workdir)
    assert code == 0, (lines[point - 1], output)
    assert child_runs.result(workdir) == expected, lines[point - 1]
    shutil.rmtree(workdir)
  with capsys.disabled():
    print(
      f'\ndisk full from {len(points)} of {len(lines)} file operations on: '
      f'{failed} ended with one message and exit code 3, '
      f'{len(points) - failed} needed no more space; all resumed to the same '
      'bits'
    )
