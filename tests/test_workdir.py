"""The working directory: continuing, refusing, finishing what was stopped."""

import contextlib
import json
import os

import numpy as np
import pytest

from configs import quickstart
from data.composite_actions import CompositeActions
from experiments import config as config_lib
from experiments import main as program
from experiments import storage, workdir
from experiments.checkpoint import Checkpoints
from experiments.datasets import Splits
from experiments.errors import (
  CheckpointError,
  ConfigError,
  StorageError,
  WorkdirError,
)
from experiments.reporting import RunLog


def _config(**changes):
  config = quickstart.get_config()
  config.update_from_flattened_dict(changes)
  return config_lib.resolve(config)


def _splits(seed=0):
  parts = {
    name: CompositeActions(name, num_clips=8, seed=seed)
    for name in ('train', 'validation', 'test')
  }
  return Splits(**parts, preprocessing={'size': (7, 7)})


def test_a_claimed_directory_may_be_claimed_again(tmp_path):
  for _ in range(2):
    workdir.check(tmp_path / 'run', _config())
    with workdir.owned(tmp_path / 'run'):
      workdir.claim(tmp_path / 'run', _config(), _splits())
  names = {path.name for path in (tmp_path / 'run').iterdir()}
  assert names == {
    '.lock', 'config.json', 'data.json', 'label_map.txt', 'manifest.json',
  }  # fmt: skip
  written = json.loads((tmp_path / 'run' / 'config.json').read_text())
  assert written == _config().to_dict()


def test_a_check_writes_nothing(tmp_path):
  workdir.check(tmp_path / 'run', _config())
  assert not (tmp_path / 'run').exists()


def test_another_config_is_refused_by_field(tmp_path):
  workdir.claim(tmp_path, _config(), _splits())
  workdir.check(tmp_path, _config(**{'checkpoint.keep': 9}))
  with pytest.raises(WorkdirError, match=r'config\.seed: was 0, is 1'):
    workdir.check(tmp_path, _config(seed=1))


def test_an_allowed_change_is_remembered_at_once(tmp_path):
  """Also if the run is killed before it saves under the new config."""
  first, second, third = (
    _config(**{'train.learning_rate': rate}) for rate in (0.1, 0.2, 0.3)
  )
  name = 'train.learning_rate'
  state = {'x': np.arange(3.0, dtype=np.float32)}

  def start(config, allowed=(), save=False):
    """As `experiments.main` does."""
    workdir.check(tmp_path, config, allowed)
    workdir.claim(tmp_path, config, _splits(), allowed)
    checkpoints = Checkpoints(
      tmp_path, 2, workdir.fingerprint(config, _splits())
    )
    with contextlib.closing(checkpoints):
      if save:
        checkpoints.save(1, state)
        checkpoints.save_best(1, state, 0.5)
      assert checkpoints.best_score() == (1, 0.5)
      assert checkpoints.restore_best(state) is not None
      return checkpoints.restore_latest(state)

  start(first, save=True)
  with pytest.raises(WorkdirError, match=r'learning_rate: was 0\.1, is 0\.2'):
    start(second)
  assert start(second, [name]) is not None
  assert start(second) is not None  # of the first, nothing saved since
  assert start(third, [name]) is not None
  assert start(third) is not None
  assert workdir.changes(tmp_path) == {f'config.{name}': [0.1, 0.2]}
  (tmp_path / 'manifest.json').unlink()
  with pytest.raises(CheckpointError, match=r'best.*\n.*_rate: was 0\.1'):
    start(third)


def test_a_kill_between_two_files_leaves_the_old_or_the_new(
  tmp_path, monkeypatch
):
  first, second = _config(), _config(**{'checkpoint.keep': 9})
  write, left = storage.write_whole, []

  def write_some(path, text):
    if len(left) == 0:
      raise KeyboardInterrupt
    left.pop()
    write(path, text)

  for count in range(5):
    folder = tmp_path / str(count)
    folder.mkdir()
    workdir.claim(folder, first, _splits())
    monkeypatch.setattr(storage, 'write_whole', write_some)
    left[:] = [None] * count
    with contextlib.suppress(KeyboardInterrupt):
      workdir.claim(folder, second, _splits())
    monkeypatch.undo()
    keep = workdir.read_tree(folder, 'config.json')['checkpoint']['keep']
    assert keep == (9 if count == 4 else 3)
    workdir.claim(folder, second, _splits())
    assert workdir.read_tree(folder, 'config.json') == second.to_dict()


@pytest.mark.parametrize(
  'name', ['config.json', 'data.json', 'label_map.txt', 'table.txt']
)
def test_a_file_that_was_changed_is_refused(tmp_path, name):
  workdir.claim(tmp_path, _config(), _splits())
  workdir.finish(tmp_path, {}, 'top-1 10.0')
  path = tmp_path / name
  whole = path.read_text()
  path.write_text(whole.replace('1', '2').replace('left', 'lift'))
  with pytest.raises(WorkdirError, match=f'{name}: damaged .it is not as it'):
    workdir.read(tmp_path, name)
  path.write_text(whole)
  assert workdir.read(tmp_path, name) == whole
  manifest = tmp_path / 'manifest.json'
  manifest.write_text(manifest.read_text().replace('a', 'b'))
  with pytest.raises(WorkdirError, match=r'manifest\.json: damaged'):
    workdir.read(tmp_path, name)


def test_other_data_are_refused_and_the_record_stays(tmp_path):
  workdir.claim(tmp_path, _config(), _splits())
  before = (tmp_path / 'data.json').read_bytes()
  with pytest.raises(WorkdirError, match=r'other data .train, val'):
    workdir.claim(tmp_path, _config(), _splits(seed=1))
  assert (tmp_path / 'data.json').read_bytes() == before


@pytest.mark.parametrize('text', ['', '{"seed": 0', '\x00', '[1]'])
def test_a_damaged_file_is_named(tmp_path, text):
  (tmp_path / 'config.json').write_text(text)
  with pytest.raises(WorkdirError, match=r'config\.json: damaged'):
    workdir.check(tmp_path, _config())


def test_a_directory_that_cannot_be_made(tmp_path):
  (tmp_path / 'file').write_text('')
  with (
    pytest.raises(StorageError, match='cannot write here'),
    workdir.owned(tmp_path / 'file' / 'run'),
  ):
    raise AssertionError('not reached')


def test_a_directory_has_one_owner(tmp_path):
  with (
    workdir.owned(tmp_path / 'run'),
    pytest.raises(StorageError, match=rf'in use by process {os.getpid()} on'),
    workdir.owned(tmp_path / 'run'),
  ):
    raise AssertionError('not reached')
  with workdir.owned(tmp_path / 'run'):
    pass


def test_complete_means_that_the_table_is_there(tmp_path):
  assert workdir.finished_table(tmp_path) is None
  path = workdir.finish(tmp_path, {'test': {'acc/top1': 0.5}}, 'the table')
  assert workdir.finished_table(tmp_path) == 'the table\n'
  assert json.loads(path.read_text()) == {'test': {'acc/top1': 0.5}}
  assert {p.name for p in tmp_path.iterdir()} == {
    'manifest.json', 'metrics.json', 'table.txt',
  }  # fmt: skip


def test_the_final_test_is_recorded_once(tmp_path):
  scores = {'acc/top1': 0.5, 'loss': 1.0}
  for _ in range(2):  # the second as after a stop in the final evaluation
    log = RunLog(tmp_path, every=1, seconds=0)
    log.begin(3, 3, 8)
    log.evaluation(3, 'test', scores)
    log.close()
  lines = (tmp_path / 'metrics.jsonl').read_text().splitlines()
  assert [json.loads(line)['mode'] for line in lines] == ['test']


@pytest.mark.parametrize('boundary', ['soft', 'straight_through'])
def test_boundaries_that_are_not_drawn_cannot_be_sampled(boundary):
  changes = {'model.boundary': boundary, 'eval.boundary_mode': 'sample'}
  with pytest.raises(ConfigError, match=rf"'sample' needs .*got '{boundary}'"):
    _config(**changes)


def test_main_is_short():
  with open(program.__file__) as file:
    assert len(file.readlines()) <= 150
