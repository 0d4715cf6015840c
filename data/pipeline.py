"""From a clip source to batches: random windows in training, all blocks in
evaluation.

A clip source is one split of a data set with random access:

- `len(source)`, and `source[i]` -> dict of `features` (`[T_i, N, D]`, in memory
  or memory-mapped, float16; or int8, then with `scale`, float32 `[D]`), `label`
  (int) and, if `source.has_truth`, `boundaries` (bool `[T_i]`) and `target`
  (int32 `[T_i]`);
- `class_names`, `clip_names`, `labels` (int32), `lengths` (int32),
  `feature_shape` (N, D), `has_truth`, `identity` (JSON-able dict).
"""

import functools
import math
import mmap
import weakref
from collections.abc import Iterator, Mapping, Sequence
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


def features_of(batch: Mapping[str, Any]) -> Any:
  """The features of a batch or of a clip as float16: int8 times its scale.

  Args:
    batch: NumPy or JAX arrays; `features` `[..., T, N, D]`, and `scale`
      `[..., D]` if they are int8.

  Returns:
    float16 `[..., T, N, D]`.
  """
  features = batch['features']
  if 'scale' not in batch:
    return features
  return (features * batch['scale'][..., None, None, :]).astype(np.float16)


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
    item = dict(source[index])
    item['features'] = item['features'][at.astype(int)]
    x = np.asarray(features_of(item), np.float64)
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
    An iterator of batches: features `[B, T, N, D]` (zeros in padding) as the
    source has them, for `features_of`; scale float32 `[B, D]` of int8 only;
    mask bool `[B, T]`, label int32 `[B]`, clip int32 `[B]` (index in
    the source), start int32 `[B]` (first frame, counted after striding), row
    int32 `[B]` (row in the global batch), weight float32 `[B]`, boundaries
    bool `[B, T]`, target int32 `[B, T]` (-1 unknown).

  Raises:
    DataError: if a size is out of range, or the shards do not divide the batch.
  """
  _check_sizes(batch_size, num_frames, frame_stride)
  share = _share(batch_size, num_shards, shard)
  windows = _Windows(source, num_frames, frame_stride)
  chosen = (
    grain.MapDataset.range(len(source))
    .seed(seed)
    .shuffle()
    .repeat()
    .random_map(windows.random)
  )
  first = shard * share

  def make(step: int) -> Batch:
    numbers = range(first, first + share)
    rows = [chosen[step * batch_size + r] for r in numbers]
    return windows.cut(rows, first, share)

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
    self._windows = _Windows(source, num_frames, frame_stride)
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
      rows = self.blocks[first : first + self._batch_size]
      rows = rows[self._first : self._first + self._share]
      yield self._windows.cut(rows, self._first, self._share)


class _Windows:
  """Cuts T-frame windows out of clips, straight into the arrays of a batch."""

  def __init__(self, source: ClipSource, num_frames: int, stride: int):
    self._source = source
    self._num_frames = num_frames
    self._stride = stride
    self._buffers = _Buffers()

  def random(self, clip: int, rng: np.random.Generator) -> tuple[int, int]:
    """A clip, and the first frame of a window in it."""
    length = -(-int(self._source.lengths[clip]) // self._stride)
    last = max(length - self._num_frames, 0)
    return int(clip), int(rng.integers(0, last + 1))

  def cut(
    self,
    rows: Sequence[tuple[int, int]],
    first_row: int,
    size: int,
  ) -> Batch:
    """A batch of windows.

    Args:
      rows: (clip, first frame) of each.
      first_row: number of the first in the global batch.
      size: rows of the batch; those that are missing are empty.

    Returns:
      The batch.
    """
    time = self._num_frames
    shape = (size, time, *self._source.feature_shape)
    batch = {
      'features': self._buffers.take(shape, self._dtype),
      'mask': np.zeros((size, time), bool),
      'label': np.zeros(size, np.int32),
      'clip': np.zeros(size, np.int32),
      'start': np.zeros(size, np.int32),
      'weight': np.zeros(size, np.float32),
      'boundaries': np.zeros((size, time), bool),
      'target': np.full((size, time), UNKNOWN_TARGET, np.int32),
      'row': np.arange(first_row, first_row + size, dtype=np.int32),
    }
    if self._dtype == np.int8:
      batch['scale'] = np.zeros((size, shape[-1]), np.float32)
    for row, (clip, start) in enumerate(rows):
      item = self._source[clip]
      first = start * self._stride
      frames = slice(first, first + time * self._stride, self._stride)
      features = item['features'][frames]
      valid = len(features)
      batch['features'][row, :valid] = features
      batch['features'][row, valid:] = 0
      batch['mask'][row, :valid] = True
      batch['label'][row] = item['label']
      batch['clip'][row] = clip
      batch['start'][row] = start
      batch['weight'][row] = 1
      if 'scale' in item:
        batch['scale'][row] = item['scale']
      if self._source.has_truth:
        marks = self._strided_boundaries(item, first, valid)
        batch['boundaries'][row, :valid] = marks
        batch['target'][row, :valid] = item['target'][frames]
    batch['features'][len(rows) :] = 0
    return batch

  @functools.cached_property
  def _dtype(self) -> np.dtype:
    """Of the features; a source has one."""
    return self._source[0]['features'].dtype

  def _strided_boundaries(self, item, first: int, valid: int) -> np.ndarray:
    """A boundary in a skipped frame belongs to the next frame that is kept."""
    marks = np.zeros(valid, bool)
    times = np.flatnonzero(item['boundaries']) - first
    kept = -(-times // self._stride)
    marks[kept[(kept >= 0) & (kept < valid)]] = True
    return marks


class _Buffers:
  """Memory of arrays of one size, taken again when an array is gone.

  New memory costs several times what filling it costs. That it begins with a
  page lets JAX on a CPU use it as it is, where it would copy.
  """

  def __init__(self) -> None:
    self._free: list[mmap.mmap] = []

  def take(self, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array of any content; views of it keep it too."""
    try:
      memory = self._free.pop()
    except IndexError:
      size = math.prod(shape) * dtype.itemsize
      flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
      memory = mmap.mmap(-1, max(size, 1), flags=flags)
      if hasattr(mmap, 'MADV_HUGEPAGE'):  # of Linux
        memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, dtype, math.prod(shape))
    weakref.finalize(array, self._free.append, memory).atexit = False
    return array.reshape(shape)


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
