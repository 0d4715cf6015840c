"""The way from videos to features on disk: decode, extract, store."""

import concurrent.futures
import contextlib
import os
import pathlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import av
import numpy as np

from data import store, videos
from data.decoding import Decoded, Decoders
from data.errors import DataError, StoppedError, VideoError
from data.features import Extractor
from data.store import Record

ON_BAD = ('error', 'skip')

_PROGRESS_SECONDS = 5.0


class Prepared(NamedTuple):
  """What `prepare` did.

  Attributes:
    paths: the record of each good video.
    bad: why a video is not among them.
    speed: of the pass; None if there was nothing to do.
  """

  paths: dict[pathlib.Path, pathlib.Path]
  bad: dict[pathlib.Path, VideoError]
  speed: dict[str, float] | None


def default_features_dir() -> pathlib.Path:
  """$XDG_CACHE_HOME (or ~/.cache) / hman_jax / features."""
  home = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
  return pathlib.Path(home).expanduser() / 'hman_jax' / 'features'


def store_identity(
  extractor: Extractor, fps: float | None = None, dtype: str = 'float16'
) -> dict:
  """What the numbers in a store depend on."""
  versions = ('libavcodec', 'libswscale')
  decoder = [f'PyAV {av.__version__}'] + [
    f'{name} {".".join(map(str, av.library_versions[name]))}'
    for name in versions
  ]
  return {
    **extractor.identity,
    'decoder': ', '.join(decoder),
    'fps': fps,
    'store': {'format': store.FORMAT, 'dtype': dtype},
  }


def prepare(
  paths: Iterable[pathlib.Path],
  extractor: Extractor,
  features_dir: pathlib.Path,
  *,
  fps: float | None = None,
  dtype: str = 'float16',
  on_bad: str = 'error',
  verify: bool = False,
  progress: bool = True,
  should_stop: Callable[[], bool] | None = None,
) -> Prepared:
  """Makes sure that the features of videos are on disk.

  What is there is kept: after a stop or a kill, a second call does the rest.
  Several calls may work on one store at once.

  Args:
    paths: whatever `data.videos` decodes.
    extractor: from `data.features.EXTRACTORS`.
    features_dir: the store; made if missing.
    fps: frames a second to take, by their times; None: every frame.
    dtype: of the numbers on disk, of `store.DTYPES`.
    on_bad: 'error', or 'skip' videos that cannot be read or decoded.
    verify: read every record that is there to its end.
    progress: print a line every few seconds, and what the pass was like.
    should_stop: asked often, also within a video; when true, the pass ends
      there.

  Returns:
    `Prepared`.

  Raises:
    DataError: with 'error' after the whole pass, naming every bad video; at
      once if the store cannot be written.
    StoppedError: if `should_stop` said so.
  """
  paths = list(dict.fromkeys(map(pathlib.Path, paths)))
  identity = store_identity(extractor, fps, dtype)
  folder = store.open_folder(pathlib.Path(features_dir).expanduser(), identity)
  store.sweep(folder)
  bad: dict[pathlib.Path, VideoError] = {}
  records: dict[pathlib.Path, pathlib.Path] = {}
  with concurrent.futures.ThreadPoolExecutor() as pool:
    for video, digest in zip(paths, pool.map(_digest, paths)):
      _poll(should_stop)
      if isinstance(digest, VideoError):
        bad[video] = digest
      else:
        records[video] = store.path_of(folder, digest)
    found: dict[pathlib.Path, Record | None] = {}
    unique = dict.fromkeys(records.values())
    look = lambda path: _found(path, identity, verify)
    for path, record in zip(unique, pool.map(look, unique)):
      _poll(should_stop)
      found[path] = record
  missing = {p: v for v, p in records.items() if found[p] is None}
  report = _Report(len(missing), folder, progress) if missing else None
  if report:
    with Decoders(min(len(missing), os.cpu_count() or 1)) as decoders:
      extraction = Extraction(
        extractor, folder, identity, decoders, should_stop
      )
      todo = {video: path for path, video in missing.items()}
      report.begin(extraction)
      with contextlib.closing(extraction.run(todo)) as results:
        for video, result in results:
          if isinstance(result, VideoError):
            bad |= {v: result for v, p in records.items() if p == todo[video]}
          else:
            found[result.path] = result
          report.add()
    report.end([r for r in found.values() if r])
  judge_bad(paths, bad, on_bad)
  good = {v: p for v, p in records.items() if v not in bad}
  return Prepared(good, bad, report.speed() if report else None)


def judge_bad(
  paths: Sequence[pathlib.Path],
  bad: dict[pathlib.Path, VideoError],
  on_bad: str,
) -> None:
  """Ends a pass: names every bad video, as an error or a warning.

  Args:
    paths: all videos.
    bad: of `Prepared`.
    on_bad: see `prepare`.

  Raises:
    DataError: with 'error', if there are any.
  """
  if bad and on_bad == 'error':
    raise DataError(
      f'{_listed(paths, bad)}\n--config.data.on_bad_video=skip goes on '
      'without them.'
    )
  if bad:
    print(f'WARNING: skipped: {_listed(paths, bad)}', flush=True)


def extract_clip(
  video: pathlib.Path,
  extractor: Extractor,
  features_dir: pathlib.Path,
  *,
  fps: float | None = None,
  dtype: str = 'float16',
  decoders: Decoders | None = None,
) -> Record:
  """The record of one video, made unless it is there: the same as `prepare`'s.

  Args:
    video: whatever `data.videos` decodes.
    extractor: see `prepare`.
    features_dir: see `prepare`.
    fps: see `prepare`.
    dtype: see `prepare`.
    decoders: to decode with; None: begun and ended for this video.

  Returns:
    `Record`.

  Raises:
    VideoError: if the video is bad.
    DataError: if the store cannot be written.
  """
  identity = store_identity(extractor, fps, dtype)
  folder = store.open_folder(pathlib.Path(features_dir).expanduser(), identity)
  path = store.path_of(folder, videos.sha256(video))
  record = _found(path, identity, verify=False)
  if record is not None:
    return record
  if decoders is None:
    with Decoders(1) as own:
      return extract_clip(
        video, extractor, features_dir, fps=fps, dtype=dtype, decoders=own
      )
  extraction = Extraction(extractor, folder, identity, decoders)
  for _, result in extraction.run({video: path}):
    if isinstance(result, VideoError):
      raise result
    record = result
  return record or store.read(path)  # another process's


def _poll(should_stop: Callable[[], bool] | None) -> None:
  if should_stop is not None and should_stop():
    raise StoppedError(
      'stopped while preparing features; the same command goes on from here.'
    )


def _digest(video: pathlib.Path) -> str | VideoError:
  try:
    return videos.sha256(video)
  except VideoError as e:
    return e


def _found(path: pathlib.Path, identity: dict, verify: bool) -> Record | None:
  """The record at a path; None if there is none, or none that is whole."""
  if not path.exists():
    return None
  try:
    record = store.read(path)
    if record.identity != identity:
      raise store.DamagedError(f'{path}: the record of other features')
    if verify:
      store.verify(record)
  except store.DamagedError as e:
    print(f'WARNING: {e}\nWARNING: {path}: is made anew', flush=True)
    path.unlink(missing_ok=True)
    return None
  return record


def _listed(paths: Sequence, bad: dict[pathlib.Path, VideoError]) -> str:
  lines = '\n  '.join(str(bad[v]) for v in paths if v in bad)
  return f'{len(bad)} of {len(paths)} videos are bad:\n  {lines}'


class Extraction:
  """Decodes videos and writes their records.

  The extractor is called on batches of one size, which frames of several
  videos fill; a frame's features do not depend on the others of its batch.

  Attributes:
    num_frames: extracted so far.
    decode_seconds: that one worker would have taken to decode them.
    extract_seconds: in the extractor.

  Args:
    extractor: see `prepare`.
    folder: of the store.
    identity: of the store.
    decoders: running.
    should_stop: see `prepare`.
  """

  def __init__(
    self,
    extractor: Extractor,
    folder: pathlib.Path,
    identity: dict,
    decoders: Decoders,
    should_stop: Callable[[], bool] | None = None,
  ):
    self._extractor, self._folder = extractor, folder
    self._should_stop = should_stop
    self._identity, self._decoders = identity, decoders
    shape = (extractor.batch_size, *extractor.image_size, 3)
    self._batch = np.zeros(shape, np.uint8)
    self._filled = 0
    self._rows: list[tuple[_Clip, int]] = []  # whose, how many
    self.num_frames, self.decode_seconds, self.extract_seconds = 0, 0.0, 0.0

  def run(
    self, todo: dict[pathlib.Path, pathlib.Path]
  ) -> Iterator[tuple[pathlib.Path, Record | VideoError]]:
    """Makes records.

    Args:
      todo: {video: path of its record}; one that appears meanwhile, by another
        process, is left out.

    Yields:
      (video, its record or what is wrong with it), as they are done.

    Raises:
      DataError: if a record cannot be written.
      StoppedError: if `should_stop` said so.
    """
    waiting = (v for v, path in todo.items() if not path.exists())
    stream = self._decoders.stream(
      waiting, self._extractor.image_size, fps=self._identity['fps']
    )
    clips: deque[_Clip] = deque()
    try:
      for video, event in stream:
        _poll(self._should_stop)
        if not clips or clips[-1].end is not None:
          clips.append(self._new_clip(video, todo[video]))
        if isinstance(event, np.ndarray):
          self._add(clips[-1], event)
        else:
          clips[-1].end = event
          if isinstance(event, Decoded):
            self.decode_seconds += event.seconds
        yield from self._finished(clips)
      self._flush()
      yield from self._finished(clips)
    finally:
      for clip in clips:
        clip.writer.abort()

  def _new_clip(self, video: pathlib.Path, path: pathlib.Path) -> '_Clip':
    dtype = self._identity['store']['dtype']
    writer = store.Writer(path, self._extractor.feature_shape, dtype)
    return _Clip(video, path, writer)

  def _add(self, clip: '_Clip', frames: np.ndarray) -> None:
    while len(frames):
      room = len(self._batch) - self._filled
      part, frames = frames[:room], frames[room:]
      self._batch[self._filled : self._filled + len(part)] = part
      self._filled += len(part)
      self._rows.append((clip, len(part)))
      clip.in_batch += len(part)
      if self._filled == len(self._batch):
        self._flush()

  def _flush(self) -> None:
    if not self._filled:
      return
    start = time.perf_counter()
    features = self._extractor.extract(self._batch[: self._filled])
    self.extract_seconds += time.perf_counter() - start
    self.num_frames += self._filled
    first = 0
    for clip, count in self._rows:
      clip.take(features[first : first + count])
      first += count
    self._filled = 0
    self._rows.clear()

  def _finished(
    self, clips: deque['_Clip']
  ) -> Iterator[tuple[pathlib.Path, Record | VideoError]]:
    """Takes out the first clips, as far as all of their features are there."""
    while clips and clips[0].is_done():
      clip = clips.popleft()
      yield clip.video, clip.result(self._identity)


class _Clip:
  """A video on its way.

  Attributes:
    video: the file.
    writer: of its record.
    in_batch: frames that wait for the extractor.
    end: how its decoding ended; None if it goes on.
  """

  def __init__(
    self, video: pathlib.Path, path: pathlib.Path, writer: store.Writer
  ):
    self.video, self._path, self.writer = video, path, writer
    self.in_batch = 0
    self.end: Decoded | VideoError | None = None
    self._wrong = ''

  def take(self, features: np.ndarray) -> None:
    """Takes the features of its next frames."""
    self.in_batch -= len(features)
    if isinstance(self.end, VideoError):
      return
    finite = np.isfinite(features).all(axis=(1, 2))
    if not finite.all():
      frame = self.writer.num_frames + int(np.argmin(finite))
      self._wrong = f'the features of frame {frame} are not finite.'
    self.writer.append(features)

  def is_done(self) -> bool:
    return isinstance(self.end, VideoError) or (
      self.end is not None and not self.in_batch
    )

  def result(self, identity: dict) -> Record | VideoError:
    """The record, put in its place, or what is wrong with the video."""
    end = self.end
    assert end is not None, 'decoding has ended'
    if isinstance(end, Decoded) and end.sha256 != self._path.stem:
      self._wrong = 'it changed while it was read.'
    if isinstance(end, Decoded) and not self._wrong:
      return self.writer.commit(identity, end.num_frames, end.num_declared)
    self.writer.abort()
    if isinstance(end, VideoError):
      return end
    return VideoError(f'{self.video}: {self._wrong}')


class _Report:
  """A line every few seconds, and a summary.

  Args:
    total: videos to go.
    folder: of the store.
    shown: whether to print.
  """

  def __init__(self, total: int, folder: pathlib.Path, shown: bool):
    self._total, self._done, self._shown = total, 0, shown
    self._print(f'features: {total} videos to go, into {folder}')

  def begin(self, extraction: Extraction) -> None:
    self._extraction = extraction
    self._start = self._last = time.perf_counter()

  def add(self) -> None:
    self._done += 1
    now = time.perf_counter()
    if now - self._last < _PROGRESS_SECONDS and self._done < self._total:
      return
    self._last = now
    seconds = now - self._start
    left = seconds / self._done * (self._total - self._done)
    self._print(
      f'features: {self._done}/{self._total} videos, '
      f'{self._extraction.num_frames / seconds:.0f} frames/s, '
      f'{int(left // 60)}:{int(left % 60):02d} left'
    )

  def speed(self) -> dict[str, float]:
    """Frames a second: of one decoder, of the extractor, of the pass."""
    count = self._extraction.num_frames
    rate = lambda seconds: count / seconds if seconds else 0.0
    return {
      'decode': rate(self._extraction.decode_seconds),
      'extract': rate(self._extraction.extract_seconds),
      'total': rate(self._seconds),
      'extractor_share': self._extraction.extract_seconds / self._seconds,
    }

  def end(self, records: Sequence[Record]) -> None:
    self._seconds = time.perf_counter() - self._start
    speed = self.speed()
    self._print(
      f'features: {self._extraction.num_frames} frames in {self._seconds:.1f} '
      f's: a decoder does {speed["decode"]:.0f}, the extractor '
      f'{speed["extract"]:.0f}, both {speed["total"]:.0f} frames/s; the '
      f'extractor works {100 * speed["extractor_share"]:.0f} % of the time'
    )
    for line in summary(records):
      self._print(f'features: {line}')

  def _print(self, line: str) -> None:
    if self._shown:
      print(line, flush=True)


def summary(records: Sequence[Record]) -> list[str]:
  """What is worth knowing of records: frames, headers, rounding."""
  lines = []
  short = [
    r.num_declared - r.num_decoded
    for r in records
    if r.num_declared is not None and r.identity['fps'] is None
  ]
  if any(short):
    wrong = [n for n in short if n]
    lines.append(
      f'{len(wrong)} of {len(records)} headers declare another number of '
      f'frames than there are ({min(wrong):+d} to {max(wrong):+d}); the number '
      'decoded counts'
    )
  errors: list[Any] = [r.error for r in records if r.error]
  if errors:
    relative = [e['relative'] for e in errors]
    lines.append(
      f"int8 is off by {100 * np.mean(relative):.2f} % of the features' size "
      f'on average over clips (root mean square), {100 * max(relative):.2f} % '
      f'at worst; no number by more than {max(e["max"] for e in errors):.3g}'
    )
  return lines
