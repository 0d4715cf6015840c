"""Beam's runner fills the store as the plain one does, byte by byte."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from data import extract, features
from data.errors import DataError

import data_trees
import video_files
from quarters import Quarters

ROOT = pathlib.Path(__file__).parents[1]
REAL = os.environ.get('HMAN_REAL_DATA')

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec('apache_beam') is None,
    reason="pip install -e '.[beam]'",
  ),
]


@pytest.fixture(autouse=True)
def quarters(monkeypatch):
  monkeypatch.setitem(features.EXTRACTORS, 'quarters', Quarters)


@pytest.fixture
def videos(tmp_path):
  rng = np.random.default_rng(0)
  return [
    video_files.write(
      tmp_path / f'videos/{k}.{suffix}',
      rng.integers(0, 256, (3 + 4 * k, 32, 32, 3), np.uint8),
    )
    for k, suffix in enumerate(('avi', 'mp4', 'mkv', 'avi'))
  ]


def _tree(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }


@pytest.mark.parametrize(
  ('fps', 'dtype'), [(None, 'float16'), (None, 'int8'), (10.0, 'float16')]
)
def test_the_same_store(tmp_path, videos, fps, dtype):
  from data import beam_extract

  options = {'fps': fps, 'dtype': dtype}
  plain = extract.prepare(
    videos, Quarters(), tmp_path / 'plain', progress=False, **options
  )
  done = beam_extract.prepare(videos, 'quarters', tmp_path / 'beam', **options)
  assert _tree(tmp_path / 'plain') == _tree(tmp_path / 'beam')
  assert {v: p.name for v, p in done.paths.items()} == {
    v: p.name for v, p in plain.paths.items()
  }
  assert len(done.paths) == len(videos) and not done.bad


def test_bad_videos_and_a_second_run(tmp_path, videos, capsys):
  from data import beam_extract

  raw = videos[2].read_bytes()
  videos[2].write_bytes(raw[: len(raw) // 2])
  with pytest.raises(DataError, match='1 of 4 videos are bad') as error:
    beam_extract.prepare(videos, 'quarters', tmp_path / 'store')
  assert f'{videos[2]}: cut' in str(error.value)
  done = beam_extract.prepare(
    videos, 'quarters', tmp_path / 'store', on_bad='skip'
  )
  assert list(done.bad) == [videos[2]] and len(done.paths) == 3
  assert 'skipped: 1 of 4' in capsys.readouterr().out
  before = {p: p.stat().st_mtime_ns for p in done.paths.values()}
  videos[2].write_bytes(raw)
  done = beam_extract.prepare(videos, 'quarters', tmp_path / 'store')
  assert len(done.paths) == 4
  for path, time in before.items():
    assert path.stat().st_mtime_ns == time
  assert len(list((tmp_path / 'store').iterdir())) == 1


def test_a_store_that_cannot_be_made(tmp_path, videos):
  from data import beam_extract

  (tmp_path / 'file').touch()
  with pytest.raises(DataError, match='file'):
    beam_extract.prepare(videos, 'quarters', tmp_path / 'file' / 'store')


def test_a_worker_of_other_versions(tmp_path, videos):
  from data import beam_extract

  worker = beam_extract.ExtractClip('quarters', '', str(tmp_path), {
    **extract.store_identity(Quarters()), 'decoder': 'PyAV 1.0',
  })  # fmt: skip
  with pytest.raises(DataError, match='Install the same versions'):
    worker.setup()
  worker.teardown()


def test_without_beam(monkeypatch):
  monkeypatch.delitem(sys.modules, 'data.beam_extract', raising=False)
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(DataError, match=r'pip install -e .*beam'):
    importlib.import_module('data.beam_extract')


@pytest.mark.real_data
@pytest.mark.skipif(
  REAL is None, reason='set HMAN_REAL_DATA to the folder that holds jhmdb/'
)
def test_real_clips(tmp_path):
  """With EfficientNet-Lite0, whose batches the plain runner fills across clips.

  One record of both, byte by byte.
  """
  from data import beam_extract

  clips = sorted(pathlib.Path(str(REAL), 'jhmdb', 'videos').glob('*/*.avi'))
  clips = clips[:: len(clips) // 6]
  name = 'efficientnet_lite0'
  plain, beamed = tmp_path / 'plain', tmp_path / 'beam'
  extract.prepare(clips, features.create(name), plain, progress=False)
  done = beam_extract.prepare(clips, name, beamed)
  one, two = _tree(plain), _tree(beamed)
  assert one.keys() == two.keys() and len(one) == len(clips) + 1
  different = [k for k in one if one[k] != two[k]]
  print(
    f'\n{len(done.paths)} clips, {sum(map(len, one.values()))} bytes, files '
    f'that differ: {different}'
  )
  assert not different


@pytest.mark.parametrize('beam', [True, False])
def test_the_program(tmp_path, beam):
  """`data.prepare --beam -- OPTIONS`; without --beam there are no options."""
  root = data_trees.video_folder(tmp_path / 'data')
  done = subprocess.run(
    [
      sys.executable, '-m', 'data.prepare', '--config=configs/video_folder.py',
      f'--config.data.root={root}', '--config.data.features=none',
      f'--config.data.features_dir={tmp_path / "store"}', '--json',
      *(('--beam',) if beam else ()), '--', '--runner=DirectRunner',
    ],
    cwd=ROOT, capture_output=True, text=True, timeout=580,
  )  # fmt: skip
  if beam:
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)['records'] == 18
  else:
    assert done.returncode == 2
    assert done.stderr.startswith("error: '--runner=DirectRunner': no posit")
