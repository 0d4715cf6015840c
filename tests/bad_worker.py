"""A decode worker that goes wrong where the name of a video says so."""

import json
import os
import signal
import sys
import time

from data import decode_worker, videos
from data.decoding import Limits

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
    yield frame


if __name__ == '__main__':
  videos.stream = _stream
  decode_worker.main(Limits(*json.loads(sys.argv[1])))
