"""How fast two models learn, over runs: the paper's fig. 5-7 and a number."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments import curves

SHARE = 0.9  # of the final accuracy, for `steps_to_share`
_MEASURES = (
  ('training loss', '', 'train', 'loss'),
  ('training accuracy', '%', 'train', 'acc/step'),
  ('validation accuracy', '%', 'validation', 'acc/top1'),
)
_VALIDATION = ('validation', 'acc/top1')
_SMOOTHED = 25  # points of a curve that a point of the figure averages at most


class Curve(NamedTuple):
  """Mean and sample standard deviation over runs at each step."""

  label: str
  num_runs: int
  steps: list[int]
  mean: list[float]
  std: list[float]


class ConvergencePanel(NamedTuple):
  """Curves of one measure; unit '%' is for fractions shown as percent."""

  title: str
  unit: str
  curves: list[Curve]


def panels(
  runs: Mapping[str, Sequence[pathlib.Path]],
) -> list[ConvergencePanel]:
  """Training curves of models, over the steps that all runs recorded.

  Args:
    runs: working directories by label of the model.

  Returns:
    A panel for each of loss, accuracy in training and on validation.

  Raises:
    WorkdirError: if a record is missing or damaged.
  """
  records = {
    label: [curves.read(path) for path in paths]
    for label, paths in runs.items()
  }
  made = []
  for title, unit, mode, key in _MEASURES:
    found = []
    for label, of_runs in records.items():
      series = [_series(r, mode, key) for r in of_runs]
      steps = sorted(set.intersection(*(set(s) for s in series)))
      if not steps:
        continue
      values = np.array([[s[t] for t in steps] for s in series])
      if mode == 'train':
        values = _smooth(values)
      std = values.std(axis=0, ddof=1) if len(values) > 1 else 0 * values[0]
      found.append(
        Curve(
          label, len(values), steps, values.mean(axis=0).tolist(), std.tolist()
        )
      )
    if found:
      made.append(ConvergencePanel(title, unit, found))
  return made


def _series(records: list[dict], mode: str, key: str) -> dict[int, float]:
  return {r['step']: r[key] for r in records if r['mode'] == mode and key in r}


def _smooth(values: np.ndarray) -> np.ndarray:
  """Running mean along the last axis, over a twentieth of it at most."""
  width = max(min(_SMOOTHED, values.shape[-1] // 20), 1)
  kernel = np.ones(width)
  count = np.convolve(np.ones(values.shape[-1]), kernel, 'same')
  return np.array([np.convolve(v, kernel, 'same') / count for v in values])


def steps_to_share(
  runs: Mapping[str, Sequence[pathlib.Path]], share: float = SHARE
) -> tuple[float, dict[str, list[float]]]:
  """Steps until validation accuracy reaches a share of the final accuracy.

  The mark is one for all models: `share` of the lowest of their final
  accuracies, each the mean over its runs. Between two evaluations accuracy is
  taken to be on a straight line, from 0 at step 0.

  Args:
    runs: working directories by label of the model.
    share: in (0, 1].

  Returns:
    (mark, steps of each run that reached it, by label).

  Raises:
    WorkdirError: if a record is missing or damaged.
  """
  series = {
    label: [_series(curves.read(p), *_VALIDATION) for p in paths]
    for label, paths in runs.items()
  }
  finals = [
    np.mean([s[max(s)] for s in of_runs if s])
    for of_runs in series.values()
    if any(of_runs)
  ]
  mark = share * float(min(finals)) if finals else 0.0
  reached = {
    label: [t for s in of_runs if (t := _first_above(s, mark)) is not None]
    for label, of_runs in series.items()
  }
  return mark, reached


def _first_above(series: dict[int, float], mark: float) -> float | None:
  """The first step at which a curve is at the mark, or None.

  Example:
    >>> _first_above({10: 0.5, 20: 1.0}, 0.75)
    15.0
  """
  before, low = 0, 0.0
  for step in sorted(series):
    value = series[step]
    if value >= mark:
      part = (mark - low) / (value - low) if value > low else 1.0
      return before + part * (step - before)
    before, low = step, value
  return None
