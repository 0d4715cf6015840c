"""Recognising from features: labels and scores, for clips and for streams."""

import collections
import functools
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from hman_jax import metrics

_AT_ONCE = 16  # frames a call of the model


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

  A stream is run through the model a few frames at a time, and the state is
  carried on: memory does not grow with its length, and the numbers are those
  of the whole clip at once. With `block`, the state begins anew every `block`
  frames, and scores are the mean over blocks of the mean over their frames
  (HM-AN's test protocol, arXiv 1708.07590); without, the mean over all frames.

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
    at_once: frames of a call of the model; a model whose first state is made
      of the mean features makes it of that many. 1 has the least delay.
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
    self._apply = jax.jit(
      functools.partial(_apply, model, boundary_slope=boundary_slope)
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
    """Lists of items for one call of the model, never across two blocks."""
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
    state, done, average = None, 0, _Average(len(self.class_names))
    for piece in pieces:
      if self._block is not None and done % self._block == 0:
        state = None
        average.begin()
      shown, state = self._call(piece, state, done)
      for t in range(len(piece)):
        average.add(shown['probabilities'][t])
        yield FrameOutput(
          index=done + t,
          probabilities=shown['probabilities'][t],
          running=average.value(),
          weights=shown['weights'][t] if 'weights' in shown else None,
          z=shown['z'][t] > 0.5 if 'z' in shown else None,
          operation=shown['operation'][t] if 'z' in shown else None,
        )
      done += len(piece)

  def _call(self, piece: np.ndarray, state: Any, start: int):
    """Outputs `[n, ...]` of n frames, and the state after them."""
    count = len(piece)
    features = np.zeros((1, self._at_once, *piece.shape[1:]), piece.dtype)
    features[0, :count] = piece
    mask = np.arange(self._at_once)[None] < count
    shown, state = self._apply(
      self._variables, features, mask, self._keys, state, start
    )
    logits = np.asarray(shown.pop('logits'))[:, :count]
    shown = {k: np.asarray(v)[0, :count] for k, v in shown.items()}
    each = metrics.block_probabilities(  # each frame a block of its own
      logits.reshape(-1, 1, logits.shape[-1]),
      np.ones((logits.shape[0] * count, 1), bool),
    )
    shown['probabilities'] = each.reshape(logits.shape).mean(axis=0)
    return shown, state


def _apply(
  model, variables, features, mask, keys, state, start, *, boundary_slope
):
  """The model on the next frames of a stream: what is shown, and the state."""
  if keys is not None:  # a row a draw
    rows = lambda x: jnp.broadcast_to(x, (len(keys), *x.shape[1:]))
    features, mask = rows(features), rows(mask)
  out = model.apply(
    variables,
    features,
    mask,
    key=keys,
    deterministic=True,
    sample_boundaries=keys is not None,
    boundary_slope=boundary_slope,
    state=state,
    start=jnp.asarray(start),
  )
  shown = {'logits': out.logits}
  if out.attention is not None:
    shown['weights'] = out.attention.weights
  if out.cell is not None and out.cell.z is not None:
    shown |= {'z': out.cell.z, 'operation': out.cell.operation}
  return shown, out.state


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
