"""From videos to features on disk, and from there to clips.

The store is content-addressed: the features of a video are in
`<features_dir>/<extractor>/<SHA-256 of the video>.npy`, so that a moved data
set finds them again, and a changed video never gets another's. A new extractor
is one file with a class like `EfficientNetLite0` and its line in `EXTRACTORS`.
"""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import av
import numpy as np

from data.efficientnet_lite0 import EfficientNetLite0
from data.errors import DataError, StoppedError, VideoError
from data.videos import decode, sha256

_PROGRESS_SECONDS = 5.0
_DECODERS = 2  # videos decoded ahead, while the extractor works


class Extractor(Protocol):
  """Turns frames into features.

  Attributes:
    image_size: (height, width) of the frames it takes.
    feature_shape: (N, D).
    identity: what determines its numbers, JSON-able: name, digest of weights.
  """

  image_size: tuple[int, int]
  feature_shape: tuple[int, int]
  identity: dict

  def extract(self, frames: np.ndarray) -> np.ndarray:
    """uint8 `[T, height, width, 3]` -> float16 `[T, N, D]`."""
    ...


EXTRACTORS: dict[str, Callable[[], Extractor]] = {
  'efficientnet_lite0': EfficientNetLite0,
}


def default_features_dir() -> pathlib.Path:
  """$XDG_CACHE_HOME (or ~/.cache) / hman_jax / features."""
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(home).expanduser() / 'hman_jax' / 'features'


def store_identity(extractor: Extractor, fps: float | None = None) -> dict:
  """What the numbers in a store depend on."""
  identity = {**extractor.identity, 'decoder': f'PyAV {av.__version__}'}
  return identity if fps is None else identity | {'fps': fps}


def prepare(
  videos: Iterable[pathlib.Path],
  extractor: Extractor,
  features_dir: pathlib.Path,
  *,
  fps: float | None = None,
  progress: bool = True,
  should_stop: Callable[[], bool] | None = None,
) -> dict[pathlib.Path, pathlib.Path]:
  """Makes sure that the features of videos are on disk.

  What is there is kept: after a stop, a second call does the rest. Files are
  written under another name and moved into place.

  Args:
    videos: whatever `data.videos` decodes.
    extractor: from `EXTRACTORS`.
    features_dir: the store; made if missing.
    fps: frames a second to take, by their times; None: every frame.
    progress: print a line every few seconds.
    should_stop: asked after each video; when true, the pass ends there.

  Returns:
    For each video, its .npy file, float16 `[T, N, D]`.

  Raises:
    DataError: after the whole pass, naming every video that cannot be read or
      decoded, or at once if the store cannot be written.
    StoppedError: if `should_stop` said so.
  """
  videos = [pathlib.Path(v) for v in videos]
  folder = _open_store(pathlib.Path(features_dir).expanduser(), extractor, fps)
  paths: dict[pathlib.Path, pathlib.Path] = {}
  bad: list[VideoError] = []
  for video in videos:
    try:
      paths[video] = folder / f'{sha256(video)}.npy'
    except VideoError as e:
      bad.append(e)
  missing = list({p: v for v, p in paths.items() if not p.exists()}.values())
  report = _Progress(len(missing), folder) if progress and missing else None
  for video, frames in _decoded(missing, extractor.image_size, fps):
    if isinstance(frames, VideoError):
      bad.append(frames)
    else:
      _write(paths[video], extractor.extract(frames))
    if report:
      report.add(0 if isinstance(frames, VideoError) else len(frames))
    _poll(should_stop)
  if bad:
    listed = '\n  '.join(str(e) for e in bad)
    raise DataError(f'{len(bad)} of {len(videos)} videos are bad:\n  {listed}')
  return paths


def _poll(should_stop: Callable[[], bool] | None) -> None:
  if should_stop is not None and should_stop():
    raise StoppedError(
      'stopped while preparing features; the same command goes on from here.'
    )


def _open_store(
  features_dir: pathlib.Path, extractor: Extractor, fps: float | None
) -> pathlib.Path:
  """The extractor's folder in the store, with its identity beside."""
  tree = store_identity(extractor, fps)
  identity = json.dumps(tree, indent=2, sort_keys=True)
  digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
  folder = features_dir / f'{extractor.identity["extractor"]}-{digest}'
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / 'identity.json').exists():
      temporary = folder / f'.identity.{os.getpid()}.tmp'
      temporary.write_text(identity + '\n')
      temporary.replace(folder / 'identity.json')
  except OSError as e:
    raise DataError(
      f'{folder}: cannot write features here: {e.strerror or e}. Give another '
      'folder by --config.data.features_dir.'
    ) from e
  return folder


def _decoded(
  videos: Sequence[pathlib.Path], size: tuple[int, int], fps: float | None
) -> Iterator[tuple[pathlib.Path, np.ndarray | VideoError]]:
  """Frames of each video, decoded ahead of their use in threads."""

  def attempt(video):
    try:
      return decode(video, size, fps=fps)
    except VideoError as e:
      return e

  with concurrent.futures.ThreadPoolExecutor(_DECODERS) as pool:
    pending: list[tuple[pathlib.Path, concurrent.futures.Future]] = []
    for video in videos:
      pending.append((video, pool.submit(attempt, video)))
      if len(pending) > _DECODERS:
        first, future = pending.pop(0)
        yield first, future.result()
    for video, future in pending:
      yield video, future.result()


def _write(path: pathlib.Path, features: np.ndarray) -> None:
  temporary = path.with_name(f'.{path.stem}.{os.getpid()}.tmp')
  try:
    with temporary.open('wb') as file:
      np.save(file, features, allow_pickle=False)
    temporary.replace(path)
  except OSError as e:
    temporary.unlink(missing_ok=True)
    raise DataError(f'{path}: cannot write features: {e.strerror or e}.') from e


class _Progress:
  """A line every few seconds: videos done, frames a second, time left."""

  def __init__(self, total: int, folder: pathlib.Path):
    print(f'features: {total} videos to go, into {folder}', flush=True)
    self._total, self._done, self._frames = total, 0, 0
    self._start = self._shown = time.monotonic()

  def add(self, num_frames: int) -> None:
    self._done += 1
    self._frames += num_frames
    now = time.monotonic()
    if now - self._shown < _PROGRESS_SECONDS and self._done < self._total:
      return
    self._shown = now
    seconds = now - self._start
    left = seconds / self._done * (self._total - self._done)
    print(
      f'features: {self._done}/{self._total} videos, '
      f'{self._frames / seconds:.0f} frames/s, '
      f'{int(left // 60)}:{int(left % 60):02d} left',
      flush=True,
    )


class VideoFeatures:
  """Clips whose features are memory-mapped files: a clip source.

  Args:
    names: one a clip.
    paths: .npy files, float16 `[T, N, D]`.
    labels: one a clip.
    class_names: names of the classes.
    identity: what the data are, JSON-able.
    videos: the video of each clip, for `frames`; None if they are not kept.

  Raises:
    DataError: if a file is no array of features of one shape.
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
    self._paths = list(paths)
    self._videos = None if videos is None else list(videos)
    shapes = [self._open(i).shape for i in range(len(self._paths))]
    self.lengths = np.array([s[0] for s in shapes], np.int32)
    sizes = {s[1:] for s in shapes}
    if len(sizes) > 1:
      raise DataError(f'features of several shapes in one data set: {sizes}.')
    self.feature_shape = sizes.pop() if sizes else (0, 0)

  def __len__(self) -> int:
    return len(self._paths)

  def __getitem__(self, index: int) -> dict[str, Any]:
    """Clip `index`: features float16 `[T, N, D]` (memory-mapped), label."""
    return {
      'features': self._open(index),
      'label': int(self.labels[index]),
    }

  def frames(self, index: int) -> np.ndarray:
    """The clip as pictures: uint8 `[T, height, width, 3]`, RGB.

    Raises:
      VideoError: if the video is not known, or cannot be decoded.
    """
    if self._videos is None:
      raise VideoError(f'{self.clip_names[index]}: its video is not kept.')
    return decode(self._videos[index])

  def _open(self, index: int) -> np.ndarray:
    path = self._paths[index]
    try:
      features = np.lib.format.open_memmap(path, mode='r')
    except Exception as e:  # NumPy's reader of headers raises what it likes
      raise DataError(
        f'{path}: damaged features ({str(e)[:200]}). Delete the file and run '
        'again.'
      ) from e
    if features.ndim != 3 or features.dtype != np.float16 or not len(features):
      raise DataError(
        f'{path}: expected features float16 [T, N, D], got {features.dtype} '
        f'{list(features.shape)}. Delete the file and run again.'
      )
    return features
