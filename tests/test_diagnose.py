"""Diagnose: gradient noise by estimator, and where a network looks."""

import dataclasses
import json
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import diagnose, estimators, looking, train
from experiments.estimators import Gradients
from experiments.trained import TrainedRun
from hman_jax import losses
from hman_jax.attention import ATTENTIONS

from tiny_runs import tiny_config, untrained_in

SHAPE = (4, 5)
TINY_MODEL = {
  'model.hidden_size': 6, 'model.num_layers': 2, 'model.scorer_size': 3,
  'model.scorer': 'content', 'model.position_code': 'none',
}  # fmt: skip


def _tree(attention, cell, temperature=None):
  params = {'attention': {'scorer': np.array(attention)}}
  if temperature is not None:
    params['attention']['inverse_temperature'] = {'bias': np.array(temperature)}
  params['cell'] = ({'w': np.array(cell)},)
  params['features'] = {'mean': np.full(9, 7.0)}
  return {'params': params}


def test_parts_of_the_model():
  found = estimators.groups(_tree([1.0, 2.0], [[3.0]], [4.0]))
  assert {k: v.tolist() for k, v in found.items()} == {
    'attention': [1, 2], 'cell': [3], 'temperature': [4], 'all': [1, 2, 3],
  }  # fmt: skip


def test_variance_and_bias_are_freed_of_the_noise_of_draws():
  rng = np.random.default_rng(0)
  truth, bias = rng.normal(size=400), 0.5 * rng.normal(size=400)
  num_draws, drawn = 50, []
  for mean in (truth, truth + bias):
    x = mean + 3.0 * rng.normal(size=(num_draws, 400))
    drawn.append(
      Gradients(
        _tree(x.mean(axis=0), [0.0]), _tree(x.var(axis=0, ddof=1), [0.0]),
        num_draws,
      )
    )  # fmt: skip
  reference, biased = drawn
  of = estimators.describe(biased, reference)['attention']
  assert of['num_params'] == 400
  assert of['variance'] == pytest.approx(400 * 9, rel=0.05)
  squared = float((truth + bias) @ (truth + bias))
  assert of['squared_mean'] == pytest.approx(squared, rel=0.15)
  assert of['relative_variance'] == of['variance'] / of['squared_mean']
  true = float(truth @ truth)
  assert of['relative_bias'] == pytest.approx(bias @ bias / true, rel=0.4)
  cosine = (truth + bias) @ truth / (squared * true) ** 0.5
  assert of['cosine'] == pytest.approx(cosine, abs=0.1)
  alone = estimators.describe(reference, reference)
  assert 'cosine' not in alone['attention']
  assert alone['cell']['squared_mean'] is None


def _setting(attention='reinforce', num_frames=1, seed=0, **changes):
  config = tiny_config(
    **{
      **TINY_MODEL, 'model.attention': attention,
      'data.num_frames': num_frames, **changes,
    }
  )  # fmt: skip
  model = train.make_model(config, 3, SHAPE)
  params = model.init(jax.random.key(seed), jnp.zeros((1, 1, *SHAPE)))
  # Picks matter: features and head are large.
  params = jax.tree.map(lambda x: 2.0 * x, params)
  rng = np.random.default_rng(seed)
  batch = {
    'features': rng.normal(0, 2, (2, num_frames, *SHAPE)).astype(np.float32),
    'mask': np.ones((2, num_frames), bool),
    'label': np.array([0, 2], np.int32),
  }
  return config, model, params, batch


def _sample(estimator, num_draws, **options):
  config, _, params, batch = _setting(num_frames=2)
  return estimators.sample(
    config, params, batch, 3, estimator, num_draws=num_draws, **options
  )


@pytest.mark.slow
def test_soft_attention_has_no_noise_but_that_of_the_boundaries():
  still = estimators.groups(_sample('soft', 3).variance)
  assert all((v == 0).all() for v in still.values())
  moved = estimators.groups(_sample('soft', 3, boundary_noise=1.0).variance)
  assert moved['cell'].sum() > 0


@pytest.mark.slow
def test_the_spread_is_that_of_the_draws():
  """Against draws one at a time, by NumPy."""
  both = [_sample('gumbel', 2, seed=s) for s in range(3)]
  assert len({float(estimators.groups(b.mean)['all'].sum()) for b in both}) == 3
  assert estimators.groups(both[0].variance)['attention'].sum() > 0
  many = _sample('gumbel_adaptive', 400, seed=5)
  found = estimators.describe(many)
  assert found['temperature']['num_params'] == 6 + 1
  again = estimators.describe(_sample('gumbel_adaptive', 400, seed=6))
  for part in ('attention', 'all', 'temperature'):
    assert again[part]['variance'] == pytest.approx(
      found[part]['variance'], rel=0.35
    )


@pytest.mark.slow
def test_reinforce_is_unbiased():
  """Its mean against the exact gradient, summed over all picks."""
  config, model, params, batch = _setting()
  found = estimators.sample(
    config, params, batch, 3, 'reinforce', num_draws=20_000
  )

  class Forced(ATTENTIONS['reinforce']):
    pick: int = 0

    def attend(self, logits, features, h, key, deterministic):
      out = super().attend(logits, features, h, key, True)
      pick = jnp.full(logits.shape[:-1], self.pick)
      log_p = jax.nn.log_softmax(logits)[..., self.pick]
      context = self.picked(features, out.weights, pick)
      return out._replace(context=context, log_prob=log_p)

  def expected(params):
    total = 0.0
    for pick in range(SHAPE[0]):
      forced = Forced(
        pick=pick, scorer='content', num_locations=SHAPE[0], scorer_size=3
      )
      out = dataclasses.replace(model, attention=forced).apply(
        params, batch['features'], batch['mask'], key=jax.random.key(0),
        boundary_slope=train.MAX_SLOPE, boundary_noise=0.0,
      )  # fmt: skip
      loss = losses.cross_entropy(out.logits, batch['label'], batch['mask'])
      total += jnp.mean(jnp.exp(out.attention.log_prob[:, 0]) * loss)
    return total

  exact = estimators.groups(jax.grad(expected)(params))
  mean, variance = (estimators.groups(t) for t in (found.mean, found.variance))
  for part in ('attention', 'cell', 'head'):
    error = np.abs(mean[part] - exact[part])
    allowed = 5 * np.sqrt(variance[part] / found.num_draws) + 1e-5
    assert (error <= allowed).all()
  assert np.abs(exact['attention']).max() > 1e-3


def test_the_centre_is_always_looked_at():
  attention = looking.Centre(num_locations=9, scorer='location')
  x = np.random.default_rng(0).normal(size=(2, 9, 3)).astype(np.float32)
  h = np.zeros((2, 4), np.float32)
  params = attention.init(jax.random.key(0), x, h)
  out = attention.apply(params, x, h, deterministic=True)
  np.testing.assert_array_equal(out.context, x[:, 4])
  np.testing.assert_array_equal(out.weights.argmax(-1), [4, 4])


def _run_on(config, source):
  model = train.make_model(config, len(source.class_names), (49, 64))
  params = model.init(jax.random.key(0), np.zeros((1, 1, 49, 64)))
  return TrainedRun(
    pathlib.Path('run'), config, source.class_names, {}, model, params, 0
  )


@pytest.mark.slow
def test_looks_are_told_against_baselines():
  from data.composite_actions import CompositeActions

  config = tiny_config(**{'model.attention': 'gumbel_adaptive'})
  source = CompositeActions('test', num_clips=6)
  run = _run_on(config, source)
  found = looking.describe(run, source)
  assert found['entropy_uniform'] == pytest.approx(np.log(49))
  assert np.sum(found['map']) == pytest.approx(1)
  assert 0 < found['map_entropy'] <= np.log(49)
  targets = np.concatenate([source[i]['target'] for i in range(6)])
  assert found['hit_rate_centre'] == pytest.approx(np.mean(targets == 24))
  counts = np.bincount(targets, minlength=49)
  assert found['hit_rate_best_fixed'] == counts.max() / counts.sum()
  assert len(found['temperature']['mean']) == config.data.num_frames
  assert [b['layer'] for b in found['boundaries']] == [1, 2]


def _call(monkeypatch, capsys, *arguments):
  for name in diagnose.FLAGS.flag_values_dict():
    diagnose.FLAGS[name].unparse()
  monkeypatch.setattr(sys, 'argv', ['diagnose', *map(str, arguments)])
  with pytest.raises(SystemExit) as stop:
    diagnose.program.run(diagnose.main, diagnose.FLAGS, diagnose.__doc__)
  said = capsys.readouterr()
  return stop.value.code, said.out, said.err


@pytest.mark.slow
def test_the_program(tiny_workdir, tmp_path, monkeypatch, capsys):
  runs = [tmp_path / name for name in ('one', 'two')]
  for run in runs:
    shutil.copytree(tiny_workdir, run)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  code, said, error = _call(
    monkeypatch, capsys, f'--workdir={runs[0]},{runs[1]}', '--num_draws=3'
  )
  assert code == 0, error
  assert said.count('at the trained parameters:') == 2
  assert 'ratios over 2 runs' in said and 'reinforce / gumbel:' in said
  for run in runs:
    folder = run / 'diagnosis'
    assert (folder / 'diagnosis.png').read_bytes().startswith(b'\x89PNG')
    assert (folder / 'diagnosis.pdf').read_bytes().startswith(b'%PDF')
    found = json.loads((folder / 'diagnosis.json').read_text())
    for when in ('initial', 'trained'):
      of = found['gradients'][when]
      assert list(of) == list(estimators.ESTIMATORS)
      assert of['soft']['all']['variance'] == 0
      assert of['reinforce']['attention']['variance'] > 0
    assert found['temperature']['step'] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((), '--workdir: missing'),
    (('--workdir=none',), 'holds no run'),
    (('--workdir=none', '--num_draws=1'), 'num_draws'),
    (('--workdir=a,b', '--out=c'), '--out: of one run'),
    (('--workdir=none', 'stray'), "'stray'"),
  ],
)
def test_mistakes_end_in_one_message(monkeypatch, capsys, arguments, message):
  code, _, error = _call(monkeypatch, capsys, *arguments)
  assert code == 2 and message in error


@pytest.mark.slow
def test_a_model_without_attention_is_refused(tmp_path, monkeypatch, capsys):
  workdir = untrained_in(
    tmp_path / 'run', tiny_config(**{'model.name': 'lstm_mean'})
  )
  code, _, error = _call(monkeypatch, capsys, f'--workdir={workdir}')
  assert code == 2 and 'lstm_mean has no attention' in error
