"""Metrics of recognition, attention and boundaries, in NumPy on the host.

Fractions are in [0, 1]. Classes without a clip have no accuracy and no average
precision: they are NaN, and left out of means.
"""

from typing import NamedTuple

import numpy as np

from hman_jax.cells import OPERATION_NAMES

NUM_OPERATIONS = len(OPERATION_NAMES)


class BoundaryScore(NamedTuple):
  """Precision, recall and F1 of boundaries, each in [0, 1]."""

  precision: float
  recall: float
  f1: float


def block_probabilities(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Class probabilities of a block: softmax a step, mean over valid steps.

  Args:
    logits: `[B, T, C]`.
    mask: bool `[B, T]`.

  Returns:
    float64 `[B, C]`; zeros for a block without a valid step.

  Example:
    >>> block_probabilities(np.zeros((1, 2, 4)), np.ones((1, 2), bool)).tolist()
    [[0.25, 0.25, 0.25, 0.25]]
  """
  logits = np.asarray(logits, np.float64)
  p = np.exp(logits - logits.max(axis=-1, keepdims=True))
  p /= p.sum(axis=-1, keepdims=True)
  count = np.maximum(mask.sum(axis=1, keepdims=True), 1)
  return np.where(mask[..., None], p, 0.0).sum(axis=1) / count


def average_blocks(
  probabilities: np.ndarray, clip: np.ndarray, num_clips: int
) -> np.ndarray:
  """Mean over the blocks of each clip.

  Args:
    probabilities: `[M, C]`, one row a block.
    clip: int `[M]`, the clip of each block.
    num_clips: number of clips.

  Returns:
    float64 `[num_clips, C]`.

  Raises:
    ValueError: if a clip has no block.

  Example:
    >>> average_blocks(np.array([[0.0, 1.0], [1.0, 0.0]]), np.array([0, 0]), 1)
    array([[0.5, 0.5]])
  """
  total = np.zeros((num_clips, probabilities.shape[1]))
  np.add.at(total, clip, probabilities)
  count = np.bincount(clip, minlength=num_clips)
  if (count == 0).any():
    missing = np.flatnonzero(count == 0)
    raise ValueError(
      f'clip: expected a block of each of {num_clips} clips, got none of '
      f'{missing[:10].tolist()}.'
    )
  return total / count[:, None]


def top_k_accuracy(scores: np.ndarray, labels: np.ndarray, k: int = 1) -> float:
  """Share of clips whose class is among the k highest scores.

  A class that ties with the true one and has a smaller index stands before it.

  Args:
    scores: `[M, C]`.
    labels: int `[M]`.
    k: at least 1; k >= C gives 1.

  Returns:
    A fraction.

  Example:
    >>> top_k_accuracy(np.array([[0.1, 0.9], [0.2, 0.8]]), np.array([1, 0]))
    0.5
  """
  order = np.argsort(-scores, axis=1, kind='stable')[:, :k]
  return float(np.mean((order == np.asarray(labels)[:, None]).any(axis=1)))


def confusion_matrix(
  scores: np.ndarray, labels: np.ndarray, num_classes: int
) -> np.ndarray:
  """Counts: row = true class, column = predicted class.

  Args:
    scores: `[M, C]`.
    labels: int `[M]`.
    num_classes: C.

  Returns:
    int64 `[C, C]`.

  Example:
    >>> confusion_matrix(np.eye(2), np.array([0, 0]), 2).tolist()
    [[1, 1], [0, 0]]
  """
  matrix = np.zeros((num_classes, num_classes), np.int64)
  np.add.at(matrix, (np.asarray(labels), scores.argmax(axis=1)), 1)
  return matrix


def per_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Share of each class's clips that are predicted right: float64 `[C]`.

  Example:
    >>> per_class_accuracy(np.eye(2), np.array([0, 0])).tolist()
    [0.5, nan]
  """
  matrix = confusion_matrix(scores, labels, scores.shape[1])
  count = matrix.sum(axis=1)
  right = np.diagonal(matrix)
  return np.where(count > 0, right / np.maximum(count, 1), np.nan)


def mean_class_accuracy(scores: np.ndarray, labels: np.ndarray) -> float:
  """Mean of `per_class_accuracy` over the classes that occur.

  Example:
    >>> mean_class_accuracy(np.eye(2), np.array([0, 0]))
    0.5
  """
  return _mean_of_known(per_class_accuracy(scores, labels))


def average_precision(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
  """Average precision of each class, one class against the rest.

  AP = sum_n (R_n - R_{n-1}) P_n over the thresholds, ties at one threshold;
  the definition of scikit-learn's `average_precision_score`.

  Args:
    scores: `[M, C]`.
    labels: int `[M]`.

  Returns:
    float64 `[C]`; NaN for a class without a clip.

  Example:
    >>> average_precision(np.array([[0.9, 0.1], [0.4, 0.6]]), np.array([0, 1]))
    array([1., 1.])
  """
  labels = np.asarray(labels)
  return np.array(
    [_binary_ap(scores[:, c], labels == c) for c in range(scores.shape[1])]
  )


def mean_average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
  """Mean of `average_precision` over the classes that occur.

  Example:
    >>> mean_average_precision(np.eye(2), np.array([0, 1]))
    1.0
  """
  return _mean_of_known(average_precision(scores, labels))


def _binary_ap(score: np.ndarray, positive: np.ndarray) -> float:
  if not positive.any():
    return float('nan')
  order = np.argsort(-score, kind='stable')
  score, positive = score[order], positive[order]
  last_of_tie = np.flatnonzero(np.append(np.diff(score) != 0, True))
  true_positives = np.cumsum(positive)[last_of_tie]
  precision = true_positives / (last_of_tie + 1)
  recall = true_positives / true_positives[-1]
  return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def _mean_of_known(values: np.ndarray) -> float:
  known = values[~np.isnan(values)]
  return float(known.mean()) if known.size else float('nan')


def boundary_rates(z: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Share of valid steps with a boundary, for each layer.

  Args:
    z: `[B, T, L]` in [0, 1].
    mask: bool `[B, T]`.

  Returns:
    float64 `[L]`.

  Example:
    >>> boundary_rates(np.array([[[1.0], [0.0]]]), np.ones((1, 2), bool))
    array([0.5])
  """
  return np.asarray(z, np.float64)[mask].mean(axis=0)


def operation_rates(operation: np.ndarray, mask: np.ndarray) -> np.ndarray:
  """Shares of COPY, UPDATE and FLUSH over the valid steps of each layer.

  Args:
    operation: int `[B, T, L]` in 0..2.
    mask: bool `[B, T]`.

  Returns:
    float64 `[L, 3]`, rows summing to 1.

  Example:
    >>> operation_rates(np.array([[[1], [2]]]), np.ones((1, 2), bool)).tolist()
    [[0.0, 0.5, 0.5]]
  """
  valid = np.asarray(operation)[mask]
  return np.stack(
    [(valid == k).mean(axis=0) for k in range(NUM_OPERATIONS)], axis=-1
  )


def attention_entropy(entropy: np.ndarray, mask: np.ndarray) -> float:
  """Mean entropy of the attention over valid steps, in nats.

  Args:
    entropy: `[B, T]`, as in `AttentionOutput.entropy`.
    mask: bool `[B, T]`.

  Returns:
    Nats, in [0, log N].

  Example:
    >>> attention_entropy(np.ones((1, 2)), np.ones((1, 2), bool))
    1.0
  """
  return float(np.asarray(entropy, np.float64)[mask].mean())


def attention_hit_rate(
  pick: np.ndarray, target: np.ndarray, mask: np.ndarray
) -> float:
  """Share of valid steps whose heaviest location is the target's.

  Chance for a fixed or uniformly random location is 1 / N if the target is
  uniform.

  Args:
    pick: int `[B, T]`, the heaviest location: `weights.argmax(-1)`.
    target: int `[B, T]`, the location; -1 unknown, left out.
    mask: bool `[B, T]`.

  Returns:
    A fraction; NaN if no target is known.

  Example:
    >>> pick = np.array([[1, 0]])
    >>> attention_hit_rate(pick, np.array([[1, 1]]), np.ones((1, 2), bool))
    0.5
  """
  known = mask & (target >= 0)
  if not known.any():
    return float('nan')
  return float(np.mean(pick[known] == target[known]))


def boundary_score(
  predicted: np.ndarray,
  true: np.ndarray,
  mask: np.ndarray,
  tolerance: int = 2,
) -> BoundaryScore:
  """Precision, recall and F1 of boundaries within a tolerance.

  A predicted boundary is z_t = 1, the last frame of a segment; a true one is
  the first frame of the next. Each true boundary is matched with at most one
  predicted boundary at most `tolerance` frames away, and each prediction with
  at most one truth, as many as possible; counts are pooled over all clips.

  Args:
    predicted: bool `[B, T]`.
    true: bool `[B, T]`.
    mask: bool `[B, T]`.
    tolerance: frames, >= 0.

  Returns:
    `BoundaryScore`; a share of nothing is 0.

  Example:
    >>> true = np.array([[0, 0, 1, 0, 0, 0]]) > 0
    >>> found = np.array([[0, 1, 1, 0, 0, 0]]) > 0
    >>> boundary_score(found, true, np.ones((1, 6), bool)).precision
    0.5
  """
  matched = sum(
    _num_matches(np.flatnonzero(p & m), np.flatnonzero(t & m), tolerance)
    for p, t, m in zip(predicted, true, mask)
  )
  num_predicted = int((predicted & mask).sum())
  num_true = int((true & mask).sum())
  precision = matched / num_predicted if num_predicted else 0.0
  recall = matched / num_true if num_true else 0.0
  total = num_predicted + num_true
  return BoundaryScore(precision, recall, 2 * matched / total if total else 0.0)


def boundary_chance(
  predicted: np.ndarray,
  true: np.ndarray,
  mask: np.ndarray,
  tolerance: int = 2,
  *,
  rng: np.random.Generator,
  num_shifts: int = 20,
) -> BoundaryScore:
  """The score of the same predictions at a random time: the chance level.

  Each clip's predictions are shifted circularly within its valid steps by a
  random number of frames: their number and spacing stay, what they know of the
  clip goes.

  Args:
    predicted, true, mask, tolerance: see `boundary_score`.
    rng: source of the shifts.
    num_shifts: shifts to average over.

  Returns:
    The mean `BoundaryScore`.

  Example:
    >>> z = np.zeros((1, 6), bool)
    >>> boundary_chance(z, z, ~z, rng=np.random.default_rng(0)).f1
    0.0
  """
  scores = []
  for _ in range(num_shifts):
    shifted = np.zeros_like(predicted)
    for row, (p, m) in enumerate(zip(predicted, mask)):
      valid = np.flatnonzero(m)
      if valid.size:
        shift = int(rng.integers(valid.size))
        shifted[row, valid] = np.roll(p[valid], shift)
    scores.append(boundary_score(shifted, true, mask, tolerance))
  return BoundaryScore(*np.mean(scores, axis=0).tolist())


def _num_matches(predicted, true, tolerance: int) -> int:
  """The largest one-to-one matching on a line: greedy from the left."""
  matches = i = j = 0
  while i < len(predicted) and j < len(true):
    gap = predicted[i] - true[j]
    if abs(gap) <= tolerance:
      matches, i, j = matches + 1, i + 1, j + 1
    elif gap < 0:
      i += 1
    else:
      j += 1
  return matches
