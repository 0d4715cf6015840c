"""Small arrays stacked for the optimiser, and given back."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from experiments import runtime, stacking
from experiments.stacking import Stacking

_SHAPES = {
  'bias': (4,), 'gates': (3, 4), 'more': (5, 4), 'column': (7,), 'number': (),
  'table': (2, 2), 'deep': (2, 3, 4), 'deeper': (1, 3, 4), 'one': (1, 4),
}  # fmt: skip


def _tree(seed, shapes=None):
  rng = np.random.default_rng(seed)
  shapes = shapes or _SHAPES
  make = lambda shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
  return {'a': {k: make(s) for k, s in shapes.items()}, 'b': [make((6, 4))]}


def test_what_is_stacked_and_that_it_comes_back():
  tree = _tree(0)
  packed = Stacking(tree).pack(tree)
  # Vectors and the number; matrices; arrays of three axes.
  shapes = sorted(x.shape for x in packed.values())
  assert shapes == [(12,), (36, 1, 1), (64, 1)]
  numbers = lambda *parts: sorted(np.concatenate([np.ravel(p) for p in parts]))
  names = 'gates', 'more', 'one', 'table'
  matrices = numbers(*(tree['a'][k] for k in names), *tree['b'])
  found = next(x for x in packed.values() if x.shape == (64, 1))
  assert numbers(found) == matrices
  chex.assert_trees_all_equal(Stacking(tree).unpack(packed), tree)


@pytest.mark.parametrize('by_columns', [False, True])
def test_stacking_on_the_host_is_the_same(monkeypatch, by_columns):
  monkeypatch.setattr(stacking, 'LARGEST', 12)
  tree = _tree(2)
  stacks = Stacking(tree, by_columns)
  packed = stacks.pack(tree, on_host=True)
  chex.assert_trees_all_equal(packed, jax.jit(stacks.pack)(tree))
  back = stacks.unpack(packed, on_host=True)
  chex.assert_trees_all_equal(back, tree)
  # What is alone is not copied; what is stacked is, from the stack too.
  assert back['a']['more'] is tree['a']['more'] and tree['a']['more'].size > 12
  packed['stack_0'][:] = 0
  chex.assert_trees_all_equal(back, tree)


def test_stacking_by_columns():
  tree = _tree(0)
  stacks = Stacking(tree, by_columns=True)
  packed = stacks.pack(tree)
  # Vectors and the number; matrices of 4 columns, of 2; arrays of (3, 4).
  shapes = sorted(x.shape for x in packed.values())
  assert shapes == [(2, 2), (3, 3, 4), (12,), (15, 4)]
  rows = np.concatenate(
    [tree['a'][k] for k in ('gates', 'more', 'one')] + tree['b']
  )
  found = next(x for x in packed.values() if x.shape == (15, 4))
  assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, rows.tolist()))
  chex.assert_trees_all_equal(stacks.unpack(packed), tree)


@pytest.mark.parametrize('by_columns', [False, True])
def test_arrays_without_numbers(by_columns):
  tree = {'none': jnp.zeros((0, 4)), 'empty': jnp.zeros((4, 0)), 'a': _tree(0)}
  stacks = Stacking(tree, by_columns)
  chex.assert_trees_all_equal(stacks.unpack(stacks.pack(tree)), tree)


def test_large_arrays_and_other_types_stay_by_themselves(monkeypatch):
  monkeypatch.setattr(stacking, 'LARGEST', 12)
  tree = {
    'small': jnp.zeros((3, 4)), 'tiny': jnp.ones((1, 4)),
    'large': jnp.zeros((4, 4)), 'int': jnp.zeros((3, 4), jnp.int32),
  }  # fmt: skip
  packed = Stacking(tree).pack(tree)
  kinds = sorted((x.shape, str(x.dtype)) for x in packed.values())
  assert kinds == [
    ((4, 4), 'float32'), ((12, 1), 'int32'), ((16, 1), 'float32'),
  ]  # fmt: skip
  chex.assert_trees_all_equal(Stacking(tree).unpack(packed), tree)


def test_parts_of_a_state_with_other_structures_are_left_alone():
  tree = _tree(1)
  state = optax.adam(1e-2).init(tree), {'step': jnp.zeros(()), 'none': None}
  stacks = Stacking(tree)
  packed = stacks.pack(state)
  assert len(jax.tree.leaves(packed)) < len(jax.tree.leaves(state))
  assert packed[1] == state[1]
  chex.assert_trees_all_equal(stacks.unpack(packed), state)


def test_a_part_of_other_shapes_is_left_alone():
  tree = {'a': jnp.zeros((3, 4)), 'b': jnp.zeros((2, 4))}
  other = {'a': jnp.ones((2, 4)), 'b': jnp.ones((3, 4))}
  chex.assert_trees_all_equal(Stacking(tree).pack([other]), [other])


def test_columns_that_are_spread_over_devices_stay_so():
  mesh = jax.make_mesh((2, 2), ('data', 'model'))
  columns = NamedSharding(mesh, PartitionSpec(None, 'model'))
  tree = {
    k: jax.device_put(jnp.ones((rows, 8)), columns)
    for k, rows in (('bottom_up', 3), ('recurrent', 5))
  }
  stacks = Stacking(tree, by_columns=True)
  (stack,) = jax.jit(stacks.pack)(tree).values()
  assert stack.sharding.is_equivalent_to(columns, 2)
  back = jax.jit(lambda t: stacks.unpack(stacks.pack(t)))(tree)
  assert all(x.sharding.is_equivalent_to(columns, 2) for x in back.values())


@pytest.mark.parametrize('seed', range(3))
def test_an_optimizer_makes_the_same_of_stacks(seed):
  decayed = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
  optimizer = optax.chain(
    optax.clip_by_global_norm(1.0),
    optax.adamw(1e-2, weight_decay=0.1, mask=decayed),
  )
  plain = stacked = _tree(seed)
  of_plain = of_stacked = optimizer.init(plain)
  for step in range(4):
    gradient = _tree(100 * seed + step)
    updates, of_plain = optimizer.update(gradient, of_plain, plain)
    plain = optax.apply_updates(plain, updates)
    stacks = Stacking(stacked)
    g, s, p = stacks.pack((gradient, of_stacked, stacked))
    updates, s = optimizer.update(g, s, p)
    of_stacked, stacked = stacks.unpack((s, optax.apply_updates(p, updates)))
  chex.assert_trees_all_close(stacked, plain, rtol=1e-6, atol=1e-7)
  chex.assert_trees_all_close(of_stacked, of_plain, rtol=1e-6, atol=1e-7)


def test_quick_compilation_is_for_cpus_and_computes_the_same(monkeypatch):
  assert not runtime.quick_compilation(False)
  options = runtime.quick_compilation(True)
  assert options
  x = jnp.linspace(-3.0, 3.0, 1000).reshape(10, 100)
  f = lambda x: jnp.sum(jax.nn.softmax(jnp.tanh(x) @ x.T), axis=0)
  quick = jax.jit(f, compiler_options=options)(x)
  chex.assert_trees_all_close(quick, jax.jit(f)(x), rtol=1e-5)
  monkeypatch.setattr(jax, 'default_backend', lambda: 'gpu')
  assert not runtime.quick_compilation(True)


def test_options_that_xla_no_longer_knows_are_named(monkeypatch, capsys):
  monkeypatch.setattr(runtime, '_QUICK', {'xla_cpu_of_old': True})
  assert runtime.quick_compilation(True) == {}
  printed = capsys.readouterr().out
  assert 'WARNING: config.train.quick_compile' in printed
  assert 'xla_cpu_of_old' in printed
