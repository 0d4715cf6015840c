"""Decoding in processes of their own: order, limits, ends."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from data import decoding, extract, videos
from data.errors import DataError, VideoError

import video_files


@pytest.fixture
def clips(tmp_path):
  return [
    video_files.write(
      tmp_path / f'{k} #(a).avi', video_files.shades(3 + 20 * k, first=k)
    )
    for k in range(4)
  ]


def _gathered(stream):
  frames, ends = {}, {}
  for video, event in stream:
    if isinstance(event, np.ndarray):
      frames.setdefault(video, []).append(event)
    else:
      ends[video] = event
  return {v: np.concatenate(parts) for v, parts in frames.items()}, ends


@pytest.mark.parametrize('count', [pytest.param(1, marks=pytest.mark.slow), 3])
def test_frames_are_those_of_decode(clips, count):
  with decoding.Decoders(count) as decoders:
    frames, ends = _gathered(decoders.stream(clips, (16, 24)))
    again, _ = _gathered(decoders.stream(clips[:1], (8, 8), fps=15.0))
    counts = dict(decoders.examine(clips))
  assert list(frames) == list(ends) == clips
  for clip in clips:
    whole = videos.decode(clip, (16, 24))
    np.testing.assert_array_equal(frames[clip], whole)
    for end in (ends[clip], counts[clip]):
      assert end.num_frames == end.num_declared == len(whole)
      assert end.sha256 == videos.sha256(clip)
  np.testing.assert_array_equal(
    again[clips[0]], videos.decode(clips[0], (8, 8), fps=15.0)
  )


def test_one_video_is_opened_as_it_is_streamed_here(clips):
  sizes = [(8, 12), None, videos.Fit(100, 200, 50)]
  with decoding.Decoders(1) as decoders:
    with decoders.opened(clips[2], sizes) as (header, frames):
      found = list(frames)
    with decoders.opened(clips[3], [(8, 8)]) as (_, frames):
      next(frames)  # the others are dropped
    whole = decoders.decode(clips[3], fps=10.0)
    headers = dict(decoders.headers(clips))
    with pytest.raises(VideoError, match='No such file'):
      decoders.decode(clips[0].with_name('none'))
  here = list(videos.stream(clips[2], sizes))
  assert len(found) == len(here) == 43
  for arrays, expected in zip(found, here):
    for array, right in zip(arrays, expected):
      np.testing.assert_array_equal(array, right)
  assert [array.shape for array in found[0]] == [
    (8, 12, 3), (48, 64, 3), (50, 100, 3),
  ]  # fmt: skip
  np.testing.assert_array_equal(whole, videos.decode(clips[3], fps=10.0))
  assert headers == {clip: videos.read_header(clip) for clip in clips}
  assert header == headers[clips[2]]


def test_frames_that_change_their_size_are_kept_apart(tmp_path):
  folder = video_files.write_folder(tmp_path / 'a', video_files.shades(3))
  small = video_files.shades(1, (16, 24))[0]
  (folder / 'img_00004.jpg').write_bytes(video_files.jpeg(small))
  with decoding.Decoders(1) as decoders:
    with decoders.opened(folder, [None]) as (_, frames):
      shapes = [frame.shape for (frame,) in frames]
    with pytest.raises(VideoError, match='change from 48 x 64 to 16 x 24'):
      decoders.decode(folder)
  assert shapes == 3 * [(48, 64, 3)] + [(16, 24, 3)]


def test_a_bad_video_is_told_as_decode_tells_it(clips):
  clips[1].write_bytes(clips[1].read_bytes()[:-2000])
  clips[2].unlink()
  with decoding.Decoders(2) as decoders:
    _, ends = _gathered(decoders.stream(clips, (8, 8)))
  for clip in clips:
    try:
      videos.decode(clip)
    except VideoError as e:
      assert str(ends[clip]) == str(e)
    else:
      assert clip in (clips[0], clips[3])
      assert isinstance(ends[clip], decoding.Decoded)


def test_what_ends_a_worker_is_the_clip_s_error(tmp_path, bad_worker):
  names = ('a', 'crash', 'b', 'exit', 'hang', 'c', 'memory', 'd')
  clips = [
    video_files.write(tmp_path / f'{name}.avi', video_files.shades(5))
    for name in names
  ]
  limits = decoding.Limits(stall_seconds=4)
  with decoding.Decoders(2, limits) as decoders:
    _, ends = _gathered(decoders.stream(clips, (8, 8)))
  told = {
    'crash': 'it ended the decoder (SIGSEGV)',
    'exit': 'it ended the decoder (exit code 3)',
    'hang': 'no frame in 4 s',
    'memory': 'needs more than 4096 MiB of memory',
  }
  for clip in clips:
    if clip.stem in told:
      assert isinstance(ends[clip], VideoError)
      assert f'{clip}: cannot decode: ' in str(ends[clip])
      assert told[clip.stem] in str(ends[clip])
    else:
      assert ends[clip].num_frames == 5


def test_a_stream_that_is_left_leaves_nothing_behind(tmp_path, clips):
  long = video_files.write(tmp_path / 'long.avi', video_files.shades(400))
  with decoding.Decoders(1) as decoders:
    next(iter(decoders.stream([long, long], (64, 64))))
    frames, ends = _gathered(decoders.stream(clips[:2], (8, 8)))
  assert list(frames) == list(ends) == clips[:2]


@pytest.mark.slow
def test_an_endless_loop_is_the_clip_s_error(tmp_path, bad_worker):
  clip = video_files.write(tmp_path / 'spin.avi', video_files.shades(5))
  with decoding.Decoders(
    1, decoding.Limits(seconds=1, stall_seconds=300)
  ) as decoders:
    ((_, end),) = decoders.stream([clip], (8, 8))
  assert 'more than 1 s of CPU time' in str(end)


def test_limits_of_frames_and_memory(clips):
  limits = decoding.Limits(frames=25)
  with decoding.Decoders(1, limits) as decoders:
    _, ends = _gathered(decoders.stream(clips, (8, 8)))
  good = [isinstance(ends[clip], decoding.Decoded) for clip in clips]
  assert good == [True, True, False, False]
  assert 'more than 25 frames' in str(ends[clips[3]])
  limits = decoding.Limits(memory=1 << 20)
  with (
    decoding.Decoders(1, limits) as decoders,
    pytest.raises(DataError, match='cannot start a decoder'),
  ):
    list(decoders.stream(clips, (8, 8)))


@pytest.mark.slow
def test_the_rest_is_dropped_when_a_reader_leaves(tmp_path):
  long = [
    video_files.write(tmp_path / f'{k}.avi', video_files.shades(400))
    for k in range(3)
  ]
  with decoding.Decoders(2) as decoders:
    next(iter(decoders.stream(long, (64, 64))))
    processes = [w._process for w in decoders._workers]
  assert processes and all(p.poll() is not None for p in processes)


@pytest.mark.slow
@pytest.mark.parametrize('name', ['hang', 'spin'])
def test_workers_end_with_their_parent(tmp_path, bad_worker, name):
  clip = video_files.write(tmp_path / f'{name}.avi', video_files.shades(5))
  code = f"""
import pathlib, threading, time
from data import decoding
decoding._WORKER = 'bad_worker'
with decoding.Decoders(1) as decoders:
  stream = decoders.stream([pathlib.Path({str(clip)!r})], (8, 8))
  threading.Thread(target=list, args=(stream,), daemon=True).start()
  while not decoders._workers:
    time.sleep(0.01)
  (worker,) = decoders._workers
  print(worker._process.pid, flush=True)
  time.sleep(60)
"""
  with subprocess.Popen(
    [sys.executable, '-c', code],
    env=os.environ | {'PYTHONPATH': os.pathsep.join(filter(None, sys.path))},
    stdout=subprocess.PIPE,
  ) as parent:
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    time.sleep(1)
    os.kill(parent.pid, signal.SIGKILL)
  for _ in range(100):
    if not pathlib.Path(f'/proc/{pid}').exists():
      return
    time.sleep(0.1)
  os.kill(pid, signal.SIGKILL)
  pytest.fail('the worker lives on')


class Means:
  """An extractor for tests: the mean colour of a frame."""

  image_size = (16, 16)
  feature_shape = (1, 3)
  batch_size = 4
  identity = {'extractor': 'means'}  # noqa: RUF012

  def extract(self, frames):
    return frames.mean(axis=(1, 2), keepdims=True)[:, 0].astype(np.float16)


def test_extraction_goes_on_after_a_crash(tmp_path, bad_worker):
  clips = [
    video_files.write(
      tmp_path / f'{name}.avi', video_files.shades(5, first=10 * k)
    )
    for k, name in enumerate(('a', 'crash', 'b'))
  ]
  store = tmp_path / 'store'
  with pytest.raises(DataError, match=r'1 of 3 videos are bad(.|\n)*SIGSEGV'):
    extract.prepare(clips, Means(), store)
  done = extract.prepare(clips, Means(), store, on_bad='skip')
  assert list(done.paths) == [clips[0], clips[2]]
  assert list(done.bad) == [clips[1]]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_length_of_a_video(tmp_path):
  clip = video_files.write(
    tmp_path / 'long.avi', np.zeros((20_000, 32, 32, 3), np.uint8)
  )

  class Large(Means):
    """Features of as many bytes as a network's."""

    image_size = (224, 224)
    feature_shape = (49, 64)

    def extract(self, frames):
      return np.ones((len(frames), 49, 64), np.float16)

  def resident():
    with open('/proc/self/status') as file:
      (line,) = (line for line in file if line.startswith('VmHWM'))
    return int(line.split()[1]) / 1000

  before = resident()
  done = extract.prepare([clip], Large(), tmp_path / 'store')
  assert np.load(done.paths[clip], mmap_mode='r').shape == (20_000, 49, 64)
  assert resident() - before < 200  # MB; the frames are 3 GB
