"""How noisy the gradient is, by how it is estimated through the attention.

All estimators see the same clips and the same parameters, and estimate the
gradient of the same number: the expected cross-entropy of a clip. Only the
attention's draws differ from one draw to the next; with boundary noise, the
boundaries' do too, and `soft` then tells how much is theirs.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from experiments import config as config_lib
from experiments import train
from hman_jax import losses

# 'reinforce' is unbiased for the loss: the reward is minus the cross-entropy,
# summed over steps as the loss is. 'reinforce_trained' has the reward, the
# weight and the entropy bonus of the training step.
ESTIMATORS = (
  'soft', 'gumbel', 'gumbel_adaptive', 'reinforce', 'reinforce_trained',
)  # fmt: skip
REFERENCE = 'reinforce'  # its mean is the true gradient
TOTAL = 'all'  # but the temperature's parameters, which only one of them has
_TEMPERATURE = 'temperature'
_BASELINE_DRAWS = 16


class Gradients(NamedTuple):
  """Gradients of one estimator over draws of the noise.

  Attributes:
    mean: pytree like the parameters.
    variance: pytree, sample variance of each parameter's gradient.
    num_draws: how many.
  """

  mean: Any
  variance: Any
  num_draws: int


def sample(
  config: ml_collections.ConfigDict,
  params: Any,
  batch: Mapping[str, Any],
  num_classes: int,
  estimator: str,
  *,
  num_draws: int,
  boundary_noise: float = 0.0,
  seed: int = 0,
) -> Gradients:
  """Draws the gradient of a batch again and again.

  REINFORCE's baseline is the mean reward of this batch at these parameters,
  from draws of its own: what the moving baseline of training aims at.

  Args:
    config: a resolved config, with any attention but 'none'.
    params: of that config's model.
    batch: from `pipeline.train_batches`.
    num_classes: C.
    estimator: one of `ESTIMATORS`.
    num_draws: at least 2.
    boundary_noise: scale of the noise of the boundaries.
    seed: of the draws.

  Returns:
    `Gradients`; those of the features' statistics are left out.
  """
  attention = estimator.partition('_trained')[0]
  config = _with_attention(config, attention)
  shape = batch['features'].shape[2:]
  model = train.make_model(config, num_classes, shape)
  fresh = train.init_state(
    config, model, train.make_optimizer(config.train), shape
  ).params
  params = _taken_over(fresh, params)
  batch = {k: jnp.asarray(batch[k]) for k in ('features', 'mask', 'label')}
  as_trained = estimator.endswith('_trained')

  def run(params, key):
    keys = jax.random.split(key, len(batch['label']))
    out = model.apply(
      params,
      batch['features'],
      batch['mask'],
      key=keys,
      boundary_slope=train.MAX_SLOPE,
      boundary_noise=boundary_noise,
    )
    labels, mask = batch['label'], batch['mask']
    per_clip = losses.cross_entropy(out.logits, labels, mask)
    if as_trained:
      reward = losses.reward(out.logits, labels, mask)
    else:
      reward = -jax.lax.stop_gradient(per_clip)
    return out, per_clip, reward

  def loss(params, key, baseline):
    out, per_clip, reward = run(params, key)
    value = jnp.mean(per_clip)
    if attention == 'reinforce':
      given = config.loss
      if as_trained and given.rewards_to_go:
        reward = losses.rewards_to_go(out.logits, batch['label'], batch['mask'])
      value += jnp.mean(
        losses.reinforce_loss(
          out.attention.log_prob,
          out.attention.entropy,
          reward,
          baseline,
          batch['mask'],
          weight=given.reinforce_weight if as_trained else 1.0,
          entropy_weight=given.entropy_weight if as_trained else 0.0,
        )
      )
    return value

  @jax.jit
  def draw_all(params, keys, baseline_keys):
    baseline = jnp.mean(
      jax.lax.map(lambda k: jnp.mean(run(params, k)[2]), baseline_keys)
    )

    def add(so_far, key):  # Welford's sums: exact zeros for equal gradients
      count, mean, squares = so_far
      gradient = jax.grad(loss)(params, key, baseline)
      count = count + 1
      change = jax.tree.map(jnp.subtract, gradient, mean)
      mean = jax.tree.map(lambda m, c: m + c / count, mean, change)
      left = jax.tree.map(jnp.subtract, gradient, mean)
      squares = jax.tree.map(lambda s, a, b: s + a * b, squares, change, left)
      return (count, mean, squares), None

    zeros = jax.tree.map(jnp.zeros_like, params)
    (_, mean, squares), _ = jax.lax.scan(
      add, (jnp.zeros(()), zeros, zeros), keys
    )
    variance = jax.tree.map(lambda s: s / (len(keys) - 1), squares)
    return mean, variance

  key = jax.random.key(seed)
  keys = jax.random.split(jax.random.fold_in(key, 0), num_draws)
  baseline_keys = jax.random.split(jax.random.fold_in(key, 1), _BASELINE_DRAWS)
  mean, variance = jax.device_get(draw_all(params, keys, baseline_keys))
  return Gradients(mean, variance, num_draws)


def _with_attention(config, attention: str) -> ml_collections.ConfigDict:
  """The config with another attention, and without dropout."""
  config = config.copy_and_resolve_references()
  with config.unlocked():
    config.update_from_flattened_dict(
      {
        'model.attention': attention,
        'model.dropout': 0.0,
        'model.input_dropout': 0.0,
      }
    )
  return config_lib.resolve(config)


def _taken_over(fresh: Any, params: Any) -> Any:
  """`params`, but what only `fresh` has from there: the temperature's."""
  attention = {
    name: params['params']['attention'].get(name, value)
    for name, value in fresh['params']['attention'].items()
  }
  return {'params': {**params['params'], 'attention': attention}}


def groups(tree: Any) -> dict[str, np.ndarray]:
  """The numbers of a gradient by part of the model, float64.

  Args:
    tree: pytree like the parameters of a recogniser.

  Returns:
    Arrays by name: 'attention' (the scorer), 'cell', 'head', ..., `TOTAL` of
    these, and 'temperature' where it is learned.
  """
  found: dict[str, list[np.ndarray]] = {}
  leaves, _ = jax.tree_util.tree_flatten_with_path(tree['params'])
  for path, leaf in leaves:
    names = [str(getattr(k, 'key', k)) for k in path]
    if names[0] == 'features':  # statistics, which are not trained
      continue
    name = _TEMPERATURE if 'inverse_temperature' in names else names[0]
    found.setdefault(name, []).append(np.ravel(leaf).astype(np.float64))
  joined = {name: np.concatenate(parts) for name, parts in found.items()}
  shared = [x for name, x in joined.items() if name != _TEMPERATURE]
  return {TOTAL: np.concatenate(shared), **joined}


def describe(
  found: Gradients, reference: Gradients | None = None
) -> dict[str, dict[str, Any]]:
  """Variance and bias of an estimator, by part of the model.

  Sums over the parameters of a part. Squared norms of means are freed of what
  the noise of the draws adds to them; one that is not above it is None.

  Args:
    found: of the estimator.
    reference: of the unbiased one; None leaves out the comparison.

  Returns:
    JSON-able, by name of `groups`: `num_params`, `variance`, `squared_mean`,
    `relative_variance` (variance / squared_mean), and, against the reference,
    `cosine` of the means and `relative_bias` (|mean - true|^2 / |true|^2).
  """
  mean, variance = groups(found.mean), groups(found.variance)
  truth = groups(reference.mean) if reference else {}
  truth_variance = groups(reference.variance) if reference else {}
  described: dict[str, dict[str, Any]] = {}
  for name, m in mean.items():
    spread = float(variance[name].sum())
    own = _above_noise(m @ m, spread / found.num_draws)
    described[name] = {
      'num_params': m.size,
      'variance': spread,
      'squared_mean': own,
      'relative_variance': spread / own if own else None,
    }
    if reference is None or reference is found or name not in truth:
      continue
    noise = float(truth_variance[name].sum()) / reference.num_draws
    true = _above_noise(truth[name] @ truth[name], noise)
    gap = m - truth[name]
    away = max(float(gap @ gap) - noise - spread / found.num_draws, 0.0)
    described[name] |= {
      'cosine': (
        float(np.clip(m @ truth[name] / (own * true) ** 0.5, -1, 1))
        if own and true
        else None
      ),
      'relative_bias': away / true if true else None,
    }
  return described


def _above_noise(squared: float, noise: float) -> float | None:
  rest = float(squared) - noise
  return rest if rest > 0 else None
