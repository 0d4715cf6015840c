"""A kill, or a disk that fails, at every file operation of a run.

A shared object (file_faults.c) counts the operations below a folder, and kills
or fails at the n-th. HMAN_POINTS sets at how many (default 6; 0: all).
"""

import collections
import itertools
import os
import re
import shutil

import numpy as np
import pytest

import child_hooks
import child_runs

POINTS = int(os.environ.get('HMAN_POINTS', '6'))
# Two saves, an evaluation, and the deletion of the first save.
SHORT = {
  **child_runs.SIMPLE,
  'train.num_steps': 4,
  'train.eval_every': 4,
  'checkpoint.every': 2,
  'checkpoint.keep': 1,
}
REASONS = {
  'ENOSPC': 'No space left on device',
  'EDQUOT': 'quota exceeded',
  'EIO': 'Input/output error',
  'EROFS': 'Read-only file system',
}


@pytest.fixture(scope='module')
def faulty(server):
  if not server.has_faults:
    pytest.skip('needs a C compiler')
  return server


def _operations(server, folder, **options) -> list[tuple[str, str]]:
  """What a run does to its files, as (operation, file) in order."""
  workdir, log = folder / 'run', folder / 'operations.txt'
  faults = {'FAULT_ROOT': workdir, 'FAULT_LOG': log}
  run = server.finish(workdir, environment=faults, **options)
  assert run.wait() == 0, run.output()
  lines = [line.split(' ', 1) for line in log.read_text().splitlines()]
  assert any(name == 'rename' for name, _ in lines), lines
  return [(name, os.path.relpath(path, workdir)) for name, path in lines]


@pytest.fixture(scope='module')
def operations(faulty, tmp_path_factory):
  faulty.undisturbed(**SHORT)  # compiles
  return _operations(faulty, tmp_path_factory.mktemp('counted'), **SHORT)


def _some(points: list[int], number: int = POINTS) -> list[int]:
  number = min(number or len(points), len(points))
  at = np.unique(np.linspace(0, len(points) - 1, number).round().astype(int))
  return [points[i] for i in at]


def _finish(server, workdir, expected, why):
  run = server.finish(workdir, **SHORT)
  assert run.wait() == 0, (why, run.output())
  assert child_runs.result(workdir) == expected, why
  shutil.rmtree(workdir)


def _kill_at(server, point, workdir, steps, options):
  """Kills a run at an operation; finishes it; how many steps it did again.

  Or 'not reached': threads retry, and some runs need an operation less.
  """
  faults = {'FAULT_ROOT': workdir, 'FAULT_AT': point, 'FAULT_KIND': 'kill'}
  run = server.finish(workdir, environment=faults, **options)
  assert run.wait() in (-9, 0), run.output()
  resumed = server.finish(workdir, **options)
  assert resumed.wait() == 0, (point, resumed.output())
  if run.wait() == 0:
    return 'not reached'
  again = max(len(run.steps()) + len(resumed.steps()) - steps, 0)
  assert again <= options.get('checkpoint.every', 2)
  return str(again)


def _told(redone, what):
  counts = '  '.join(f'{n}: {redone[n]} times' for n in sorted(redone))
  return f'\n{what}: all resumed to the same bits\n  steps redone:  {counts}'


@pytest.mark.slow
def test_a_kill_at_every_operation_of_a_run(
  faulty, operations, tmp_path, capsys
):
  expected = faulty.undisturbed(**SHORT)
  points = _some(list(range(1, len(operations) + 1)))
  redone = collections.Counter()
  for point in points:
    workdir = tmp_path / str(point)
    redone[_kill_at(faulty, point, workdir, 4, SHORT)] += 1
    assert child_runs.result(workdir) == expected, operations[point - 1]
    shutil.rmtree(workdir)
  with capsys.disabled():
    print(_told(redone, f'kill -9 at {len(points)} of {len(operations)} file '
                        'operations of a run'))  # fmt: skip


@pytest.mark.slow
def test_a_kill_at_every_operation_of_a_save(faulty, tmp_path, capsys):
  """Of four saves, two deletions of older ones, the lock and the start."""
  saves = {'before': (child_hooks.only_saves,)}
  operations = _operations(faulty, tmp_path, **saves)
  expected = child_runs.digests(tmp_path / 'run')
  points = _some(list(range(1, len(operations) + 1)), 6 * POINTS)
  redone = collections.Counter()
  for point in points:
    workdir = tmp_path / str(point)
    redone[_kill_at(faulty, point, workdir, 4, saves)] += 1
    assert child_runs.digests(workdir) == expected, operations[point - 1]
    shutil.rmtree(workdir)
  with capsys.disabled():
    print(_told(redone, f'kill -9 at {len(points)} of {len(operations)} file '
                        'operations of saves'))  # fmt: skip


@pytest.mark.slow
def test_a_kill_while_it_restores(faulty, tmp_path, capsys):
  """Also of a directory whose newest checkpoint is damaged."""
  expected = faulty.undisturbed(**SHORT)
  whole = tmp_path / 'whole'
  run = faulty.start(whole, **{**SHORT, 'checkpoint.keep': 2})
  assert run.wait_for_text('\nstep 4: validation'), run.output()
  run.wait()
  for name in ('metrics.json', 'table.txt'):
    (whole / name).unlink()
  newest = whole / 'checkpoints' / '4'
  next((newest / 'state').rglob('d/*')).write_bytes(b'')
  log = tmp_path / 'operations.txt'
  workdir = tmp_path / 'run'
  faults = {'FAULT_ROOT': workdir, 'FAULT_READS': 1}
  shutil.copytree(whole, workdir)
  run = faulty.finish(
    workdir, environment={**faults, 'FAULT_LOG': log}, **SHORT
  )
  assert run.wait() == 0, run.output()
  assert 'going on from step 2' in run.output()
  shutil.rmtree(workdir)
  names = log.read_text().splitlines()
  end = next(n for n, line in enumerate(names) if 'metrics.jsonl' in line)
  points = _some(list(range(1, end + 1)))
  for point in points:
    shutil.copytree(whole, workdir)
    kill = {**faults, 'FAULT_AT': point, 'FAULT_KIND': 'kill'}
    run = faulty.finish(workdir, environment=kill, **SHORT)
    assert run.wait() == -9, (names[point - 1], run.output())
    _finish(faulty, workdir, expected, names[point - 1])
  with capsys.disabled():
    print(
      f'\nkill -9 at {len(points)} of {end} file operations of a restore with '
      'a damaged checkpoint: all resumed to the same bits'
    )


# From the first operation on such a file on the disk fails; the step that is
# then safe.
FILES = {
  '/.lock': 'none',
  '/.manifest.json': 'none',  # the run's
  '/.label_map.txt': 'none',
  '/.data.json': 'none',
  '/.config.json': 'none',
  '/metrics.jsonl': 'none',
  '/tensorboard/': 'none',
  '/checkpoints/2.orbax': 'none',
  '/ocdbt.process_0/d/': 'none',  # the arrays
  '/integrity': 'none',
  '/checkpoints/2/.manifest.json': 'none',
  '/best/4.orbax': '2',
  '/best/4/.manifest.json': '2',
  '/checkpoints/4.orbax': '2',
  '/checkpoints/4/.manifest.json': '2',
  '/.metrics.json': '4',
  '/.table.txt': '4',
}


@pytest.mark.slow
def test_a_disk_that_fails_at_every_kind_of_file(faulty, tmp_path, capsys):
  expected = faulty.undisturbed(**SHORT)
  rows = []
  for (match, good), reason in zip(FILES.items(), itertools.cycle(REASONS)):
    workdir = tmp_path / str(len(rows))
    faults = {
      'FAULT_ROOT': workdir, 'FAULT_MATCH': match, 'FAULT_AT': 1,
      'FAULT_KIND': reason,
    }  # fmt: skip
    run = faulty.finish(workdir, environment=faults, **SHORT)
    where = (reason, match, run.output())
    assert run.wait() == 3, where
    assert 'Traceback' not in run.output(), where
    assert REASONS[reason] in run.output(), where
    message = r'It needs .* MB; .* MB are free in .* Last good step: (\w+)\.'
    told = re.search(message, run.output())
    if match != '/.lock' or told:  # EROFS: it cannot even be opened
      assert told and told[1] == good, where
    manifest = workdir / 'checkpoints' / good / 'manifest.json'
    assert good == 'none' or manifest.exists(), where
    rows.append((match, reason, good))
    _finish(faulty, workdir, expected, where)
  with capsys.disabled():
    print(f'\nthe disk fails from the first operation on a file on, '
          f'{len(rows)} times: one message, exit code 3; all resumed to the '
          'same bits')  # fmt: skip
    for row in rows:
      print('  {:30} {:7} last good step: {}'.format(*row))


@pytest.mark.slow
@pytest.mark.parametrize(
  ('before', 'message'),
  [
    (child_hooks.screen_is_full, 'No space left on device'),
    (child_hooks.files_are_small, 'File too large'),
  ],
)
def test_other_limits_of_the_disk(faulty, before, message, tmp_path):
  expected = faulty.undisturbed(**SHORT)
  run = faulty.finish(tmp_path / 'run', before=(before,), **SHORT)
  assert run.wait() == 3, run.output()
  assert message in run.output() and 'Traceback' not in run.output()
  _finish(faulty, tmp_path / 'run', expected, message)


@pytest.mark.slow
def test_odd_places(faulty, tmp_path):
  """Refused with one message before anything is compiled, or used."""
  (tmp_path / 'file').write_text('')
  (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
  read_only = tmp_path / 'read_only'
  for workdir, faults in (
    (tmp_path / 'file', {}),
    (tmp_path / 'file' / 'run', {}),
    (tmp_path / 'loop' / 'run', {}),
    (tmp_path / ('n' * 256), {}),
    (read_only, {'FAULT_ROOT': read_only, 'FAULT_AT': 1,
                 'FAULT_KIND': 'EROFS'}),
  ):  # fmt: skip
    run = faulty.finish(workdir, environment=faults, **SHORT)
    assert run.wait() == 3, (workdir, run.output())
    assert 'Traceback' not in run.output(), run.output()
    assert run.output().startswith('error: '), run.output()
    assert 'test clips' not in run.output()
  expected = faulty.undisturbed(**SHORT)
  for name in ('n' * 255, 'parent/that is/missing', 'Größe\n%s{}'):
    _finish(faulty, tmp_path / name, expected, name)
