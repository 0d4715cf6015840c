"""The test protocol: every block of every clip, averaged; and its metrics."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from data import pipeline
from experiments import distributed, sharding
from hman_jax import metrics

CHANCE_SEED = 0  # of the shifts that give the chance level of boundaries
DEAD_BELOW, DEAD_ABOVE = 0.01, 0.99


@functools.partial(
  jax.jit, static_argnames=('model', 'mesh', 'sample', 'weights')
)
def _apply(model, mesh, params, batch, key, sample, weights):
  """What is looked at of the blocks of a batch, by name."""
  keys = _clip_keys(key, batch['clip'], batch['start'])
  out = model.apply(
    params,
    pipeline.features_of(batch),
    batch['mask'],
    key=keys if sample else None,
    deterministic=True,
    sample_boundaries=sample,
    boundary_slope=5.0,
  )
  shown = {k: v for k, v in batch.items() if k != 'features'}
  shown['logits'] = out.logits
  if out.attention is not None:
    shown['pick'] = jnp.argmax(out.attention.weights, axis=-1)
    shown['entropy'] = out.attention.entropy
    shown['temperature'] = out.attention.temperature
    if weights:
      shown['weights'] = out.attention.weights
  if out.cell is not None and out.cell.z is not None:
    shown['z'] = out.cell.z
    shown['operation'] = out.cell.operation
  if mesh is not None:  # every process sees the rows of all
    shown = jax.lax.with_sharding_constraint(shown, sharding.everywhere(mesh))
  return shown


class Evaluator:
  """Scores parameters on a clip source; compiled once for a model.

  Args:
    config: a resolved config.
    model: from `train.make_model`.
    mesh: devices over which batches are spread, of all processes, of which each
      reads its rows; None: one device.
  """

  def __init__(
    self,
    config: ml_collections.ConfigDict,
    model,
    mesh: jax.sharding.Mesh | None = None,
  ):
    self._config = config
    self._model = model
    self._mesh = mesh
    self._has_boundaries = config.model.cell == 'hm_lstm'
    self._draws = self._has_boundaries and config.model.boundary == 'gumbel'
    self._key = jax.random.key(config.seed)
    self._compiled: set[tuple[bool, bool]] = set()

  @property
  def _samples(self) -> bool:
    return self._draws and self._config.eval.boundary_mode == 'sample'

  def score(
    self,
    params: Any,
    source,
    *,
    both_modes: bool = False,
    check: Callable[[], None] = lambda: None,
  ) -> dict:
    """All metrics of a split, as fractions.

    Args:
      params: of the model.
      source: a clip source.
      both_modes: also the boundary rates of the mode that is not used.
      check: called before each batch; may raise to stop.

    Returns:
      Metrics by name, in the mode config.eval.boundary_mode.
    """
    sample = self._samples
    draws = self.run(params, source, check)
    scores = self.summarise(source, draws)
    if both_modes and self._draws:
      other = self._outputs(params, source, check, not sample, 0)
      modes = {sample: draws[0], not sample: other}
      for mode, name in ((False, 'deterministic'), (True, 'sampled')):
        rates = metrics.boundary_rates(modes[mode]['z'], modes[mode]['mask'])
        for layer, rate in enumerate(rates, start=1):
          scores[f'boundary/rate_{layer}_{name}'] = float(rate)
    return scores

  def run(
    self,
    params: Any,
    source,
    check: Callable[[], None] = lambda: None,
    *,
    clips: Sequence[int] | None = None,
    weights: bool = False,
  ) -> list[dict]:
    """Outputs and truth of all blocks: arrays `[blocks, ...]` by name.

    Args:
      params: of the model.
      source: a clip source.
      check: called before each batch; may raise to stop.
      clips: which clips; None is all.
      weights: also the attention's weights `[blocks, T, N]`.

    Returns:
      One dict a draw; one where nothing is drawn.
    """
    num_draws = self._config.eval.num_samples if self._samples else 1
    return [
      self._outputs(params, source, check, self._samples, n, clips, weights)
      for n in range(num_draws)
    ]

  def compile(self, params: Any, source) -> None:
    """Compiles what `score` runs, ahead.

    Args:
      params: of the model.
      source: a clip source.
    """
    batch = next(self._batches(source))
    self._compile(params, batch, self._key_of(0), self._samples, False)

  def _compile(self, params, batch, key, sample, weights) -> None:
    """Before a batch: no collective waits for a process that compiles."""
    if (sample, weights) in self._compiled:
      return
    distributed.beat('compiling the evaluation', alone=True)
    arguments = self._model, self._mesh, params, batch, key, sample, weights
    _apply.lower(*arguments).compile()
    distributed.wait()
    self._compiled.add((sample, weights))

  def _key_of(self, draw: int) -> jax.Array:
    key = jax.random.fold_in(self._key, draw)
    return key if self._mesh is None else sharding.put_key(key, self._mesh)

  def _batches(self, source, clips=None) -> Iterator[dict]:
    """All blocks, on the devices."""
    config = self._config
    batch_size = config.eval.batch_size
    if self._mesh is not None:  # rows for all devices; more rows are padding
      batch_size += -batch_size % self._mesh.shape['data']
    batches = pipeline.eval_batches(
      source,
      batch_size=batch_size,
      num_frames=config.data.num_frames,
      frame_stride=config.data.frame_stride,
      num_shards=distributed.count(),
      shard=distributed.index(),
    )
    if clips is not None:
      wanted = set(clips)
      batches.blocks = [b for b in batches.blocks if b[0] in wanted]
    for batch in batches:
      yield (
        batch if self._mesh is None else sharding.put_rows(batch, self._mesh)
      )

  def _outputs(
    self, params, source, check, sample, draw, clips=None, weights=False
  ) -> dict:
    """Outputs and truth of blocks, `[blocks, ...]`, padding rows left out.

    The T-frame blocks of a clip stay rows of their own.
    """
    key = self._key_of(draw)
    parts = []
    for batch in self._batches(source, clips):
      distributed.beat('evaluating')
      check()
      self._compile(params, batch, key, sample, weights)
      shown = jax.device_get(
        _apply(self._model, self._mesh, params, batch, key, sample, weights)
      )
      real = shown['weight'] > 0
      parts.append({k: v[real] for k, v in shown.items()})
    return {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}

  def summarise(self, source, draws: list[dict]) -> dict:
    """All metrics of what `run` returned; class scores are averaged."""
    first = draws[0]
    p = np.mean([clip_probabilities(source, d) for d in draws], axis=0)
    scores = classification_scores(p, np.asarray(source.labels))
    if 'pick' in first:
      scores |= _attention_scores(source, draws)
    if 'z' in first:
      scores |= self._boundary_scores(source, draws)
    return scores

  def _boundary_scores(self, source, draws: list[dict]) -> dict:
    scores: dict[str, float] = {}
    mask = draws[0]['mask']
    tolerance = self._config.eval.boundary_tolerance
    rates = np.mean(
      [metrics.boundary_rates(d['z'], mask) for d in draws], axis=0
    )
    operations = np.mean(
      [metrics.operation_rates(d['operation'], mask) for d in draws], axis=0
    )
    for layer, rate in enumerate(rates, start=1):
      scores[f'boundary/rate_{layer}'] = float(rate)
      for name, share in zip(
        ('copy', 'update', 'flush'), operations[layer - 1]
      ):
        scores[f'operation/{name}_{layer}'] = float(share)
    if not source.has_truth:
      return scores
    true = draws[0]['boundaries']
    for layer in range(len(rates)):
      found = [d['z'][..., layer] > 0.5 for d in draws]
      name = 'boundary/f1' if layer == 0 else f'boundary/f1_{layer + 1}'
      rng = np.random.default_rng(CHANCE_SEED)
      scores[name] = float(
        np.mean(
          [metrics.boundary_score(z, true, mask, tolerance).f1 for z in found]
        )
      )
      scores[f'{name}_chance'] = metrics.boundary_chance(
        found[0], true, mask, tolerance, rng=rng
      ).f1
    return scores


def clip_probabilities(source, draw: dict) -> np.ndarray:
  """Class probabilities of each clip, over its blocks: float64 `[M, C]`."""
  blocks = metrics.block_probabilities(draw['logits'], draw['mask'])
  return metrics.average_blocks(blocks, draw['clip'], len(source))


def classification_scores(p: np.ndarray, labels: np.ndarray) -> dict:
  """Metrics of class probabilities `[M, C]` against labels int `[M]`."""
  likely = np.maximum(p[np.arange(len(p)), labels], 1e-12)
  return {
    'loss': float(-np.log(likely).mean()),
    'acc/top1': metrics.top_k_accuracy(p, labels, 1),
    'acc/top5': metrics.top_k_accuracy(p, labels, 5),
    'acc/mean1': metrics.mean_class_accuracy(p, labels),
    'mAP': metrics.mean_average_precision(p, labels),
  }


def _attention_scores(source, draws: list[dict]) -> dict:
  mask = draws[0]['mask']
  scores = {
    'attention/entropy': float(
      np.mean([metrics.attention_entropy(d['entropy'], mask) for d in draws])
    ),
    'attention/temperature': float(
      np.mean([d['temperature'][mask].mean() for d in draws])
    ),
  }
  if source.has_truth:
    num_locations = source.feature_shape[0]
    scores['attention/hit_rate'] = float(
      np.mean(
        [
          metrics.attention_hit_rate(d['pick'], d['target'], mask)
          for d in draws
        ]
      )
    )
    scores['attention/hit_rate_chance'] = 1.0 / num_locations
  return scores


def _clip_keys(key, clip, start):
  """One key a block, whatever batch it is in."""
  per_clip = jax.vmap(jax.random.fold_in, (None, 0))(key, clip)
  return jax.vmap(jax.random.fold_in)(per_clip, start)


def dead_layers(scores: dict) -> list[str]:
  """Warnings, one for each layer whose boundaries never or always fire.

  Args:
    scores: from `Evaluator.score`.

  Returns:
    One line a dead layer.
  """
  lines = []
  for name, rate in sorted(scores.items()):
    is_rate = name.startswith('boundary/rate_') and name.count('_') == 1
    if is_rate and not DEAD_BELOW <= rate <= DEAD_ABOVE:
      layer = name.rpartition('_')[2]
      lines.append(
        f'layer {layer} is dead: it finds a boundary in {100 * rate:.1f} % of '
        'the steps. Try a larger config.loss.boundary_rate_weight, '
        'config.train.boundary_noise_end=0, or '
        'config.eval.boundary_mode=sample.'
      )
  return lines
