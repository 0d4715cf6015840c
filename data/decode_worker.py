"""A process that decodes videos for `data.decoding`, with limits.

Requests come as lines of JSON; frames go out as messages. It ends when the
process that asks is gone.
"""

import json
import math
import os
import queue
import resource
import signal
import sys
import threading
import time
from collections.abc import Sequence

import numpy as np

from data import videos
from data.decoding import (
  ALIVE,
  BAD,
  DONE,
  FRAMES,
  HEADER,
  HELLO,
  MESSAGE,
  Limits,
  packed,
)
from data.errors import VideoError

_FRAMES = 16  # a message, at most
_BYTES = 4 << 20  # a message, at most a frame more
_SECONDS = 1.0  # between messages, at most a frame more


def main(limits: Limits) -> None:
  """Serves until the asking process is gone."""
  for number in (signal.SIGINT, signal.SIGTERM):  # the asking process decides
    signal.signal(number, signal.SIG_IGN)
  _limit(resource.RLIMIT_AS, limits.memory)
  _limit(resource.RLIMIT_CORE, 0)
  out = os.dup(1)
  os.dup2(2, 1)  # whatever a library prints is no message
  requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
  threading.Thread(target=_listen, args=(requests,), daemon=True).start()
  _send(out, HELLO)
  while True:
    request = json.loads(requests.get())
    used = resource.getrusage(resource.RUSAGE_SELF)
    spent = math.ceil(used.ru_utime + used.ru_stime)
    _limit(resource.RLIMIT_CPU, spent + limits.seconds)
    try:
      tree = _decode(out, limits, **request)
      _send(out, DONE, json.dumps(tree).encode())
    except VideoError as e:
      _send(out, BAD, json.dumps(str(e)).encode())
    except MemoryError:
      text = (
        f'{request["path"]}: cannot decode: needs more than '
        f'{limits.memory >> 20} MiB of memory. Make it smaller.'
      )
      _send(out, BAD, json.dumps(text).encode())


def _decode(
  out: int,
  limits: Limits,
  path: str,
  sizes: Sequence[Sequence[int] | None] | None,
  fps: float | None,
) -> dict | None:
  """Sends a video's header and frames; what `data.decoding.Decoded` holds."""
  header = videos.read_header(path)
  _send(out, HEADER, json.dumps(header).encode())
  if sizes is None:
    return None
  wanted = [_size(size) for size in sizes]
  count, seconds = 0, 0.0
  batch: list[tuple[np.ndarray, ...]] = []
  started = last = time.monotonic()
  for frame in videos.stream(path, wanted, fps=fps):
    count += 1
    if count > limits.frames:
      raise VideoError(
        f'{path}: more than {limits.frames} frames. Cut it into clips.'
      )
    if batch and [a.shape for a in frame] != [a.shape for a in batch[0]]:
      _send_frames(out, batch)
    if wanted:
      batch.append(frame)
    now = time.monotonic()
    num_bytes = len(batch) * sum(a.nbytes for a in frame)
    is_full = len(batch) == _FRAMES or num_bytes >= _BYTES
    if is_full or now - last > _SECONDS:
      seconds += now - started
      _send_frames(out, batch)
      started = last = time.monotonic()
  seconds += time.monotonic() - started
  if batch:
    _send_frames(out, batch)
  return {
    'sha256': videos.sha256(path),
    'num_frames': count,
    'num_declared': header.num_frames,
    'seconds': seconds,
  }


def _size(numbers: Sequence[int] | None) -> videos.Size:
  """A size back from JSON, which knows lists only."""
  if numbers is None:
    return None
  return videos.Fit(*numbers) if len(numbers) == 3 else tuple(numbers)


def _send_frames(out: int, batch: list[tuple[np.ndarray, ...]]) -> None:
  if batch:
    _send(out, FRAMES, *(part.data for part in packed(batch)))
    batch.clear()
  else:
    _send(out, ALIVE)


def _send(out: int, kind: bytes, *parts: bytes | memoryview) -> None:
  views = [memoryview(part).cast('B') for part in parts]
  try:
    os.write(out, MESSAGE.pack(kind, sum(map(len, views))))
    for view in views:
      while view:
        view = view[os.write(out, view) :]
  except BrokenPipeError:  # the asking process is gone
    os._exit(0)


def _listen(requests: queue.SimpleQueue) -> None:
  """Takes requests, and the end of the asking process, whatever decodes."""
  for line in sys.stdin.buffer:
    requests.put(line)
  os._exit(0)


def _limit(kind: int, value: int) -> None:
  hard = resource.getrlimit(kind)[1]
  if hard != resource.RLIM_INFINITY:
    value = min(value, hard)
  resource.setrlimit(kind, (value, hard))


if __name__ == '__main__':
  main(Limits(*json.loads(sys.argv[1])))
