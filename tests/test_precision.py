"""Products of bfloat16 factors: what is rounded, and what is not."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data.composite_actions import CompositeActions
from data.pipeline import train_batches
from experiments import config as config_lib
from experiments import train
from hman_jax import models, precision
from hman_jax.cells import CELLS

from tiny_runs import tiny_config

BACKWARDS = ('deferred', 'autodiff')


def _rounded(x) -> np.ndarray:
  """x to the nearest bfloat16 (ties to even), by its bits."""
  bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
  bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
  return bits.astype(np.uint32).view(np.float32).astype(np.float64)


@chex.variants(with_jit=True, without_jit=True)
class DotTest(chex.TestCase):
  def test_factors_are_rounded_and_sums_are_not(self):
    rng = np.random.default_rng(0)
    x, w, g = (
      rng.normal(size=s).astype(np.float32)
      for s in ((2, 3, 300), (300, 7), (2, 3, 7))
    )

    @self.variant
    def run(x, w, g):
      y, pull = jax.vjp(lambda x, w: precision.dot(x, w, 'bfloat16'), x, w)
      return y, *pull(g)

    y, d_x, d_w = run(x, w, g)
    rows = lambda a: _rounded(a).reshape(-1, a.shape[-1])
    np.testing.assert_allclose(y, _rounded(x) @ _rounded(w), atol=1e-4)
    np.testing.assert_allclose(d_x, _rounded(g) @ _rounded(w).T, atol=1e-4)
    np.testing.assert_allclose(d_w, rows(x).T @ rows(g), atol=1e-4)
    assert y.dtype == d_x.dtype == d_w.dtype == jnp.float32
    assert np.abs(y - x @ w).max() > 1e-3  # float32 is something else


def test_a_product_follows_what_it_is_in():
  x = jax.random.normal(jax.random.key(0), (4, 3, 5))
  w = jax.random.normal(jax.random.key(1), (5, 2))
  dot = lambda x, w: precision.dot(x, w, 'bfloat16')
  expected = dot(x, w)
  for axis in (0, 1):
    mapped = jax.vmap(dot, (axis, None), axis)(x, w)
    np.testing.assert_allclose(mapped, expected, atol=1e-6)
  both = jax.jit(jax.vmap(dot))(x, jnp.stack([w] * 4))
  np.testing.assert_allclose(both, expected, atol=1e-6)
  _, tangent = jax.jvp(dot, (x, w), (x, w))
  np.testing.assert_allclose(tangent, 2 * expected, atol=1e-5)
  assert dot(x[0, 0], w).shape == (2,)
  low = dot(x.astype(jnp.bfloat16), w.astype(jnp.bfloat16))
  assert low.dtype == jnp.bfloat16


# --- models -------------------------------------------------------------------


def _model(preset, dtype, backward='deferred', **options):
  parts = config_lib.PRESETS[preset]
  return models.create(
    5,
    **parts,
    hidden_sizes=(12, 10),
    attention_options={
      'num_locations': 9, 'scorer': 'content', 'position_code': 'sincos',
      'scorer_size': 8,
    },
    head='gated_embedding' if preset == 'hm_gumbel' else 'concat',
    dropout=0.2,
    dtype=dtype,
    backward=backward,
    **options,
  )  # fmt: skip


def _clips():
  x = jax.random.normal(jax.random.key(0), (6, 7, 9, 16)).astype(jnp.float16)
  return x, jnp.arange(7)[None] < jnp.array([7, 7, 6, 5, 3, 1])[:, None]


def _loss(model, x, mask):
  def loss(variables):
    out = model.apply(variables, x, mask, key=jax.random.key(2))
    total = jnp.sum(out.logits**2)
    if out.attention is not None:
      total += jnp.sum(out.attention.log_prob) + jnp.sum(out.attention.entropy)
    return total, out

  return loss


@pytest.mark.parametrize(
  'preset',
  [
    pytest.param(name, marks=[pytest.mark.slow] * (name != 'hm_gumbel'))
    for name in config_lib.PRESETS
  ],
)
def test_only_products_are_bfloat16(preset):
  """Parameters, states, boundaries, weights, gradients are float32."""
  x, mask = _clips()
  for backward in BACKWARDS:
    model = _model(preset, 'bfloat16', backward)
    variables = jax.eval_shape(model.init, jax.random.key(1), x)
    run = jax.value_and_grad(_loss(model, x, mask), has_aux=True)
    traced, ((_, out), gradient) = jax.make_jaxpr(run, return_shape=True)(
      variables
    )
    for leaf in jax.tree.leaves((out, gradient)):
      assert leaf.dtype in (jnp.float32, jnp.int32)
    assert 'rounded_dot' in str(traced)
  plain = _model(preset, 'float32')
  variables = jax.eval_shape(plain.init, jax.random.key(1), x)
  run = jax.value_and_grad(_loss(plain, x, mask), has_aux=True)
  text = str(jax.make_jaxpr(run)(variables))
  assert 'rounded_dot' not in text and 'bf16' not in text


@pytest.mark.parametrize('cell', CELLS)
def test_a_step_keeps_a_state_of_float32(cell):
  cell = CELLS[cell](hidden_sizes=(6, 4), dtype='bfloat16')
  params = jax.eval_shape(lambda: cell.init(jax.random.key(0), 3))
  state = cell.initial_state((2,))
  new, _ = jax.eval_shape(
    cell.step, params, state, jnp.ones((2, 3)), jax.random.key(1)
  )
  chex.assert_trees_all_equal_shapes_and_dtypes(new, state)


def test_an_unknown_dtype_is_refused():
  with pytest.raises(ValueError, match=r"dtype: .*Did you mean 'bfloat16'\?"):
    models.create(5, dtype='bfloat61')


def test_weight_gradients_are_deferred():
  """No product of a weight's gradient is left in the backward loop."""
  x, mask = _clips()
  model = _model('hm_gumbel', 'bfloat16')
  variables = jax.eval_shape(model.init, jax.random.key(1), x)
  run = jax.grad(lambda v: _loss(model, x, mask)(v)[0])
  loops = [
    equation.params['jaxpr'].jaxpr
    for equation in jax.make_jaxpr(run)(variables).jaxpr.eqns
    if equation.primitive.name == 'scan'
  ]
  made = [
    equation.outvars[0].aval.shape
    for loop in loops
    for equation in loop.eqns
    if equation.primitive is precision.rounded_dot_p
  ]
  assert made and all(shape[0] == len(x) for shape in made)


def _gradients(preset, dtype, backward, **options):
  x, mask = _clips()
  model = _model(preset, dtype, backward, **options)
  variables = jax.jit(model.init)(jax.random.key(1), x)
  run = jax.jit(jax.value_and_grad(_loss(model, x, mask), has_aux=True))
  (_, out), gradient = run(variables)
  return np.asarray(out.logits), gradient


def _far(a, b) -> float:
  """The distance of two trees, of the size of the second."""
  flat = lambda tree: np.concatenate(
    [np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)]
  )
  return float(np.linalg.norm(flat(a) - flat(b)) / np.linalg.norm(flat(b)))


@pytest.mark.slow
@pytest.mark.parametrize('preset', config_lib.PRESETS)
def test_numbers_are_near_those_of_float32(preset):
  logits, gradient = _gradients(preset, 'float32', 'deferred')
  by_backward = {}
  for backward in BACKWARDS:
    near, by_backward[backward] = _gradients(preset, 'bfloat16', backward)
    chex.assert_tree_all_finite(by_backward[backward])
    assert 1e-5 < _far(near, logits) < 0.02
    assert 1e-5 < _far(by_backward[backward], gradient) < 0.05
  assert _far(*by_backward.values()) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('backward', BACKWARDS)
def test_remat_changes_no_number(backward):
  _, plain = _gradients('hm_gumbel_adaptive', 'bfloat16', backward)
  _, remat = _gradients('hm_gumbel_adaptive', 'bfloat16', backward, remat=True)
  assert _far(remat, plain) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize('preset', ['hm_gumbel_adaptive'])
def test_training_converges_alike(preset):
  """The quickstart made small: the loss falls as far with both dtypes."""
  losses = {}
  for dtype in precision.DTYPES:
    config = tiny_config(
      **{
        'model.name': preset,
        'model.dtype': dtype,
        'model.hidden_size': 32,
        'model.scorer_size': 16,
        'train.batch_size': 16,
        'train.num_steps': 150,
        'train.schedule': 'constant',
      }
    )
    source = CompositeActions('train', num_clips=64)
    model = train.make_model(config, 8, source.feature_shape)
    optimizer = train.make_optimizer(config.train)
    state = train.init_state(config, model, optimizer, source.feature_shape)
    step = train.make_train_step(config, model, optimizer, steps_per_epoch=4.0)
    step, key = jax.jit(step, donate_argnums=0), jax.random.key(0)
    batches = train_batches(source, batch_size=16, num_frames=12, seed=0)
    history = []
    for _ in range(config.train.num_steps):
      state, metrics = step(state, next(batches), key)
      history.append(float(metrics['loss']))
    for leaf in jax.tree.leaves((state.params, state.opt_state)):
      assert leaf.dtype in (jnp.float32, jnp.int32)
    losses[dtype] = np.mean(history[:5]), np.mean(history[-20:])
  (first, last), (_, low) = losses['float32'], losses['bfloat16']
  assert last < 0.8 * first
  assert low == pytest.approx(last, rel=0.1)
