"""Runs of older versions, one each in old_runs/: read, or refused by number.

Each is a working directory as `tiny_runs.train_in` leaves it after two steps,
with the fingerprint that `experiments.main` gives its checkpoints, zipped.
"""

import json
import pathlib
import zipfile

import jax
import numpy as np
import pytest

from experiments import config as config_lib
from experiments import datasets, integrity, train, trained, workdir
from experiments.checkpoint import Checkpoints
from experiments.errors import CheckpointError, WorkdirError
from hman_jax import __version__

RUNS = pathlib.Path(__file__).parent / 'old_runs'
# By version: the sum of the absolute values of the parameters.
SUMS = {'0.1.0': 153.30712890625}


@pytest.fixture(params=SUMS)
def old(request, tmp_path):
  """(version, working directory)."""
  with zipfile.ZipFile(RUNS / f'{request.param}.zip') as archive:
    archive.extractall(tmp_path)
  return request.param, tmp_path


def test_a_run_of_every_version_is_read(old):
  version, directory = old
  run = trained.read(directory, checkpoint='latest')
  total = sum(float(np.abs(x).sum()) for x in jax.tree.leaves(run.params))
  assert total == pytest.approx(SUMS[version], rel=1e-6)
  assert run.step == 2
  assert (
    config_lib.ADDED.items() <= config_lib.flatten(run.config.to_dict()).items()
  )


@pytest.mark.slow
def test_a_run_of_every_version_goes_on(old):
  """What `experiments.main` does first to a run that it finds."""
  _, directory = old
  config = trained.read_config(directory)
  workdir.check(directory, config)
  splits = datasets.load(config)
  workdir.claim(directory, config, splits)
  shape = splits.train.feature_shape
  model = train.make_model(config, len(splits.train.class_names), shape)
  optimizer = train.make_optimizer(config.train)
  like = train.init_state(config, model, optimizer, shape)
  checkpoints = Checkpoints(
    directory, 1, workdir.fingerprint(config, splits), refuse_damaged=True
  )
  state = checkpoints.restore_latest(like)
  checkpoints.close()
  assert state is not None and int(state.step) == 2


def test_a_foreign_config_is_refused_by_version(old):
  version, directory = old
  path = directory / 'config.json'
  tree = json.loads(path.read_text())
  tree['model']['from_the_future'] = 1
  path.write_text(json.dumps(tree))
  with pytest.raises(WorkdirError) as error:
    trained.read(directory, checkpoint='latest')
  text = str(error.value)
  assert f'by hman_jax {version}; this is {__version__}' in text
  assert 'config.model.from_the_future: no such field' in text


@pytest.mark.slow
def test_other_classes_are_refused(old):
  """The same shapes of another meaning: two names exchanged."""
  version, directory = old
  path = directory / 'label_map.txt'
  first, second, *rest = path.read_text().splitlines()
  path.write_text('\n'.join([second, first, *rest]) + '\n')
  with pytest.raises(CheckpointError) as error:
    trained.read(directory, checkpoint='latest')
  text = str(error.value)
  assert f"class_names: was ['{first}', '{second}'" in text
  assert f'by hman_jax {version}; this is {__version__}' in text


def test_a_change_that_was_allowed_stays_allowed(tmp_path):
  """And what is saved after it is of the new config."""
  state = {'x': np.arange(3.0, dtype=np.float32)}
  first, second = (
    {'config.seed': 0, 'data': 'a'},
    {'config.seed': 1, 'data': 'a'},
  )

  def use(fingerprint, allowed=(), step=None):
    checkpoints = Checkpoints(tmp_path, 3, fingerprint, allowed=allowed)
    try:
      if step is None:
        return checkpoints.restore_latest(state)
      return checkpoints.save(step, state)
    finally:
      checkpoints.close()

  use(first, step=1)
  with pytest.raises(CheckpointError, match=r'config\.seed: was 0, is 1'):
    use(second)
  assert use(second, ['config.seed']) is not None
  with pytest.raises(CheckpointError, match='data: was'):
    use({**second, 'data': 'b'}, ['config.seed'])
  use(second, ['config.seed'], step=2)
  assert use(second) is not None
  assert not integrity.fingerprint_differences(second, {})
