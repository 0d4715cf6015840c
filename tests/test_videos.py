"""Decoding videos."""

import os
import pathlib
import struct
import wave

import av
import numpy as np
import pytest

from data.errors import DataError, VideoError
from data.videos import decode

import video_files

MPEG4_ERROR = 4  # grey levels


@pytest.mark.parametrize('suffix', ['.avi', '.mp4', '.mkv'])
@pytest.mark.parametrize('num_frames', [1, 2, 13])
def test_all_frames_in_order(tmp_path, suffix, num_frames):
  frames = video_files.shades(num_frames)
  path = video_files.write(tmp_path / f'a{suffix}', frames)
  decoded = decode(path)
  assert decoded.dtype == np.uint8
  assert decoded.shape == frames.shape
  np.testing.assert_allclose(
    decoded.astype(int), frames.astype(int), atol=MPEG4_ERROR
  )


def test_channels_are_rgb(tmp_path):
  frames = np.zeros((3, 32, 32, 3), np.uint8)
  frames[..., 0] = 200
  path = video_files.write(tmp_path / 'a.avi', frames, 'png', 'rgb24')
  np.testing.assert_array_equal(decode(path), frames)


@pytest.mark.parametrize('size', [(24, 32), (224, 224), (31, 17), (1, 1)])
def test_the_whole_frame_is_resized(tmp_path, size):
  frames = np.zeros((2, 48, 64, 3), np.uint8)
  frames[:, :, 32:] = 240  # right half bright
  path = video_files.write(tmp_path / 'a.avi', frames, 'png', 'rgb24')
  decoded = decode(path, size)
  assert decoded.shape == (2, *size, 3)
  if size[1] > 8:
    edge = size[1] // 4
    assert (decoded[:, :, :edge] < 5).all()
    assert (decoded[:, :, -edge:] > 235).all()


def test_the_same_file_gives_the_same_frames(tmp_path):
  path = video_files.write(tmp_path / 'a.avi', video_files.shades(9))
  np.testing.assert_array_equal(
    decode(path, (224, 224)), decode(path, (224, 224))
  )


@pytest.mark.parametrize('declared', [0, 3, 5000])
def test_the_frame_count_of_the_header_is_ignored(tmp_path, declared):
  path = video_files.write(tmp_path / 'a.avi', video_files.shades(10))
  raw = bytearray(path.read_bytes())
  total = raw.index(b'avih') + 8 + 16  # dwTotalFrames
  length = raw.index(b'strh') + 8 + 32  # dwLength
  assert struct.unpack_from('<I', raw, length) == (10,)
  struct.pack_into('<I', raw, total, declared)
  struct.pack_into('<I', raw, length, declared)
  path.write_bytes(raw)
  assert len(decode(path)) == 10


@pytest.mark.parametrize(
  'name', ['-dashed.avi', 'a #(b&c; d)!@ .avi', 'brosse à dents.avi', '%d.avi']
)
def test_odd_names(tmp_path, name):
  path = video_files.write(tmp_path / name, video_files.shades(3))
  assert len(decode(path)) == 3
  assert len(decode(str(path))) == 3


def _empty(path):
  path.touch()


def _text(path):
  path.write_text('no video at all\n' * 100)


def _noise(path):
  path.write_bytes(np.random.default_rng(0).bytes(5000))


def _sound(path):
  with wave.open(str(path), 'wb') as file:
    file.setparams((1, 2, 8000, 0, 'NONE', ''))
    file.writeframes(bytes(8000))


def _sound_in_mp4(path):
  with av.open(str(path), 'w', format='mp4') as container:
    stream = container.add_stream('aac', rate=8000)
    sound = av.AudioFrame.from_ndarray(
      np.zeros((1, 1024), np.float32), format='fltp', layout='mono'
    )
    sound.sample_rate = 8000
    container.mux(stream.encode(sound))
    container.mux(stream.encode())


def _no_frames(path):
  with av.open(str(path), 'w') as container:
    stream = container.add_stream('mpeg4', rate=30)
    stream.height = stream.width = 32
    stream.pix_fmt = 'yuv420p'
    container.start_encoding()


def _half_an_mp4(path):
  whole = video_files.write(path.with_suffix('.mp4'), video_files.shades(9))
  raw = whole.read_bytes()
  path.write_bytes(raw[: len(raw) // 2])


@pytest.mark.parametrize(
  ('make', 'message'),
  [
    (lambda path: None, 'No such file'),
    (pathlib.Path.mkdir, 'directory'),
    (_empty, 'cannot decode'),
    (_text, 'cannot decode'),
    (_noise, 'cannot decode'),
    (_half_an_mp4, 'cut'),
    (_sound, 'expected a video'),
    (_sound_in_mp4, 'no video stream'),
    (_no_frames, 'no frames|cannot decode'),
  ],
)
def test_bad_files_are_named(tmp_path, make, message):
  path = tmp_path / 'bad clip.avi'
  make(path)
  with pytest.raises(VideoError, match=message) as error:
    decode(path, (32, 32))
  assert str(path) in str(error.value)
  assert '\n' not in str(error.value)
  assert isinstance(error.value, DataError)


def test_a_video_that_breaks_off_is_an_error(tmp_path):
  """Not the frames before the break: they would pass for the whole."""
  noise = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), np.uint8)
  path = video_files.write(tmp_path / 'a.avi', noise, 'png', 'rgb24')
  raw = bytearray(path.read_bytes())
  start = -1
  for _ in range(5):
    start = raw.index(b'\x89PNG', start + 1)
  raw[start + 8 : start + 300] = bytes(292)
  path.write_bytes(raw)
  with pytest.raises(VideoError, match=r'a\.avi: cannot decode'):
    decode(path)


@pytest.mark.real_data
@pytest.mark.skipif(
  'HMAN_REAL_DATA' not in os.environ,
  reason='set HMAN_REAL_DATA to the folder that holds jhmdb/',
)
def test_real_clips():
  """Headers of these declare more frames than there are."""
  videos = pathlib.Path(os.environ['HMAN_REAL_DATA'], 'jhmdb', 'videos')
  fewer = 0
  for folder in sorted(videos.iterdir()):
    path = min(folder.glob('*.avi'))
    frames = decode(path)
    assert 15 <= len(frames) <= 40
    assert frames.shape[1:] == (240, 320, 3)
    with av.open(str(path)) as container:
      fewer += len(frames) < container.streams.video[0].frames
  assert fewer
