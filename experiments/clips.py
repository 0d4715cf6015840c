"""Test clips as a trained network saw them: attention, boundaries, classes."""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from data.decoding import Decoders
from data.errors import VideoError
from experiments import evaluation
from experiments.errors import HmanError
from experiments.trained import TrainedRun
from hman_jax import metrics


class ClipView(NamedTuple):
  """One clip and what the network made of it, step by step.

  A step is a frame that the network saw: every `stride`-th of the video.

  Attributes:
    index, name: of the clip in its split.
    label, predicted: classes.
    scores: float64 `[C]`, class probabilities of the clip.
    probabilities: float64 `[T, C]`, class probabilities of each step.
    starts: steps at which a block begins, and the network from zero.
    stride: frames from one step to the next.
    side: cells on a side of the grid of locations.
    weights: `[T, N]` attention, or None without one.
    operation: int `[T, L]`, 0 COPY, 1 UPDATE, 2 FLUSH; None without layers.
    z: bool `[T, L]`, boundaries found; None without layers.
    boundaries: bool `[T]`, true boundaries; None where unknown.
    target: int `[T]`, the actor's cell; None where unknown.
  """

  index: int
  name: str
  label: int
  predicted: int
  scores: np.ndarray
  probabilities: np.ndarray
  starts: list[int]
  stride: int
  side: int
  weights: np.ndarray | None
  operation: np.ndarray | None
  z: np.ndarray | None
  boundaries: np.ndarray | None
  target: np.ndarray | None


def run(
  trained: TrainedRun, source, clips: Sequence[int] | None = None
) -> list[dict]:
  """The test protocol, with all that the network did.

  Args:
    trained: a trained run.
    source: a clip source.
    clips: which clips; None is all.

  Returns:
    From `evaluation.Evaluator.run`, with `weights`.
  """
  evaluator = evaluation.Evaluator(trained.config, trained.model)
  return evaluator.run(trained.params, source, clips=clips, weights=True)


def view(draws: list[dict], source, index: int, *, stride: int = 1) -> ClipView:
  """The blocks of one clip, joined; what it did is that of the first draw.

  Args:
    draws: from `run`.
    source: the clip source of it.
    index: which clip.
    stride: frames from one step to the next.

  Returns:
    `ClipView`.

  Raises:
    HmanError: if the locations are no square grid.
  """
  num_locations = source.feature_shape[0]
  side = math.isqrt(num_locations)
  if side**2 != num_locations:
    raise HmanError(
      f'features: expected a square grid of locations to draw, got '
      f'{num_locations} locations.'
    )
  out = draws[0]
  blocks = np.flatnonzero(out['clip'] == index)
  blocks = blocks[np.argsort(out['start'][blocks])]
  mask = out['mask'][blocks]

  def steps(name: str) -> np.ndarray | None:
    return out[name][blocks][mask] if name in out else None

  one_by_one = out['logits'][blocks][mask][:, None]
  z = steps('z')
  scores = np.mean(
    [
      metrics.block_probabilities(d['logits'][blocks], mask).mean(axis=0)
      for d in draws
    ],
    axis=0,
  )
  return ClipView(
    index=index,
    name=source.clip_names[index],
    label=int(source.labels[index]),
    predicted=int(scores.argmax()),
    scores=scores,
    probabilities=metrics.block_probabilities(
      one_by_one, np.ones(one_by_one.shape[:2], bool)
    ),
    starts=out['start'][blocks].tolist(),
    stride=stride,
    side=side,
    weights=steps('weights'),
    operation=steps('operation'),
    z=None if z is None else z > 0.5,
    boundaries=steps('boundaries') if source.has_truth else None,
    target=steps('target') if source.has_truth else None,
  )


def frames(source, views: Iterable[ClipView]) -> Iterator[np.ndarray | None]:
  """The pictures of clips' steps, where there are any to be had.

  Args:
    source: a clip source: of videos, or with pictures of its own.
    views: which clips.

  Yields:
    uint8 `[T, height, width]` grey or `[T, height, width, 3]` RGB; None if the
    source keeps no pictures, the video is gone, or is another one by now.
  """
  videos = getattr(source, 'videos', None)
  with Decoders(1) as decoders:
    for clip in views:
      pictures = None
      if videos:
        with contextlib.suppress(VideoError):
          pictures = decoders.decode(videos[clip.index])
      elif hasattr(source, 'frames'):
        pictures = source.frames(clip.index)
      if pictures is not None:
        pictures = pictures[:: clip.stride]
        if len(pictures) != len(clip.probabilities):
          pictures = None
      yield pictures


def choose(labels: np.ndarray, predicted: np.ndarray, count: int) -> list[int]:
  """Clips to show: half of them mistaken if there are so many, of all classes.

  Args:
    labels: int `[num_clips]`.
    predicted: int `[num_clips]`.
    count: how many, at least 1.

  Returns:
    min(count, num_clips) indices, ascending.

  Example:
    >>> choose(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]), 2)
    [0, 2]
  """
  right = np.asarray(labels) == np.asarray(predicted)
  num_right, num_wrong = int(right.sum()), int((~right).sum())
  wrong_wanted = min(num_wrong, max(count - num_right, (count + 1) // 2))
  chosen = _spread(np.flatnonzero(~right), labels, wrong_wanted)
  chosen += _spread(np.flatnonzero(right), labels, count - wrong_wanted)
  return sorted(chosen)


def _spread(indices: np.ndarray, labels: np.ndarray, count: int) -> list[int]:
  """The first of each class, then the second of each class, and so on."""
  seen: dict[int, int] = {}
  ranked = []
  for index in indices.tolist():
    label = int(labels[index])
    seen[label] = seen.get(label, 0) + 1
    ranked.append((seen[label], label, index))
  return [index for _, _, index in sorted(ranked)[:count]]
