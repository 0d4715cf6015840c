"""From videos to the store of features: what is made, and when."""

import concurrent.futures
import hashlib
import struct
import time

import numpy as np
import pytest

from data import (
  extract,
  pipeline,
)
from data import store as store_lib
from data.errors import DataError, StoppedError
from data.videos import decode

import quarters
import video_files
from quarters import Quarters


@pytest.fixture
def videos(tmp_path):
  return video_files.numbered(tmp_path / 'videos' / 'wave')


def _files(store):
  return sorted(p for p in store.rglob('*') if p.is_file())


def test_features_are_stored_by_content(tmp_path, videos):
  store = tmp_path / 'deep' / 'store'
  paths = quarters.prepare(videos, Quarters(), store)
  assert list(paths) == videos
  for k, video in enumerate(videos):
    stored = np.load(paths[video])
    frames = decode(video, (32, 32))
    np.testing.assert_array_equal(stored, Quarters().extract(frames))
    assert stored.shape == (3 + k, 4, 3) and stored.dtype == np.float16
    digest = hashlib.sha256(video.read_bytes()).hexdigest()
    assert paths[video].name == f'{digest}.npy'
  names = {p.name for p in _files(store)}
  assert names == {p.name for p in paths.values()} | {'identity.json'}


def test_only_what_is_missing_is_done(tmp_path, videos):
  store, extractor = tmp_path / 'store', Quarters()
  quarters.prepare(videos[:2], extractor, store)
  before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in _files(store)}
  quarters.prepare(videos, extractor, store)
  assert extractor.num_frames == 18
  quarters.prepare(videos, extractor, store)
  assert extractor.num_frames == 18
  for path, (content, changed) in before.items():
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, changed)


def test_moved_and_equal_videos_are_done_once(tmp_path, videos):
  store, extractor = tmp_path / 'store', Quarters()
  copy = tmp_path / 'copy.avi'
  copy.write_bytes(videos[0].read_bytes())
  paths = quarters.prepare([videos[0], copy], extractor, store)
  assert extractor.num_frames == 3 and paths[videos[0]] == paths[copy]
  moved = videos[0].rename(tmp_path / 'moved.avi')
  assert quarters.prepare([moved], extractor, store)[moved] == paths[copy]
  assert extractor.num_frames == 3


def test_another_video_of_the_same_name_is_another(tmp_path, videos):
  store = tmp_path / 'store'
  first = quarters.prepare(videos[:1], Quarters(), store)[videos[0]]
  video_files.write(videos[0], video_files.shades(7))
  second = quarters.prepare(videos[:1], Quarters(), store)[videos[0]]
  assert first != second and len(np.load(second)) == 7


def test_another_extractor_has_another_folder(tmp_path, videos):
  store = tmp_path / 'store'
  one = quarters.prepare(videos[:1], Quarters(1), store)[videos[0]]
  two = quarters.prepare(videos[:1], Quarters(2), store)[videos[0]]
  assert one.parent != two.parent
  assert (two.parent / 'identity.json').read_text().count('"version": 2') == 1


def test_another_rate_has_another_folder(tmp_path, videos):
  store = tmp_path / 'store'
  every = quarters.prepare(videos[:1], Quarters(), store)[videos[0]]
  twice = quarters.prepare(videos[:1], Quarters(), store, fps=60.0)[videos[0]]
  assert every.parent != twice.parent
  assert '"fps": 60.0' in (twice.parent / 'identity.json').read_text()
  np.testing.assert_array_equal(
    np.load(twice), np.load(every).repeat(2, axis=0)
  )


def test_every_bad_video_is_named_once_the_good_are_done(tmp_path, videos):
  store = tmp_path / 'store'
  videos[1].write_text('not a video')
  videos[2].unlink()
  with pytest.raises(DataError, match='2 of 4 videos are bad') as error:
    quarters.prepare(videos, Quarters(), store)
  message = str(error.value)
  assert str(videos[1]) in message and str(videos[2]) in message
  assert str(videos[0]) not in message
  assert len(list(store.rglob('*.npy'))) == 2


def test_a_stop_keeps_what_is_done(tmp_path, videos):
  store, extractor = tmp_path / 'store', Quarters()
  done = lambda: len(list(store.rglob('*.npy')))
  with pytest.raises(StoppedError, match='goes on from here'):
    quarters.prepare(videos, extractor, store, should_stop=lambda: done() >= 2)
  assert 2 <= done() < 4
  assert len(quarters.prepare(videos, extractor, store)) == 4
  assert 18 <= extractor.num_frames < 36


@pytest.mark.parametrize('name', ['_digest', '_found'])
def test_a_stop_waits_for_no_more_than_the_files_in_hand(
  name, tmp_path, videos, monkeypatch
):
  store, asked = tmp_path / 'store', []
  quarters.prepare(videos, Quarters(), store)
  slow = getattr(extract, name)

  def look(*args):
    asked.append(args)
    time.sleep(0.1)
    return slow(*args)

  monkeypatch.setattr(extract, name, look)
  pool = concurrent.futures.ThreadPoolExecutor
  monkeypatch.setattr(
    extract.concurrent.futures, 'ThreadPoolExecutor', lambda: pool(1)
  )
  with pytest.raises(StoppedError):
    quarters.prepare(videos, Quarters(), store, should_stop=lambda: bool(asked))
  assert len(asked) <= 2 < len(videos)


def test_a_crash_leaves_no_half_file(tmp_path, videos, monkeypatch):
  store = tmp_path / 'store'

  move = store_lib._move

  def no_space(file, path):
    if path.suffix == '.npy':
      raise OSError(28, 'No space left on device')
    move(file, path)

  with monkeypatch.context() as patch:
    patch.setattr(store_lib, '_move', no_space)
    with pytest.raises(DataError, match='No space left on device'):
      quarters.prepare(videos, Quarters(), store)
  assert [p.name for p in _files(store)] == ['identity.json']
  assert len(quarters.prepare(videos, Quarters(), store)) == 4


def test_progress_is_printed(tmp_path, videos, capsys):
  store = tmp_path / 'store'
  quarters.prepare(videos, Quarters(), store, progress=True)
  lines = capsys.readouterr().out.splitlines()
  assert '4 videos' in lines[0] and str(store) in lines[0]
  assert '4/4' in lines[1]
  assert 'frames/s' in lines[1] and '0:00 left' in lines[1]
  assert '18 frames in' in lines[2] and '% of the time' in lines[2]
  quarters.prepare(videos, Quarters(), store, progress=True)
  assert capsys.readouterr().out == ''


def test_a_store_that_cannot_be_made(tmp_path, videos):
  (tmp_path / 'file').touch()
  with pytest.raises(DataError, match='features_dir'):
    quarters.prepare(videos, Quarters(), tmp_path / 'file' / 'store')


def test_default_features_dir(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  expected = tmp_path / '.cache' / 'hman_jax' / 'features'
  assert extract.default_features_dir() == expected
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'c'))
  expected = tmp_path / 'c' / 'hman_jax' / 'features'
  assert extract.default_features_dir() == expected


def test_a_record_tells_what_it_is_of(tmp_path, videos):
  path = quarters.prepare(videos[:1], Quarters(), tmp_path / 'store')[videos[0]]
  record = store_lib.read(path)
  assert record.sha256 == hashlib.sha256(videos[0].read_bytes()).hexdigest()
  assert record.num_decoded == record.num_declared == 3
  assert record.identity == extract.store_identity(Quarters())
  assert record.identity['extractor'] == 'quarters'
  assert 'libavcodec' in record.identity['decoder']


def test_damaged_records_are_made_anew(tmp_path, videos, capsys):
  store, extractor = tmp_path / 'store', Quarters()
  paths = quarters.prepare(videos, extractor, store)
  whole = {p: p.read_bytes() for p in paths.values()}
  cut, flipped = paths[videos[1]], paths[videos[2]]
  cut.write_bytes(whole[cut][:-9])
  flipped.write_bytes(whole[flipped][:200] + b'\1' + whole[flipped][201:])
  quarters.prepare(videos, extractor, store)
  assert extractor.num_frames == 18 + 4
  assert f'WARNING: {cut}: damaged' in capsys.readouterr().out
  quarters.prepare(videos, extractor, store, verify=True)
  assert extractor.num_frames == 18 + 4 + 5
  assert f'WARNING: {flipped}: damaged' in capsys.readouterr().out
  assert {p: p.read_bytes() for p in paths.values()} == whole


def test_a_flipped_number_is_found_before_it_is_used(tmp_path, videos):
  paths = quarters.prepare(videos, Quarters(), tmp_path / 'store')
  source = quarters.source(paths.values())
  raw = bytearray(paths[videos[2]].read_bytes())
  raw[140] ^= 4
  paths[videos[2]].write_bytes(raw)
  source[1]
  with pytest.raises(DataError, match=r'wave/2\.avi.*damaged.*checksum'):
    source[2]


def test_one_clip_alone_has_the_same_record(tmp_path, videos):
  for dtype in store_lib.DTYPES:
    paths = quarters.prepare(videos, Quarters(), tmp_path / 'one', dtype=dtype)
    for video, path in paths.items():
      record = extract.extract_clip(
        video, Quarters(), tmp_path / 'two', dtype=dtype
      )
      assert record == store_lib.read(record.path)
      assert record.path.read_bytes() == path.read_bytes()
      extractor = Quarters()
      again = extract.extract_clip(
        video, extractor, tmp_path / 'two', dtype=dtype
      )
      assert again == record and not extractor.num_frames


def test_two_at_once_make_one_store(tmp_path, videos):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    stores = [tmp_path / 'a', tmp_path / 'a']
    done = list(
      pool.map(lambda s: quarters.prepare(videos, Quarters(), s), stores)
    )
  assert done[0] == done[1]
  alone = quarters.prepare(videos, Quarters(), tmp_path / 'b')
  contents = [
    {p.name: p.read_bytes() for p in _files(tmp_path / s)} for s in 'ab'
  ]
  assert contents[0] == contents[1] and len(contents[0]) == 1 + len(alone)


def test_bad_videos_may_be_skipped(tmp_path, videos, capsys):
  videos[1].write_bytes(videos[1].read_bytes()[:-300])
  videos[2].unlink()
  done = extract.prepare(videos, Quarters(), tmp_path / 's', on_bad='skip')
  assert list(done.paths) == [videos[0], videos[3]]
  assert set(done.bad) == {videos[1], videos[2]}
  shown = capsys.readouterr().out
  assert 'WARNING: skipped: 2 of 4 videos are bad' in shown
  assert str(videos[1]) in shown and str(videos[2]) in shown


def test_int8_and_headers_are_told(tmp_path, videos, capsys):
  raw = bytearray(videos[0].read_bytes())
  at = raw.index(b'strh') + 8 + 32  # frames declared of the stream
  assert struct.unpack_from('<I', raw, at) == (3,)
  struct.pack_into('<I', raw, at, 7)
  videos[0].write_bytes(raw)
  done = extract.prepare(videos, Quarters(), tmp_path / 's', dtype='int8')
  shown = capsys.readouterr().out
  assert '1 of 4 headers declare another number' in shown
  assert '(+4 to +4)' in shown and 'int8 is off by' in shown
  source = quarters.source(done.paths.values())
  exact = quarters.source(
    quarters.prepare(videos, Quarters(), tmp_path / 's').values()
  )
  for k in range(4):
    item = source[k]
    assert item['features'].dtype == np.int8
    np.testing.assert_allclose(
      pipeline.features_of(item), exact[k]['features'], atol=0.5
    )


def test_features_that_are_not_finite_are_refused(tmp_path, videos):
  class Broken(Quarters):
    def extract(self, frames):
      features = super().extract(frames)
      features[frames[:, 0, 0, 0] > 70] = np.inf  # frames 4, 5 of the last
      return features

  with pytest.raises(DataError, match=r'1 of 4(.|\n)*#3.*of frame 4 are not'):
    quarters.prepare(videos, Broken(), tmp_path)


def test_a_video_that_changes_meanwhile_is_refused(
  tmp_path, videos, monkeypatch
):
  monkeypatch.setattr(extract.videos, 'sha256', lambda path: 'a' * 64)
  with pytest.raises(DataError, match='changed while it was read'):
    quarters.prepare(videos[:1], Quarters(), tmp_path)
