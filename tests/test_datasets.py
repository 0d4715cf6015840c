"""From trees of every data set to batches, and through the main job."""

import contextlib
import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from configs import hmdb51 as hmdb51_recipe
from configs import olympic_sports as olympic_sports_recipe
from configs import ucf_sports as ucf_sports_recipe
from configs import video_folder as video_folder_recipe
from data import (
  features,
  olympic_sports,
  pipeline,
  ucf_sports,
)
from data.errors import DataError
from data.videos import decode
from experiments import config as config_lib
from experiments import datasets, trained, workdir
from experiments.checkpoint import Checkpoints
from experiments.errors import CheckpointError, WorkdirError

import data_trees
import tiny_runs
import video_files
from quarters import Quarters

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize('module', [ucf_sports, olympic_sports])
@pytest.mark.parametrize('make', ['nothing', 'missing', 'empty', 'file'])
def test_no_data_set_gives_one_message_with_the_way_out(tmp_path, module, make):
  root = tmp_path / 'data'
  if make == 'empty':
    root.mkdir()
  if make == 'file':
    root.touch()
  options = {} if module is olympic_sports else {'split': 1}
  with pytest.raises(DataError) as error:
    module.read('' if make == 'nothing' else root, **options)
  message = str(error.value)
  assert 'http' in message and 'ROOT/' in message
  assert 'python -m experiments.main --config=configs/quickstart.py' in message


TREES = {
  'hmdb51': (hmdb51_recipe, data_trees.hmdb51, {}),
  'hmdb51 flat': (hmdb51_recipe, data_trees.hmdb51, {'flat': True}),
  'ucf avi': (ucf_sports_recipe, data_trees.ucf_sports_tree, {'kind': 'avi'}),
  'ucf jpg': (ucf_sports_recipe, data_trees.ucf_sports_tree, {'kind': 'jpg'}),
  'olympic': (olympic_sports_recipe, data_trees.olympic_sports, {}),
  'folder': (video_folder_recipe, data_trees.video_folder, {}),
}


@pytest.mark.parametrize('name', TREES)
def test_from_a_tree_to_batches(tmp_path, monkeypatch, name, capsys):
  recipe, make, options = TREES[name]
  monkeypatch.setitem(features.EXTRACTORS, 'efficientnet_lite0', Quarters)
  config = recipe.get_config()
  config.data.root = str(make(tmp_path / 'data', **options))
  config.data.features_dir = str(tmp_path / 'store')
  splits = datasets.load(config_lib.resolve(config))
  assert json.dumps([s.identity for s in splits[:3]])
  seen = set()
  for source in splits[:3]:
    assert source.class_names == splits.train.class_names
    assert not seen & set(source.clip_names)
    seen |= set(source.clip_names)
    for batch in pipeline.eval_batches(source, batch_size=4, num_frames=8):
      assert batch['features'].shape[2:] == (4, 3)
  shown = capsys.readouterr().err
  assert ('warning: ' in shown) == (name.startswith(('ucf', 'oly')))


def test_a_video_replaced_by_another_of_its_name(tmp_path, monkeypatch):
  """Its features are made anew, and a run on the old one is refused."""
  monkeypatch.setitem(features.EXTRACTORS, 'efficientnet_lite0', Quarters)
  config = hmdb51_recipe.get_config()
  config.data.root = str(data_trees.hmdb51(tmp_path / 'data'))
  config.data.features_dir = str(tmp_path / 'store')
  config.data.num_frames = 8
  config.model.name = 'softmax_regression'
  config = config_lib.resolve(config)
  before = datasets.load(config)
  run = tiny_runs.untrained_in(tmp_path / 'run', config)
  trained.read(run).open_data()
  for part, name in ((before.test, 'test'), (before.train, 'train')):
    clip = part.clip_names[0]
    (path,) = (tmp_path / 'data').rglob(pathlib.Path(clip).name)
    whole = path.read_bytes()
    video_files.write(path, data_trees.frames(99), 'rawvideo', 'bgr24')
    after = datasets.load(config)
    replaced = getattr(after, name)
    assert replaced.clip_names[0] == clip
    np.testing.assert_array_equal(
      replaced[0]['features'], Quarters().extract(decode(path, (32, 32)))
    )
    assert not np.array_equal(replaced[0]['features'], part[0]['features'])
    fingerprint = workdir.fingerprint(config, after)
    with contextlib.closing(Checkpoints(run, 1, fingerprint)) as checkpoints:
      for restore in (checkpoints.restore_latest, checkpoints.best_score):
        with pytest.raises(CheckpointError, match=r'\n  videos: was'):
          restore(*[{}] * (restore == checkpoints.restore_latest))
    with pytest.raises(WorkdirError, match='videos are not those of the run'):
      trained.read(run).open_data()
    path.write_bytes(whole)
  trained.read(run).open_data()


@pytest.mark.slow
@pytest.mark.parametrize('name', ['hmdb51', 'ucf jpg', 'olympic', 'folder'])
def test_the_main_job(tmp_path, name):
  recipe, make, options = TREES[name]
  root = make(tmp_path / 'data', **options)
  fields = {
    'data.root': root, 'data.features_dir': tmp_path / 'store',
    'data.num_frames': 8, 'model.hidden_size': 8, 'model.scorer_size': 8,
    'train.num_steps': 2, 'train.batch_size': 4, 'train.eval_every': 2,
    'train.warmup_steps': 1, 'eval.batch_size': 4, 'checkpoint.every': 2,
  }  # fmt: skip
  done = subprocess.run(
    [
      sys.executable, '-m', 'experiments.main',
      f'--config={recipe.__file__}', f'--workdir={tmp_path / "run"}',
      *(f'--config.{k}={v}' for k, v in fields.items()),
    ],
    cwd=ROOT, capture_output=True, text=True, timeout=580,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert (tmp_path / 'run' / 'metrics.json').exists()


@pytest.mark.slow
def test_int8_and_a_skipped_video_in_the_main_job(tmp_path):
  root = data_trees.hmdb51(tmp_path / 'data')
  bad = min(root.glob('sit/two*'))
  bad.write_bytes(bad.read_bytes()[:-500])
  fields = {
    'data.root': root, 'data.features_dir': tmp_path / 'store',
    'data.store_dtype': 'int8',
    'data.num_frames': 8, 'model.hidden_size': 8, 'model.scorer_size': 8,
    'train.num_steps': 2, 'train.batch_size': 4, 'train.eval_every': 2,
    'train.warmup_steps': 1, 'eval.batch_size': 4, 'checkpoint.every': 2,
  }  # fmt: skip

  def run(**more):
    return subprocess.run(
      [
        sys.executable, '-m', 'experiments.main',
        f'--config={hmdb51_recipe.__file__}', f'--workdir={tmp_path / "run"}',
        *(f'--config.{k}={v}' for k, v in (fields | more).items()),
      ],
      cwd=ROOT, capture_output=True, text=True, timeout=580,
    )  # fmt: skip

  done = run()
  assert done.returncode == 2 and '1 of 24 videos are bad' in done.stderr
  assert str(bad) in done.stderr and 'on_bad_video=skip' in done.stderr
  done = run(**{'data.on_bad_video': 'skip'})
  assert done.returncode == 0, done.stderr
  name = f'sit/{bad.name}'
  assert (
    f'1 clips were skipped, their videos being bad: {name}'
    in (tmp_path / 'run' / 'table.txt').read_text()
  )
  (about,) = (tmp_path / 'run' / 'checkpoints').glob('2/integrity/metadata')
  assert json.loads(about.read_text())['fingerprint']['skipped_clips'] == [name]
