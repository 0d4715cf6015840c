"""Records of the store: whole, or told from whole."""

import builtins
import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import zlib

import numpy as np
import pytest

from data import command, extract, store
from data.errors import DataError, DiskError
from experiments import program as programs

import records


def _features(num_frames=5, shape=(4, 3), seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(size=(num_frames, *shape)).astype(np.float16)


def _is_damaged(path):
  try:
    store.verify(store.read(path))
  except store.DamagedError as e:
    assert str(path) in str(e)
    return True
  return False


def test_a_record_is_a_numpy_file(tmp_path):
  features = _features()
  written = records.write(tmp_path / 'abc.npy', features, declared=8)
  record = store.read(tmp_path / 'abc.npy')
  assert record == written
  assert record.sha256 == 'abc' and record.shape == (5, 4, 3)
  assert (record.num_decoded, record.num_declared) == (5, 8)
  store.verify(record)
  mapped, scale = store.load(record)
  assert isinstance(mapped, np.memmap) and scale is None
  np.testing.assert_array_equal(mapped, features)
  np.testing.assert_array_equal(np.load(record.path), features)


@pytest.mark.parametrize('count', [1, 63, 64, 65, 130])
def test_int8_is_within_half_a_level(tmp_path, count):
  features = _features(count) * np.float16(3)
  features[:, :, 1] = 0  # a channel that is always off
  record = records.write(tmp_path / 'a.npy', features, 'int8')
  levels, scale = store.load(store.read(record.path))
  assert levels.dtype == np.int8 and levels.shape == features.shape
  assert scale is not None and scale.dtype == np.float32
  exact = features.astype(np.float32)
  largest = np.abs(exact).max(axis=(0, 1))
  np.testing.assert_allclose(
    scale, np.where(largest > 0, largest / 127, 1), rtol=1e-6
  )
  wrong = levels * scale - exact
  assert (np.abs(wrong) <= scale / 2 + 1e-6).all()
  assert record.error == {
    'rms': pytest.approx(np.sqrt(np.square(wrong).mean()), rel=1e-4),
    'max': pytest.approx(np.abs(wrong).max(), rel=1e-4),
    'relative': pytest.approx(
      np.linalg.norm(wrong) / np.linalg.norm(exact), rel=1e-4
    ),
  }


@pytest.mark.parametrize('dtype', store.DTYPES)
def test_every_flipped_bit_and_every_cut_is_found(tmp_path, dtype):
  path = tmp_path / 'a.npy'
  records.write(path, _features(2, (2, 2)), dtype)
  raw = path.read_bytes()
  for k in range(0, 8 * len(raw), 3):
    flipped = bytearray(raw)
    flipped[k // 8] ^= 1 << k % 8
    path.write_bytes(flipped)
    assert _is_damaged(path), k
  for size in range(0, len(raw), 7):
    path.write_bytes(raw[:size])
    assert _is_damaged(path), size
    path.write_bytes(raw[:size].ljust(len(raw), b'\0'))
    assert _is_damaged(path), size
  path.write_bytes(raw + b'\0')
  assert _is_damaged(path)
  path.write_bytes(raw)
  assert not _is_damaged(path)


def test_another_video_s_record_is_found(tmp_path):
  records.write(tmp_path / 'a.npy', _features())
  shutil.copy(tmp_path / 'a.npy', tmp_path / 'b.npy')
  with pytest.raises(store.DamagedError, match=r'b\.npy.*of the video a'):
    store.read(tmp_path / 'b.npy')


def test_a_directory_or_nothing_is_no_record(tmp_path):
  for name in ('none', 'folder'):
    (tmp_path / 'folder').mkdir(exist_ok=True)
    with pytest.raises(store.DamagedError, match=name):
      store.read(tmp_path / name)


def test_nothing_is_left_of_what_is_not_committed(tmp_path):
  writer = store.Writer(tmp_path / 'a.npy', (4, 3), 'int8')
  writer.append(_features())
  assert len(os.listdir(tmp_path)) == 1
  writer.abort()
  assert os.listdir(tmp_path) == []


def test_what_the_killed_left_is_removed_what_the_living_have_is_not(tmp_path):
  identity = {'extractor': 'given'}
  folder = store.open_folder(tmp_path, identity)
  path = store.path_of(folder, 'a')
  code = f"""
import os, pathlib, signal
from data import store
writer = store.Writer(pathlib.Path({str(path)!r}), (4, 3), 'float16')
os.kill(os.getpid(), signal.SIGKILL)
"""
  subprocess.run([sys.executable, '-c', code], env=_environment(), timeout=60)
  (dead,) = folder.glob('.*.tmp')
  with contextlib.closing(contextlib.ExitStack()) as stack:
    writer = store.Writer(path, (4, 3), 'float16')
    stack.callback(writer.abort)
    writer.append(_features())
    store.sweep(folder)
    assert not dead.exists() and len(list(folder.glob('.*.tmp'))) == 1
    writer.commit(identity, 5, None)
  assert {p.name for p in folder.iterdir()} == {'identity.json', 'a.npy'}


def _environment():
  return os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}


def test_two_writers_of_one_record(tmp_path):
  writers = [
    store.Writer(tmp_path / 'a.npy', (4, 3), 'float16') for _ in range(2)
  ]
  for writer in writers:
    writer.append(_features())
  first = writers[0].commit({'extractor': 'x'}, 5, None)
  raw = first.path.read_bytes()
  writers[1].commit({'extractor': 'x'}, 5, None)
  assert first.path.read_bytes() == raw
  assert os.listdir(tmp_path) == ['a.npy']


def test_a_file_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
  flock, swept = store.fcntl.flock, []

  def sweep_first(file, flags):
    if not swept:
      swept.append(file.name)
      os.unlink(file.name)
    flock(file, flags)

  monkeypatch.setattr(store.fcntl, 'flock', sweep_first)
  record = records.write(tmp_path / 'a.npy', _features())
  store.verify(record)
  assert swept and os.listdir(tmp_path) == ['a.npy']


def test_the_folder_tells_what_it_holds(tmp_path):
  folder = store.open_folder(tmp_path / 'store', {'extractor': 'x', 'k': 1})
  other = store.open_folder(tmp_path / 'store', {'extractor': 'x', 'k': 2})
  assert folder != other and folder.name.startswith('x-')
  (folder / 'identity.json').write_text('damaged')
  store.open_folder(tmp_path / 'store', {'extractor': 'x', 'k': 1})
  told = json.loads((folder / 'identity.json').read_text())
  assert told == {'extractor': 'x', 'k': 1}


def test_a_folder_that_cannot_be_written(tmp_path):
  (tmp_path / 'file').touch()
  with pytest.raises(DataError, match='features_dir'):
    store.open_folder(tmp_path / 'file', {'extractor': 'x'})
  with pytest.raises(DataError, match='cannot write features'):
    store.Writer(tmp_path / 'none' / 'a.npy', (4, 3), 'float16')


def _fail(number):
  def fail(*_, **__):
    raise OSError(number, os.strerror(number))

  return fail


def test_a_full_disk_is_not_the_user_s_fault(tmp_path, monkeypatch, capsys):
  """Nothing is left in the store, and programs exit with 3."""
  for name in ('fsync', 'replace'):
    with monkeypatch.context() as patch:
      patch.setattr(store.os, name, _fail(errno.ENOSPC))
      with pytest.raises(DiskError, match='write features: No space') as error:
        records.write(tmp_path / 'a.npy', _features())
    assert os.listdir(tmp_path) == []

  def main():
    raise error.value

  monkeypatch.setattr(sys, 'argv', ['prepare'])
  for program in (
    lambda: command.run(main, command.new_flags(), ''),
    lambda: programs.run(lambda _: main(), programs.new_flags(), ''),
  ):
    with pytest.raises(SystemExit) as ended:
      program()
    assert ended.value.code == 3
    assert 'error: ' in capsys.readouterr().err


@pytest.mark.parametrize('number', [errno.EACCES, errno.EMFILE, errno.EIO])
def test_what_cannot_be_read_is_not_damaged(tmp_path, monkeypatch, number):
  path = tmp_path / 'a.npy'
  record = records.write(path, _features())
  for function, argument in (
    (store.read, path),
    (store.verify, record),
    (store.load, record),
    (lambda p: extract._found(p, record.identity, False), path),
  ):
    with monkeypatch.context() as patch:
      patch.setattr(builtins, 'open', _fail(number))
      with pytest.raises(DiskError, match=os.strerror(number)) as error:
        function(argument)
    assert not isinstance(error.value, store.DamagedError)
  assert store.read(path) == record


@pytest.mark.parametrize(
  ('name', 'value'),
  [
    ('sha256', 1), ('identity', None), ('num_decoded', '5'),
    ('num_decoded', None), ('num_declared', 1.5), ('error', []),
    ('error', {'rms': 0.0}),
    ('error', {'rms': '0', 'max': 0.0, 'relative': 0.0}),
    ('error', {'rms': float('nan'), 'max': 0.0, 'relative': 0.0}),
    ('shape', None), ('dtype', []), ('offset', '1'), ('crc32', None),
  ],
)  # fmt: skip
def test_a_sealed_record_that_says_nonsense_is_damaged(tmp_path, name, value):
  path = tmp_path / 'a.npy'
  end = records.write(path, _features(), 'int8').end
  raw, size = path.read_bytes(), store._TRAILER.size
  about = json.loads(raw[end:-size])
  for change in (about | {name: value}, {k: about[k] for k in about.keys()
                                         - {name}}):  # fmt: skip
    text = json.dumps(change).encode()
    seal = store._TRAILER.pack(len(text), zlib.crc32(text), store._END)
    path.write_bytes(raw[:end] + text + seal)
    assert _is_damaged(path)
