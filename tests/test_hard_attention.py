"""Hard attention reads one location: seen in numbers, and in XLA's count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hman_jax import models

B, T, D, C = 2, 4, 4, 3
_QUICK = {'xla_backend_optimization_level': 0}


def _gradient(attention, num_locations, size=4, backward='deferred'):
  """The gradient's compiled function and its variables."""
  model = models.create(
    C,
    cell='lstm',
    attention=attention,
    hidden_sizes=(4,),
    attention_options={'num_locations': num_locations},
    backward=backward,
  )
  x = jax.ShapeDtypeStruct((B, T, num_locations, size), jnp.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  rng = np.random.default_rng(0)
  draw = lambda p: jnp.asarray(rng.normal(size=p.shape) / 2, p.dtype)
  variables = jax.tree.map(draw, shapes)

  def loss(variables, x):
    out = model.apply(variables, x, key=jax.random.key(1))
    total = jnp.mean(jnp.square(out.logits)) + jnp.mean(out.attention.log_prob)
    return total, out.attention.weights

  run = jax.jit(jax.value_and_grad(loss, has_aux=True))
  return run.lower(variables, x).compile(_QUICK), variables


@pytest.mark.slow
@pytest.mark.parametrize(
  ('attention', 'passes'), [('reinforce', 0), ('gumbel', 1), ('soft', 2)]
)
@pytest.mark.parametrize('backward', ['deferred', 'autodiff'])
def test_passes_over_the_locations(attention, passes, backward):
  """Products that a feature which is not picked takes part in, by XLA."""
  few, many, size = 8, 40, 4096
  flops = [
    _gradient(attention, n, size, backward)[0].cost_analysis()['flops']
    for n in (few, many)
  ]
  found = (flops[1] - flops[0]) / (2 * B * size * (many - few))
  assert abs(found - passes) < 0.1


@pytest.mark.parametrize(
  'attention', ['reinforce', pytest.param('gumbel', marks=pytest.mark.slow)]
)
def test_what_is_not_picked_does_not_matter(attention):
  """Forward for both; backward too for REINFORCE, and only there."""
  num_locations = 9
  run, variables = _gradient(attention, num_locations)
  rng = np.random.default_rng(1)
  x = rng.normal(size=(B, T, num_locations, D)).astype(np.float32)
  weights, frame = np.zeros((B, T, num_locations)), 0
  # The location scorer never sees the frame: a pick depends on those before.
  for frame in range(T):
    (_, found), _ = run(variables, np.where(weights[..., None] > 0, x, 0.0))
    weights[:, frame] = np.asarray(found)[:, frame] > 0.5
  picked = weights[..., None] > 0
  expected = run(variables, np.where(picked, x, 0.0))
  found = run(variables, np.where(picked, x, np.nan))
  assert np.isfinite(found[0][0])
  np.testing.assert_array_equal(found[0][0], expected[0][0])
  gradients = jax.tree.leaves(found[1])
  if attention == 'gumbel':
    assert any(np.isnan(g).any() for g in gradients)
    return
  for a, b in zip(gradients, jax.tree.leaves(expected[1])):
    np.testing.assert_array_equal(a, b)
