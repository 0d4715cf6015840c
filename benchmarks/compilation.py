"""Compile time of the quickstart's training step, ours and naive ones.

  python -m benchmarks.compilation [--repeats=7] [--json=OUT]

From tracing to the program, in turn: the step as configs/quickstart.py trains
it; the same with XLA's own options (`train.quick_compile` off); with these, the
naive flax recogniser in that step, in the place of ours; and its gradient with
optax's update alone, as one would write them first, with XLA's own options and
with those of the quickstart.
"""

import argparse
import functools
import types
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import optax

from benchmarks import command, measure, naive_flax
from configs import quickstart
from experiments import config as config_lib
from experiments import runtime, train

_CLASSES, _SHAPE = 8, (49, 64)  # of the generated clips
_STEPS_PER_EPOCH = 128.0
_SUBJECTS = ('own_options', 'naive_step', 'naive_flax', 'naive_quick')


class _Naive:
  """The naive recogniser as `train.make_train_step` calls a model."""

  def __init__(self, model: ml_collections.ConfigDict):
    self._module = naive_flax.Recogniser(
      _CLASSES,
      (model.hidden_size,) * model.num_layers,
      scorer_size=model.scorer_size,
      position_code=model.position_code,
    )

  def init(self, key, features):
    return self._module.init({'params': key, 'noise': key}, features)

  def apply(self, params, features, mask, *, key, **_):
    del mask  # `key` is one for each row; the naive one takes one
    features = jnp.asarray(features, jnp.float32)
    logits = self._module.apply(params, features, rngs={'noise': key[0]})
    return types.SimpleNamespace(logits=logits, attention=None, cell=None)


def parse(argv: list[str] | None) -> argparse.Namespace:
  """Reads the flags."""
  no_sizes = dict.fromkeys(command.SIZES, 0)
  return command.parse(command.parser('compilation', __doc__, **no_sizes), argv)


def _arguments(config: ml_collections.ConfigDict, state: Any) -> tuple:
  """Shapes of what a training step takes."""
  size, steps = config.train.batch_size, config.data.num_frames
  shape = jax.ShapeDtypeStruct
  batch = {
    'features': shape((size, steps, *_SHAPE), jnp.float16),
    'mask': shape((size, steps), bool),
    'label': shape((size,), jnp.int32),
    'row': shape((size,), jnp.int32),
  }
  return state, batch, jax.random.key(0)


def _trainers_step(config: ml_collections.ConfigDict, model: Any):
  """(function, shapes of its arguments) of the trainer's step with a model."""
  optimizer = train.make_optimizer(config.train)
  state = jax.eval_shape(
    lambda: train.init_state(config, model, optimizer, _SHAPE)
  )
  stacks = train.stacking_of(config.train, state.params)
  moments = jax.eval_shape(stacks.pack, state.opt_state)
  step = train.make_train_step(config, model, optimizer, _STEPS_PER_EPOCH)
  return step, _arguments(config, state._replace(opt_state=moments))


def _plain_step(config: ml_collections.ConfigDict, model: Any):
  """The same of a model's gradient and the optimiser's update alone."""
  optimizer = train.make_optimizer(config.train)
  features = jnp.zeros((1, 1, *_SHAPE))
  params = jax.eval_shape(lambda: model.init(jax.random.key(0), features))
  state = params, jax.eval_shape(optimizer.init, params)

  def step(state, batch, key):
    params, opt_state = state

    def loss_of(params):
      keys = jax.random.split(key, batch['row'].shape[0])
      out = model.apply(params, batch['features'], batch['mask'], key=keys)
      log_p = jax.nn.log_softmax(out.logits)
      labels = batch['label'][:, None, None]
      right = jnp.take_along_axis(log_p, labels, axis=-1)[..., 0]
      return -jnp.mean(jnp.sum(jnp.where(batch['mask'], right, 0.0), axis=1))

    loss, gradient = jax.value_and_grad(loss_of)(params)
    updates, opt_state = optimizer.update(gradient, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state), loss

  return step, _arguments(config, state)


def run(args: argparse.Namespace) -> dict[str, Any]:
  """Measures everything; returns what `--json` writes."""
  config = config_lib.resolve(quickstart.get_config())
  ours = train.make_model(config, _CLASSES, _SHAPE)
  naive = _Naive(config.model)
  quick = runtime.quick_compilation(config.train.quick_compile)
  subjects: dict[str, tuple[Callable, tuple, dict]] = {
    'ours': (*_trainers_step(config, ours), quick),
    'own_options': (*_trainers_step(config, ours), {}),
    'naive_step': (*_trainers_step(config, naive), {}),
    'naive_flax': (*_plain_step(config, naive), {}),
    'naive_quick': (*_plain_step(config, naive), quick),
  }

  cached = jax.config.jax_enable_compilation_cache
  # Programs on disk would be read, not compiled.
  jax.config.update('jax_enable_compilation_cache', False)

  def compile_anew(function, arguments, options):
    jax.clear_caches()
    step = jax.jit(function, donate_argnums=0, compiler_options=options)
    step.lower(*arguments).compile()

  runs = {
    name: functools.partial(compile_anew, *subject)
    for name, subject in subjects.items()
  }
  try:
    seconds = measure.interleaved(runs, args.repeats, args.clock)
  finally:
    jax.config.update('jax_enable_compilation_cache', cached)
  return {
    'ratios': {name: seconds['ours'] / seconds[name] for name in _SUBJECTS},
    'seconds': seconds,
    'options': quick,
    'setting': command.setting(args),
  }


def table(result: dict[str, Any]) -> str:
  """The result as text."""
  return '\n'.join(
    [
      command.heading("compiling the quickstart's step", result['setting']),
      *command.columns(
        [('', '{:<14}'), ('seconds', '{:9.2f}'), ('ours/it', '{:9.2f}')],
        (
          (name, seconds, result['ratios'].get(name, 1.0))
          for name, seconds in result['seconds'].items()
        ),
      ),
    ]
  )


def main(argv: list[str] | None = None) -> None:
  args = parse(argv)
  command.finish(args, run(args), table)


if __name__ == '__main__':
  main()
