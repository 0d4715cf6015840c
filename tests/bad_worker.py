"""A decode worker that goes wrong where the name of a video says so."""

import json
import os
import signal
import sys
import time

from data import decode_worker, videos
from data.decoding import Limits
from data.errors import VideoError

_STREAM = videos.stream


def _stream(path, sizes, **options):
  if 'crash' in path:
    os.kill(os.getpid(), signal.SIGSEGV)
  if 'exit' in path:
    os._exit(3)
  while 'spin' in path:
    pass
  if 'memory' in path:
    bytearray(1 << 40)
  for count, frame in enumerate(_STREAM(path, sizes, **options)):
    if 'hang' in path and count == 2:
      time.sleep(1000)
    if 'breaks' in path and count == 20:
      raise VideoError(f'{path}: cut after 20 frames.')
    yield frame


if __name__ == '__main__':
  videos.stream = _stream
  pixels = os.environ.get('BAD_WORKER_MAX_PIXELS', videos.MAX_PIXELS)
  videos.MAX_PIXELS = int(pixels)
  decode_worker.main(Limits(*json.loads(sys.argv[1])))
