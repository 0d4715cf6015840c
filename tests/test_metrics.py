"""Metrics against scikit-learn, and by hand."""

import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from hman_jax import metrics


def _case(seed, ties=False, absent=False, m=60, c=5):
  rng = np.random.default_rng(seed)
  scores = rng.random((m, c))
  if ties:
    scores = np.round(scores, 1)
  labels = rng.integers(0, c - 1 if absent else c, m)
  return scores, labels


@pytest.mark.parametrize('seed', range(5))
@pytest.mark.parametrize('ties', [False, True])
@pytest.mark.parametrize('absent', [False, True])
def test_equal_scikit_learn(seed, ties, absent):
  scores, labels = _case(seed, ties, absent)
  present = np.unique(labels)
  ap = metrics.average_precision(scores, labels)
  for c in range(scores.shape[1]):
    if c in present:
      expected = sk.average_precision_score(labels == c, scores[:, c])
      assert ap[c] == pytest.approx(expected, rel=1e-12)
    else:
      assert np.isnan(ap[c])
  assert metrics.mean_average_precision(scores, labels) == pytest.approx(
    np.nanmean(ap)
  )
  predicted = scores.argmax(axis=1)
  np.testing.assert_array_equal(
    metrics.confusion_matrix(scores, labels, 5),
    sk.confusion_matrix(labels, predicted, labels=range(5)),
  )
  assert metrics.top_k_accuracy(scores, labels) == sk.accuracy_score(
    labels, predicted
  )
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')  # scikit-learn: predicted, never true
    expected = sk.balanced_accuracy_score(labels, predicted)
  assert metrics.mean_class_accuracy(scores, labels) == pytest.approx(expected)
  if not ties:
    assert metrics.top_k_accuracy(scores, labels, 3) == pytest.approx(
      sk.top_k_accuracy_score(labels, scores, k=3, labels=range(5))
    )


def test_degenerate_inputs():
  same = np.ones((4, 3))
  labels = np.array([0, 0, 0, 0])
  assert metrics.average_precision(same, labels)[0] == 1.0
  assert metrics.top_k_accuracy(same, labels, 99) == 1.0
  assert metrics.mean_class_accuracy(same, labels) == 1.0


@pytest.mark.parametrize(
  ('scores', 'labels'),
  [
    ([[0.3, 0.7]], [0]),  # one clip
    ([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]], [0, 1, 1]),  # nothing but ties
    ([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [1, 1, 1]),  # never right
    ([[0.2, 0.8, 0.0], [0.1, 0.9, 0.0]], [0, 2]),  # predicted, never true
    ([[1e-300, 1.0], [0.0, 1.0], [2e-300, 1.0]], [0, 1, 0]),  # tiny scores
    ([[1.0], [1.0]], [0, 0]),  # one class
  ],
)
def test_degenerate_inputs_equal_scikit_learn(scores, labels):
  scores, labels = np.array(scores), np.array(labels)
  num_classes = scores.shape[1]
  ap = metrics.average_precision(scores, labels)
  expected = [
    sk.average_precision_score(labels == c, scores[:, c])
    if (labels == c).any()
    else np.nan
    for c in range(num_classes)
  ]
  np.testing.assert_allclose(ap, expected, rtol=1e-12)
  assert metrics.mean_average_precision(scores, labels) == pytest.approx(
    np.nanmean(expected)
  )
  np.testing.assert_array_equal(
    metrics.confusion_matrix(scores, labels, num_classes),
    sk.confusion_matrix(
      labels, scores.argmax(axis=1), labels=range(num_classes)
    ),
  )
  assert metrics.top_k_accuracy(scores, labels) == sk.accuracy_score(
    labels, scores.argmax(axis=1)
  )


def test_blocks_are_averaged():
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(3, 4, 2)) * 3
  mask = np.array([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 0, 0]], bool)
  p = metrics.block_probabilities(logits, mask)
  soft = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
  np.testing.assert_allclose(p[1], soft[1, 0])
  np.testing.assert_allclose(p[2], soft[2, :2].mean(axis=0))
  clips = metrics.average_blocks(p, np.array([0, 0, 1]), 2)
  np.testing.assert_allclose(clips[0], (p[0] + p[1]) / 2)
  with pytest.raises(ValueError, match='none of'):
    metrics.average_blocks(p, np.array([0, 0, 0]), 2)


def _bits(*frames, length=20):
  row = np.zeros((1, length), bool)
  row[0, list(frames)] = True
  return row


@pytest.mark.parametrize(
  ('found', 'true', 'tolerance', 'matches'),
  [
    ((5,), (5,), 0, 1),
    ((5,), (7,), 2, 1),
    ((5,), (8,), 2, 0),
    ((5, 6), (5,), 2, 1),
    ((4, 6), (5, 7), 1, 2),
    ((), (5,), 2, 0),
    ((1, 2, 3), (3, 4, 5), 2, 3),
  ],
)
def test_boundary_score(found, true, tolerance, matches):
  mask = np.ones((1, 20), bool)
  score = metrics.boundary_score(_bits(*found), _bits(*true), mask, tolerance)
  assert score.recall == pytest.approx(matches / max(len(true), 1))
  assert score.precision == pytest.approx(matches / max(len(found), 1))
  assert score.f1 == pytest.approx(2 * matches / (len(found) + len(true)))


def test_matching_is_the_largest():
  """The greedy matching against the assignment of SciPy."""
  from scipy.optimize import linear_sum_assignment

  rng = np.random.default_rng(0)
  for _ in range(200):
    found, true = rng.random((1, 20)) < 0.3, rng.random((1, 20)) < 0.2
    i, j = np.flatnonzero(found), np.flatnonzero(true)
    close = np.abs(i[:, None] - j[None]) <= 2
    rows, columns = linear_sum_assignment(close, maximize=True)
    score = metrics.boundary_score(found, true, np.ones((1, 20), bool), 2)
    expected = close[rows, columns].sum() / max(len(j), 1)
    assert score.recall == pytest.approx(expected)


def test_boundaries_in_padding_do_not_count():
  mask = np.arange(20)[None] < 10
  score = metrics.boundary_score(_bits(5, 15), _bits(5, 16), mask)
  assert score == (1.0, 1.0, 1.0)


def test_chance_is_far_below_a_perfect_score():
  rng = np.random.default_rng(0)
  true = rng.random((50, 40)) < 0.1
  mask = np.ones_like(true)
  assert metrics.boundary_score(true, true, mask).f1 == 1.0
  chance = metrics.boundary_chance(true, true, mask, rng=rng)
  assert 0.2 < chance.f1 < 0.6


def test_rates():
  operation = np.array([[[0, 1], [1, 1], [2, 1], [0, 0]]])
  mask = np.array([[1, 1, 1, 0]], bool)
  np.testing.assert_allclose(
    metrics.operation_rates(operation, mask),
    [[1 / 3, 1 / 3, 1 / 3], [0, 1, 0]],
  )
  z = np.array([[[1.0], [0.0], [1.0], [1.0]]])
  np.testing.assert_allclose(metrics.boundary_rates(z, mask), [2 / 3])


def test_hit_rate_leaves_out_what_is_unknown():
  pick = np.array([[3, 3, 3, 3]])
  target = np.array([[3, -1, 2, 3]])
  mask = np.array([[1, 1, 1, 0]], bool)
  assert metrics.attention_hit_rate(pick, target, mask) == 0.5
  unknown = np.full_like(target, -1)
  assert np.isnan(metrics.attention_hit_rate(pick, unknown, mask))
