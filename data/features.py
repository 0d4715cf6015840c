"""Features of videos: what makes them, and what reads them.

A new extractor is one file with a class like `RawPatches` and its line in
`EXTRACTORS`.
"""

import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from data import store
from data.efficientnet_lite0 import EfficientNetLite0
from data.errors import DataError
from data.raw_patches import RawPatches
from data.resnet152 import ResNet152


class Extractor(Protocol):
  """Turns frames into features.

  Attributes:
    image_size: (height, width) of the frames it takes.
    feature_shape: (N, D).
    batch_size: frames that `extract` takes best; fewer cost as much.
    identity: what determines its numbers, JSON-able: name, digest of weights.
  """

  image_size: tuple[int, int]
  feature_shape: tuple[int, int]
  identity: dict

  @property
  def batch_size(self) -> int:
    """See above."""
    ...

  def extract(self, frames: np.ndarray) -> np.ndarray:
    """uint8 `[T, height, width, 3]`, T >= 1 -> float16 `[T, N, D]`.

    The features of a frame must not depend on the other frames.
    """
    ...


EXTRACTORS: dict[str, Callable[..., Extractor]] = {
  'efficientnet_lite0': EfficientNetLite0,
  'none': RawPatches,
  'resnet152': ResNet152,
}
_WITH_WEIGHTS = ('resnet152',)  # these take a file of weights


def create(name: str, weights: str = '') -> Extractor:
  """Makes an extractor.

  Args:
    name: of `EXTRACTORS`.
    weights: file of its weights; '' is its own.

  Returns:
    The extractor; its weights are read when they are first needed.

  Raises:
    DataError: if there is no such extractor, or it takes no weights.
  """
  if name not in EXTRACTORS:
    raise DataError(
      f'config.data.features: expected one of {", ".join(EXTRACTORS)}, got '
      f'{name!r}.'
    )
  if not weights:
    return EXTRACTORS[name]()
  if name not in _WITH_WEIGHTS:
    raise DataError(
      f"config.data.weights: expected '' with config.data.features={name!r}, "
      f'which has no other weights than its own, got {weights!r}.'
    )
  return EXTRACTORS[name](weights)


class VideoFeatures:
  """Clips whose features are records of the store: a clip source.

  A record is proved by its checksum before it is first used.

  Args:
    names: one a clip.
    paths: records, of one extractor.
    labels: one a clip.
    class_names: names of the classes.
    identity: what the data are, JSON-able.
    videos: the video of each clip; None if they are not kept.

  Raises:
    DataError: if a file is no whole record, or they are of several extractors.
  """

  has_truth = False

  def __init__(
    self,
    names: Sequence[str],
    paths: Sequence[pathlib.Path],
    labels: Sequence[int],
    *,
    class_names: Sequence[str],
    identity: dict,
    videos: Sequence[pathlib.Path] | None = None,
  ):
    self.clip_names = tuple(names)
    self.class_names = tuple(class_names)
    self.labels = np.asarray(labels, np.int32)
    self.identity = identity
    self.videos = None if videos is None else tuple(videos)
    self._records = [self._named(i, store.read, p) for i, p in enumerate(paths)]
    self._verified = np.zeros(len(self._records), bool)
    self.lengths = np.array([r.shape[0] for r in self._records], np.int32)
    for record in self._records:
      first = self._records[0]
      if (record.identity, record.shape[1:]) != (
        first.identity,
        first.shape[1:],
      ):
        raise DataError(
          f'{record.path}: features of another kind than {first.path}: '
          f'{list(record.shape)} and {list(first.shape)}, {record.identity} '
          f'and {first.identity}. A data set has features of one kind.'
        )
    self.feature_shape = self._records[0].shape[1:] if self._records else (0, 0)

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Clip `index`, memory-mapped: features `[T, N, D]` and label (int).

    Features are float16; or int8, with their scale: float32 `[D]`.

    Raises:
      DataError: if the record is damaged.
    """
    record = self._records[index]
    if not self._verified[index]:
      self._named(index, store.verify, record)
      self._verified[index] = True
    features, scale = self._named(index, store.load, record)
    item = {'features': features, 'label': int(self.labels[index])}
    return item if scale is None else item | {'scale': scale}

  def _named(self, index: int, function: Callable, argument: Any) -> Any:
    """A function of the store's; what it raises names the clip too."""
    try:
      return function(argument)
    except store.DamagedError as e:
      raise store.DamagedError(f'clip {self.clip_names[index]}: {e}') from e
