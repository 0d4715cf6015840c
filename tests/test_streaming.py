"""The step of a live stream: equal to the clip at once, and compiled once."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hman_jax import models, precision, streaming
from hman_jax.cells import COPY, FLUSH, HMLSTM, UPDATE

N, D, C, T = 9, 4, 5, 24
_QUICK = {'xla_backend_optimization_level': 0}
PRESETS = {
  'hm_soft': ('hm_lstm', 'soft', 'zeros'),
  'hm_reinforce': ('hm_lstm', 'reinforce', 'zeros'),
  'hm_gumbel': ('hm_lstm', 'gumbel', 'zeros'),
  'hm_gumbel_adaptive': ('hm_lstm', 'gumbel_adaptive', 'zeros'),
  'lstm_soft': ('lstm', 'soft', 'mean_features'),
  'lstm_mean': ('lstm', 'none', 'zeros'),
  'softmax_regression': ('none', 'none', 'zeros'),
}


def _make(preset, batch=1, hidden_sizes=(5, 4, 6), **options):
  cell, attention, initial_state = PRESETS[preset]
  if cell == 'none':
    model = models.create(C, cell=cell, attention=attention)
  else:
    model = models.create(
      C,
      cell=cell,
      attention=attention,
      hidden_sizes=hidden_sizes,
      initial_state=initial_state,
      attention_options={'num_locations': N},
      **options,
    )
  rng = np.random.default_rng(2)
  x = rng.normal(size=(batch, T, N, D)).astype(np.float32)
  shapes = jax.eval_shape(model.init, jax.random.key(0), x)
  # Large weights: the boundaries change.
  draw = lambda p: jnp.asarray(rng.normal(size=p.shape), p.dtype)
  return model, jax.tree.map(draw, shapes), x


def _assert_equal_to_clip(model, variables, x, given=None, **options):
  """Streams x; returns the clip's output."""
  apply = lambda v, x: model.apply(v, x, boundaries=given, **options)
  whole = jax.jit(apply).lower(variables, x).compile(_QUICK)(variables, x)
  clip = jax.tree.map(np.asarray, whole._replace(state=None))
  next_frame = streaming.compiled_step(model, **options)
  stream = streaming.start(model, variables, x)
  for t in range(T):
    at = {} if given is None else {'boundaries': given[:, t]}
    before = stream
    stream, output = next_frame(variables, before, x[:, t], **at)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before))
    expected = jax.tree.map(lambda y, t=t: y[:, t], clip)
    chex.assert_trees_all_close(output, expected, atol=3e-6)
  chex.assert_trees_all_close(stream.state, whole.state, atol=3e-6)
  assert int(stream.num_frames) == T
  assert next_frame._cache_size() == 1
  return whole


@pytest.mark.parametrize(
  'preset',
  [
    name
    if name in ('hm_gumbel_adaptive', 'softmax_regression')
    else pytest.param(name, marks=pytest.mark.slow)
    for name in PRESETS
  ],
)
def test_a_stream_is_the_clip_at_once(preset):
  model, variables, x = _make(preset)
  whole = _assert_equal_to_clip(model, variables, x, deterministic=True)
  if PRESETS[preset][0] == 'hm_lstm':
    assert {COPY, UPDATE, FLUSH} <= set(np.unique(whole.cell.operation))


@pytest.mark.slow
@pytest.mark.parametrize('batch', [1, 3])
@pytest.mark.parametrize(
  'cell_options',
  [
    {'boundary': 'gumbel', 'layer_norm': True},
    {'boundary': 'gumbel', 'copied_boundary': 'zero', 'top_detector': False},
    {'boundary': 'straight_through', 'output_activation': 'identity'},
    {'boundary': 'soft'},
    {'boundary': 'given'},
  ],
)
def test_every_option_streams(cell_options, batch):
  """Also with noise, and with rows of which only some COPY."""
  model, variables, x = _make('hm_gumbel', batch, cell_options=cell_options)
  given = None
  if cell_options['boundary'] == 'given':
    bits = np.random.default_rng(0).integers(0, 2, (batch, T, 3))
    given = bits.astype(np.float32)
  key = jax.random.split(jax.random.key(3), batch)
  _assert_equal_to_clip(model, variables, x, given, key=key)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('before', 'now', 'products'),
  [
    ((0.0, 0.0, 0.0), (0.0, 0.0, 0.0), 2),  # layer 1 UPDATEs, 2 and 3 COPY
    ((0.0, 0.0, 0.0), (1.0, 0.0, 0.0), 4),  # layer 2 UPDATEs
    ((1.0, 0.0, 0.0), (0.0, 0.0, 0.0), 3),  # layer 1 FLUSHes
    ((1.0, 1.0, 1.0), (1.0, 1.0, 1.0), 8),  # all there are
  ],
)
def test_a_product_that_is_erased_is_not_made(
  monkeypatch, before, now, products
):
  made, dot = [], precision.dot

  def counted(x, kernel, *options):
    if not isinstance(x, jax.core.Tracer):  # of one that asks for its shape
      made.append(kernel.ndim)
    return dot(x, kernel, *options)

  monkeypatch.setattr(precision, 'dot', counted)
  cell = HMLSTM((4, 4, 4), boundary='given', skip_copies=True)
  params = cell.init(jax.random.key(0), D)
  state = cell.initial_state((1,))._replace(z=jnp.asarray([before]))
  with jax.disable_jit():  # a condition is then decided when it is reached
    cell.step(params, state, jnp.ones((1, D)), boundaries=jnp.asarray([now]))
  assert made.count(2) == products  # a boundary's weights have one axis


def test_gradients_are_refused():
  cell = HMLSTM((3, 3), skip_copies=True)
  shapes = jax.eval_shape(lambda k: cell.init(k, D), jax.random.key(0))

  def loss(params):
    state = cell.initial_state((1,))
    _, out = cell.step(params, state, jnp.ones((1, D)), deterministic=True)
    return jnp.sum(out.h)

  with pytest.raises(ValueError, match='skip_copies: expected False'):
    jax.eval_shape(jax.grad(loss), shapes)
