"""Unroll and recognisers: streaming, halves, padding, equalities."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hman_jax import models
from hman_jax.models import heads
from hman_jax.unroll import unroll

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


@pytest.mark.parametrize('split', [1, 3, 5])
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
@pytest.mark.parametrize('initial_state', ['zeros', 'mean_features'])
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


class TestUnroll:
  """The scan by itself."""

  @staticmethod
  def _step(carry, x, key):
    noise = 0.0 if key is None else jax.random.normal(key)
    new = 0.5 * carry + x + noise
    return new, new

  def test_reverse_passes_over_padding(self):
    x = jnp.arange(8.0).reshape(2, 4)
    mask = jnp.array([[1, 1, 1, 1], [1, 1, 0, 0]], bool)
    last, out = unroll(self._step, jnp.zeros(2), x, mask=mask, reverse=True)
    short, _ = unroll(self._step, jnp.zeros(1), x[1:, 1::-1])
    chex.assert_trees_all_close(last[1], short[0])
    assert not np.any(out[1, 2:])

  def test_keys_count_on_from_start(self):
    x = jnp.ones((1, 4))
    key = jax.random.key(0)
    whole, _ = unroll(self._step, jnp.zeros(1), x, key=key)
    half, _ = unroll(self._step, jnp.zeros(1), x[:, :2], key=key)
    rest, _ = unroll(self._step, half, x[:, 2:], key=key, start=2)
    chex.assert_trees_all_close(rest, whole, rtol=1e-6)

  def test_wrong_shapes_are_named(self):
    with pytest.raises(ValueError, match=r'same leading \[B, T\]'):
      unroll(
        self._step, jnp.zeros(2), jnp.ones((2, 3)), mask=jnp.ones((2, 4)) > 0
      )
