"""Training: a pure step, and one loop around it."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from data import pipeline
from experiments import evaluation, reporting
from experiments.checkpoint import Checkpoints
from experiments.datasets import Splits
from experiments.errors import ConfigError
from experiments.reporting import RunLog
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
  """

  step: jax.Array
  params: Any
  opt_state: Any
  baseline: jax.Array


TrainStep = Callable[..., tuple[TrainState, dict[str, jax.Array]]]


def make_model(config: ml_collections.ConfigDict, num_classes: int, shape):
  """The model of a resolved config for features of `shape` (N, D)."""
  model = config.model
  cell_options = {}
  if model.cell == 'hm_lstm':
    cell_options = {
      'boundary': model.boundary,
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
  )


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
    is computed, so both give the same numbers.
  """
  loss_config, train = config.loss, config.train

  def loss_of(params, batch, keys, baseline, slope, noise, axis_name):
    out = model.apply(
      params,
      batch['features'],
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

    def total(params):
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
      return loss, (average, jnp.stack(rewards))

    (_, (metrics, rewards)), gradient = jax.value_and_grad(total, has_aux=True)(
      state.params
    )
    gradient, metrics = mean_over_devices((gradient, metrics), axis_name)
    updates, opt_state = optimizer.update(
      gradient, state.opt_state, state.params
    )
    baseline = stochastic.update_baseline(
      state.baseline,
      mean_over_devices(jnp.mean(rewards), axis_name),
      loss_config.baseline_decay,
    )
    metrics['grad_norm'] = optax.tree.norm(gradient)
    metrics['boundary/noise'] = jnp.asarray(noise, jnp.float32)
    state = TrainState(
      step=state.step + 1,
      params=optax.apply_updates(state.params, updates),
      opt_state=opt_state,
      baseline=baseline,
    )
    return state, metrics

  return train_step


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


def data_mesh(batch_size: int) -> jax.sharding.Mesh:
  """A 1-D mesh named 'data' over all devices.

  Raises:
    ConfigError: if the devices do not divide the batch.
  """
  devices = jax.devices()
  if batch_size % len(devices):
    raise ConfigError(
      f'config.train.batch_size: expected a multiple of the {len(devices)} '
      f'devices, got {batch_size}.'
    )
  return jax.make_mesh(
    (len(devices),), ('data',), axis_types=(AxisType.Auto,), devices=devices
  )


def run(
  config: ml_collections.ConfigDict,
  splits: Splits,
  mesh: jax.sharding.Mesh,
  checkpoints: Checkpoints,
  log: RunLog,
) -> TrainState:
  """Trains to config.train.num_steps, from the latest checkpoint if any.

  Args:
    config: a resolved config.
    splits: train, validation and test clips.
    mesh: from `data_mesh`; batches are spread over it.
    checkpoints: where states are saved and restored.
    log: where metrics go.

  Returns:
    The last state. The best on validation is in `checkpoints`.
  """
  train, shape = config.train, splits.train.feature_shape
  model = make_model(config, len(splits.train.class_names), shape)
  optimizer = make_optimizer(train)
  steps_per_epoch = len(splits.train) / train.batch_size
  sharded = NamedSharding(mesh, PartitionSpec('data'))
  replicated = NamedSharding(mesh, PartitionSpec())

  state = init_state(config, model, optimizer, shape)
  restored = checkpoints.restore_latest(state)
  if restored is None and config.model.feature_norm == 'standard':
    statistics = pipeline.feature_statistics(splits.train)
    params = models.with_statistics(state.params, *statistics)
    state = state._replace(params=params)
  state = jax.device_put(restored or state, replicated)
  start = int(state.step)
  log.begin(start, train.num_steps, train.batch_size)
  step_fn = jax.jit(
    make_train_step(config, model, optimizer, steps_per_epoch),
    donate_argnums=0,
  )
  evaluator = evaluation.Evaluator(config, model)
  key = jax.device_put(jax.random.key(config.seed), replicated)
  rate = learning_rate(train)
  batches = pipeline.train_batches(
    splits.train,
    batch_size=train.batch_size,
    num_frames=config.data.num_frames,
    frame_stride=config.data.frame_stride,
    seed=config.seed,
    start_step=start,
  )
  for step in range(start + 1, train.num_steps + 1):
    waiting = time.perf_counter()
    batch = jax.device_put(next(batches), sharded)
    data_time = time.perf_counter() - waiting
    state, metrics = step_fn(state, batch, key)
    log.step(
      step,
      metrics,
      epoch=step / steps_per_epoch,
      lr=rate(step - 1),
      data_time=data_time,
    )
    is_last = step == train.num_steps
    if step % train.eval_every == 0 or is_last:
      scores = evaluator.score(state.params, splits.validation)
      log.evaluation(step, 'validation', scores)
      checkpoints.save_best(step, state, scores['acc/top1'])
    if step % config.checkpoint.every == 0 or is_last:
      checkpoints.save(step, state)
  return state


def final_evaluation(
  config: ml_collections.ConfigDict,
  splits: Splits,
  checkpoints: Checkpoints,
  log: RunLog,
) -> tuple[str, dict[str, dict[str, float]]]:
  """Scores the best state on validation and test.

  Args:
    config: a resolved config.
    splits: train, validation and test clips.
    checkpoints: of a finished run.
    log: where metrics go.

  Returns:
    (text, scores): the table, and `{'validation': ..., 'test': ...}`.
  """
  shape = splits.train.feature_shape
  model = make_model(config, len(splits.train.class_names), shape)
  like = init_state(config, model, make_optimizer(config.train), shape)
  state = checkpoints.restore_best(like)
  evaluator = evaluation.Evaluator(config, model)
  step = int(state.step)
  scores = {
    name: evaluator.score(state.params, source, both_modes=True)
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
    f'The model is that of step {step}, the best on validation (top-1 '
    f'{100 * scores["validation"]["acc/top1"]:.1f} %).'
  ]
  notes += [f'WARNING: {line}' for line in evaluation.dead_layers(test)]
  title = (
    f'{config.model.name} on {config.data.name}, {len(splits.test)} test clips'
  )
  table = reporting.table(
    title, {**test, 'num_classes': len(splits.test.class_names)}, notes
  )
  return table, scores
