"""The benchmarks at tiny sizes: what they write, and what they refuse."""

import json

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
  command,
  compilation,
  forward,
  launches,
  parts,
  pipeline,
  scaling,
  streaming,
)

_SIZES = {
  'batch': 2, 'steps': 3, 'locations': 4, 'size': 5, 'hidden': 3, 'layers': 2,
  'classes': 3, 'repeats': 1,
}  # fmt: skip


def _run(program, tmp_path, *flags, without=()):
  """What a program wrote to --json."""
  path = tmp_path / 'result.json'
  sizes = [f'--{k}={v}' for k, v in _SIZES.items() if k not in without]
  program.main([*sizes, '--clock=cpu', f'--json={path}', *flags])
  return json.loads(path.read_text())


@pytest.mark.slow
def test_forward(tmp_path, capsys):
  result = _run(forward, tmp_path)
  seconds = result['seconds']
  assert result['ratios']['hard'] == seconds['hard'] / seconds['soft']
  assert set(seconds) == {'hard', 'as_soft', 'reinforce', 'soft'}
  assert 'B=2 T=3 N=4 D=5 H=3 L=2' in capsys.readouterr().out


@pytest.mark.slow
def test_parts(tmp_path, capsys):
  result = _run(parts, tmp_path)
  of_parts = result['parts'].values()
  assert len(of_parts) == 4 and min(of_parts) > 0
  assert result['ratio'] == sum(of_parts) / result['floor']
  seconds = result['seconds']
  assert result['parts']['reading'] == min(
    seconds['read_in_place'], seconds['read_copied']
  )
  assert 'reading' in capsys.readouterr().out


def test_both_readings_of_features_are_the_same():
  rng = np.random.default_rng(0)
  features = jnp.asarray(rng.normal(size=(2, 3, 4, 16)), jnp.float32)
  d_context = jnp.asarray(rng.normal(size=(2, 16)), jnp.float32)
  (d, in_place), (e, copied) = (
    parts._reading(features, d_context, in_place=flag)()
    for flag in (True, False)
  )
  chex.assert_trees_all_close(in_place, copied, rtol=1e-4, atol=1e-5)
  chex.assert_trees_all_close(d, e, rtol=1e-4)
  expected = np.einsum('bd,bnd->bn', d_context, features[:, 0])
  chex.assert_trees_all_close(in_place[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compilation(tmp_path, capsys):
  path = tmp_path / 'result.json'
  compilation.main(['--repeats=1', '--clock=cpu', f'--json={path}'])
  result = json.loads(path.read_text())
  seconds = result['seconds']
  naive = ['naive_step', 'naive_flax', 'naive_quick']
  assert list(seconds) == ['ours', 'own_options', *naive]
  assert min(seconds.values()) > 0
  assert result['ratios']['naive_flax'] == (
    seconds['ours'] / seconds['naive_flax']
  )
  assert "the quickstart's step; cpu" in capsys.readouterr().out


@pytest.mark.slow
def test_streaming(tmp_path, capsys):
  without = ('batch', 'steps')
  result = _run(streaming, tmp_path, '--frames=4', without=without)
  assert result['compiled'] == 1
  assert result['ratios']['1.0'] == 1
  assert list(result['seconds']) == [str(r) for r in streaming.RATES]
  assert 'boundary rate' in capsys.readouterr().out


@pytest.mark.slow
def test_pipeline(tmp_path, capsys):
  result = _run(pipeline, tmp_path, '--locations=49', '--clips=3')
  assert result['megabytes'] == 2 * 3 * 49 * 5 * 2 / 1e6
  assert result['ratios']['step'] == 1
  assert 'step_and_pipeline' in capsys.readouterr().out


@pytest.mark.slow
def test_scaling(tmp_path, capsys):
  result = _run(scaling, tmp_path, '--sweeps=T,B', '--factors=3')
  sweep = result['sweeps']['T']
  assert sweep['sizes'] == [3, 6, 12]
  assert len(sweep['remat_bytes']) == len(sweep['seconds']) == 3
  assert set(sweep['growth_exponents']) == {'bytes', 'remat_bytes'}
  assert 'remat_bytes' not in result['sweeps']['B']
  assert 'of growth' in capsys.readouterr().out


def test_columns_of_a_table():
  lines = command.columns(
    [('', '{:<5}'), ('MB', '{:6.1f}'), (7, '{:4.0f}%')],
    [('ours', 2, 9), 'all of it', ('it', None, 100)],
  )
  assert lines == [
    '         MB    7',
    'ours    2.0   9%',
    'all of it',
    'it          100%',
  ]


def test_an_exponent_is_that_of_a_power():
  sizes = [1, 2, 4, 8, 16]
  costs = 3.0 * np.array(sizes) ** 0.5
  assert scaling.exponent(sizes, costs) == pytest.approx(0.5)
  assert scaling.growth_exponent(sizes, 7 + costs) == pytest.approx(0.5)
  assert scaling.growth_exponent(sizes, [1, 2, 2, 3, 4]) is None


def test_an_unknown_sweep_is_one_line(capsys):
  with pytest.raises(SystemExit) as error:
    scaling.main(['--sweeps=T,Q'])
  assert error.value.code == 2
  assert 'expected some of T,B,H,L' in capsys.readouterr().err


def test_launches_are_counted_in_loops():
  program = """
%add.1 (a: f32[], b: f32[]) -> f32[] {
  ROOT %c = f32[] add(%a, %b)
}

%body.2 (p: (s32[], f32[2])) -> (s32[], f32[2]) {
  %p = (s32[], f32[2]{0}) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %f = (f32[2]{0}, f32[]) fusion(%p), kind=kInput, calls=%add.1
  %k = f32[2]{0} custom-call(%f), custom_call_target="kernel"
  ROOT %t = (s32[], f32[2]{0}) tuple(%i, %k)
}

ENTRY %main (x: f32[2]) -> f32[2] {
  %x = f32[2]{0} parameter(0)
  %y = f32[2]{0} copy(%x)
  %w = (s32[], f32[2]{0}) while(%y), condition=%less, body=%body.2
  ROOT %r = f32[2]{0} get-tuple-element(%w), index=1
}
"""
  assert launches.count(program) == [2]
