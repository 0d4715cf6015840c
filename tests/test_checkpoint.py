"""Checkpoints: what was saved is what comes back, or nothing does."""

import errno
import json
import os
import pathlib
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import checkpoint, integrity, storage
from experiments.checkpoint import Checkpoints
from experiments.errors import CheckpointError, NonFiniteError, StorageError

FINGERPRINT = {'config.seed': 0, 'class_names': ['a', 'b']}


def _state(step):
  rng = np.random.default_rng(step)
  return {
    'params': {'w': jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)},
    'half': jnp.asarray(rng.normal(size=4), jnp.bfloat16),
    'step': jnp.asarray(step, jnp.int32),
  }


def _saved(path, steps=(1, 2, 3), keep=3):
  with _open(path, keep) as checkpoints:
    for step in steps:
      checkpoints.save(step, _state(step))


class _open:
  """A `Checkpoints` that is closed at the end."""

  def __init__(self, path, keep=3, fingerprint=FINGERPRINT, **options):
    self._made = Checkpoints(path, keep, fingerprint, **options)

  def __enter__(self):
    return self._made

  def __exit__(self, *_):
    self._made.close()


def _files(path):
  return sorted(p for p in path.rglob('*') if p.is_file())


def _flip(path, rng):
  data = bytearray(path.read_bytes())
  data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
  path.write_bytes(data)


def test_a_state_comes_back_bit_for_bit(tmp_path):
  _saved(tmp_path)
  with _open(tmp_path) as checkpoints:
    assert checkpoints.latest_step() == 3
    restored = checkpoints.restore_latest(_state(0))
  chex.assert_trees_all_equal(restored, _state(3))
  chex.assert_trees_all_equal_dtypes(restored, _state(3))


def test_nothing_saved_is_no_state(tmp_path):
  with _open(tmp_path) as checkpoints:
    assert checkpoints.restore_latest(_state(0)) is None
    assert checkpoints.restore_best(_state(0)) is None
    assert checkpoints.latest_step() is None


def test_the_latest_few_are_kept(tmp_path):
  _saved(tmp_path, steps=(1, 2, 3, 4, 5), keep=2)
  folders = {p.name for p in (tmp_path / 'checkpoints').iterdir()}
  assert folders == {'4', '5'}


def test_a_copy_elsewhere_goes_on(tmp_path):
  _saved(tmp_path / 'a')
  shutil.copytree(tmp_path / 'a', tmp_path / 'b')
  shutil.rmtree(tmp_path / 'a')
  with _open(tmp_path / 'b') as checkpoints:
    chex.assert_trees_all_equal(
      checkpoints.restore_latest(_state(0)), _state(3)
    )


@pytest.mark.parametrize('seed', range(40))
def test_a_flipped_bit_is_never_silent(tmp_path, seed):
  """Found, and the state before is used; or it was in no number."""
  _saved(tmp_path, steps=(1, 2))
  rng = np.random.default_rng(seed)
  files = _files(tmp_path / 'checkpoints' / '2')
  _flip(files[seed % len(files)], rng)
  with _open(tmp_path) as checkpoints:
    state = checkpoints.restore_latest(_state(0))
  set_aside = (tmp_path / 'damaged').exists()
  chex.assert_trees_all_equal(state, _state(1 if set_aside else 2))


@pytest.mark.parametrize('how', ['cut', 'zeroed', 'deleted'])
def test_every_damaged_file_is_found(tmp_path, how, capsys):
  _saved(tmp_path / 'whole', steps=(1, 2))
  count = len(_files(tmp_path / 'whole' / 'checkpoints' / '2'))
  found = 0
  for i in range(count):
    path = tmp_path / str(i)
    shutil.copytree(tmp_path / 'whole', path)
    file = _files(path / 'checkpoints' / '2')[i]
    size = file.stat().st_size
    if how == 'deleted':
      file.unlink()
    else:
      content = file.read_bytes()[: size // 2] if how == 'cut' else b''
      file.write_bytes(content if how == 'cut' else bytes(size))
    with _open(path) as checkpoints:
      state = checkpoints.restore_latest(_state(0))
    aside = path / 'damaged' / 'checkpoints_2_0'
    chex.assert_trees_all_equal(state, _state(1 if aside.exists() else 2))
    if aside.exists():
      found += 1
      line = capsys.readouterr().out
      if how != 'deleted' or file.name != 'manifest.json':
        assert 'checkpoint of step 2 is damaged' in line
        assert 'going on from step 1' in line
      else:
        assert 'checkpoints/2: its save was not finished' in line
  assert found == count


def _damage(path, step):
  for file in _files(path / 'checkpoints' / str(step)):
    file.write_bytes(bytes(file.stat().st_size))


def test_a_damaged_state_may_be_refused(tmp_path):
  _saved(tmp_path)
  _damage(tmp_path, 3)
  before = _files(tmp_path)
  with (
    _open(tmp_path, refuse_damaged=True) as checkpoints,
    pytest.raises(CheckpointError, match='step 3 is damaged'),
  ):
    checkpoints.restore_latest(_state(0))
  assert _files(tmp_path) == before


def test_no_whole_state_is_an_error_and_no_new_start(tmp_path):
  _saved(tmp_path, steps=(1, 2))
  _damage(tmp_path, 1)
  _damage(tmp_path, 2)
  with (
    _open(tmp_path) as checkpoints,
    pytest.raises(CheckpointError, match=r'no checkpoint is whole.*\[1, 2\]'),
  ):
    checkpoints.restore_latest(_state(0))


@pytest.mark.parametrize(
  ('where', 'number'),
  [
    ('manifest', errno.EACCES),
    ('file', errno.EIO),
    ('folder', errno.EACCES),
    ('exists', errno.EMFILE),
  ],
)
def test_what_cannot_be_read_is_not_damaged(
  tmp_path, monkeypatch, number, where
):
  _saved(tmp_path, steps=(1, 2))
  with _open(tmp_path) as checkpoints:
    checkpoints.save_best(2, _state(2), 0.5)
  before = _files(tmp_path)

  def fail(*_, **__):
    raise OSError(number, os.strerror(number))

  owner, name = {
    'manifest': (pathlib.Path, 'read_bytes'),
    'file': (integrity, '_digest'),
    'folder': (os, 'scandir'),
    'exists': (integrity, 'is_finished'),
  }[where]
  message = f'step 2 cannot be read .*{os.strerror(number)}'
  with _open(tmp_path) as checkpoints:
    for restore in (checkpoints.restore_latest, checkpoints.restore_best):
      with monkeypatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(StorageError, match=message):
          if where == 'exists':
            checkpoints._latest.is_finished(2)
          restore(_state(0))
    assert _files(tmp_path) == before
    chex.assert_trees_all_equal(
      checkpoints.restore_latest(_state(0)), _state(2)
    )


def test_the_best_state_of_another_run_is_refused(tmp_path):
  with _open(tmp_path) as checkpoints:
    checkpoints.save_best(4, _state(4), 0.5)
  for name, value in (('config.seed', 1), ('class_names', ['b', 'a'])):
    other = FINGERPRINT | {name: value}
    with _open(tmp_path, fingerprint=other) as checkpoints:
      for call in (
        checkpoints.best_score,
        lambda opened=checkpoints: opened.restore_best(_state(0)),
        lambda opened=checkpoints: opened.save_best(5, _state(5), 0.6),
      ):
        with pytest.raises(CheckpointError, match=rf'best/4:.*\n  {name}: was'):
          call()
    allowed = _open(tmp_path, fingerprint=other, allowed=[name])
    with allowed as checkpoints:
      assert checkpoints.restore_best(_state(0)) is not None


def test_a_damaged_best_state_is_named(tmp_path):
  with _open(tmp_path) as checkpoints:
    checkpoints.save_best(4, _state(4), 0.5)
  for file in _files(tmp_path / 'best' / '4'):
    file.write_bytes(b'')
  with _open(tmp_path) as checkpoints:
    for call in (
      checkpoints.best_score,
      lambda: checkpoints.restore_best(_state(0)),
      lambda: checkpoints.save_best(5, _state(5), 0.6),
    ):
      with pytest.raises(CheckpointError, match='best state is damaged'):
        call()


def test_a_first_save_that_was_not_finished_is_no_state(tmp_path, capsys):
  _saved(tmp_path, steps=(1,))
  (tmp_path / 'checkpoints' / '1' / 'manifest.json').unlink()
  with _open(tmp_path) as checkpoints:
    assert checkpoints.restore_latest(_state(0)) is None
    checkpoints.save(1, _state(1))
    chex.assert_trees_all_equal(
      checkpoints.restore_latest(_state(0)), _state(1)
    )
  assert 'checkpoints/1: its save was not finished' in capsys.readouterr().out


def test_a_best_state_that_was_not_finished_is_set_aside(tmp_path, capsys):
  with _open(tmp_path) as checkpoints:
    checkpoints.save_best(3, _state(3), 0.5)
  whole = tmp_path / 'best' / '3'
  shutil.copytree(whole, tmp_path / 'best' / '4')
  (tmp_path / 'best' / '4' / 'manifest.json').unlink()
  with _open(tmp_path, read_only=True) as reader:  # beside who saves it now
    assert reader.best_score() == (3, 0.5)
  with _open(tmp_path) as checkpoints:
    assert checkpoints.best_score() == (3, 0.5)
    checkpoints.save_best(4, _state(4), 0.6)
    assert checkpoints.best_score() == (4, 0.6)
  assert 'best/4: its save was not finished' in capsys.readouterr().out
  assert (tmp_path / 'damaged' / 'best_4_0').exists()


def test_strangers_in_the_directory_are_left_alone(tmp_path):
  _saved(tmp_path)
  (tmp_path / 'checkpoints' / '7abc').mkdir()
  (tmp_path / 'checkpoints' / '9').mkdir()  # empty: a save that never was
  (tmp_path / 'checkpoints' / '8.orbax-checkpoint-tmp').mkdir()
  with _open(tmp_path) as checkpoints:
    chex.assert_trees_all_equal(
      checkpoints.restore_latest(_state(0)), _state(3)
    )
    checkpoints.save(4, _state(4))
    assert checkpoints.latest_step() == 4
  assert (tmp_path / 'checkpoints' / '7abc').exists()


@pytest.mark.parametrize('value', [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
def test_a_state_that_is_not_finite_is_not_saved(tmp_path, value, dtype):
  bad = {**_state(2), 'x': jnp.array([1.0, value], dtype)}
  good = {**_state(1), 'x': jnp.zeros(2, dtype)}
  with _open(tmp_path, keep=1) as checkpoints:
    checkpoints.save(1, good)
    with pytest.raises(NonFiniteError, match=r"not finite in \['x'\]"):
      checkpoints.save(2, bad)
    chex.assert_trees_all_equal(checkpoints.restore_latest(good), good)


def test_another_run_or_model_is_refused_by_name(tmp_path):
  _saved(tmp_path)
  other = {'config.seed': 1, 'class_names': ['b', 'a']}
  with (
    _open(tmp_path, fingerprint=other) as checkpoints,
    pytest.raises(CheckpointError) as error,
  ):
    checkpoints.restore_latest(_state(0))
  assert 'config.seed: was 0, is 1' in str(error.value)
  assert "class_names: was ['a', 'b'], is ['b', 'a']" in str(error.value)
  wide = {**_state(0), 'half': jnp.zeros(4), 'more': jnp.zeros(2)}
  wide['params'] = {'w': jnp.zeros((5, 4))}
  with _open(tmp_path) as checkpoints, pytest.raises(CheckpointError) as error:
    checkpoints.restore_latest(wide)
  for line in (
    "['half']: is bfloat16[4], expected float32[4]",
    "['more']: is absent, expected float32[2]",
    "['params']['w']: is float32[5, 3], expected float32[5, 4]",
  ):
    assert line in str(error.value)
  assert not (tmp_path / 'damaged').exists()


def test_another_format_is_refused_by_number(tmp_path, monkeypatch):
  monkeypatch.setattr(checkpoint, 'FORMAT', 7)
  _saved(tmp_path)
  monkeypatch.undo()
  with (
    _open(tmp_path) as checkpoints,
    pytest.raises(CheckpointError, match=r'of format 7 .*this version reads 1'),
  ):
    checkpoints.restore_latest(_state(0))


def test_a_full_disk_leaves_the_state_before(tmp_path, monkeypatch):
  _saved(tmp_path, steps=(1,))
  usage = shutil.disk_usage(tmp_path)
  full = lambda path: usage._replace(free=10)
  with _open(tmp_path, keep=1) as checkpoints:
    monkeypatch.setattr(shutil, 'disk_usage', full)
    with pytest.raises(StorageError, match=r'step 2 cannot.*Last good step: 1'):
      checkpoints.save(2, _state(2))
    monkeypatch.undo()
    monkeypatch.setattr(storage.os, 'fsync', _no_space)
    with pytest.raises(StorageError, match='No space left'):
      checkpoints.save(2, _state(2))
    monkeypatch.undo()
  with _open(tmp_path, keep=1) as checkpoints:
    checkpoints.save(3, _state(3))
    chex.assert_trees_all_equal(
      checkpoints.restore_latest(_state(0)), _state(3)
    )


def test_a_save_that_reads_back_wrong_deletes_nothing(tmp_path, monkeypatch):
  _saved(tmp_path, steps=(1,), keep=1)
  write = integrity.write_manifest

  def write_and_damage(path):
    write(path)
    _flip(next((path / 'state').rglob('d/*')), np.random.default_rng(0))

  monkeypatch.setattr(integrity, 'write_manifest', write_and_damage)
  with _open(tmp_path, keep=1) as checkpoints:
    with pytest.raises(StorageError, match=r'checksum.*Last good step: 1'):
      checkpoints.save(2, _state(2))
    with pytest.raises(StorageError, match='checksum'):
      checkpoints.save_best(2, _state(2), 0.5)
  monkeypatch.undo()
  with _open(tmp_path, keep=1) as checkpoints:
    assert checkpoints.best_score() is None
    assert (tmp_path / 'damaged' / 'best_2_0').exists()
    chex.assert_trees_all_equal(
      checkpoints.restore_latest(_state(0)), _state(1)
    )
    checkpoints.save(3, _state(3))
    chex.assert_trees_all_equal(
      checkpoints.restore_latest(_state(0)), _state(3)
    )


def _no_space(_):
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_record_is_sealed():
  record = json.loads(json.dumps(integrity.make(3, _state(3), FINGERPRINT)))
  assert integrity.is_sealed(record)
  assert integrity.damaged_arrays(_state(3), record) == []
  assert integrity.damaged_arrays(_state(4), record) == [
    "['half']", "['params']['w']", "['step']",
  ]  # fmt: skip
  record['fingerprint']['config.seed'] = 1
  assert not integrity.is_sealed(record)
  assert not integrity.is_sealed(None)
