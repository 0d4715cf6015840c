"""Recognising from features: labels and scores, for clips and for streams."""

import collections
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from hman_jax import metrics, streaming
from hman_jax.models import RecogniserOutput

_AT_ONCE = 16  # frames taken before the first output


class FrameOutput(NamedTuple):
  """What the model makes of one frame.

  Attributes:
    index: of the frame in the stream, from 0.
    probabilities: float64 `[C]`, of this frame by itself.
    running: float64 `[C]`, averaged from the start of the stream to here.
    weights: float32 `[N]`, of the locations; None without attention.
    z: bool `[L]`, whether a segment of a layer ends with this frame; None
      without boundaries.
    operation: int32 `[L]`: 0 COPY, 1 UPDATE, 2 FLUSH; None without boundaries.
  """

  index: int  # pyright: ignore[reportIncompatibleMethodOverride]
  probabilities: np.ndarray
  running: np.ndarray
  weights: np.ndarray | None
  z: np.ndarray | None
  operation: np.ndarray | None


class FeatureRecogniser:
  """A trained recogniser that names what it sees, frame by frame.

  A stream is run through the model frame by frame (`hman_jax.streaming`), and
  the state is carried on: memory does not grow with its length, and the numbers
  are those of the whole clip at once. With `block`, the state begins anew every
  `block` frames, and scores are the mean over blocks of the mean over their
  frames (HM-AN's test protocol, arXiv 1708.07590); without, the mean over all
  frames.

  With `num_samples` the boundaries are drawn that many times: probabilities
  are averaged over the draws (Monte-Carlo); attention and boundaries shown are
  those of the first draw.

  Attributes:
    class_names: C names, by index.

  Args:
    model: from `models.create`.
    variables: its parameters.
    class_names: C names.
    block: frames after which the state begins anew; None: never.
    at_once: frames taken before their outputs come; a model whose first state
      is made of the mean features makes it of that many. 1 has the least delay.
    num_samples: draws of the boundaries; 0: deterministic.
    seed: of the draws; the same seed gives the same numbers.
    boundary_slope: of 'straight_through' boundaries.

  Raises:
    ValueError: if a number is out of range, or the model draws no boundaries.

  Example:
    >>> from hman_jax import models
    >>> model = models.create(2, hidden_sizes=(8,))
    >>> x = np.ones((3, 49, 16), np.float32)
    >>> variables = model.init(jax.random.key(0), x[None])
    >>> recogniser = FeatureRecogniser(model, variables, ('catch', 'throw'))
    >>> [sorted(found) for found in recogniser.predict(x)]
    [['label', 'score'], ['label', 'score']]
  """

  def __init__(
    self,
    model,
    variables: Any,
    class_names: Sequence[str],
    *,
    block: int | None = None,
    at_once: int = _AT_ONCE,
    num_samples: int = 0,
    seed: int = 0,
    boundary_slope: float = 1.0,
  ):
    if len(class_names) != model.num_classes:
      raise ValueError(
        f'class_names: expected {model.num_classes}, got {len(class_names)}.'
      )
    for name, value, least in (
      ('block', 1 if block is None else block, 1),
      ('at_once', at_once, 1),
      ('num_samples', num_samples, 0),
    ):
      if value < least:
        raise ValueError(f'{name}: expected at least {least}, got {value}.')
    drawn = getattr(getattr(model, 'cell', None), 'boundary', None) == 'gumbel'
    if num_samples and not drawn:
      raise ValueError(
        f'num_samples: expected 0, got {num_samples}: the model draws no '
        "boundaries (a cell with boundary='gumbel' does)."
      )
    self.class_names = tuple(class_names)
    self._variables = variables
    self._block = block
    self._at_once = at_once
    self._keys = None
    if num_samples:
      self._keys = jax.random.split(jax.random.key(seed), num_samples)
    self._model = model
    self._next_frame = streaming.compiled_step(
      model,
      deterministic=True,
      sample_boundaries=self._keys is not None,
      boundary_slope=boundary_slope,
    )

  def predict(self, features: np.ndarray, top_k: int = 5) -> list[dict]:
    """The likeliest classes of a clip.

    Args:
      features: floating `[T, N, D]`, T >= 1.
      top_k: how many classes, at least 1; C at most are given.

    Returns:
      `[{'label': name, 'score': probability}, ...]`, highest score first.

    Raises:
      ValueError: if there is no frame, or top_k is below 1.
    """
    return self.ranked(self.predict_proba(features), top_k)

  def predict_proba(self, features: np.ndarray) -> np.ndarray:
    """The probability of each class: float64 `[C]`; see `predict`."""
    last = collections.deque(self.stream(features), maxlen=1)
    if not last:
      raise ValueError('features: expected at least one frame, got none.')
    return last[0].running

  def ranked(self, probabilities: np.ndarray, top_k: int = 5) -> list[dict]:
    """Probabilities `[C]` as `[{'label', 'score'}]`, highest first."""
    if top_k < 1:
      raise ValueError(f'top_k: expected at least 1, got {top_k}.')
    order = np.argsort(-probabilities, kind='stable')[:top_k]
    return [
      {'label': self.class_names[c], 'score': float(probabilities[c])}
      for c in order
    ]

  def stream(self, features: Iterable[np.ndarray]) -> Iterator[FrameOutput]:
    """Runs the model over features as they come.

    Args:
      features: floating `[N, D]` each; `at_once` of them at most are taken
        before their outputs come.

    Yields:
      `FrameOutput` of each.
    """
    return self.stream_pieces(np.stack(p) for p in self.pieces(features))

  def pieces(self, items: Iterable[Any]) -> Iterator[list[Any]]:
    """Lists of `at_once` items at most, never across two blocks."""
    items, done = iter(items), 0
    while True:
      room = self._at_once if self._block is None else self._block - done
      piece = list(itertools.islice(items, min(self._at_once, room)))
      if not piece:
        return
      yield piece
      done += len(piece)
      if done == self._block:
        done = 0

  def stream_pieces(
    self, pieces: Iterable[np.ndarray]
  ) -> Iterator[FrameOutput]:
    """As `stream`, of features `[n, N, D]` in the lengths of `pieces`."""
    stream, keys, done = None, None, 0
    average = _Average(len(self.class_names))
    for piece in pieces:
      begins = self._block is not None and done % self._block == 0
      if stream is None or begins:
        rows = self._rows(piece[None])
        stream = streaming.start(self._model, self._variables, rows)
        keys = _block_keys(self._keys, done)
        average.begin()
      for features in piece:
        stream, output = self._next_frame(
          self._variables, stream, self._rows(features[None]), key=keys
        )
        shown = self._shown(output, done)
        average.add(shown.probabilities)
        yield shown._replace(running=average.value())
        done += 1

  def _rows(self, x: np.ndarray) -> Any:
    """A row `[1, ...]` once for each draw."""
    count = 1 if self._keys is None else len(self._keys)
    return np.broadcast_to(x, (count, *x.shape[1:]))

  def _shown(self, output: RecogniserOutput, index: int) -> FrameOutput:
    """What is shown of a frame, but the running average."""
    logits, attention, cell, _ = jax.device_get(output)
    if cell is None or cell.z is None:
      z, operation = None, None
    else:
      z, operation = cell.z[0] > 0.5, cell.operation[0]
    each = metrics.block_probabilities(
      logits[:, None], np.ones((len(logits), 1), bool)
    )
    probabilities = each.mean(axis=0)
    return FrameOutput(
      index=index,
      probabilities=probabilities,
      running=probabilities,
      weights=None if attention is None else attention.weights[0],
      z=z,
      operation=operation,
    )


def _block_keys(keys: jax.Array | None, start: int) -> jax.Array | None:
  """The draws' keys in the block that begins at a frame."""
  if keys is None or not start:
    return keys
  return jax.vmap(jax.random.fold_in, (0, None))(keys, start)


class _Average:
  """The mean over blocks of the mean over a block's frames, as they come."""

  def __init__(self, num_classes: int):
    self._done = np.zeros(num_classes)  # sum of the means of finished blocks
    self._num_done = 0
    self._sum = np.zeros(num_classes)  # of the block that is going on
    self._count = 0

  def begin(self) -> None:
    """A new block begins."""
    if self._count:
      self._done = self._done + self._sum / self._count
      self._num_done += 1
    self._sum, self._count = np.zeros_like(self._sum), 0

  def add(self, probabilities: np.ndarray) -> None:
    self._sum = self._sum + probabilities
    self._count += 1

  def value(self) -> np.ndarray:
    return (self._done + self._sum / self._count) / (self._num_done + 1)
