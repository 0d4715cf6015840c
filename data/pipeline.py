"""From a clip source to batches: random windows in training, all blocks in
evaluation.

A clip source is one split of a data set with random access:

- `len(source)`, and `source[i]` -> dict of `features` (float16 `[T_i, N, D]`,
  in memory or memory-mapped), `label` (int) and, if `source.has_truth`,
  `boundaries` (bool `[T_i]`) and `target` (int32 `[T_i]`);
- `class_names`, `clip_names`, `labels` (int32), `lengths` (int32),
  `feature_shape` (N, D), `has_truth`, `identity` (JSON-able dict).
"""

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import grain
import numpy as np

from data.errors import DataError

Batch = dict[str, np.ndarray]
UNKNOWN_TARGET = -1

# Grain counts steps with an index; no run is longer than this.
_MAX_STEPS = 2**31


class ClipSource(Protocol):
  """One split of a data set; see the module's docstring."""

  class_names: tuple[str, ...]
  clip_names: tuple[str, ...]
  labels: np.ndarray
  lengths: np.ndarray
  feature_shape: tuple[int, int]
  has_truth: bool
  identity: dict

  def __len__(self) -> int: ...

  def __getitem__(self, index: int) -> Mapping[str, Any]: ...


def check_labels(source: ClipSource) -> None:
  """Checks on the host, before the first step, what a loss cannot say.

  Args:
    source: a clip source.

  Raises:
    DataError: if the source is empty, or a label is outside 0..C-1.
  """
  if len(source) == 0:
    raise DataError(f'{source.identity.get("name")}: a split has no clips.')
  num_classes = len(source.class_names)
  bad = np.flatnonzero((source.labels < 0) | (source.labels >= num_classes))
  if bad.size:
    raise DataError(
      f'{source.identity.get("name")}: label of clip '
      f'{source.clip_names[bad[0]]!r}: expected 0..{num_classes - 1} '
      f'({num_classes} classes), got {source.labels[bad[0]]} '
      f'({bad.size} such clips).'
    )


def feature_statistics(
  source: ClipSource, max_frames: int = 4096
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and spread of each channel, over frames spread evenly over all clips.

  Args:
    source: a clip source, not empty.
    max_frames: how many frames are read at most; at least one a clip is.

  Returns:
    (mean, scale): float32 `[D]` each. The scale is the standard deviation and
    a tenth of its mean over the channels, so that a channel that hardly ever
    moves is not blown up.

  Example:
    >>> from data.composite_actions import CompositeActions
    >>> mean, scale = feature_statistics(CompositeActions('train', num_clips=2))
    >>> mean.shape, bool((scale > 0).all())
    ((64,), True)
  """
  per_clip = max(max_frames // len(source), 1)
  total = squares = 0.0
  count = 0
  for index in range(len(source)):
    length = int(source.lengths[index])
    at = np.unique(np.linspace(0, length - 1, min(per_clip, length)).round())
    x = np.asarray(source[index]['features'][at.astype(int)], np.float64)
    total = total + x.sum(axis=(0, 1))
    squares = squares + np.square(x).sum(axis=(0, 1))
    count += x.shape[0] * x.shape[1]
  mean = total / count
  deviation = np.sqrt(np.maximum(squares / count - np.square(mean), 0.0))
  scale = deviation + 0.1 * deviation.mean()
  scale = np.where(scale > 0, scale, 1.0)  # features that are all the same
  return mean.astype(np.float32), scale.astype(np.float32)


def train_batches(
  source: ClipSource,
  *,
  batch_size: int,
  num_frames: int,
  seed: int,
  start_step: int = 0,
  frame_stride: int = 1,
  num_shards: int = 1,
  shard: int = 0,
  prefetch: int = 2,
) -> Iterator[Batch]:
  """Random windows of T frames, shuffled anew each epoch, without end.

  Batch s is a pure function of (seed, s): started at `start_step=s` it gives
  exactly the batches s, s + 1, ... of an undisturbed run. Batches do not stop
  at the end of an epoch.

  Args:
    source: a clip source.
    batch_size: rows of the global batch.
    num_frames: T; a shorter clip is taken whole and padded.
    seed: >= 0.
    start_step: first batch.
    frame_stride: take every n-th frame of a clip.
    num_shards: processes that share the global batch.
    shard: which rows to make, 0..num_shards-1.
    prefetch: batches made ahead by threads.

  Returns:
    An iterator of batches: features float16 `[B, T, N, D]` (zeros in
    padding), mask bool `[B, T]`, label int32 `[B]`, clip int32 `[B]` (index in
    the source), start int32 `[B]` (first frame, counted after striding), row
    int32 `[B]` (row in the global batch), weight float32 `[B]`, boundaries
    bool `[B, T]`, target int32 `[B, T]` (-1 unknown).

  Raises:
    DataError: if a size is out of range, or the shards do not divide the batch.
  """
  _check_sizes(batch_size, num_frames, frame_stride)
  share = _share(batch_size, num_shards, shard)
  window = _Window(source, num_frames, frame_stride)
  rows = (
    grain.MapDataset.range(len(source))
    .seed(seed)
    .shuffle()
    .repeat()
    .random_map(window.random)
  )
  first = shard * share

  def make(step: int) -> Batch:
    numbers = range(first, first + share)
    return _collate([rows[step * batch_size + r] for r in numbers], first)

  steps = grain.MapDataset.range(start_step, _MAX_STEPS).map(make)
  options = grain.ReadOptions(
    num_threads=min(prefetch, 2), prefetch_buffer_size=max(prefetch, 1)
  )
  return iter(steps.to_iter_dataset(options))


class eval_batches:
  """All consecutive T-frame blocks of every clip, each exactly once.

  The last block of a clip is padded. The last batch is padded with rows of
  weight 0, mask False and clip 0, so that all batches have one shape.

  Args:
    source: a clip source.
    batch_size: rows of a batch.
    num_frames: T.
    frame_stride: take every n-th frame of a clip.
    num_shards: processes that share a batch.
    shard: which rows to make, 0..num_shards-1.

  Raises:
    DataError: if a size is out of range, or the shards do not divide the batch.
  """

  def __init__(
    self,
    source: ClipSource,
    *,
    batch_size: int,
    num_frames: int,
    frame_stride: int = 1,
    num_shards: int = 1,
    shard: int = 0,
  ):
    _check_sizes(batch_size, num_frames, frame_stride)
    self._share = _share(batch_size, num_shards, shard)
    self._first = shard * self._share
    self._window = _Window(source, num_frames, frame_stride)
    self._batch_size = batch_size
    strided = -(-np.asarray(source.lengths) // frame_stride)
    self.blocks = [
      (clip, start)
      for clip, length in enumerate(strided.tolist())
      for start in range(0, max(length, 1), num_frames)
    ]

  def __len__(self) -> int:
    return -(-len(self.blocks) // self._batch_size)

  def __iter__(self) -> Iterator[Batch]:
    for first in range(0, len(self.blocks), self._batch_size):
      blocks = self.blocks[first : first + self._batch_size]
      blocks = blocks[self._first : self._first + self._share]
      rows = [self._window.cut(clip, start) for clip, start in blocks]
      missing = self._share - len(rows)
      rows += [self._window.empty()] * missing
      yield _collate(rows, self._first)


class _Window:
  """Cuts T-frame windows out of clips; copies the window only."""

  def __init__(self, source: ClipSource, num_frames: int, stride: int):
    self._source = source
    self._num_frames = num_frames
    self._stride = stride

  def random(self, clip: int, rng: np.random.Generator) -> Batch:
    length = -(-int(self._source.lengths[clip]) // self._stride)
    last = max(length - self._num_frames, 0)
    return self.cut(int(clip), int(rng.integers(0, last + 1)))

  def cut(self, clip: int, start: int) -> Batch:
    row = self.empty()
    item = self._source[clip]
    first = start * self._stride
    frames = slice(first, first + self._num_frames * self._stride, self._stride)
    features = item['features'][frames]
    valid = len(features)
    row['features'][:valid] = features
    row['mask'][:valid] = True
    row['label'] = np.int32(item['label'])
    row['clip'] = np.int32(clip)
    row['start'] = np.int32(start)
    row['weight'] = np.float32(1)
    if self._source.has_truth:
      row['boundaries'][:valid] = self._strided_boundaries(item, first, valid)
      row['target'][:valid] = item['target'][frames]
    return row

  def _strided_boundaries(self, item, first: int, valid: int) -> np.ndarray:
    """A boundary in a skipped frame belongs to the next frame that is kept."""
    marks = np.zeros(valid, bool)
    times = np.flatnonzero(item['boundaries']) - first
    kept = -(-times // self._stride)
    marks[kept[(kept >= 0) & (kept < valid)]] = True
    return marks

  def empty(self) -> Batch:
    time = self._num_frames
    return {
      'features': np.zeros((time, *self._source.feature_shape), np.float16),
      'mask': np.zeros(time, bool),
      'label': np.int32(0),
      'clip': np.int32(0),
      'start': np.int32(0),
      'weight': np.float32(0),
      'boundaries': np.zeros(time, bool),
      'target': np.full(time, UNKNOWN_TARGET, np.int32),
    }


def _collate(rows: list[Batch], first_row: int) -> Batch:
  batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
  batch['row'] = np.arange(first_row, first_row + len(rows), dtype=np.int32)
  return batch


def _share(batch_size: int, num_shards: int, shard: int) -> int:
  """Rows of a shard."""
  if not 0 <= shard < num_shards or batch_size % num_shards:
    raise DataError(
      f'batch_size: expected a multiple of num_shards={num_shards} and shard '
      f'in 0..{num_shards - 1}, got batch_size={batch_size}, shard={shard}.'
    )
  return batch_size // num_shards


def _check_sizes(batch_size: int, num_frames: int, frame_stride: int) -> None:
  for name, value in (
    ('batch_size', batch_size),
    ('num_frames', num_frames),
    ('frame_stride', frame_stride),
  ):
    if value < 1:
      raise DataError(f'{name}: expected at least 1, got {value}.')
