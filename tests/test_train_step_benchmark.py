"""The benchmark of the training step, at tiny sizes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import naive_flax, train_step
from hman_jax import models

_TINY = [
  '--batch=2', '--steps=3', '--locations=4', '--size=5', '--hidden=3',
  '--layers=2', '--classes=3', '--repeats=1',
]  # fmt: skip


@pytest.mark.slow
def test_ratios_are_written_and_printed(tmp_path, capsys):
  path = tmp_path / 'result.json'
  train_step.main([*_TINY, '--clock=cpu', f'--json={path}'])
  result = json.loads(path.read_text())
  ratios, seconds = result['ratios'], result['seconds']
  assert ratios['naive_flax'] == seconds['deferred'] / seconds['naive_flax']
  assert ratios['floor'] > 0
  for name in ('torch_f32', 'torch_bf16', 'torch_lstm'):
    assert (ratios[name] is None) == (result['torch'] is None)
  assert result['memory_ratio'] > 0
  printed = capsys.readouterr().out
  assert 'B=2 T=3 N=4 D=5 H=3 L=2' in printed
  assert ('PyTorch cannot' in printed) == (result['torch'] is None)


def test_floor_counts_each_product_three_times():
  args = train_step.parse([*_TINY, '--attention=soft'])
  flops, num_bytes = train_step.floor_work(args)
  # bottom up 5 and 3, top down 3, recurrent 3 and 3, all times 4 * 3 columns.
  assert flops == 3 * 2 * (2 * 3) * 12 * (5 + 3 + 3 + 3 + 3)
  assert num_bytes == 2 * 4 * (2 * 3 * 4 * 5)


def test_other_work_is_refused(monkeypatch):
  copied = naive_flax.copied

  def wrong(*args):
    tree = copied(*args)
    tree['params']['head']['bias'] += 1.0
    return tree

  monkeypatch.setattr(naive_flax, 'copied', wrong)
  with pytest.raises(SystemExit, match='naive_flax computes other logits'):
    train_step.main(_TINY)


@pytest.mark.parametrize('code', ['none', 'onehot', 'sincos'])
def test_the_naive_content_scorer_computes_the_same(code):
  options = {'num_locations': 4, 'scorer_size': 5, 'position_code': code}
  ours = models.create(
    3, hidden_sizes=(4, 4), attention_options={'scorer': 'content', **options}
  )
  rng = np.random.default_rng(0)
  x = jnp.asarray(rng.normal(size=(2, 3, 4, 6)), jnp.float32)
  variables = ours.init(jax.random.key(0), x)
  naive = naive_flax.Recogniser(
    3, (4, 4), deterministic=True, scorer_size=5, position_code=code
  )
  copied = naive_flax.copied(naive, variables['params'], x)
  expected = ours.apply(variables, x, deterministic=True).logits
  np.testing.assert_allclose(naive.apply(copied, x), expected, atol=1e-6)


@pytest.mark.parametrize(
  ('flag', 'message'),
  [
    ('--batch=0', 'expected at least 1, got 0'),
    ('--attention=hard', 'invalid choice'),
    ('--json=/nowhere/at/all.json', 'existing folder'),
  ],
)
def test_bad_flags_are_one_line(flag, message, capsys):
  with pytest.raises(SystemExit) as error:
    train_step.main([*_TINY, flag])
  assert error.value.code == 2
  assert message in capsys.readouterr().err
