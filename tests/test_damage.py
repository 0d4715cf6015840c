"""Rotation, unusual pictures, and damaged or refused files."""

import collections
import os
import pathlib
import shutil
import struct

import av
import numpy as np
import pytest

from data import containers, videos
from data.errors import VideoError
from data.videos import decode

import video_files

# Name of the container, its coding, and options of the muxer.
FILES = {
  'avi': ('a.avi', 'mpeg4', {}),
  'mp4': ('a.mp4', 'mpeg4', {}),
  'faststart': ('a.mp4', 'mpeg4', {'movflags': 'faststart'}),
  'h264': ('a.mp4', 'libx264', {}),
  'fragments': ('a.mp4', 'mpeg4', {'movflags': 'frag_keyframe+empty_moov'}),
  'mov': ('a.mov', 'mpeg4', {}),
  'mkv': ('a.mkv', 'mpeg4', {}),
  'webm': ('a.webm', 'libvpx-vp9', {}),
}


def _textured(num_frames, size=(48, 64)):
  noise = np.random.default_rng(0).integers(0, 20, (num_frames, *size, 3))
  return (video_files.shades(num_frames, size) + noise).astype(np.uint8)


def _write(folder, kind, frames):
  name, codec, options = FILES[kind]
  return video_files.write(folder / name, frames, codec, options=options)


# --- rotation ---------------------------------------------------------------

ONE = 65536
CORNERS = np.zeros((4, 32, 48, 3), np.uint8)  # four frames, four corners
CORNERS[:, :16, :24], CORNERS[:, :16, 24:], CORNERS[:, 16:, :24] = 220, 140, 60


@pytest.mark.parametrize(
  ('matrix', 'turned'),
  [
    ((ONE, 0, 0, ONE), CORNERS),
    ((0, ONE, -ONE, 0), np.rot90(CORNERS, -1, (1, 2))),  # clockwise
    ((-ONE, 0, 0, -ONE), np.rot90(CORNERS, 2, (1, 2))),
    ((0, -ONE, ONE, 0), np.rot90(CORNERS, 1, (1, 2))),
    ((-ONE, 0, 0, ONE), CORNERS[:, :, ::-1]),  # a mirror
    ((ONE, 0, 0, -ONE), CORNERS[:, ::-1]),
    ((0, ONE, ONE, 0), CORNERS.swapaxes(1, 2)),
  ],
)
def test_rotation_is_applied(tmp_path, matrix, turned):
  path = video_files.write(tmp_path / 'a.mp4', CORNERS)
  if matrix != (ONE, 0, 0, ONE):
    video_files.rotate(path, *matrix)
  decoded = decode(path)
  assert decoded.shape == turned.shape
  np.testing.assert_allclose(
    decoded[:, 4::8, 4::8].astype(int), turned[:, 4::8, 4::8], atol=12
  )
  height, width = 64, 32
  resized = decode(path, (height, width))
  assert resized.shape == (4, height, width, 3)
  for row, column in ((8, 4), (8, 28), (56, 4), (56, 28)):
    expected = turned[
      0, row * turned.shape[1] // height, column * turned.shape[2] // width
    ]
    np.testing.assert_allclose(
      resized[0, row, column].astype(int), expected, atol=12
    )


@pytest.mark.parametrize(
  'matrix',
  [
    (46341, 46341, -46341, 46341),  # 45 degrees
    (0, 0, 0, 0),
    (ONE, 0, 0, 0),
    (0, ONE, 0, 0),
    (ONE, 0, 0, 2 * ONE),
    (ONE, 700, -700, ONE),
  ],
)
def test_other_rotations_are_errors(tmp_path, matrix):
  path = video_files.write(tmp_path / 'a.mp4', CORNERS)
  video_files.rotate(path, *matrix)
  with pytest.raises(VideoError, match=r'a\.mp4: rotated by other than 90'):
    decode(path)


# --- unusual pictures -------------------------------------------------------


@pytest.mark.parametrize(
  ('name', 'codec', 'pix_fmt'),
  [
    ('a.mp4', 'libx264', 'yuv420p'),
    ('a.mov', 'mjpeg', 'yuvj420p'),
    ('a.avi', 'msmpeg4v3', 'yuv420p'),
    ('a.mpg', 'mpeg2video', 'yuv420p'),
    ('a.webm', 'libvpx', 'yuv420p'),
    ('a.webm', 'libvpx-vp9', 'yuv420p'),
    ('a.avi', 'huffyuv', 'rgb24'),
    ('a.mkv', 'ffv1', 'gray'),
    ('a.mkv', 'ffv1', 'yuv420p10le'),
    ('a.mkv', 'ffv1', 'yuv444p10le'),
    ('a.mkv', 'ffv1', 'gray10le'),
    ('a.mp4', 'libx264', 'yuv420p10le'),
    ('a.avi', 'rawvideo', 'bgr24'),
  ],
)
def test_codings_and_pixels(tmp_path, name, codec, pix_fmt):
  frames = video_files.shades(12)
  path = video_files.write(tmp_path / name, frames, codec, pix_fmt)
  decoded = decode(path)
  assert decoded.shape == frames.shape and decoded.dtype == np.uint8
  np.testing.assert_allclose(decoded.astype(int), frames.astype(int), atol=4)


@pytest.mark.parametrize('codec', ['png', 'ffv1'])
def test_alpha_is_left_out(tmp_path, codec):
  frames = np.zeros((2, 16, 16, 4), np.uint8)
  frames[..., 0], frames[:, :8, :, 3] = 200, 255  # red, half of it transparent
  pix_fmt = 'rgba' if codec == 'png' else 'bgra'
  path = video_files.write(
    tmp_path / 'a.avi', frames, codec, pix_fmt, source='rgba'
  )
  np.testing.assert_array_equal(decode(path), frames[..., :3])


@pytest.mark.parametrize('size', [(119, 159), (1, 1), (2, 3), (17, 640)])
@pytest.mark.parametrize('pix_fmt', ['yuv420p', 'yuv444p', 'gray'])
def test_odd_sizes(tmp_path, size, pix_fmt):
  frames = video_files.shades(3, size)
  path = video_files.write(tmp_path / 'a.mkv', frames, 'ffv1', pix_fmt)
  decoded = decode(path)
  assert decoded.shape == frames.shape
  np.testing.assert_allclose(decoded.astype(int), frames.astype(int), atol=3)
  assert decode(path, (7, 5)).shape == (3, 7, 5, 3)


def test_variable_frame_rate(tmp_path):
  """Frame k is shown at k * k / 30 s; each is taken once, unless resampled."""
  frames = video_files.shades(9)
  squares = [k * k for k in range(9)]
  constant = frames[np.floor(np.sqrt(np.arange(64))).astype(int)]
  for name in ('a.mp4', 'a.mkv'):
    variable = video_files.write(tmp_path / name, frames, times=squares)
    assert len(decode(variable)) == 9
    fixed = video_files.write(tmp_path / f'cfr_{name}', constant)
    for fps in (30, 15, 7.5):
      one, two = (
        (decode(p, fps=fps)[:, 0, 0, 0].astype(int) - 20) / 12
        for p in (variable, fixed)
      )
      both = min(len(one), len(two), int(64 * fps / 30))
      assert both >= 64 * fps / 30 - 1
      np.testing.assert_allclose(one[:both], two[:both], atol=1.01)


def test_frames_one_at_a_time_are_those_of_decode(tmp_path):
  frames = video_files.shades(9)
  squares = [k * k for k in range(9)]
  path = video_files.write(tmp_path / 'a.mp4', frames, times=squares)
  for fps in (None, 30, 7.5, 100):
    one_by_one = [f for (f,) in videos.stream(path, [(8, 8)], fps=fps)]
    np.testing.assert_array_equal(one_by_one, decode(path, (8, 8), fps=fps))


def test_a_gap_of_hours_is_no_rate(tmp_path):
  frames = video_files.shades(3)
  path = video_files.write(tmp_path / 'a.mkv', frames, times=[0, 1, 10**6])
  assert len(decode(path)) == 3
  with pytest.raises(VideoError, match=r'frame 3 comes 33333 s after'):
    decode(path, fps=30)


def test_times_that_begin_late(tmp_path):
  frames = video_files.shades(6)
  late = [100, 102, 104, 106, 108, 110]
  path = video_files.write(tmp_path / 'a.mkv', frames, times=late)
  decoded = decode(path, fps=30)
  assert len(decoded) == 12
  np.testing.assert_allclose(
    decoded[:, 0, 0, 0].astype(int), frames[:, 0, 0, 0].repeat(2), atol=4
  )


@pytest.mark.parametrize('fps', [0, -1, float('nan'), float('inf')])
def test_the_rate_is_checked(tmp_path, fps):
  path = video_files.write(tmp_path / 'a.mkv', video_files.shades(2))
  with pytest.raises(VideoError, match='fps'):
    decode(path, fps=fps)


def test_limits(tmp_path, monkeypatch):
  path = video_files.write(tmp_path / 'a.mkv', video_files.shades(4))
  with monkeypatch.context() as patch:
    patch.setattr(videos, 'MAX_PIXELS', 48 * 64 - 1)
    with pytest.raises(VideoError, match='frames of 48 x 64: more than'):
      decode(path, (8, 8))
  monkeypatch.setattr(videos, 'MAX_BYTES', 3 * 8 * 8 * 3)
  with pytest.raises(VideoError, match='more than 3 frames of 8 x 8'):
    decode(path, (8, 8))


def test_a_huge_picture_is_refused_before_it_is_decoded(tmp_path):
  frame = np.zeros((1, 8192, 8192), np.uint8)
  path = video_files.write(
    tmp_path / 'a.avi', frame, 'png', 'gray', source='gray'
  )
  with pytest.raises(VideoError, match='frames of 8192 x 8192'):
    decode(path, (224, 224))


# --- refused files ----------------------------------------------------------


def test_a_coding_that_is_not_on_the_list(tmp_path):
  path = video_files.write(
    tmp_path / 'a.avi', video_files.shades(2), 'magicyuv', 'gbrp'
  )
  with pytest.raises(VideoError, match='coded by magicyuv'):
    decode(path)


@pytest.mark.parametrize(
  'text',
  [
    'ffconcat version 1.0\nfile good.mkv\n',
    '#EXTM3U\n#EXTINF:10,\ngood.mkv\n',
    '<?xml version="1.0"?><MPD></MPD>',
    'v=0\no=- 0 0 IN IP4 127.0.0.1\n',
  ],
)
def test_playlists_are_not_opened(tmp_path, text):
  video_files.write(tmp_path / 'good.mkv', video_files.shades(2))
  for name in ('a.m3u8', 'a.avi', 'a.mp4'):
    (tmp_path / name).write_text(text)
    with pytest.raises(VideoError, match='expected a video'):
      decode(tmp_path / name)


@pytest.mark.parametrize('suffix', ['ts', 'flv', 'gif', 'mp3', 'y4m'])
def test_other_containers_are_not_opened(tmp_path, suffix):
  path = tmp_path / f'a.{suffix}'
  if suffix == 'mp3':
    path.write_bytes(b'ID3' + bytes(999))
  else:
    codec, pixels = {
      'ts': ('mpeg2video', 'yuv420p'),
      'flv': ('flv', 'yuv420p'),
      'gif': ('gif', 'rgb8'),
      'y4m': ('wrapped_avframe', 'yuv420p'),
    }[suffix]
    video_files.write(path, video_files.shades(2), codec, pixels)
  with pytest.raises(VideoError, match=r'expected a video .*ffmpeg -i'):
    decode(path)


@pytest.mark.parametrize(
  'name',
  [
    'http://127.0.0.1:9/a.avi', 'concat:good.mkv|good.mkv', 'pipe:0',
    'file:good.mkv', 'data:video/avi;base64,AAAA', '/dev/zero', 'a\0b.avi',
  ],
)  # fmt: skip
def test_only_plain_local_files(tmp_path, monkeypatch, name):
  video_files.write(tmp_path / 'good.mkv', video_files.shades(2))
  monkeypatch.chdir(tmp_path)
  with pytest.raises(VideoError, match='cannot read'):
    decode(name)


def test_pipes_and_loops(tmp_path):
  os.mkfifo(tmp_path / 'pipe.avi')
  (tmp_path / 'loop.avi').symlink_to(tmp_path / 'loop.avi')
  for name in ('pipe.avi', 'loop.avi'):
    with pytest.raises(VideoError, match=f'{name}: cannot read'):
      decode(tmp_path / name)


def test_a_link_to_a_video_and_a_name_that_is_no_text(tmp_path):
  path = video_files.write(tmp_path / 'a.avi', video_files.shades(3))
  (tmp_path / 'link.mp4').symlink_to(path)
  odd = pathlib.Path(os.fsdecode(bytes(tmp_path) + b'/\xff\xfe\n.avi'))
  path.rename(odd)
  assert len(decode(odd)) == 3
  path.with_name('link.mp4').unlink()
  path.with_name('link.mp4').symlink_to(odd)
  assert len(decode(tmp_path / 'link.mp4')) == 3


@pytest.mark.skipif(
  os.geteuid() == 0, reason='needs a user who may not read everything'
)
def test_a_file_that_may_not_be_read(tmp_path):
  path = video_files.write(tmp_path / 'a.avi', video_files.shades(3))
  path.chmod(0)
  with pytest.raises(VideoError, match='Permission denied'):
    decode(path)


def test_the_name_does_not_tell_the_kind(tmp_path):
  for suffix in ('avi', 'mp4', 'mkv', 'mpg'):
    path = video_files.write(
      tmp_path / f'a.{suffix}', video_files.shades(3), 'mpeg2video'
    )
    other = path.rename(tmp_path / 'a.txt')
    assert len(decode(other)) == 3


# --- cut and damaged files --------------------------------------------------


@pytest.mark.parametrize('kind', sorted(FILES))
def test_whole_files_are_whole(tmp_path, kind):
  path = _write(tmp_path, kind, _textured(19))
  assert len(decode(path, (8, 8))) == len(list(videos.stream(path, []))) == 19
  header = videos.read_header(path)
  assert header.kind == containers.check(path)
  assert (header.height, header.width) == (48, 64)
  assert header.num_frames in (19, None) and header.fps


def _check_cuts(folder, kind, number):
  path = _write(folder, kind, _textured(19))
  raw = path.read_bytes()
  for end in {*range(0, len(raw), max(len(raw) // number, 1)), len(raw) - 1}:
    path.unlink()
    path.write_bytes(raw[:end])
    with pytest.raises(VideoError) as error:
      decode(path, (8, 8))
    assert str(path) in str(error.value) and '\n' not in str(error.value)


WHOLE = sorted(set(FILES) - {'fragments'})


@pytest.mark.parametrize('kind', WHOLE)
def test_every_cut_is_an_error(tmp_path, kind):
  _check_cuts(tmp_path, kind, 40)


@pytest.mark.slow
@pytest.mark.parametrize('kind', WHOLE)
def test_every_cut_of_many_is_an_error(tmp_path, kind):
  _check_cuts(tmp_path, kind, 400)


def test_a_cut_within_a_fragment_or_pack_is_an_error(tmp_path):
  path = _write(tmp_path, 'fragments', _textured(19))
  raw = path.read_bytes()
  path.write_bytes(raw[: len(raw) * 2 // 3])
  with pytest.raises(VideoError, match='cut'):
    decode(path)
  path = video_files.write(tmp_path / 'a.mpg', _textured(19), 'mpeg2video')
  raw = path.read_bytes()
  path.write_bytes(raw[: len(raw) // 2 + 100])
  with pytest.raises(VideoError, match=r'cut|damaged'):
    decode(path)


def test_live_matroska_has_no_sizes(tmp_path):
  """As browsers record: nothing is promised, and the frames are all there."""
  path = video_files.write(
    tmp_path / 'a.webm', _textured(9), 'libvpx', options={'live': '1'}
  )
  assert len(decode(path, (8, 8))) == 9


def test_an_avi_that_was_never_finished(tmp_path):
  path = _write(tmp_path, 'avi', _textured(9))
  raw = bytearray(path.read_bytes())
  index = raw.rindex(b'idx1')
  for riff, end in ((0, None), (2**32 - 1, None), (index - 8, index)):
    broken = bytearray(raw[:end])
    struct.pack_into('<I', broken, 4, riff)
    path.write_bytes(broken)
    with pytest.raises(VideoError, match='cut'):
      decode(path)


def test_bytes_after_the_end_are_left_alone(tmp_path):
  path = _write(tmp_path, 'avi', _textured(9))
  path.write_bytes(path.read_bytes() + b'appended by some tool')
  assert len(decode(path, (8, 8))) == 9


def test_a_damaged_frame_is_an_error(tmp_path):
  """The decoder would conceal it."""
  path = _write(tmp_path, 'mp4', _textured(19))
  raw = bytearray(path.read_bytes())
  middle = (raw.index(b'mdat') + raw.index(b'moov')) // 2
  raw[middle : middle + 40] = bytes(40)
  path.write_bytes(raw)
  with pytest.raises(VideoError, match=r'damaged after|cannot decode after'):
    decode(path)


def _check_flips(folder, kind, number):
  frames = _textured(12)
  if kind == 'mpg':
    path = video_files.write(folder / 'a.mpg', frames, 'mpeg2video')
  else:
    path = _write(folder, kind, frames)
  raw = path.read_bytes()
  rng = np.random.default_rng(0)
  outcomes = collections.Counter()
  for k in range(number):
    broken = bytearray(raw)
    region = len(raw) if k % 2 else min(len(raw), 2000)  # often the headers
    for position in rng.integers(0, region, 1 + k % 8):
      broken[position] ^= 1 << int(rng.integers(8))
    path.unlink()
    path.write_bytes(broken)
    try:
      outcomes[decode(path, (8, 8)).shape[1:] == (8, 8, 3)] += 1
    except VideoError as e:
      assert str(path) in str(e)
      outcomes['error'] += 1
  assert outcomes['error'] > number // 5 and outcomes[True] > 0
  assert sum(outcomes.values()) == number


FLIPPED = ['avi', 'mp4', 'faststart', 'mkv', 'mpg']


@pytest.mark.parametrize('kind', FLIPPED)
def test_flipped_bits_end_in_frames_or_an_error(tmp_path, kind):
  _check_flips(tmp_path, kind, 40)


@pytest.mark.slow
@pytest.mark.parametrize('kind', FLIPPED)
def test_many_flipped_bits_end_in_frames_or_an_error(tmp_path, kind):
  _check_flips(tmp_path, kind, 400)


@pytest.mark.real_data
@pytest.mark.skipif(
  'HMAN_REAL_DATA' not in os.environ,
  reason='set HMAN_REAL_DATA to the folder that holds jhmdb/',
)
def test_intact_real_clips_are_intact_and_cut_ones_are_not(tmp_path):
  videos_folder = pathlib.Path(os.environ['HMAN_REAL_DATA'], 'jhmdb', 'videos')
  clips = sorted(videos_folder.glob('*/*.avi'))
  for clip in clips:
    assert containers.check(clip) == 'avi'
    assert 15 <= len(list(videos.stream(clip, []))) <= 40
  cut = tmp_path / 'cut.avi'
  rng = np.random.default_rng(0)
  for clip in clips[::20]:
    shutil.copyfile(clip, cut)
    os.truncate(cut, int(rng.integers(12, clip.stat().st_size)))
    with pytest.raises(VideoError, match='cut'):
      decode(cut)


def test_the_container_is_opened_as_what_it_is():
  """FFmpeg knows the names that the check gives."""
  for name in ('avi', 'mov', 'matroska', 'mpeg'):
    assert av.format.ContainerFormat(name, 'r').is_input
