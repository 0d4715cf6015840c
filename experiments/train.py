"""Training: a pure step, and one loop around it."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from data import pipeline
from experiments import (
  distributed,
  evaluation,
  integrity,
  reporting,
  runtime,
  sharding,
)
from experiments.checkpoint import Checkpoints
from experiments.datasets import Splits
from experiments.errors import ConfigError, StoppedRun
from experiments.reporting import RunLog
from experiments.stacking import Moments, Stacking
from experiments.step_watch import StepWatch
from experiments.stopping import Stop
from hman_jax import losses, models, stochastic

STEPS_PER_SLOPE = 0.04  # slope annealing: min(5, 1 + 0.04 epoch)
MAX_SLOPE = 5.0


class TrainState(NamedTuple):
  """Everything a step changes.

  Attributes:
    step: int32 scalar, steps done.
    params: `{'params': ...}` of the model.
    opt_state: of the optimiser.
    baseline: float32 scalar, REINFORCE's moving reward baseline.
    skipped: int32 scalar, steps left out since they were not finite.
    averaged: moving average of the parameters, which is what is evaluated;
      None without one.
  """

  step: jax.Array
  params: Any
  opt_state: Any
  baseline: jax.Array
  skipped: jax.Array
  averaged: Any = None

  def evaluated(self) -> Any:
    """The parameters to evaluate."""
    return self.params if self.averaged is None else self.averaged


TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def make_model(config: ml_collections.ConfigDict, num_classes: int, shape):
  """The model of a resolved config for features of `shape` (N, D)."""
  model = config.model
  if model.backward == 'pallas' and jax.device_count() > 1:
    raise ConfigError(
      "config.model.backward: expected 'deferred' on "
      f"{jax.device_count()} devices, got 'pallas', whose kernels are for one."
    )
  cell_options, is_fixed = {}, False
  if model.cell == 'hm_lstm':
    is_fixed = model.boundary == 'fixed'
    cell_options = {
      'boundary': 'given' if is_fixed else model.boundary,
      'boundary_rate': model.boundary_rate,
      'copied_boundary': model.copied_boundary,
      'layer_norm': model.layer_norm,
      'output_activation': model.output_activation,
      'temperature': model.boundary_temperature,
      'top_detector': model.top_detector,
    }
  attention_options = {
    'num_locations': shape[0],
    'position_code': model.position_code,
    'scorer': model.scorer,
    'scorer_size': model.scorer_size,
  }
  if model.attention == 'gumbel':
    attention_options['constant_temperature'] = model.attention_temperature
  return models.create(
    num_classes,
    cell=model.cell,
    attention=model.attention,
    head=model.head,
    hidden_sizes=(model.hidden_size,) * model.num_layers,
    cell_options=cell_options,
    attention_options=attention_options,
    initial_state=model.initial_state,
    input_dropout=model.input_dropout,
    dropout=model.dropout,
    feature_norm=model.feature_norm,
    global_context=model.global_context,
    backward=model.backward,
    remat=model.remat,
    dtype=model.dtype,
    boundary_period=model.boundary_period if is_fixed else 0,
  )


def learning_rate(train: ml_collections.ConfigDict) -> optax.Schedule:
  """The learning rate at each step."""
  rate, warmup = train.learning_rate, train.warmup_steps
  rest = max(train.num_steps - warmup, 1)
  after = {
    'constant': optax.constant_schedule(rate),
    'cosine': optax.cosine_decay_schedule(rate, rest, alpha=0.01),
    'step': optax.piecewise_constant_schedule(
      rate, {max(train.drop_step - warmup, 0): train.drop_factor}
    ),
  }[train.schedule]
  if not warmup:
    return after
  ramp = optax.linear_schedule(0.0, rate, warmup)
  return optax.join_schedules([ramp, after], [warmup])


def make_optimizer(
  train: ml_collections.ConfigDict,
) -> optax.GradientTransformation:
  """Clipping by global norm, then Adam or AdamW."""
  rate = learning_rate(train)
  if train.optimizer == 'adam':
    rule = optax.adam(rate)
  else:
    decayed = lambda params: jax.tree.map(lambda p: p.ndim > 1, params)
    rule = optax.adamw(rate, weight_decay=train.weight_decay, mask=decayed)
  return optax.chain(optax.clip_by_global_norm(train.clip_norm), rule)


def init_state(config, model, optimizer, shape) -> TrainState:
  """The state before the first step; a function of config.seed."""
  features = jnp.zeros((1, 1, *shape))
  params = model.init(jax.random.key(config.seed), features)
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    opt_state=optimizer.init(params),
    baseline=jnp.zeros(()),
    skipped=jnp.zeros((), jnp.int32),
    averaged=_copy(params) if config.train.ema_decay else None,
  )


def _copy(tree):
  """Arrays of its own: a step donates each only once."""
  return jax.tree.map(jnp.copy, tree)


def stacking_of(train: ml_collections.ConfigDict, params: Any) -> Stacking:
  """How small arrays are stacked for the optimiser."""
  return Stacking(params, by_columns=train.model_devices > 1)


def moments_of(
  train: ml_collections.ConfigDict, params: Any, mesh: jax.sharding.Mesh
) -> Moments:
  """How the optimiser's moments are kept between steps."""
  # Over devices of a model they stay whole: where they are goes by their paths.
  is_spread = train.model_devices > 1
  stacking = None if is_spread else stacking_of(train, params)
  return Moments(stacking, sharding.everywhere(mesh))


def make_train_step(
  config: ml_collections.ConfigDict,
  model,
  optimizer: optax.GradientTransformation,
  steps_per_epoch: float,
) -> TrainStep:
  """Makes the pure training step.

  Args:
    config: a resolved config.
    model: from `make_model`.
    optimizer: from `make_optimizer`.
    steps_per_epoch: for the slope's schedule, which counts epochs.

  Returns:
    `train_step(state, batch, key, axis_name=None) -> (state, metrics)`. It runs
    under `jit` with the batch sharded over a mesh, or under `pmap` with
    `axis_name`; the noise of a row depends on `batch['row']`, not on where it
    is computed, so both give the same numbers. A step whose loss or gradient
    is not finite changes nothing but `step` and `skipped`; its metric
    `nonfinite` is 1. So does one whose new state is not; it is 2. With
    `batch['signal']` there is a metric `signal`, its largest. Moments of the
    optimiser stay as they are given: whole, or stacked by `stacking_of`, which
    saves stacking them at each step.
  """
  loss_config, train = config.loss, config.train

  def loss_of(params, batch, keys, baseline, slope, noise, axis_name):
    out = model.apply(
      params,
      pipeline.features_of(batch),
      batch['mask'],
      key=keys,
      boundary_slope=slope,
      boundary_noise=noise,
    )
    labels, mask = batch['label'], batch['mask']
    per_clip = losses.cross_entropy(
      out.logits, labels, mask, loss_config.label_smoothing
    )
    loss = jnp.mean(per_clip)
    reward = losses.reward(out.logits, labels, mask)
    if config.model.attention == 'reinforce':
      make_reward = losses.rewards_to_go if loss_config.rewards_to_go else None
      loss += jnp.mean(
        losses.reinforce_loss(
          out.attention.log_prob,
          out.attention.entropy,
          make_reward(out.logits, labels, mask) if make_reward else reward,
          baseline,
          mask,
          weight=loss_config.reinforce_weight,
          entropy_weight=loss_config.entropy_weight,
        )
      )
    if loss_config.doubly_stochastic and out.attention is not None:
      penalty = losses.doubly_stochastic_penalty(out.attention.weights, mask)
      loss += loss_config.doubly_stochastic * jnp.mean(penalty)
    if loss_config.boundary_rate_weight and _has_boundaries(out):
      penalty = losses.boundary_rate_penalty(
        out.cell.z, mask, loss_config.boundary_rate_target, axis_name
      )
      # In the scale of the cross-entropy, which is summed over the steps.
      steps = mean_over_devices(jnp.mean(jnp.sum(mask, axis=1)), axis_name)
      loss += loss_config.boundary_rate_weight * steps * penalty
    return loss, (out, reward, per_clip)

  def metrics_of(out, batch, reward, per_clip):
    mask = batch['mask']
    valid = jnp.maximum(jnp.sum(mask), 1)
    right = jnp.argmax(out.logits, axis=-1) == batch['label'][:, None]
    metrics = {
      'loss': jnp.mean(per_clip) / jnp.mean(jnp.sum(mask, axis=1)),
      'acc/step': jnp.sum(right & mask) / valid,
      'reward': jnp.mean(reward),
    }
    if out.attention is not None:
      for name in ('temperature', 'entropy'):
        per_step = getattr(out.attention, name)
        metrics[f'attention/{name}'] = (
          jnp.sum(jnp.where(mask, per_step, 0.0)) / valid
        )
    if _has_boundaries(out):
      rates = losses.boundary_rates(out.cell.z, mask)
      for layer, rate in enumerate(rates, start=1):
        metrics[f'boundary/rate_{layer}'] = rate
    return metrics

  def train_step(state, batch, key, axis_name=None):
    step_key = jax.random.fold_in(key, state.step)
    row_keys = jax.vmap(jax.random.fold_in, (None, 0))(step_key, batch['row'])
    epoch = state.step / steps_per_epoch
    slope = jnp.minimum(MAX_SLOPE, 1.0 + STEPS_PER_SLOPE * epoch)
    noise = boundary_noise(train, state.step)

    def total(params, batch, row_keys):
      loss, metrics, rewards = 0.0, [], []
      for draw in range(loss_config.num_samples):
        keys = stochastic.fold_in(row_keys, draw)
        part, (out, reward, per_clip) = loss_of(
          params, batch, keys, state.baseline, slope, noise, axis_name
        )
        loss += part / loss_config.num_samples
        rewards.append(reward)
        metrics.append(metrics_of(out, batch, reward, per_clip))
      average = jax.tree.map(lambda *m: jnp.mean(jnp.stack(m)), *metrics)
      return loss, (average, jnp.mean(jnp.stack(rewards)))

    def part(batch, keys):
      (loss, aux), gradient = jax.value_and_grad(total, has_aux=True)(
        state.params, batch, keys
      )
      return gradient, loss, *aux

    gradient, loss, metrics, reward = mean_over_devices(
      _mean_over_parts(part, batch, row_keys, train.accumulate_steps), axis_name
    )
    stacking = stacking_of(train, state.params)
    given = jax.tree.structure(state.opt_state)
    gradient, state = stacking.pack((gradient, state))
    stay = given == jax.tree.structure(state.opt_state)
    metrics['grad_norm'] = optax.tree.norm(gradient)
    metrics['boundary/noise'] = jnp.asarray(noise, jnp.float32)
    finite = jnp.isfinite(loss) & jnp.isfinite(metrics['grad_norm'])
    updates, opt_state = optimizer.update(
      gradient, state.opt_state, state.params
    )
    params = optax.apply_updates(state.params, updates)
    averaged = None
    if train.ema_decay:
      averaged = optax.incremental_update(
        params, state.averaged, 1.0 - train.ema_decay
      )
    new = TrainState(
      step=state.step + 1,
      params=params,
      opt_state=opt_state,
      baseline=stochastic.update_baseline(
        state.baseline, reward, loss_config.baseline_decay
      ),
      skipped=state.skipped,
      averaged=averaged,
    )
    old = state._replace(step=state.step + 1, skipped=state.skipped + 1)
    wrong = jnp.where(finite, jnp.where(_is_finite(new), 0.0, 2.0), 1.0)
    metrics['nonfinite'] = wrong
    chosen = jax.tree.map(lambda a, b: jnp.where(wrong == 0, a, b), new, old)
    # Chosen whole, not again in the program of each part.
    chosen = jax.lax.optimization_barrier(chosen)
    state = stacking.unpack(chosen)
    if stay:
      state = state._replace(opt_state=chosen.opt_state)
    metrics['skipped'] = state.skipped.astype(jnp.float32)
    if 'signal' in batch:  # of any of several processes
      metrics['signal'] = jnp.max(batch['signal'])
    return state, metrics

  return train_step


def _is_finite(tree) -> jax.Array:
  """Whether all numbers are."""
  # Of arrays of the same shape at once: fewer programs to compile.
  of_shape: dict[Any, jax.Array] = {}
  for x in jax.tree.leaves(tree):
    finite = jnp.isfinite(x)
    of_shape[x.shape] = of_shape.get(x.shape, True) & finite
  return jnp.stack([finite.all() for finite in of_shape.values()]).all()


def _mean_over_parts(function, batch, keys, num_parts: int):
  """The mean of a function over parts of a batch, computed in turn.

  Part k takes the rows k, k + num_parts, ...: a batch that is spread over
  devices stays where it is.
  """
  if num_parts == 1:
    return function(batch, keys)
  split = lambda x: jnp.swapaxes(x.reshape(-1, num_parts, *x.shape[1:]), 0, 1)
  parts = jax.tree.map(split, (batch, keys))
  first = jax.eval_shape(function, *jax.tree.map(lambda x: x[0], parts))
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), first)

  def add(total, part):
    return jax.tree.map(jnp.add, total, function(*part)), None

  total, _ = jax.lax.scan(add, zeros, parts)
  return jax.tree.map(lambda x: x / num_parts, total)


def boundary_noise(train: ml_collections.ConfigDict, step):
  """Scale of the boundaries' noise: from 1 down to its end, linearly."""
  part = train.boundary_noise_part * train.num_steps
  done = jnp.minimum(step / part, 1.0)
  return 1.0 + (train.boundary_noise_end - 1.0) * done


def mean_over_devices(tree, axis_name: str | None):
  """The mean over the devices of a `pmap`; the tree itself outside of one."""
  return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def _has_boundaries(out) -> bool:
  return out.cell is not None and out.cell.z is not None


def run(
  config: ml_collections.ConfigDict,
  splits: Splits,
  mesh: jax.sharding.Mesh,
  checkpoints: Checkpoints,
  log: RunLog,
  stop: Stop,
) -> TrainState:
  """Trains to config.train.num_steps, from the latest checkpoint if any.

  Args:
    config: a resolved config.
    splits: train, validation and test clips.
    mesh: from `sharding.make_mesh`; batches are spread over it.
    checkpoints: where states are saved and restored.
    log: where metrics go.
    stop: looked at between steps and evaluation batches; of several processes,
      all stop after the same step. Held from the first step on.

  Returns:
    The last state. The best on validation is in `checkpoints`.

  Raises:
    StoppedRun: if asked to stop; the last finished step, if any, is saved.
    NonFiniteError: if the loss, its gradient or the new state is not finite.
    StorageError: if something cannot be written.
  """
  train, shape = config.train, splits.train.feature_shape
  model = make_model(config, len(splits.train.class_names), shape)
  optimizer = make_optimizer(train)
  steps_per_epoch = len(splits.train) / train.batch_size
  distributed.beat('making the model')
  state = init_state(config, model, optimizer, shape)
  places = sharding.of_state(state, mesh)
  distributed.beat('reading the latest checkpoint')
  restored = checkpoints.restore_latest(sharding.put(state, places))
  if restored is None and config.model.feature_norm == 'standard':
    distributed.beat('taking the statistics of the features', alone=True)
    statistics = pipeline.feature_statistics(splits.train)
    params = models.with_statistics(state.params, *statistics)
    averaged = _copy(params) if train.ema_decay else None
    state = state._replace(params=params, averaged=averaged)
  if restored is None and distributed.count() > 1:  # of unlike machines?
    first = integrity.make(0, state, {})['arrays']
    distributed.check_same({f'the first {k}': v for k, v in first.items()})
  state = restored or sharding.put(state, places)
  del restored  # or it keeps arrays that the steps could use again
  moments = moments_of(train, state.params, mesh)
  state = moments.stacked(state)
  start = int(state.step)
  log.begin(start, train.num_steps, train.batch_size)
  step_fn = jax.jit(
    make_train_step(config, model, optimizer, steps_per_epoch),
    donate_argnums=0,
    out_shardings=(sharding.of_state(state, mesh), sharding.everywhere(mesh)),
    compiler_options=runtime.quick_compilation(train.quick_compile),
  )
  evaluator = evaluation.Evaluator(config, model, mesh)
  key = sharding.put_key(jax.random.key(config.seed), mesh)
  rate = learning_rate(train)
  batches = pipeline.train_batches(
    splits.train,
    batch_size=train.batch_size,
    num_frames=config.data.num_frames,
    frame_stride=config.data.frame_stride,
    seed=config.seed,
    start_step=start,
    num_shards=distributed.count(),
    shard=distributed.index(),
  )
  watch = StepWatch(train, splits.train, stop, checkpoints)
  step = start
  try:
    while True:
      is_last = step == train.num_steps
      # A run stopped while it evaluated this step evaluates it again.
      due = step % train.eval_every == 0 or is_last
      if (
        step and due and not distributed.from_first(log.has('validation', step))
      ):
        watch.check()
        scores = evaluator.score(
          state.evaluated(), splits.validation, check=stop.agree
        )
        checkpoints.save_best(step, moments.whole(state), scores['acc/top1'])
        log.evaluation(step, 'validation', scores)
      if step > start and (step % config.checkpoint.every == 0 or is_last):
        watch.check()
        distributed.beat(f'saving step {step}')
        checkpoints.save(step, moments.whole(state))
      if is_last:
        return moments.whole(state)
      stop.check()
      step += 1
      waiting = time.perf_counter()
      distributed.beat(f'reading the batch of step {step}')
      batch = next(batches)
      if distributed.count() > 1:
        batch['signal'] = np.full(len(batch['row']), stop.signal or 0, np.int32)
      on_devices = sharding.put_rows(batch, mesh)
      if step == start + 1:
        # All at once, while a signal ends the process. Several compile at
        # different speeds, and the first collective does not wait for long.
        distributed.beat('compiling', alone=True)
        step_fn = step_fn.lower(state, on_devices, key).compile()
        distributed.wait()
        evaluator.compile(state.evaluated(), splits.validation)
        stop.hold()
      distributed.beat(f'computing step {step}')
      data_time = time.perf_counter() - waiting
      state, metrics = step_fn(state, on_devices, key)
      watch.add(step, metrics, batch)
      log.step(
        step,
        metrics,
        epoch=step / steps_per_epoch,
        lr=rate(step - 1),
        data_time=data_time,
      )
  except StoppedRun as e:
    watch.check()
    if step:
      distributed.beat(f'saving step {step}')
      checkpoints.save(step, moments.whole(state))
    done = f'; step {step} is saved' if step else ' before the first step'
    raise StoppedRun(
      e.number, f'stopped{done}. The same command goes on.'
    ) from e


def final_evaluation(
  config: ml_collections.ConfigDict,
  splits: Splits,
  mesh: jax.sharding.Mesh,
  checkpoints: Checkpoints,
  log: RunLog,
  stop: Stop,
) -> tuple[str, dict[str, dict[str, float]]]:
  """Scores the best state on validation and test.

  Args:
    config: a resolved config.
    splits: train, validation and test clips.
    mesh: from `sharding.make_mesh`; batches are spread over it.
    checkpoints: of a finished run.
    log: where metrics go.
    stop: looked at between batches.

  Returns:
    (text, scores): the table, and `{'validation': ..., 'test': ...}`.
  """
  shape = splits.train.feature_shape
  model = make_model(config, len(splits.train.class_names), shape)
  like = init_state(config, model, make_optimizer(config.train), shape)
  like = sharding.put(like, sharding.of_state(like, mesh))
  state = checkpoints.restore_best(like)
  best = 'the best on validation'
  if state is None:  # deleted by the user, being damaged
    state, best = checkpoints.restore_latest(like), 'the last: the best is lost'
  assert state is not None, 'a finished run has a checkpoint'
  evaluator = evaluation.Evaluator(config, model, mesh)
  step = int(state.step)
  scores = {
    name: evaluator.score(
      state.evaluated(), source, both_modes=True, check=stop.agree
    )
    for name, source in (
      ('validation', splits.validation),
      ('test', splits.test),
    )
  }
  test = scores['test']
  test |= {
    f'{name}_train': value
    for name, value in log.last_train().items()
    if name.startswith('boundary/rate_')
  }
  log.evaluation(config.train.num_steps, 'test', test)
  notes = [
    f'The model is that of step {step}, {best} (validation top-1 '
    f'{100 * scores["validation"]["acc/top1"]:.1f} %).'
  ]
  if int(state.skipped):
    notes.append(
      f'{int(state.skipped)} steps were skipped: loss or gradient not finite.'
    )
  if splits.skipped:
    notes.append(
      f'{len(splits.skipped)} clips were skipped, their videos being bad: '
      f'{", ".join(splits.skipped)}'
    )
  if config.model.boundary != 'fixed':
    dead = evaluation.dead_layers(test)
    notes += [f'WARNING: {line}' for line in dead]
  title = (
    f'{config.model.name} on {config.data.name}, {len(splits.test)} test clips'
  )
  table = reporting.table(
    title, {**test, 'num_classes': len(splits.test.class_names)}, notes
  )
  return table, scores
