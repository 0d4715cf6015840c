"""`.seq` files and folders of frames."""

import struct

import numpy as np
import pytest

from data import extract, videos
from data.errors import VideoError
from data.videos import decode

import video_files

JPEG_ERROR = 2  # grey levels


def _close(decoded, frames):
  assert decoded.dtype == np.uint8 and decoded.shape == frames.shape
  np.testing.assert_allclose(
    decoded.astype(int), frames.astype(int), atol=JPEG_ERROR
  )


@pytest.mark.parametrize('gap', [8, 16])
@pytest.mark.parametrize('num_frames', [1, 2, 9])
@pytest.mark.parametrize('size', [(48, 64), (37, 51)])
def test_all_frames_of_a_seq(tmp_path, gap, num_frames, size):
  frames = video_files.shades(num_frames, size)
  path = video_files.write_seq(tmp_path / '-a_1.seq', frames, gap=gap)
  _close(decode(path), frames)
  assert decode(path, (16, 16)).shape == (num_frames, 16, 16, 3)
  header = videos.read_header(path)
  assert header == ('seq', 'mjpeg', *size, num_frames, 25.0)
  assert len(list(videos.stream(path, []))) == num_frames


def test_a_seq_is_known_by_its_first_bytes(tmp_path):
  frames = video_files.shades(3)
  _close(decode(video_files.write_seq(tmp_path / 'a.avi', frames)), frames)


@pytest.mark.parametrize('declared', [0, 3])
def test_frames_of_a_seq_are_counted(tmp_path, declared):
  """A header that does not tell, and one that tells fewer than there are."""
  frames = video_files.shades(6)
  path = video_files.write_seq(tmp_path / 'a.seq', frames, declared=declared)
  _close(decode(path), frames)
  assert videos.read_header(path).num_frames == (declared or None)


@pytest.mark.parametrize('num_frames', [1, 4])
def test_what_follows_the_last_frame_is_left_alone(tmp_path, num_frames):
  frames = video_files.shades(num_frames)
  path = tmp_path / 'a.seq'
  path.write_bytes(video_files.seq_bytes(frames) + b'some index' * 20)
  _close(decode(path), frames)


def test_a_seq_without_the_last_gap(tmp_path):
  frames = video_files.shades(4)
  path = tmp_path / 'a.seq'
  path.write_bytes(video_files.seq_bytes(frames)[:-8])
  _close(decode(path), frames)


@pytest.mark.parametrize('format', [102, 201])
def test_both_formats_of_jpeg(tmp_path, format):
  frames = video_files.shades(2)
  _close(decode(video_files.write_seq(tmp_path / 'a', frames, format=format)),
         frames)  # fmt: skip


@pytest.mark.parametrize('gap', [8, 16])
def test_every_cut_of_a_seq_is_an_error(tmp_path, gap):
  raw = video_files.seq_bytes(video_files.shades(5, (16, 16)), gap=gap)
  path = tmp_path / 'a.seq'
  for end in range(0, len(raw) - gap, 7):
    path.write_bytes(raw[:end])
    with pytest.raises(VideoError) as error:
      decode(path)
    assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize(
  ('header', 'message'),
  [
    ({'magic': 0xFEEE}, 'expected a video'),
    ({'format': 100}, 'format 102 or 201.*100'),
    ({'format': 0}, 'expected pictures in JPEG'),
    ({'declared': 6}, 'promises 6 frames, 5 are there'),
    ({'declared': 2**32 - 1}, 'promises 4294967295 frames'),
    ({'width': 65}, 'declares frames of 48 x 65, frame 1 has 48 x 64'),
    ({'height': 0}, 'declares frames of 0 x 64'),
    ({'width': 2**31, 'height': 2**31}, 'declares frames'),
  ],
)
def test_lying_headers(tmp_path, header, message):
  frames = video_files.shades(5)
  path = video_files.write_seq(tmp_path / 'a.seq', frames, **header)
  with pytest.raises(VideoError, match=message) as error:
    decode(path)
  assert str(path) in str(error.value) and '\n' not in str(error.value)


@pytest.mark.parametrize('frame', [0, 1, 4])
@pytest.mark.parametrize('size', [0, 1, 5, 100, 10_000, 2**31, 2**32 - 1])
def test_lying_frame_sizes(tmp_path, frame, size):
  raw = bytearray(video_files.seq_bytes(video_files.shades(5)))
  at = 1024
  for _ in range(frame):
    at += struct.unpack_from('<I', raw, at)[0] + 8
  struct.pack_into('<I', raw, at, size)
  path = tmp_path / 'a.seq'
  path.write_bytes(raw)
  with pytest.raises(VideoError, match=r'a\.seq: .*(cut|damaged)'):
    decode(path)


def test_a_seq_of_noise_and_nothing(tmp_path):
  path = tmp_path / 'a.seq'
  noise = np.random.default_rng(0).bytes(5000)
  for content in (video_files.seq_bytes(video_files.shades(2))[:1024],
                  struct.pack('<I', 0xFEED) + noise):  # fmt: skip
    path.write_bytes(content)
    with pytest.raises(VideoError, match=r'a\.seq: '):
      decode(path)


@pytest.mark.parametrize('fps', [0.0, -1.0, float('nan'), float('inf')])
def test_a_seq_without_a_rate(tmp_path, fps):
  frames = video_files.shades(3)
  path = video_files.write_seq(tmp_path / 'a.seq', frames, fps=fps)
  _close(decode(path), frames)
  with pytest.raises(VideoError, match='no times'):
    decode(path, fps=10)


def test_a_seq_is_sampled_by_its_rate(tmp_path):
  frames = video_files.shades(10)
  path = video_files.write_seq(tmp_path / 'a.seq', frames)
  _close(decode(path, fps=12.5), frames[::2])
  _close(decode(path, fps=50), frames.repeat(2, axis=0))


# --- folders of frames ------------------------------------------------------


@pytest.mark.parametrize(
  'name', ['img_{:05}.jpg', 'image_{}.jpeg', '-2538-5_7{:03}.JPG', '{}.jpg']
)
@pytest.mark.parametrize('num_frames', [1, 12])
def test_a_folder_of_frames(tmp_path, name, num_frames):
  frames = video_files.shades(num_frames)
  folder = video_files.write_folder(tmp_path / 'a #1', frames, name)
  (folder / 'Thumbs.db').write_bytes(b'x')
  (folder / '._img_00001.jpg').write_bytes(b'x')
  (folder / 'gt').mkdir()
  _close(decode(folder), frames)
  header = videos.read_header(folder)
  assert header == ('frames', 'mjpeg', 48, 64, num_frames, None)
  assert len(list(videos.stream(folder, []))) == num_frames


def test_grey_pictures(tmp_path):
  frames = video_files.shades(3)
  (tmp_path / 'a').mkdir()
  for k in range(3):
    file = tmp_path / 'a' / f'img_{k}.jpg'
    file.write_bytes(video_files.jpeg(frames[k, :, :, 0]))
  _close(decode(tmp_path / 'a'), frames)


@pytest.mark.parametrize('orientation', range(1, 9))
def test_pictures_are_turned_upright(tmp_path, orientation):
  from PIL import Image, ImageOps

  frame = np.zeros((16, 32, 3), np.uint8)
  frame[:8, :16], frame[:8, 16:], frame[8:, :16] = 230, 160, 80
  exif = Image.Exif()
  exif[0x0112] = orientation
  path = tmp_path / 'a' / '1.jpg'
  path.parent.mkdir()
  path.write_bytes(video_files.jpeg(frame, exif=exif))
  upright = np.asarray(ImageOps.exif_transpose(Image.open(path)))
  assert (upright.shape == frame.shape) == (orientation < 5)
  _close(decode(path.parent), upright[None])


def _remove(folder):
  (folder / 'img_00003.jpg').unlink()


def _remove_first(folder):
  (folder / 'img_00001.jpg').unlink()


def _cut(folder):
  path = folder / 'img_00003.jpg'
  path.write_bytes(path.read_bytes()[:-200])


def _cut_with_end(folder):
  path = folder / 'img_00003.jpg'
  raw = path.read_bytes()
  path.write_bytes(raw[: len(raw) * 2 // 3] + b'\xff\xd9')


def _empty(folder):
  (folder / 'img_00003.jpg').write_bytes(b'')


def _not_a_picture(folder):
  (folder / 'img_00003.jpg').write_bytes(b'text' * 99 + b'\xff\xd9')


def _twice(folder):
  (folder / 'img_3.jpg').write_bytes((folder / 'img_00003.jpg').read_bytes())


def _other_name(folder):
  (folder / 'cover.jpg').write_bytes((folder / 'img_00003.jpg').read_bytes())


def _none(folder):
  for file in folder.iterdir():
    file.unlink()


def _is_folder(folder):
  (folder / 'img_00005.jpg').mkdir()


def _exif(folder):
  path = folder / 'img_00003.jpg'
  raw = path.read_bytes()
  exif = b'Exif\0\0II*\0\x08\0\0\0\x09\0'
  path.write_bytes(
    raw[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 2) + exif + raw[2:]
  )


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (_remove, 'frame 3 is missing'),
    (_remove_first, 'frame 1 is missing'),
    (_cut, 'img_00003.jpg: the picture is cut'),
    (_cut_with_end, 'img_00003.jpg: the picture is damaged'),
    (_empty, 'img_00003.jpg: the picture is cut'),
    (_not_a_picture, 'img_00003.jpg: the picture is damaged'),
    (_twice, 'frame 3 is there twice'),
    (_other_name, "numbered alike.*'cover.jpg'"),
    (_none, 'a directory without frames'),
    (_is_folder, 'img_00005.jpg: cannot read'),
    (_exif, 'img_00003.jpg: the picture has damaged EXIF'),
  ],
)
def test_bad_folders_are_named(tmp_path, damage, message):
  noise = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), np.uint8)
  folder = video_files.write_folder(tmp_path / 'clip', noise)
  damage(folder)
  with pytest.raises(VideoError, match=message) as error:
    decode(folder, (16, 16))
  assert str(folder) in str(error.value) and '\n' not in str(error.value)


def test_pictures_of_several_sizes_need_a_size(tmp_path):
  folder = video_files.write_folder(tmp_path / 'a', video_files.shades(2))
  other = video_files.shades(1, (24, 24))[0]
  (folder / 'img_00003.jpg').write_bytes(video_files.jpeg(other))
  with pytest.raises(VideoError, match='48 x 64 to 24 x 24 after 2'):
    decode(folder)
  assert decode(folder, (8, 8)).shape == (3, 8, 8, 3)


def test_a_folder_has_no_times(tmp_path):
  folder = video_files.write_folder(tmp_path / 'a', video_files.shades(2))
  with pytest.raises(VideoError, match='no times'):
    decode(folder, fps=10)


# --- in the store of features -----------------------------------------------


class Means:
  """An extractor for tests: the mean colour of a frame."""

  image_size = (16, 16)
  feature_shape = (1, 3)
  batch_size = 4
  identity = {'extractor': 'means'}  # noqa: RUF012

  def extract(self, frames):
    return frames.mean(axis=(1, 2), keepdims=True)[:, 0].astype(np.float16)


def test_the_store_takes_them_like_any_video(tmp_path):
  frames = video_files.shades(5)
  clips = [
    video_files.write_seq(tmp_path / 'a.seq', frames),
    video_files.write_folder(tmp_path / 'b', frames),
    video_files.write(tmp_path / 'c.mkv', frames, 'ffv1'),
    video_files.write_folder(tmp_path / 'd', frames, '{}.jpg'),  # as b
  ]
  store = tmp_path / 'store'
  paths = extract.prepare(clips, Means(), store, progress=False).paths
  assert len({*paths.values()}) == 3 and paths[clips[1]] == paths[clips[3]]
  for clip in clips:
    assert paths[clip].stem == videos.sha256(clip)
    np.testing.assert_allclose(
      np.load(paths[clip])[:, 0, 0], frames[:, 0, 0, 0], atol=JPEG_ERROR
    )


def test_the_digest_of_a_folder(tmp_path):
  frames = video_files.shades(3)
  whole = video_files.write_folder(tmp_path / 'a', frames)
  swapped = video_files.write_folder(tmp_path / 'b', frames[::-1])
  fewer = video_files.write_folder(tmp_path / 'c', frames[:2])
  one = video_files.write_folder(tmp_path / 'd', frames[:1])
  digests = [videos.sha256(p) for p in (whole, swapped, fewer, one)]
  digests.append(videos.sha256(one / 'img_00001.jpg'))
  assert len(set(digests)) == 5
  with pytest.raises(VideoError, match='cannot read'):
    videos.sha256(tmp_path / 'none')
