"""The working directory: continuing, refusing, finishing what was stopped."""

import json
import os

import pytest

from configs import quickstart
from data.composite_actions import CompositeActions
from experiments import config as config_lib
from experiments import main as program
from experiments import workdir
from experiments.datasets import Splits
from experiments.errors import ConfigError, StorageError, WorkdirError
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
  assert names == {'.lock', 'config.json', 'data.json', 'label_map.txt'}
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
  assert {p.name for p in tmp_path.iterdir()} == {'metrics.json', 'table.txt'}


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
