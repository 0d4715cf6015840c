"""Where a trained network looks, against uniform and against the centre."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import evaluation
from experiments.trained import TrainedRun
from hman_jax import metrics
from hman_jax.attention.base import Attention, AttentionOutput


class Centre(Attention):
  """Reads the location in the middle at every step, whatever is there."""

  def attend(self, logits, features, h, key, deterministic):
    """See `Attention.attend`."""
    del h, key, deterministic
    pick = jnp.full(logits.shape[:-1], centre(self.num_locations))
    weights = jax.nn.one_hot(pick, self.num_locations, dtype=logits.dtype)
    zeros = jnp.zeros_like(logits[..., 0])
    return AttentionOutput(
      context=self.picked(features, weights, pick),
      weights=weights,
      log_prob=zeros,
      temperature=zeros + 1,
      entropy=zeros,
    )


def centre(num_locations: int) -> int:
  """The middle cell of a square grid, row by row.

  Example:
    >>> centre(49), centre(16)
    (24, 10)
  """
  side = math.isqrt(num_locations)
  return side // 2 * side + side // 2


def describe(run: TrainedRun, source) -> dict[str, Any]:
  """What the attention does on the clips of a source.

  Args:
    run: a trained run with an attention.
    source: a clip source on a square grid of locations.

  Returns:
    JSON-able dict: `entropy` and `entropy_uniform` (nats); `map` (mean weight
    of each location) and `map_entropy`; `distance` from the centre in cells
    and `distance_uniform`; `top1` and `top1_centre` (accuracy as it is, and
    with every look turned to the centre); `temperature` (mean and deviation at
    each step of a block); where the truth is known, `hit_rate` and that of
    always looking at the centre, at the best fixed place, and anywhere; and
    `boundaries`: F1 and its chance by layer.
  """
  evaluator = evaluation.Evaluator(run.config, run.model)
  draws = evaluator.run(run.params, source, weights=True)
  scores = evaluator.summarise(source, draws)
  first = draws[0]
  mask, weights = first['mask'], first['weights'][first['mask']]
  num_locations = weights.shape[1]
  mean_map = weights.mean(axis=0, dtype=np.float64)
  distance = _distances(num_locations)
  described: dict[str, Any] = {
    'entropy': scores['attention/entropy'],
    'entropy_uniform': math.log(num_locations),
    'map': mean_map.tolist(),
    'map_entropy': float(-mean_map @ np.log(np.maximum(mean_map, 1e-30))),
    'distance': float(mean_map @ distance),
    'distance_uniform': float(distance.mean()),
    'top1': scores['acc/top1'],
    'top1_centre': _at_centre(run, source),
    'temperature': _by_step(first['temperature'], mask),
  }
  if source.has_truth:
    target = first['target'][mask]
    counts = np.bincount(target[target >= 0], minlength=num_locations)
    share = counts / counts.sum()
    described |= {
      'hit_rate': scores['attention/hit_rate'],
      'hit_rate_centre': float(share[centre(num_locations)]),
      'hit_rate_best_fixed': float(share.max()),
      'hit_rate_chance': 1.0 / num_locations,
    }
    f1 = {k: v for k, v in scores.items() if k.startswith('boundary/f1')}
    described['boundaries'] = [
      {'layer': layer, 'f1': f1[name], 'f1_chance': f1[f'{name}_chance']}
      for layer, name in enumerate(
        sorted(k for k in f1 if not k.endswith('_chance')), start=1
      )
    ]
  return described


def _distances(num_locations: int) -> np.ndarray:
  """Of every cell from the centre, in cells: `[N]`."""
  side = math.isqrt(num_locations)
  row, column = np.divmod(np.arange(num_locations), side)
  middle = (side - 1) / 2
  return np.hypot(row - middle, column - middle)


def _at_centre(run: TrainedRun, source) -> float:
  """Top-1 accuracy of the same parameters, looking at the centre."""
  attention = run.model.attention
  blind = Centre(
    scorer=attention.scorer,
    position_code=attention.position_code,
    num_locations=attention.num_locations,
    scorer_size=attention.scorer_size,
  )
  model = dataclasses.replace(run.model, attention=blind)
  draws = evaluation.Evaluator(run.config, model).run(run.params, source)
  p = np.mean([evaluation.clip_probabilities(source, d) for d in draws], axis=0)
  return metrics.top_k_accuracy(p, np.asarray(source.labels))


def _by_step(values: np.ndarray, mask: np.ndarray) -> dict[str, list[float]]:
  """Mean and deviation over blocks at each step that any block has."""
  steps = [values[mask[:, t], t] for t in range(mask.shape[1])]
  steps = [s.astype(np.float64) for s in steps if s.size]
  return {
    'mean': [float(s.mean()) for s in steps],
    'std': [float(s.std()) for s in steps],
  }
