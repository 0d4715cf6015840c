"""python -m data.prepare: parts, kills, damage; the memory of batches."""

import itertools
import os
import pathlib
import random
import shutil
import subprocess
import sys
import time

import numpy as np
import pytest

from data import prepare
from data.errors import DataError

import data_trees
import records

ROOT = pathlib.Path(__file__).parents[1]

real_data = pytest.mark.skipif(
  'HMAN_REAL_DATA' not in os.environ,
  reason='set HMAN_REAL_DATA to the folder that holds jhmdb/',
)


@pytest.mark.parametrize('count', [1, 2, 7, 30])
def test_parts_are_the_whole(count):
  whole = list(range(23))
  parts = [whole[prepare.part_of(f'{k + 1}/{count}')] for k in range(count)]
  assert sorted(itertools.chain(*parts)) == whole
  assert max(map(len, parts)) - min(map(len, parts)) <= 1


@pytest.mark.parametrize(
  'text', ['', '0/2', '3/2', '1', '1/0', '-1/2', '1/2/3']
)
def test_other_parts_are_refused(text):
  with pytest.raises(DataError, match='--shard: expected i/n'):
    prepare.part_of(text)


def _command(root, store, *more, config='video_folder'):
  return [
    sys.executable, '-m', 'data.prepare', f'--config=configs/{config}.py',
    f'--config.data.root={root}', f'--config.data.features_dir={store}', *more,
  ]  # fmt: skip


def _run(*args, **options):
  return subprocess.run(
    _command(*args, **options),
    cwd=ROOT, capture_output=True, text=True, timeout=580,
  )  # fmt: skip


def _contents(store):
  return {
    p.relative_to(store): p.read_bytes()
    for p in store.rglob('*')
    if p.is_file()
  }


@pytest.mark.slow
def test_parts_make_one_store_and_damage_is_mended(tmp_path):
  root = data_trees.video_folder(tmp_path / 'data')
  one, parts = tmp_path / 'one', tmp_path / 'parts'
  done = _run(root, one)
  assert done.returncode == 0, done.stderr
  assert '18 videos, 0 of them bad; 18 records of' in done.stdout
  for k in (2, 1):
    done = _run(root, parts, f'--shard={k}/2')
    assert done.returncode == 0, done.stderr
    assert '9 videos, 0 of them bad' in done.stdout
  assert _contents(one) == _contents(parts)
  path = sorted(one.rglob('*.npy'))[5]
  raw = bytearray(path.read_bytes())
  raw[1000] ^= 1
  path.write_bytes(raw)
  done = _run(root, one)
  assert f'WARNING: {path}: damaged' in done.stdout
  assert _contents(one) == _contents(parts)
  (root / 'run' / 'cut.avi').write_bytes(b'RIFF')
  done = _run(root, one)
  assert done.returncode == 2 and '1 of 19 videos are bad' in done.stderr
  done = _run(root, one, '--config.data.on_bad_video=skip', '--json')
  assert done.returncode == 0 and 'cut.avi' in done.stdout


def _records(store):
  return {p.name for p in store.rglob('*.npy')}


def _living(mark):
  """Processes that run with this in their environment."""
  found = []
  for folder in pathlib.Path('/proc').glob('[0-9]*'):
    try:
      if mark.encode() in (folder / 'environ').read_bytes():
        found.append((folder / 'cmdline').read_bytes())
    except OSError:
      continue
  return [line for line in found if line]  # the dead have none


@pytest.mark.slow
@pytest.mark.real_data
@real_data
def test_killed_at_any_moment_the_store_is_that_of_an_undisturbed_run(tmp_path):
  """40 clips; HMAN_KILL_CLIPS=551 takes all of J-HMDB."""
  videos = pathlib.Path(os.environ['HMAN_REAL_DATA'], 'jhmdb', 'videos')
  every = sorted(videos.glob('*/*.avi'))
  count = int(os.environ.get('HMAN_KILL_CLIPS', '40'))
  root = tmp_path / 'data'
  for k, clip in enumerate(every[:: len(every) // count][:count]):
    folder = root / f'class {k % 2}'
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copy(clip, folder)
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  done = _run(root, whole)
  assert done.returncode == 0, done.stderr
  mark = f'HMAN_TEST_MARK={tmp_path}'
  environment = os.environ | dict([mark.split('=', 1)])
  rng = random.Random(0)
  seen: set[str] = set()
  for _ in range(20):  # by what is done, not by time: machines are slow or not
    target = len(seen) + rng.randint(0, count // 20)
    command = _command(root, killed)
    with subprocess.Popen(
      command,
      cwd=ROOT,
      env=environment,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
    ) as child:
      assert child.stdout is not None
      child.stdout.readline()  # '... videos to go' if there are any
      while child.poll() is None and len(_records(killed)) < target:
        time.sleep(0.01)
      time.sleep(rng.uniform(0, 1))
      child.kill()
    assert _records(killed) >= seen
    seen = _records(killed)
  assert seen, 'never got to a record'
  for _ in range(100):
    if not _living(mark):
      break
    time.sleep(0.2)
  assert not _living(mark)
  done = _run(root, killed)
  assert done.returncode == 0, done.stderr
  assert f'{count - len(seen)} videos to go' in done.stdout or (
    len(seen) == count
  )
  assert _contents(killed) == _contents(whole)


@pytest.mark.slow
def test_batches_take_a_tenth_of_the_store_at_most(tmp_path):
  rng = np.random.default_rng(0)
  for k in range(100):  # 1 GB
    x = rng.integers(0, 9, (160, 49, 640), np.int8)
    records.write(tmp_path / f'{k}.npy', x)
  code = f"""
import pathlib
from data import pipeline
from data.features import VideoFeatures

def anonymous():
  lines = pathlib.Path('/proc/self/status').read_text().splitlines()
  fields = dict(line.split(':', 1) for line in lines)
  names = ('RssAnon', 'RssShmem')
  return sum(int(fields[name].split()[0]) for name in names) / 1000

paths = sorted(pathlib.Path({str(tmp_path)!r}).glob('*.npy'))
size = sum(p.stat().st_size for p in paths) / 1e6
source = VideoFeatures(
  [p.name for p in paths], paths, [0] * len(paths), class_names=['a'],
  identity={{'name': 'x'}},
)
before = anonymous()
batches = pipeline.train_batches(source, batch_size=4, num_frames=40, seed=0)
most = 0
for _ in range(75):  # 3 epochs
  batch = next(batches)
  most = max(most, anonymous() - before)
assert 4 * 40 * 49 * 640 * 2 / 1e6 < most < size / 10, (most, size)
print('ok', most, size)
"""
  paths = os.pathsep.join(filter(None, sys.path))
  done = subprocess.run(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': paths},
    capture_output=True, text=True, timeout=580,
  )  # fmt: skip
  assert done.stdout.startswith('ok'), done.stderr
  print(done.stdout)
