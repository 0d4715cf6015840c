"""The training step on one and several devices, and whole runs."""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import types
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import (
  AxisType,
  NamedSharding,
  PartitionSpec,
  SingleDeviceSharding,
)

from configs import quickstart
from data import pipeline
from data.composite_actions import CompositeActions
from data.pipeline import train_batches
from experiments import config as config_lib
from experiments import datasets, evaluation, sharding, train
from experiments.checkpoint import Checkpoints
from experiments.errors import NonFiniteError, StoppedRun
from experiments.reporting import RunLog
from experiments.stacking import Moments
from experiments.step_watch import StepWatch
from experiments.stopping import Stop

ROOT = pathlib.Path(__file__).parent.parent
NUM_DEVICES = 4
SEEN_ELSEWHERE = ('hm_gumbel', 'hm_soft')  # their parts are in other presets
TINY = {
  'data.num_train': 24,
  'data.num_validation': 8,
  'data.num_test': 8,
  'data.num_frames': 12,
  'model.hidden_size': 8,
  'model.scorer_size': 8,
  'train.batch_size': 8,
  'train.num_steps': 6,
  'train.warmup_steps': 0,
  'train.eval_every': 3,
  'train.log_every': 1,
  'checkpoint.every': 2,
  'eval.batch_size': 8,
}


def _config(**changes):
  config = quickstart.get_config()
  config.update_from_flattened_dict({**TINY, **changes})
  return config_lib.resolve(config)


def _source():
  return CompositeActions('train', num_clips=24)


def _setup(config):
  source = _source()
  model = train.make_model(config, 8, source.feature_shape)
  optimizer = train.make_optimizer(config.train)
  state = train.init_state(config, model, optimizer, source.feature_shape)
  step = train.make_train_step(config, model, optimizer, steps_per_epoch=3.0)
  batches = train_batches(
    source, batch_size=8, num_frames=config.data.num_frames, seed=0
  )
  return state, step, [next(batches) for _ in range(4)]


def _run(config, devices):
  """4 steps with the batch spread over a mesh of some devices."""
  state, step, batches = _setup(config)
  mesh = jax.make_mesh(
    (devices,),
    ('data',),
    axis_types=(AxisType.Auto,),
    devices=jax.devices()[:devices],
  )
  state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
  key = jax.device_put(jax.random.key(0), NamedSharding(mesh, PartitionSpec()))
  step = jax.jit(step)
  for batch in batches:
    batch = jax.device_put(batch, NamedSharding(mesh, PartitionSpec('data')))
    state, metrics = step(state, batch, key)
  return jax.device_get((state, metrics))


def _run_pmap(config):
  state, step, batches = _setup(config)
  split = lambda x: x.reshape(NUM_DEVICES, -1, *x.shape[1:])
  copies = lambda x: jnp.broadcast_to(x, (NUM_DEVICES, *x.shape))
  state = jax.tree.map(copies, state)
  parallel = jax.pmap(
    lambda s, b, k: step(s, b, k, axis_name='data'),
    axis_name='data',
    in_axes=(0, 0, None),
  )
  for batch in batches:
    state, metrics = parallel(
      state, jax.tree.map(split, batch), jax.random.key(0)
    )
  return jax.tree.map(lambda x: np.asarray(x)[0], (state, metrics))


@pytest.mark.parametrize(
  'name',
  [
    'hm_gumbel_adaptive',
    pytest.param('hm_reinforce', marks=pytest.mark.slow),
  ],
)
def test_mesh_and_pmap_equal_one_device(name):
  config = _config(**{'model.name': name, 'model.dropout': 0.2})
  one, _ = _run(config, 1)
  four, _ = _run(config, NUM_DEVICES)
  mapped, _ = _run_pmap(config)
  chex.assert_trees_all_close(four, one, atol=1e-5)
  chex.assert_trees_all_close(mapped, one, atol=1e-5)
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()),
    one.params,
    _setup(config)[0].params,
  )
  assert max(jax.tree.leaves(moved)) > 1e-3


def test_standard_features_keep_their_statistics(tmp_path):
  """They are those of the training clips, and training leaves them alone."""
  config = _config(**{'model.feature_norm': 'standard'})
  source = _source()
  splits = datasets.Splits(source, source, source, preprocessing={})
  checkpoints = Checkpoints(tmp_path, 2)
  log = RunLog(tmp_path, 1, 0.0)
  mesh = sharding.make_mesh(config.train)
  state = train.run(config, splits, mesh, checkpoints, log, Stop())
  log.close()
  checkpoints.close()
  statistics = state.params['params']['features']
  mean, scale = pipeline.feature_statistics(source)
  np.testing.assert_array_equal(statistics['mean'], mean)
  np.testing.assert_array_equal(statistics['scale'], scale)


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SEEN_ELSEWHERE))
    for name in config_lib.PRESETS
  ],
)
def test_presets_train_and_are_scored(name):
  config = _config(**{'model.name': name, 'loss.doubly_stochastic': 0.01})
  state, metrics = _run(config, 1)
  chex.assert_tree_all_finite(state.params)
  chex.assert_tree_all_finite(metrics)
  source = CompositeActions('test', num_clips=8)
  model = train.make_model(config, 8, source.feature_shape)
  scores = evaluation.Evaluator(config, model).score(
    state.params, source, both_modes=True
  )
  for metric in ('acc/top1', 'acc/top5', 'acc/mean1', 'mAP'):
    assert 0 <= scores[metric] <= 1
  assert ('boundary/f1' in scores) == name.startswith('hm_')
  assert ('boundary/rate_3_sampled' in scores) == name.startswith('hm_')
  assert ('attention/hit_rate' in scores) == (name != 'softmax_regression')


@pytest.mark.parametrize(
  'options',
  [
    {
      'model.boundary': 'straight_through',
      'model.head': 'gated_embedding',
      'model.layer_norm': True,
      'loss.label_smoothing': 0.1,
      'train.optimizer': 'adam',
    },
    {
      'model.boundary': 'soft',
      'model.top_detector': False,
      'model.copied_boundary': 'zero',
      'train.schedule': 'step',
      'train.warmup_steps': 2,
      'model.global_context': True,
    },
    {
      'model.attention': 'reinforce',
      'loss.rewards_to_go': True,
      'loss.num_samples': 3,
      'eval.boundary_mode': 'sample',
      'eval.num_samples': 2,
    },
    {
      'model.boundary': 'fixed',
      'model.boundary_period': 2,
      'model.feature_norm': 'layer',
    },
  ],
)
def test_options_train(options):
  state, metrics = _run(_config(**options), 1)
  chex.assert_tree_all_finite((state.params, metrics))


def test_parts_of_a_batch_are_the_batch():
  """Noise is drawn by row; only the rates' penalty is of a part."""
  changes = {'model.dropout': 0.2, 'loss.boundary_rate_weight': 0.0}
  whole, metrics = _run(_config(**changes), 1)
  parts, other = _run(_config(**changes, **{'train.accumulate_steps': 4}), 2)
  chex.assert_trees_all_close(parts.params, whole.params, atol=1e-5)
  chex.assert_trees_all_close(other['loss'], metrics['loss'], atol=1e-5)


def test_the_average_of_the_parameters():
  config = _config(**{'train.ema_decay': 0.75})
  state, step, batches = _setup(config)
  step, key = jax.jit(step), jax.random.key(0)
  average = jax.tree.map(np.asarray, state.params)
  for batch in batches:
    state, _ = step(state, batch, key)
    average = jax.tree.map(
      lambda a, p: 0.75 * a + 0.25 * np.asarray(p), average, state.params
    )
  chex.assert_trees_all_close(state.averaged, average, atol=1e-6)
  assert state.evaluated() is state.averaged


@pytest.mark.parametrize('scale', [0.1, 100.0])
def test_gradients_are_clipped_by_their_global_norm(scale):
  """Adam's first moment is 0.1 of the clipped gradient."""
  recipe = _config(**{'train.clip_norm': 2.0, 'train.optimizer': 'adam'})
  gradient = {
    'a': np.array([[3.0, -4.0]]) * scale,
    'b': np.array([12.0]) * scale,
  }
  optimizer = train.make_optimizer(recipe.train)
  params = jax.tree.map(jnp.zeros_like, gradient)
  _, state = optimizer.update(
    jax.tree.map(jnp.asarray, gradient), optimizer.init(params), params
  )
  (moments,) = optax.tree.get_all_with_path(state, 'mu')
  factor = min(1.0, 2.0 / (13.0 * scale))
  expected = jax.tree.map(lambda g: 0.1 * factor * g, gradient)
  chex.assert_trees_all_close(moments[1], expected, rtol=1e-5)


@pytest.mark.parametrize(
  'value', [np.inf, pytest.param(np.nan, marks=pytest.mark.slow)]
)
def test_a_step_that_is_not_finite_changes_nothing(value):
  state, step, (batch, *_) = _setup(_config(**{'train.ema_decay': 0.5}))
  features = batch['features'].astype(np.float32)
  features[3] = value
  step, key = jax.jit(step), jax.random.key(0)
  after, metrics = step(state, {**batch, 'features': features}, key)
  assert float(metrics['nonfinite']) == 1.0
  assert (int(after.step), int(after.skipped)) == (1, 1)
  same = lambda s: (s.params, s.opt_state, s.baseline, s.averaged)
  chex.assert_trees_all_equal(same(after), same(state))
  good, metrics = step(after, batch, key)
  assert float(metrics['nonfinite']) == 0.0
  assert (int(good.step), int(good.skipped)) == (2, 1)


def test_an_update_that_overflows_changes_nothing():
  """Though loss and gradient are finite."""
  changes = {'train.ema_decay': 0.5, 'model.name': 'softmax_regression'}
  config, source = _config(**changes), _source()
  model = train.make_model(config, 8, source.feature_shape)
  optimizer = optax.chain(optax.scale(1e30), optax.scale(1e30))
  state = train.init_state(config, model, optimizer, source.feature_shape)
  step = jax.jit(train.make_train_step(config, model, optimizer, 3.0))
  batch = _setup(config)[2][0]
  after, metrics = step(state, batch, jax.random.key(0))
  assert np.isfinite(float(metrics['loss'] + metrics['grad_norm']))
  assert float(metrics['nonfinite']) == 2.0
  assert (int(after.step), int(after.skipped)) == (1, 1)
  chex.assert_trees_all_equal(after.params, state.params)
  chex.assert_trees_all_equal(after.averaged, state.averaged)


@pytest.mark.parametrize(
  'changes',
  [
    {'train.optimizer': 'adam'},
    {'train.optimizer': 'adamw', 'train.ema_decay': 0.9},
  ],
)
def test_moments_stay_stacked_and_are_the_same(changes):
  config = _config(**changes)
  state, step, batches = _setup(config)
  stacks = train.stacking_of(config.train, state.params)
  place = SingleDeviceSharding(jax.devices()[0])
  moments = Moments(stacks, place)
  stacked = moments.stacked(state)
  few, many = (len(jax.tree.leaves(s.opt_state)) for s in (stacked, state))
  assert few < many / 4
  step = jax.jit(step)
  for batch in batches:
    state, _ = step(state, batch, jax.random.key(0))
    stacked, _ = step(stacked, batch, jax.random.key(0))
    chex.assert_trees_all_equal_structs(
      stacked.opt_state, stacks.pack(state.opt_state)
    )
  chex.assert_trees_all_close(moments.whole(stacked), state, rtol=1e-6)
  unchanged = Moments(None, place)
  assert unchanged.stacked(state) is state is unchanged.whole(state)


def _watch(config, workdir):
  checkpoints = types.SimpleNamespace(latest_step=lambda: 5, workdir=workdir)
  return StepWatch(
    config.train, _source(), Stop(), typing.cast(typing.Any, checkpoints)
  )


@pytest.mark.parametrize('count', [16, 17])
@pytest.mark.parametrize('processes', [1, 2])
def test_all_clips_of_a_batch_are_named(
  tmp_path, monkeypatch, count, processes
):
  monkeypatch.setattr(train.distributed, 'count', lambda: processes)
  watch = _watch(_config(), tmp_path)
  clips = np.arange(count)[::-1]
  watch.add(7, {'nonfinite': 2.0, 'skipped': 1}, {'clip': clips})
  with pytest.raises(NonFiniteError, match='not the state after the up') as e:
    watch.check()
  text = str(e.value)
  assert ('in process 0 (the others name' in text) == (processes == 2)
  (path,) = tmp_path.iterdir() if count > 16 else (None,)
  if path:
    assert f'17, listed in {path}' in text
    text = path.read_text()
  else:
    assert max(map(len, text.splitlines()[1:-1])) <= 70
  names = [_source().clip_names[i] for i in clips]
  assert re.findall(r'train_\d+', text) == names


def test_a_stop_before_the_first_step_says_so(tmp_path):
  config, source, stop = _config(), _source(), Stop()
  splits = datasets.Splits(source, source, source, preprocessing={})
  stop.signal = 15
  with (
    contextlib.closing(Checkpoints(tmp_path, 2)) as checkpoints,
    contextlib.closing(RunLog(tmp_path, 1, 0.0)) as log,
    pytest.raises(StoppedRun, match=r'^stopped before the first') as error,
  ):
    mesh = sharding.make_mesh(config.train)
    train.run(config, splits, mesh, checkpoints, log, stop)
  assert error.value.exit_code == 143
  assert not list((tmp_path / 'checkpoints').iterdir())


@pytest.mark.parametrize(
  ('mode', 'allowed', 'ends'),
  [('stop', 10, True), ('skip', 0, True), ('skip', 2, False)],
)
def test_what_is_not_finite_ends_a_run_or_is_skipped(
  mode, allowed, ends, capsys, tmp_path
):
  config = _config(**{'train.on_nonfinite': mode, 'train.max_skipped': allowed})
  watch = _watch(config, tmp_path)
  bad = {'nonfinite': 1.0, 'skipped': 1}
  watch.add(7, bad, {'clip': np.array([2, 0])})
  names = [_source().clip_names[i] for i in (2, 0)]
  if ends:
    with pytest.raises(NonFiniteError) as error:
      watch.check()
    message = str(error.value)
    assert 'last good checkpoint: step 5' in message
  else:
    watch.check()
    message = capsys.readouterr().out
    assert 'skipped (1 of 2)' in message
  assert 'step 7: the loss or its gradient is not finite' in message
  assert ', '.join(names) in message


@pytest.mark.slow
def test_the_baseline_moves_and_the_rate_penalty_pulls():
  config = _config(**{'model.name': 'hm_reinforce'})
  state, _ = _run(config, 1)
  assert float(state.baseline) < -0.1
  pulled = {}
  for target in (0.05, 0.9):
    config = _config(
      **{
        'loss.boundary_rate_target': target,
        'loss.boundary_rate_weight': 1000.0,
        'train.learning_rate': 0.05,
      }
    )
    state, _ = _run(config, 1)
    layers = state.params['params']['cell'].layers
    pulled[target] = np.mean([layer.bias_z for layer in layers])
  assert pulled[0.05] < pulled[0.9] - 0.1


def test_schedules():
  paper = quickstart.get_config().train
  paper.update(
    schedule='step', learning_rate=1e-4, drop_step=10_000, warmup_steps=0
  )
  rate = train.learning_rate(paper)
  assert float(rate(9_999)) == pytest.approx(1e-4)
  assert float(rate(10_001)) == pytest.approx(1e-5)
  paper.update(boundary_noise_end=0.0, boundary_noise_part=0.5, num_steps=100)
  noise = [float(train.boundary_noise(paper, s)) for s in (0, 25, 50, 99)]
  assert noise == pytest.approx([1.0, 0.5, 0.0, 0.0])


def test_dead_layers_are_told():
  scores = {
    'boundary/rate_1': 0.0,
    'boundary/rate_2': 0.5,
    'boundary/rate_3': 1.0,
    'boundary/rate_2_sampled': 0.0,
  }
  lines = evaluation.dead_layers(scores)
  assert [line.split()[1] for line in lines] == ['1', '3']


def test_a_best_checkpoint_is_the_later_of_equals(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=2)
  state = {'x': jnp.arange(3.0)}
  for step, score in ((1, 0.5), (2, 0.7), (3, 0.7), (4, 0.6)):
    checkpoints.save_best(step, {'x': state['x'] + step}, score)
    checkpoints.save(step, {'x': state['x'] + step})
  assert checkpoints.best_score() == (3, 0.7)
  best = checkpoints.restore_best(state)
  assert best is not None
  chex.assert_trees_all_equal(best['x'], state['x'] + 3)
  assert checkpoints.latest_step() == 4
  checkpoints.close()


def test_records_of_a_lost_run_are_dropped(tmp_path):
  path = tmp_path / 'metrics.jsonl'
  lines = [json.dumps({'mode': 'train', 'step': s}) for s in (1, 2, 3)]
  path.write_text('\n'.join(lines) + '\n{"mode": "tra')
  log = RunLog(tmp_path, every=1, seconds=0)
  log.begin(2, 5, 8)
  log.close()
  assert [json.loads(x)['step'] for x in path.read_text().splitlines()] == [
    1,
    2,
  ]


# --- the program ------------------------------------------------------------


def _main(tmp_path, *arguments, **changes):
  flags = [f'--config.{k}={v}' for k, v in {**TINY, **changes}.items()]
  environment = {
    **os.environ,
    'XDG_CACHE_HOME': str(tmp_path / 'cache'),
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': '',
  }
  return subprocess.run(
    [sys.executable, '-m', 'experiments.main', *arguments, *flags],
    cwd=ROOT,
    env=environment,
    capture_output=True,
    text=True,
    timeout=300,
  )


QUICKSTART = '--config=configs/quickstart.py'


def _records(workdir, mode='train'):
  lines = map(json.loads, (workdir / 'metrics.jsonl').read_text().splitlines())
  return [r for r in lines if r['mode'] == mode]


def test_a_run_leaves_what_is_needed_and_goes_on_exactly(tmp_path):
  whole, parts = tmp_path / 'whole', tmp_path / 'parts'
  done = _main(tmp_path, QUICKSTART, f'--workdir={whole}')
  assert done.returncode == 0, done.stderr
  assert 'top-1 accuracy' in done.stdout and 'chance' in done.stdout
  scores = json.loads((whole / 'metrics.json').read_text())
  assert {'acc/top1', 'acc/mean1', 'mAP', 'boundary/f1', 'attention/hit_rate',
          'boundary/rate_1'} <= set(scores['test'])  # fmt: skip
  assert len((whole / 'label_map.txt').read_text().splitlines()) == 8
  assert json.loads((whole / 'config.json').read_text())['seed'] == 0
  assert json.loads((whole / 'data.json').read_text())['feature_shape'] == [
    49, 64,
  ]  # fmt: skip
  assert list((whole / 'tensorboard').iterdir())
  assert [r['step'] for r in _records(whole)] == [1, 2, 3, 4, 5, 6]

  picture = tmp_path / 'clip.png'
  drawn = subprocess.run(
    [
      sys.executable,
      '-m',
      'experiments.picture',
      f'--workdir={whole}',
      f'--out={picture}',
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )
  assert drawn.returncode == 0, drawn.stderr
  assert picture.read_bytes().startswith(b'\x89PNG')

  # A run stopped at step 4, after its checkpoint: what the disk then held.
  state_at = lambda d, s: d / 'checkpoints' / str(s)
  done = _main(tmp_path, QUICKSTART, f'--workdir={parts}')
  assert done.returncode == 0, done.stderr
  for path in (state_at(parts, 6), parts / 'best' / '6'):
    subprocess.run(['rm', '-rf', str(path)], check=True)
  resumed = _main(tmp_path, QUICKSTART, f'--workdir={parts}')
  assert resumed.returncode == 0, resumed.stderr
  losses = lambda d: [(r['step'], r['loss']) for r in _records(d)]
  assert losses(parts) == losses(whole)

  again = _main(tmp_path, QUICKSTART, f'--workdir={whole}')
  assert again.returncode == 0 and 'already complete at step 6' in again.stdout
  other = _main(
    tmp_path, QUICKSTART, f'--workdir={whole}', **{'train.batch_size': 4}
  )
  assert other.returncode == 2
  assert 'config.train.batch_size: was 8, is 4' in other.stderr


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((QUICKSTART, '--config.modle.name=x'), 'Did you mean config.model.name?'),
    ((QUICKSTART, '--config.model.name=hm_sofft'), "Did you mean 'hm_soft'?"),
    ((QUICKSTART, '--config.train.learning_rate=nan'), 'learning_rate: expect'),
    ((QUICKSTART, '--config.train.num_steps=many'), 'command line: '),
    ((QUICKSTART, '--wordkir=x'), 'command line: '),
    ((QUICKSTART, 'stray'), 'no positional arguments'),
    (('--config=configs/none.py',), '--config: '),
    ((), '--config: missing'),
    (('--config=configs/hmdb51.py',), 'hmdb51_org.rar'),
  ],
)
def test_mistakes_end_in_one_message(tmp_path, arguments, message):
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.main',
     f'--workdir={tmp_path}/run', *arguments],
    cwd=ROOT, capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  assert done.returncode == 2
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
