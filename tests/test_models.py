"""Unroll and recognisers: streaming, halves, padding, equalities."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hman_jax import losses, models
from hman_jax.models import heads

import reference

B, T, N, D, C = 3, 6, 9, 4, 5
LENGTHS = np.array([6, 4, 1])
CELLS = ('hm_lstm', 'lstm')
ATTENTIONS = ('soft', 'reinforce', 'gumbel', 'gumbel_adaptive', 'none')


def _make(cell='hm_lstm', attention='gumbel_adaptive', scorer='content', **kw):
  model = models.create(
    C,
    cell=cell,
    attention=attention,
    hidden_sizes=() if cell == 'none' else (5, 4),
    attention_options={
      'num_locations': N, 'scorer': scorer, 'position_code': 'onehot',
    },
    **kw,
  )  # fmt: skip
  x = jax.random.normal(jax.random.key(1), (B, T, N, D))
  return model, model.init(jax.random.key(0), x), x


@pytest.fixture
def mask():
  return jnp.asarray(np.arange(T)[None] < LENGTHS[:, None])


@pytest.fixture
def keys():
  return jax.random.split(jax.random.key(9), B)


@pytest.mark.parametrize(
  ('cell', 'attention'), list(itertools.product(CELLS, ATTENTIONS))
)
@pytest.mark.parametrize('drawn', [False, True])
def test_stream_equals_batch(cell, attention, drawn, keys):
  model, variables, x = _make(cell, attention)
  options = {'key': keys if drawn else None, 'deterministic': not drawn}
  whole = jax.jit(lambda x: model.apply(variables, x, **options))(x)

  @jax.jit
  def frame(x, state, start):
    return model.apply(variables, x, state=state, start=start, **options)

  state, logits = None, []
  for t in range(T):
    if state is None:
      out = model.apply(variables, x[:, :1], **options)
    else:
      out = frame(x[:, t : t + 1], state, t)
    state = out.state
    logits.append(out.logits)
  chex.assert_trees_all_close(
    jnp.concatenate(logits, axis=1), whole.logits, atol=1e-6
  )
  chex.assert_trees_all_close(state, whole.state, atol=1e-6)


@pytest.mark.parametrize('split', [1, 4])
def test_halves_joined_are_the_whole(split, keys):
  model, variables, x = _make()
  whole = model.apply(variables, x, key=keys)
  first = model.apply(variables, x[:, :split], key=keys)
  second = model.apply(
    variables, x[:, split:], key=keys, state=first.state, start=split
  )
  join = lambda a, b: jnp.concatenate([a, b], axis=1)
  chex.assert_trees_all_close(
    join(first.logits, second.logits), whole.logits, atol=1e-6
  )
  chex.assert_trees_all_close(
    jax.tree.map(join, first.cell, second.cell), whole.cell, atol=1e-6
  )


@pytest.mark.parametrize('attention', ATTENTIONS)
@pytest.mark.parametrize(
  'initial_state',
  ['zeros', pytest.param('mean_features', marks=pytest.mark.slow)],
)
def test_padding_changes_nothing(attention, initial_state, mask, keys):
  model, variables, x = _make('hm_lstm', attention, initial_state=initial_state)
  base = model.apply(variables, x, mask, key=keys)
  longer = jnp.concatenate([x, jnp.full((B, 4, N, D), 1e3)], axis=1)
  longer_mask = jnp.pad(mask, ((0, 0), (0, 4)))
  longer = jnp.where(longer_mask[..., None, None], longer, -77.0)
  out = model.apply(variables, longer, longer_mask, key=keys)
  chex.assert_trees_all_close(out.state, base.state, atol=1e-6)
  chex.assert_trees_all_close(
    out.logits[:, :T][mask], base.logits[mask], atol=1e-6
  )
  assert not np.any(out.cell.z[~longer_mask])
  assert not np.any(out.attention.log_prob[~longer_mask])

  def loss(v, x, m):
    logits = model.apply(v, x, m, key=keys).logits
    return jnp.sum(jnp.where(m[..., None], logits**2, 0.0))

  chex.assert_trees_all_close(
    jax.grad(loss)(variables, x, mask),
    jax.grad(loss)(variables, longer, longer_mask),
    atol=1e-4,
    rtol=1e-4,
  )


def test_rows_do_not_depend_on_their_batch(keys):
  model, variables, x = _make(dropout=0.3, input_dropout=0.3)
  whole = model.apply(variables, x, key=keys).logits
  order = jnp.array([2, 0, 1])
  permuted = model.apply(variables, x[order], key=keys[order]).logits
  chex.assert_trees_all_close(permuted, whole[order], atol=1e-6)


@pytest.mark.parametrize(
  ('cell', 'attention', 'scorer'),
  [*itertools.product(CELLS, ATTENTIONS, ('location', 'content')),
   ('none', 'none', 'location')],
)  # fmt: skip
def test_all_build_and_have_finite_gradients(
  cell, attention, scorer, mask, keys
):
  model, variables, x = _make(
    cell, attention, scorer, dropout=0.2, input_dropout=0.2
  )
  loss = lambda v: jnp.mean(
    jnp.square(model.apply(v, x.astype(jnp.float16), mask, key=keys).logits)
  )
  gradient = jax.jit(jax.grad(loss))(variables)
  chex.assert_tree_all_finite(gradient)
  assert any(np.any(g) for g in jax.tree.leaves(gradient))


def test_evaluation_is_deterministic_and_compiled_once(mask):
  model, variables, x = _make(dropout=0.5)

  @jax.jit
  @chex.assert_max_traces(n=1)
  def evaluate(x):
    return model.apply(variables, x, mask, deterministic=True).logits

  chex.assert_trees_all_equal(evaluate(x), evaluate(x))


def test_sampled_evaluation_draws_boundaries_only(mask, keys):
  model, variables, x = _make(dropout=0.5)
  run = lambda k: model.apply(
    variables, x, mask, key=k, deterministic=True, sample_boundaries=True
  )
  a = run(keys)
  b = run(jax.random.split(jax.random.key(2), B))
  assert np.any(a.cell.z != b.cell.z)
  assert not np.any(a.attention.log_prob)
  deterministic = model.apply(variables, x, mask, deterministic=True)
  chex.assert_trees_all_equal(
    a.attention.weights[:, 0], deterministic.attention.weights[:, 0]
  )


def test_soft_attention_without_weights_is_average_pooling():
  soft, variables, x = _make('lstm', 'soft', 'content')
  mean, mean_variables, _ = _make('lstm', 'none', 'content')
  params = variables['params']
  zeroed = jax.tree.map(jnp.zeros_like, params['attention'])
  a = soft.apply({'params': {**params, 'attention': zeroed}}, x)
  b = mean.apply({'params': {**params, 'attention': {}}}, x)
  chex.assert_trees_all_close(a.logits, b.logits, atol=1e-6)
  assert not jax.tree.leaves(mean_variables['params']['attention'])


def test_softmax_regression_is_a_matrix():
  model, variables, x = _make('none', 'none')
  dense = variables['params']['head']
  out = model.apply(variables, x, deterministic=True).logits
  for b, t in itertools.product(range(B), range(T)):
    expected = np.asarray(x[b, t]).reshape(-1) @ dense['kernel'] + dense['bias']
    np.testing.assert_allclose(out[b, t], expected, atol=1e-5)


def test_mean_features_state_equals_the_loop(mask):
  model, variables, x = _make('lstm', 'soft', initial_state='mean_features')
  params = variables['params']
  state = model._first_state(params, x, mask)
  for b in range(B):
    valid = [np.asarray(x[b, t]) for t in range(T) if mask[b, t]]
    mean = np.concatenate(valid).mean(axis=0)
    for layer in range(2):
      for name in ('c', 'h'):
        dense = params['initial_state'][layer][name]
        expected = np.tanh(mean @ dense['kernel'] + dense['bias'])
        ours = getattr(state, name)[layer][b]
        np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_gated_embedding_equals_the_loop():
  head = heads.GatedEmbedding(size=7)
  params = head.init(jax.random.key(0), (4, 3), C)
  h = jax.random.normal(jax.random.key(1), (7,))
  expected = reference.gated_embedding(
    np.asarray(params['gates']),
    [np.asarray(e) for e in params['embeddings']],
    np.asarray(params['logits']['kernel']),
    np.asarray(params['logits']['bias']),
    [np.asarray(h[:4]), np.asarray(h[4:])],
  )
  np.testing.assert_allclose(head.apply(params, h), expected, atol=1e-5)


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'attention': 'sofft'}, "Did you mean 'soft'"),
    ({'cell': 'gru'}, 'cell: expected'),
    ({'head': 'linear'}, 'head: expected'),
    ({'initial_state': 'ones'}, 'initial_state: expected'),
    ({'dropout': 1.0}, 'dropout: expected'),
    ({'cell': 'none', 'attention': 'soft'}, "expected 'none'"),
  ],
)
def test_bad_names_are_named(options, message):
  with pytest.raises(ValueError, match=message):
    models.create(C, **options)


def test_a_missing_key_is_named():
  model, variables, x = _make('lstm', 'none', dropout=0.5)
  with pytest.raises(ValueError, match='key: expected'):
    model.apply(variables, x)


@pytest.mark.parametrize(
  'boundary',
  ['straight_through', 'given', pytest.param('soft', marks=pytest.mark.slow)],
)
def test_stream_equals_batch_for_every_boundary(boundary, keys):
  model, variables, x = _make(cell_options={'boundary': boundary})
  z = jnp.asarray(np.random.default_rng(0).integers(0, 2, (B, T, 2)), float)
  given = lambda s: z[:, s] if boundary == 'given' else None
  run = lambda s, **kw: model.apply(
    variables, x[:, s], key=keys, boundary_slope=2.0, boundaries=given(s), **kw
  )
  whole, state = run(slice(None)), None
  for t in range(T):
    at = slice(t, t + 1)
    out = run(at, state=state, start=t)
    state = out.state
    chex.assert_trees_all_close(out.logits, whole.logits[:, at], atol=1e-6)
  chex.assert_trees_all_close(state, whole.state, atol=1e-6)


@pytest.mark.parametrize('cell', CELLS)
@pytest.mark.parametrize(
  'initial_state',
  ['zeros', pytest.param('mean_features', marks=pytest.mark.slow)],
)
def test_a_row_of_padding_only_has_finite_gradients(cell, initial_state, keys):
  """As the last batch of an evaluation, or of a shard, may hold."""
  model, variables, x = _make(cell, initial_state=initial_state)
  mask = jnp.asarray(np.arange(T)[None] < np.array([[6], [3], [0]]))
  x = jnp.where(mask[..., None, None], x, 0.0)
  labels = jnp.array([0, 1, 2])

  def loss(v):
    out = model.apply(v, x, mask, key=keys)
    return losses.cross_entropy(out.logits, labels, mask), out

  per_clip, out = loss(variables)
  assert float(per_clip[2]) == 0.0
  assert not np.any(out.attention.weights[2])
  gradient = jax.grad(lambda v: jnp.sum(loss(v)[0]))(variables)
  chex.assert_tree_all_finite(gradient)
  alone = jax.grad(lambda v: jnp.sum(loss(v)[0][:2]))(variables)
  chex.assert_trees_all_close(gradient, alone, atol=1e-6)


@pytest.mark.parametrize('attention', ['soft', 'gumbel_adaptive'])
@pytest.mark.parametrize(
  'dtype', [jnp.uint8, pytest.param(jnp.float16, marks=pytest.mark.slow)]
)
def test_features_of_few_bits_are_read_in_float32(attention, dtype, keys):
  model, variables, x = _make('hm_lstm', attention)
  x = (x * 30 + 100).astype(dtype)
  loss = lambda v, x: jnp.sum(model.apply(v, x, key=keys).logits ** 2)
  few = jax.value_and_grad(loss)(variables, x)
  many = jax.value_and_grad(loss)(variables, x.astype(jnp.float32))
  chex.assert_trees_all_close(few, many, rtol=1e-5, atol=1e-5)


def test_mean_features_are_the_loop_whatever_the_dtype(mask):
  x = jax.random.normal(jax.random.key(1), (B, T, N, D)) * 50
  x = x.astype(jnp.float16)
  ours = models.mean_features(x, mask)
  for b in range(B):
    rows = np.asarray(x[b][mask[b]], np.float64)
    np.testing.assert_allclose(ours[b], rows.mean(axis=(0, 1)), rtol=1e-4)


@pytest.mark.parametrize('sizes', [(4,), (4, 3), (2, 3, 4)])
def test_heads_equal_the_loop_in_float64(sizes):
  rng = np.random.default_rng(0)
  random = lambda tree: jax.tree.map(lambda p: rng.normal(size=p.shape), tree)
  hs = [rng.normal(size=s) for s in sizes]
  joint = np.concatenate(hs)
  gated, concat = heads.GatedEmbedding(size=7), heads.Concat()
  with jax.enable_x64(True):
    p = random(gated.init(jax.random.key(0), sizes, C))
    np.testing.assert_allclose(
      gated.apply(p, jnp.asarray(joint)),
      reference.gated_embedding(
        p['gates'], p['embeddings'], p['logits']['kernel'],
        p['logits']['bias'], hs,
      ),
      rtol=1e-10,
    )  # fmt: skip
    p = random(concat.init(jax.random.key(0), sizes, C))
    np.testing.assert_allclose(
      concat.apply(p, jnp.asarray(joint)),
      joint @ p['kernel'] + p['bias'],
      rtol=1e-10,
    )


def test_the_paper_system_equals_the_loops(mask, keys):
  """Attention, three layers and head chained as section 3 says, by row."""
  model = models.create(
    C, attention='gumbel_adaptive', hidden_sizes=(4, 3, 2),
    attention_options={'num_locations': N, 'position_code': 'sincos'},
  )  # fmt: skip
  x = jax.random.normal(jax.random.key(1), (B, T, N, D))
  variables = model.init(jax.random.key(0), x)
  out = model.apply(variables, x, mask, deterministic=True)
  p = jax.tree.map(lambda v: np.asarray(v, np.float64), variables['params'])
  code = reference.position_code('sincos', N)
  fields = {
    'W': 'bottom_up', 'U': 'recurrent', 'V': 'top_down', 'b': 'bias',
    'w_z': 'bottom_up_z', 'u_z': 'recurrent_z', 'v_z': 'top_down_z',
    'b_z': 'bias_z',
  }  # fmt: skip
  layers = [
    {k: getattr(layer, n) for k, n in fields.items()}
    for layer in p['cell'].layers
  ]
  scorer = p['attention']['location_logits']
  detect = lambda l, a: reference.gumbel_boundary(float(a), 0.0, 0.3)
  for b in range(B):
    c, h = [np.zeros(s) for s in (4, 3, 2)], [np.zeros(s) for s in (4, 3, 2)]
    z = [0.0] * 3
    for t in range(LENGTHS[b]):
      e = reference.location_logits(scorer['kernel'], scorer['bias'], h[0])
      pick = int(e.argmax())
      context = np.concatenate([np.asarray(x[b, t, pick]), code[pick]])
      c, h, z, probs, _ = reference.hm_lstm_step(
        layers, c, h, z, context, detect=detect
      )
      logits = np.concatenate(h) @ p['head']['kernel'] + p['head']['bias']
      np.testing.assert_allclose(out.logits[b, t], logits, atol=2e-5)
      np.testing.assert_array_equal(out.cell.z[b, t], z)
      np.testing.assert_allclose(out.cell.boundary_prob[b, t], probs, atol=2e-5)


# --- normalisation of the features -------------------------------------------


@pytest.mark.parametrize('cell', ['hm_lstm', 'none'])
def test_standard_features_are_the_features_standardised_before(cell, keys):
  attention = 'none' if cell == 'none' else 'gumbel_adaptive'
  rng = np.random.default_rng(0)
  mean = rng.normal(size=D).astype(np.float32)
  scale = rng.uniform(0.5, 2.0, size=D).astype(np.float32)
  model, variables, x = _make(cell, attention, feature_norm='standard')
  plain, _, _ = _make(cell, attention)
  same = model.apply(variables, x, key=keys).logits
  chex.assert_trees_all_equal(plain.apply(variables, x, key=keys).logits, same)
  variables = models.with_statistics(variables, mean, scale)
  ours = model.apply(variables, x, key=keys).logits
  before = plain.apply(variables, (np.asarray(x) - mean) / scale, key=keys)
  chex.assert_trees_all_close(ours, before.logits, atol=1e-5)
  gradient = jax.grad(lambda v: jnp.sum(model.apply(v, x, key=keys).logits))
  assert not any(map(np.any, jax.tree.leaves(
    gradient(variables)['params']['features']
  )))  # fmt: skip


def test_statistics_that_do_not_fit_are_named():
  _, variables, _ = _make()
  with pytest.raises(ValueError, match='feature_norm'):
    models.with_statistics(variables, np.zeros(D), np.ones(D))
  _, variables, _ = _make(feature_norm='standard')
  with pytest.raises(ValueError, match='scale: expected shape'):
    models.with_statistics(variables, np.zeros(D), np.ones(D + 1))


@pytest.mark.parametrize('norm', ['layer', 'standard'])
def test_integer_features_are_normalised_in_float32(norm):
  x = jnp.array([[0, 100], [30, 200]], jnp.uint8)
  params = models.features.init_statistics(norm, 2)
  ours = models.features.normalise(x, norm, params)
  many = models.features.normalise(x.astype(jnp.float32), norm, params)
  assert ours.dtype == jnp.float32
  chex.assert_trees_all_equal(ours, many)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.float16])
def test_global_context_is_the_mean_beside_the_context(dtype, keys):
  """With average pooling both are the mean: one model reads their sum."""
  model, variables, x = _make(attention='none', global_context=True)
  plain, same, _ = _make(attention='none')
  x = x.astype(dtype)
  layers = variables['params']['cell'].layers
  fold = lambda w: w[:-D].at[:D].add(w[-D:])
  folded = layers[0]._replace(
    bottom_up=fold(layers[0].bottom_up), bottom_up_z=fold(layers[0].bottom_up_z)
  )
  cell = same['params']['cell']._replace(layers=(folded, *layers[1:]))
  same = {'params': {**variables['params'], 'cell': cell}}
  ours = model.apply(variables, x, key=keys).logits
  expected = plain.apply(same, x, key=keys).logits
  chex.assert_trees_all_close(ours, expected, atol=1e-5)


@pytest.mark.parametrize('period', [1, 2])
def test_boundaries_by_the_clock(period):
  cell = {'cell_options': {'boundary': 'given'}, 'attention': 'soft'}
  clocked, variables, x = _make(boundary_period=period, **cell)
  given, _, _ = _make(**cell)
  frames = np.arange(1, T + 1)
  z = np.stack([frames % period**l == 0 for l in (1, 2)], axis=-1)
  z = np.broadcast_to(z[None], (B, T, 2)).astype(np.float32)
  out = clocked.apply(variables, x, deterministic=True)
  chex.assert_trees_all_equal(out.cell.z, z)
  expected = given.apply(variables, x, deterministic=True, boundaries=z)
  chex.assert_trees_all_equal(out.logits, expected.logits)
  first = clocked.apply(variables, x[:, :3], deterministic=True)
  rest = clocked.apply(
    variables, x[:, 3:], deterministic=True, state=first.state, start=3
  )
  chex.assert_trees_all_close(
    jnp.concatenate([first.logits, rest.logits], axis=1), out.logits, atol=1e-6
  )
  if period == 1:
    assert bool((out.cell.operation[:, 1:] == 2).all())  # FLUSH
  drawn = clocked.apply(variables, x, key=jax.random.key(3))
  chex.assert_trees_all_equal(drawn.cell.z, z)


def test_a_negative_period_is_refused():
  with pytest.raises(ValueError, match='boundary_period: expected >= 0'):
    models.create(C, boundary_period=-1)
