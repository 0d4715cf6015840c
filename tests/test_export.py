"""Exported programs: equal to the model, and readable without the library."""

import json
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from experiments import export as export_program
from experiments import train, trained
from hman_jax import export, models

import untrained_runs

N, D, C = 4, 3, 5

_CHILD = """
import sys
for name in ('hman_jax', 'experiments', 'data', 'flax'):
  sys.modules[name] = None  # importing it is an error
import pathlib
import jax.export
import numpy as np

out = pathlib.Path(sys.argv[1])
load = lambda name: jax.export.deserialize((out / f'{name}.jax').read_bytes())
parameters = dict(np.load(out / 'parameters.npz'))
given = np.load(out / 'given.npz')
x, mask = given['x'], given['mask']
found = load('blocks').call(parameters, x, mask)
stream = load('stream_start').call(parameters, x[:1], mask[:1])
step = jax.jit(load('stream_step').call, donate_argnums=1)
frames = []
for t in range(x.shape[1]):
  stream, output = step(parameters, stream, x[:1, t])
  frames.append(output['logits'])
assert step._cache_size() == 1
np.savez(out / 'found.npz', stream=np.stack(frames, axis=1), **found)
"""


def test_programs_take_any_batch_and_length():
  model = models.create(
    C, hidden_sizes=(3, 3), attention_options={'num_locations': N}
  )
  rng = np.random.default_rng(0)
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 1, N, D))
  )
  variables = jax.tree.map(
    lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype), shapes
  )
  programs = export.programs(model, variables, (N, D), platforms=('cpu',))
  assert 'params/cell/layers/1/recurrent' in programs.parameters
  x = rng.normal(size=(2, 7, N, D)).astype(np.float16)
  mask = np.arange(7)[None] < np.array([[7], [4]])
  found = programs.blocks.call(programs.parameters, x, mask)
  one = programs.blocks.call(programs.parameters, x[1:, :4], mask[1:, :4])
  chex.assert_trees_all_close(
    one['probabilities'], found['probabilities'][1:], atol=1e-6
  )
  np.testing.assert_allclose(found['probabilities'].sum(-1), 1, atol=1e-6)
  assert found['operation'].shape == (2, 7, 2)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['hm_gumbel_adaptive', 'lstm_soft'])
def test_a_process_without_the_library_gets_the_same(
  name, tmp_path, monkeypatch, capsys
):
  workdir = untrained_runs.make(
    tmp_path / 'run', quickstart, **{'model.name': name}
  )
  out = tmp_path / 'out'
  export_program.FLAGS.unparse_flags()
  monkeypatch.setattr(
    sys, 'argv', ['export', f'--workdir={workdir}', f'--out={out}']
  )
  export_program.FLAGS(sys.argv)
  export_program.main([])
  assert 'stream_step.jax' in capsys.readouterr().out
  run = trained.read(workdir)
  about = json.loads((out / 'export.json').read_text())
  assert about['classes'] == list(run.class_names)
  assert about['features']['shape'] == list(run.feature_shape)

  rng = np.random.default_rng(0)
  x = rng.random((2, 9, *run.feature_shape)).astype(np.float16)
  mask = np.arange(9)[None] < np.array([[9], [5]])
  np.savez(out / 'given.npz', x=x, mask=mask)
  subprocess.run([sys.executable, '-I', '-c', _CHILD, out], check=True)
  found = np.load(out / 'found.npz')
  expected = run.model.apply(
    run.params, x, mask, deterministic=True, boundary_slope=train.MAX_SLOPE
  )
  np.testing.assert_allclose(found['logits'], expected.logits, atol=1e-5)
  np.testing.assert_allclose(found['stream'], expected.logits[:1], atol=1e-5)
