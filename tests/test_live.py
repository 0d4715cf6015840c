"""Frames from pipes, as they come."""

import os
import threading
import time

import av
import numpy as np
import pytest

from data import live, videos
from data.errors import VideoError

import video_files


@pytest.fixture(params=['mjpeg', 'yuv4mpegpipe', 'matroska', 'mpegts'])
def piped(request, tmp_path):
  """A little video in a form that pipes carry."""
  codec, pixels = {
    'mjpeg': ('mjpeg', 'yuvj420p'),
    'yuv4mpegpipe': ('wrapped_avframe', 'yuv420p'),
    'matroska': ('mpeg4', 'yuv420p'),
    'mpegts': ('mpeg2video', 'yuv420p'),
  }[request.param]
  path = tmp_path / request.param
  with av.open(str(path), 'w', format=request.param) as container:
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width, stream.pix_fmt = 32, 48, pixels
    for frame in video_files.shades(7, (32, 48)):
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      container.mux(stream.encode(picture.reformat(format=pixels)))
    container.mux(stream.encode())
  return path


def test_frames_of_a_pipe(piped, tmp_path):
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  writer = threading.Thread(target=lambda: pipe.write_bytes(piped.read_bytes()))
  writer.start()
  found = [f for (f,) in live.stream(str(pipe), [(32, 48)])]
  writer.join()
  assert len(found) == 7
  for t, frame in enumerate(found):
    assert abs(float(frame.mean()) - (20 + 12 * t)) < 6


def test_a_pipe_gives_frames_before_it_ends(tmp_path):
  """A camera never ends: what has come is recognised at once."""
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  seen = threading.Event()

  def write():
    with open(pipe, 'wb', buffering=0) as file:
      noise = np.random.default_rng(0).integers(0, 255, (12, 96, 96, 3))
      for number, frame in enumerate(noise.astype(np.uint8)):
        file.write(video_files.jpeg(frame))
        if number == 9:
          seen.wait(60)

  writer = threading.Thread(target=write)
  writer.start()
  frames = live.stream(str(pipe), [(8, 8)])
  started = time.monotonic()
  next(frames)
  assert time.monotonic() - started < 50  # the writer waits for 60 s
  seen.set()
  assert len(list(frames)) == 11
  writer.join()


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'found nothing'),
    (b'RIFF....AVI ', "expected motion JPEG, .* b'RIFF"),
    (b'\xff\xd8\xff no picture', 'cannot|no frames|damaged|cut'),
  ],
)
def test_pipes_of_nothing_are_refused(tmp_path, content, message):
  path = tmp_path / 'pipe'
  path.write_bytes(content)
  with pytest.raises(VideoError, match=message):
    if not list(live.stream(str(path), [None])):
      raise VideoError('no frames')
  with pytest.raises(VideoError, match='none: cannot read: No such file'):
    list(live.stream(str(tmp_path / 'none'), [None]))


@pytest.mark.parametrize(
  ('codec', 'limit', 'message'),
  [
    ('mpeg4', 32 * 48 - 1, 'frames of 32 x 48: more than 1535 pixels'),
    ('snow', 32 * 48, 'coded by snow, which is not on the list'),
  ],
)
def test_pipes_have_the_limits_of_files(
  tmp_path, monkeypatch, codec, limit, message
):
  monkeypatch.setattr(videos, 'MAX_PIXELS', limit)
  path = tmp_path / 'pipe.mkv'
  video_files.write(path, video_files.shades(3, (32, 48)), codec)
  with pytest.raises(VideoError, match=message):
    next(live.stream(str(path), [(8, 8)]))
