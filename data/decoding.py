"""Decodes videos in processes of their own, with limits.

A video that crashes its decoder, hangs it, or asks for too much memory is a bad
video, and no more than that. Frames come through pipes, in order, a few at a
time; the next videos are decoded ahead while they are used.
"""

import concurrent.futures
import contextlib
import json
import math
import os
import pathlib
import queue
import select
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from data import videos as videos_lib
from data.errors import DataError, VideoError
from data.videos import Header, Size

# A message of a worker: its kind, and how many bytes follow.
MESSAGE = struct.Struct('<cQ')
HELLO, HEADER, FRAMES, ALIVE, BAD, DONE = b'H', b'I', b'F', b'A', b'B', b'D'

_ROOT = pathlib.Path(__file__).resolve().parent.parent
_START_SECONDS = 120.0
_WORKER = 'data.decode_worker'
_AHEAD = 8  # messages of frames kept of each video
_MAX_MESSAGE = 1 << 30  # bytes
_MAX_WORKERS = 16


class Limits(NamedTuple):
  """What one video may take; its frames' pixels are limited in `data.videos`.

  Attributes:
    memory: bytes of address space of its process.
    seconds: of CPU time.
    stall_seconds: without a sign of life.
    frames: how many.
  """

  memory: int = 4 << 30
  seconds: int = 1800
  stall_seconds: float = 20.0
  frames: int = 100_000


LIMITS = Limits()


class Decoded(NamedTuple):
  """What decoding a video to its end told.

  Attributes:
    sha256: of the file that was decoded.
    num_frames: frames decoded, or taken at `fps`.
    num_declared: by its header; None if it does not tell.
    seconds: that decoding took.
  """

  sha256: str
  num_frames: int
  num_declared: int | None
  seconds: float


class Decoders:
  """Worker processes that decode; a context manager that ends them.

  They end with this process, however it ends.

  Args:
    num_workers: processes; None: one a CPU core, at most 16.
    limits: of each video.
  """

  def __init__(self, num_workers: int | None = None, limits: Limits = LIMITS):
    self._count = num_workers or min(os.cpu_count() or 1, _MAX_WORKERS)
    self._limits = limits
    self._threads = concurrent.futures.ThreadPoolExecutor(self._count)
    self._idle: queue.SimpleQueue[_Worker] = queue.SimpleQueue()
    self._workers: set[_Worker] = set()
    self._closed = False

  def __enter__(self) -> 'Decoders':
    return self

  def __exit__(self, *_) -> None:
    self._closed = True
    for worker in list(self._workers):
      worker.kill()
    self._threads.shutdown(cancel_futures=True)
    for worker in self._workers:
      worker.close()

  def stream(
    self,
    videos: Iterable[pathlib.Path],
    size: tuple[int, int],
    *,
    fps: float | None = None,
  ) -> Iterator[tuple[pathlib.Path, np.ndarray | Decoded | VideoError]]:
    """The frames of videos, one video after the other.

    Args:
      videos: taken from as decoding goes on.
      size: (height, width) of the frames.
      fps: see `data.videos.decode`.

    Yields:
      (video, event): any number of uint8 `[n, height, width, 3]`, then
      `Decoded`, or at any time a `VideoError`, which ends the video.

    Raises:
      DataError: if no worker can be started.
    """
    for video, event in self._stream(videos, [size], fps):
      if isinstance(event, Decoded | VideoError):
        yield video, event
      elif not isinstance(event, Header):
        yield video, event[0]

  def examine(
    self, videos: Iterable[pathlib.Path]
  ) -> Iterator[tuple[pathlib.Path, Decoded | VideoError]]:
    """Decodes videos and keeps no frames; see `stream`."""
    for video, event in self._stream(videos, []):
      if not isinstance(event, Header):
        yield video, event

  def headers(
    self, videos: Iterable[pathlib.Path]
  ) -> Iterator[tuple[pathlib.Path, Header | VideoError]]:
    """What videos say of themselves; see `stream`."""
    return self._stream(videos, None)

  @contextlib.contextmanager
  def opened(
    self,
    video: str | pathlib.Path,
    sizes: Sequence[Size],
    *,
    fps: float | None = None,
  ) -> Iterator[tuple[Header, Iterator[tuple[np.ndarray, ...]]]]:
    """One video, of which frames are taken one at a time.

    Args:
      video: a video file, or a folder of frames.
      sizes: see `data.videos.stream`.
      fps: see `data.videos.decode`.

    Yields:
      What it says of itself, and its frames as `data.videos.stream` gives them;
      those that are not taken are dropped.

    Raises:
      VideoError: as `data.videos.decode`, at once or when the frame is reached
        that is wrong.
      DataError: if no worker can be started.
    """
    stream = self._stream([pathlib.Path(video)], sizes, fps)
    with contextlib.closing(stream):
      _, header = next(stream)
      if isinstance(header, VideoError):
        raise header
      yield header, _each(stream)

  def decode(
    self,
    video: str | pathlib.Path,
    size: tuple[int, int] | None = None,
    *,
    fps: float | None = None,
  ) -> np.ndarray:
    """All frames of one video; see `data.videos.decode`."""
    with self.opened(video, [size], fps=fps) as (_, frames):
      return videos_lib.stack(video, (frame for (frame,) in frames))

  def _stream(
    self,
    videos: Iterable[pathlib.Path],
    sizes: Sequence[Size] | None,
    fps: float | None = None,
  ) -> Generator[tuple[pathlib.Path, Any], None, None]:
    """Of each video its header; frames, one array a size; its end.

    `sizes` of None takes the header alone.
    """
    options = {'sizes': sizes, 'fps': fps}
    videos = iter(videos)
    jobs: deque[_Job] = deque()
    try:
      while True:
        while len(jobs) <= self._count:
          video = next(videos, None)
          if video is None:
            break
          jobs.append(_Job(video))
          self._threads.submit(self._decode, jobs[-1], options)
        if not jobs:
          return
        while (event := jobs[0].events.get()) is not None:
          if isinstance(event, Exception) and not isinstance(event, VideoError):
            raise event
          yield jobs[0].video, event
        jobs.popleft()
    finally:
      for job in jobs:
        job.is_wanted = False

  def _decode(self, job: '_Job', options: dict) -> None:
    """One video, in a thread of this process: from a worker to its events."""
    video = job.video
    try:
      worker = self._take()
      try:
        worker.send({'path': str(video), **options})
        kind = b''
        while kind not in (BAD, DONE):
          kind, data = worker.receive(self._limits.stall_seconds)
          if kind == HEADER:
            self._put(job, Header(*json.loads(data.tobytes())))
          elif kind == FRAMES:
            self._put(job, _unpacked(data, len(options['sizes'])))
            if self._closed or not job.is_wanted:
              raise _DeadError('no longer wanted.')
        tree = json.loads(data.tobytes())
        self._idle.put(worker)
        if tree is not None:
          self._put(job, VideoError(tree) if kind == BAD else Decoded(**tree))
      except _DeadError as e:
        self._drop(worker)
        self._put(job, VideoError(f'{video}: {e}'))
    except Exception as e:  # raised where the events are read
      self._put(job, e)
    self._put(job, None)

  def _put(self, job: '_Job', event: Any) -> None:
    while job.is_wanted and not self._closed:
      try:
        return job.events.put(event, timeout=0.2)
      except queue.Full:
        continue

  def _take(self) -> '_Worker':
    try:
      return self._idle.get_nowait()
    except queue.Empty:
      pass
    worker = _Worker(self._limits)
    self._workers.add(worker)
    try:
      if self._closed:
        raise _DeadError('closed meanwhile.')
      worker.receive(_START_SECONDS)
    except _DeadError as e:
      self._drop(worker)
      raise DataError(f'cannot start a decoder ({sys.executable}): {e}') from e
    return worker

  def _drop(self, worker: '_Worker') -> None:
    worker.close()
    self._workers.discard(worker)


def packed(frames: Sequence[tuple[np.ndarray, ...]]) -> list[np.ndarray]:
  """Frames of one shape a size as the parts of a message; see `_unpacked`."""
  parts = [np.stack(of_size) for of_size in zip(*frames)]
  shapes = [part.shape[:3] for part in parts]
  return [np.array(shapes, np.int64), *parts]


def _unpacked(data: np.ndarray, num_sizes: int) -> tuple[np.ndarray, ...]:
  """The frames of a message: uint8 `[n, height, width, 3]`, one a size."""
  start = 3 * 8 * num_sizes
  arrays = []
  for shape in data[:start].view(np.int64).reshape(num_sizes, 3).tolist():
    end = start + 3 * math.prod(shape)
    arrays.append(data[start:end].reshape(*shape, 3))
    start = end
  return tuple(arrays)


def _each(
  events: Iterable[tuple[pathlib.Path, Any]],
) -> Iterator[tuple[np.ndarray, ...]]:
  """Frames one at a time, of a video whose header is taken already."""
  for _, event in events:
    if isinstance(event, VideoError):
      raise event
    if not isinstance(event, Decoded):
      yield from zip(*event)


class _Job:
  """A video to decode.

  Attributes:
    video: the file.
    events: what is decoded, and how it ended; then None.
    is_wanted: whether anybody reads the events.
  """

  def __init__(self, video: pathlib.Path):
    self.video = video
    self.events: queue.Queue = queue.Queue(_AHEAD)
    self.is_wanted = True


class _DeadError(Exception):
  """A worker ended, or had to be; the message says why."""


class _Worker:
  """One process of `data.decode_worker`."""

  def __init__(self, limits: Limits):
    self._limits = limits
    paths = [str(_ROOT), os.environ.get('PYTHONPATH', '')]
    # Threads of libraries would take address space, which is limited.
    alone = {'OPENBLAS_NUM_THREADS': '1', 'MALLOC_ARENA_MAX': '1'}
    path = os.pathsep.join(filter(None, paths))
    try:
      self._process = subprocess.Popen(
        [sys.executable, '-P', '-m', _WORKER, json.dumps(limits)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=os.environ | alone | {'PYTHONPATH': path},
      )
    except OSError as e:
      raise DataError(f'cannot start a decoder: {e.strerror}.') from e

  def send(self, request: dict) -> None:
    assert self._process.stdin is not None
    try:
      self._process.stdin.write(json.dumps(request).encode() + b'\n')
    except OSError as e:
      raise self._death() from e

  def receive(self, timeout: float) -> tuple[bytes, np.ndarray]:
    """The next message: its kind, and its bytes."""
    kind, size = MESSAGE.unpack(self._read(MESSAGE.size, timeout))
    if size > _MAX_MESSAGE:
      raise _DeadError(f'cannot decode: frames of {size >> 20} MiB at once.')
    return kind, self._read(size, timeout)

  def kill(self) -> None:
    """Ends the process; what reads from it is told."""
    self._process.kill()

  def close(self) -> None:
    """Ends the process; nothing reads from it any more."""
    self._process.kill()
    self._process.wait()
    for pipe in (self._process.stdin, self._process.stdout):
      if pipe is not None:
        pipe.close()

  def _read(self, size: int, timeout: float) -> np.ndarray:
    assert self._process.stdout is not None
    pipe = self._process.stdout.fileno()
    ready = select.poll()
    ready.register(pipe, select.POLLIN)
    data = np.empty(size, np.uint8)
    done = 0
    while done < size:
      if not ready.poll(1000 * timeout):
        raise _DeadError(f'cannot decode: no frame in {timeout:g} s.')
      count = os.readv(pipe, [memoryview(data)[done:]])
      if not count:
        raise self._death()
      done += count
    return data

  def _death(self) -> _DeadError:
    code = self._process.wait()
    if code == -signal.SIGXCPU:
      return _DeadError(
        f'cannot decode: more than {self._limits.seconds} s of CPU time. Cut '
        'it into clips.'
      )
    how = signal.Signals(-code).name if code < 0 else f'exit code {code}'
    return _DeadError(f'cannot decode: it ended the decoder ({how}).')
