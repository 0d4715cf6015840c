"""Weights files, EfficientNet-Lite0, and the store of features."""

import collections
import concurrent.futures
import hashlib
import io
import os
import pathlib
import pickle
import struct
import sys
import time
import types

import jax
import numpy as np
import pytest
from jax import lax

from data import (
  efficientnet_lite0,
  extract,
  features,
  hmdb51,
  pipeline,
  torch_weights,
)
from data import store as store_lib
from data.errors import DataError, StoppedError
from data.videos import decode

import records
import video_files

# --- weights files ----------------------------------------------------------


class _Storage:
  def __init__(self, key, data):
    self.key, self.data = key, data


class _Tensor:
  """Pickled as PyTorch does a tensor."""

  def __init__(self, storage, offset, shape, strides):
    self.args = (storage, offset, shape, strides)

  def __reduce__(self):
    rebuild = sys.modules['torch._utils']._rebuild_tensor_v2
    return rebuild, (*self.args, False, collections.OrderedDict())


class _Pickler(pickle.Pickler):
  def persistent_id(self, obj):
    if isinstance(obj, _Storage):
      kind = sys.modules['torch'].FloatStorage
      return ('storage', kind, obj.key, 'cpu', len(obj.data), None)
    return None


@pytest.fixture
def fake_torch(monkeypatch):
  """As much of torch as pickling a tensor needs, under its names."""

  def _rebuild_tensor_v2():
    raise AssertionError('never called')

  class FloatStorage:
    pass

  for module, member in [
    ('torch', FloatStorage),
    ('torch._utils', _rebuild_tensor_v2),
  ]:
    fake = types.ModuleType(module)
    member.__module__, member.__qualname__ = module, member.__name__
    setattr(fake, member.__name__, member)
    monkeypatch.setitem(sys.modules, module, fake)


def _legacy_file(path, tensors, storages, magic=0x1950A86A20F9469CFC6C):
  file = io.BytesIO()
  info = {'protocol_version': 1001, 'little_endian': True, 'type_sizes': {}}
  for part in (magic, 1001, info, tensors, [s.key for s in storages]):
    _Pickler(file, protocol=2).dump(part)
  for storage in storages:
    file.write(struct.pack('<q', len(storage.data)))
    file.write(np.asarray(storage.data, '<f4').tobytes())
  path.write_bytes(file.getvalue())
  return path


def test_tensors_are_read(tmp_path, fake_torch):
  one, two = _Storage('7', np.arange(12.0)), _Storage('8', [5.0])
  tensors = collections.OrderedDict(
    whole=_Tensor(one, 0, (3, 4), (4, 1)),
    transposed=_Tensor(one, 0, (4, 3), (1, 4)),
    part=_Tensor(one, 5, (2,), (3,)),
    scalar=_Tensor(two, 0, (), ()),
  )
  path = _legacy_file(tmp_path / 'w.pth', tensors, [one, two])
  whole = np.arange(12, dtype=np.float32).reshape(3, 4)
  expected = {
    'whole': whole,
    'transposed': whole.T,
    'part': np.array([5, 8]),
    'scalar': np.array(5),
  }
  digest = hashlib.sha256(path.read_bytes()).hexdigest()
  arrays = torch_weights.read(path, digest)
  assert list(arrays) == list(expected)
  for name, array in expected.items():
    np.testing.assert_array_equal(arrays[name], array)
    assert arrays[name].dtype == np.float32
  with pytest.raises(DataError, match=r'w\.pth: expected the file of SHA-256'):
    torch_weights.read(path, '0' * 64)


@pytest.mark.parametrize(
  'view',
  [(0, (13,), (1,)), (12, (1,), (1,)), (0, (2,), (-1,)), (-1, (2,), (1,))],
)
def test_tensors_stay_inside_their_storage(tmp_path, fake_torch, view):
  storage = _Storage('0', np.arange(12.0))
  tensors = {'w': _Tensor(storage, *view)}
  path = _legacy_file(tmp_path / 'w.pth', tensors, [storage])
  with pytest.raises(DataError, match='its storage'):
    torch_weights.read_tensors(path)


class _Run:
  """Runs `function(*args)` when a common unpickler reads it."""

  def __init__(self, function, *args):
    self.call = (function, args)

  def __reduce__(self):
    return self.call


@pytest.mark.parametrize('part', ['tensors', 'magic'])
@pytest.mark.parametrize('function', [os.mkdir, eval, getattr, pathlib.Path])
def test_code_in_a_weights_file_is_refused(tmp_path, part, function):
  canary = tmp_path / 'canary'
  args = {
    os.mkdir: (str(canary),),
    eval: (f'__import__("os").mkdir({str(canary)!r})',),
    getattr: ('', 'upper'),
    pathlib.Path: ('.',),
  }[function]
  evil = _Run(function, *args)
  options = {'magic': evil} if part == 'magic' else {}
  path = _legacy_file(tmp_path / 'w.pth', {'w': evil}, [], **options)
  with pytest.raises(DataError, match=r'w\.pth: not a file of tensors only'):
    torch_weights.read_tensors(path)
  assert not canary.exists()


@pytest.mark.parametrize(
  'content',
  [b'', b'PK\x03\x04 zip', pickle.dumps({'a': 1}), pickle.dumps([1, 2])],
)
def test_other_files_are_no_weights(tmp_path, content):
  path = tmp_path / 'w.pth'
  path.write_bytes(content)
  with pytest.raises(DataError, match=r'w\.pth: not a file of tensors only'):
    torch_weights.read_tensors(path)


def test_missing_weights(tmp_path, monkeypatch):
  with pytest.raises(DataError, match='cannot read the weights'):
    torch_weights.read(tmp_path / 'none.pth', '')
  monkeypatch.setattr(efficientnet_lite0, 'PACKAGE', 'no_such_package')
  with pytest.raises(DataError, match='no_such_package: not installed'):
    efficientnet_lite0.weights_path()


# --- EfficientNet-Lite0 -----------------------------------------------------


@pytest.fixture(scope='module')
def weights():
  return torch_weights.read(
    efficientnet_lite0.weights_path(), efficientnet_lite0.SHA256
  )


@pytest.fixture(scope='module')
def photographs():
  """Three photographs, 224 x 224: a coffee cup, a cat, a rocket."""
  data = pytest.importorskip('skimage.data', reason='install scikit-image')
  from skimage.transform import resize

  def square(picture):
    size = min(picture.shape[:2])
    top, left = ((n - size) // 2 for n in picture.shape[:2])
    return resize(
      picture[top : top + size, left : left + size],
      (224, 224),
      preserve_range=True,
      anti_aliasing=True,
    )

  pictures = (data.coffee(), data.chelsea(), data.rocket())
  return np.stack([np.round(square(p)) for p in pictures]).astype(np.uint8)


@pytest.fixture(scope='module')
def extractor():
  return efficientnet_lite0.EfficientNetLite0()


def _plain_network(weights, frames):
  """The network again, from its paper: nothing folded, XLA's convolutions."""

  def conv(x, name, stride=1, groups=1):
    return lax.conv_general_dilated(
      x,
      weights[f'{name}.weight'],
      (stride, stride),
      'SAME',
      dimension_numbers=('NCHW', 'OIHW', 'NCHW'),
      feature_group_count=groups,
    )

  def norm(x, name):
    mean, variance, scale, bias = (
      weights[f'{name}.{field}'].reshape(1, -1, 1, 1)
      for field in ('running_mean', 'running_var', 'weight', 'bias')
    )
    return (x - mean) / jax.numpy.sqrt(variance + 1e-3) * scale + bias

  relu6 = jax.nn.relu6
  x = (frames.astype(np.float32).transpose(0, 3, 1, 2) - 127) / 128
  x = relu6(norm(conv(x, '_conv_stem', 2), '_bn0'))
  block = 0
  # expansion, kernel, stride, channels, repeats
  for expansion, kernel, stride, channels, repeats in (
    (1, 3, 1, 16, 1),
    (6, 3, 2, 24, 2),
    (6, 5, 2, 40, 2),
    (6, 3, 2, 80, 3),
    (6, 5, 1, 112, 3),
    (6, 5, 2, 192, 4),
    (6, 3, 1, 320, 1),
  ):
    for repeat in range(repeats):
      name = f'_blocks.{block}'
      y, step = x, stride if repeat == 0 else 1
      if expansion != 1:
        y = relu6(norm(conv(y, f'{name}._expand_conv'), f'{name}._bn0'))
      depthwise = f'{name}._depthwise_conv'
      assert y.shape[1] == expansion * x.shape[1]
      assert weights[f'{depthwise}.weight'].shape[2:] == (kernel, kernel)
      y = relu6(norm(conv(y, depthwise, step, y.shape[1]), f'{name}._bn1'))
      y = norm(conv(y, f'{name}._project_conv'), f'{name}._bn2')
      assert y.shape[1] == channels
      x = y if repeat == 0 else x + y
      block += 1
  x = relu6(norm(conv(x, '_conv_head'), '_bn1'))
  return x.transpose(0, 2, 3, 1)


def test_agrees_with_a_plain_implementation(weights, photographs):
  layers = efficientnet_lite0.fold(weights)
  ours = jax.jit(efficientnet_lite0.network)(layers, photographs)
  plain = jax.jit(_plain_network)(weights, photographs)
  assert ours.shape == (3, 7, 7, 1280)
  assert float(plain.max()) > 5
  np.testing.assert_allclose(ours, plain, atol=1e-4, rtol=0)


def test_photographs_are_recognised(weights, photographs, extractor):
  maps = extractor.extract(photographs).astype(np.float32)
  logits = maps.mean(axis=1) @ weights['_fc.weight'].T + weights['_fc.bias']
  top = np.argsort(-logits, axis=1)
  assert set(top[0, :2]) == {967, 968}  # espresso, cup
  assert set(top[1, :3]) == {281, 282, 285}  # tabby, tiger cat, Egyptian cat
  assert top[2, 0] == 657  # missile


def test_features_of_a_clip(photographs, extractor, weights):
  frames = photographs[[0, 1, 2, 1, 0, 2, 2, 1, 0, 1]]  # more than one call
  maps = extractor.extract(frames)
  assert maps.shape == (10, 49, 1280) == (10, *extractor.feature_shape)
  assert maps.dtype == np.float16
  assert maps.min() >= 0 and maps.max() <= 6
  layers = efficientnet_lite0.fold(weights)
  grid = jax.jit(efficientnet_lite0.network)(layers, photographs)
  rounding = {'rtol': 2e-3, 'atol': 1e-4}
  np.testing.assert_allclose(
    maps[:3].reshape(3, 7, 7, 1280), np.asarray(grid), **rounding
  )
  for a, b in [(0, 4), (0, 8), (1, 9), (2, 6)]:  # alone or not, early or late
    np.testing.assert_allclose(maps[a], maps[b], **rounding)
  np.testing.assert_allclose(
    extractor.extract(frames[1:2]), maps[1:2], **rounding
  )


# --- the store --------------------------------------------------------------


class Quarters:
  """An extractor for tests: the mean colour of each quarter."""

  image_size = (32, 32)
  feature_shape = (4, 3)
  batch_size = 5

  def __init__(self, version=1):
    self.identity = {'extractor': 'quarters', 'version': version}
    self.frames = 0

  def extract(self, frames):
    self.frames += len(frames)
    parts = frames.reshape(len(frames), 2, 16, 2, 16, 3).mean(axis=(2, 4))
    return parts.reshape(len(frames), 4, 3).astype(np.float16)


@pytest.fixture
def videos(tmp_path):
  folder = tmp_path / 'videos' / 'wave'
  return [
    video_files.write(
      folder / f'#{k} (a)_wave_.avi', video_files.shades(3 + k, first=10 * k)
    )
    for k in range(4)
  ]


def _prepare(videos, extractor, store, **options):
  return extract.prepare(
    videos, extractor, store, **{'progress': False, **options}
  ).paths


def _files(store):
  return sorted(p for p in store.rglob('*') if p.is_file())


def test_features_are_stored_by_content(tmp_path, videos):
  store = tmp_path / 'deep' / 'store'
  paths = _prepare(videos, Quarters(), store)
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
  _prepare(videos[:2], extractor, store)
  before = {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in _files(store)}
  _prepare(videos, extractor, store)
  assert extractor.frames == 18
  _prepare(videos, extractor, store)
  assert extractor.frames == 18
  for path, (content, changed) in before.items():
    assert (path.read_bytes(), path.stat().st_mtime_ns) == (content, changed)


def test_moved_and_equal_videos_are_done_once(tmp_path, videos):
  store, extractor = tmp_path / 'store', Quarters()
  copy = tmp_path / 'copy.avi'
  copy.write_bytes(videos[0].read_bytes())
  paths = _prepare([videos[0], copy], extractor, store)
  assert extractor.frames == 3 and paths[videos[0]] == paths[copy]
  moved = videos[0].rename(tmp_path / 'moved.avi')
  assert _prepare([moved], extractor, store)[moved] == paths[copy]
  assert extractor.frames == 3


def test_another_video_of_the_same_name_is_another(tmp_path, videos):
  store = tmp_path / 'store'
  first = _prepare(videos[:1], Quarters(), store)[videos[0]]
  video_files.write(videos[0], video_files.shades(7))
  second = _prepare(videos[:1], Quarters(), store)[videos[0]]
  assert first != second and len(np.load(second)) == 7


def test_another_extractor_has_another_folder(tmp_path, videos):
  store = tmp_path / 'store'
  one = _prepare(videos[:1], Quarters(1), store)[videos[0]]
  two = _prepare(videos[:1], Quarters(2), store)[videos[0]]
  assert one.parent != two.parent
  assert (two.parent / 'identity.json').read_text().count('"version": 2') == 1


def test_another_rate_has_another_folder(tmp_path, videos):
  store = tmp_path / 'store'
  every = _prepare(videos[:1], Quarters(), store)[videos[0]]
  twice = _prepare(videos[:1], Quarters(), store, fps=60.0)[videos[0]]
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
    _prepare(videos, Quarters(), store)
  message = str(error.value)
  assert str(videos[1]) in message and str(videos[2]) in message
  assert str(videos[0]) not in message
  assert len(list(store.rglob('*.npy'))) == 2


def test_a_stop_keeps_what_is_done(tmp_path, videos):
  store, extractor = tmp_path / 'store', Quarters()
  done = lambda: len(list(store.rglob('*.npy')))
  with pytest.raises(StoppedError, match='goes on from here'):
    _prepare(videos, extractor, store, should_stop=lambda: done() >= 2)
  assert 2 <= done() < 4
  assert len(_prepare(videos, extractor, store)) == 4
  assert 18 <= extractor.frames < 36


@pytest.mark.parametrize('name', ['_digest', '_found'])
def test_a_stop_waits_for_no_more_than_the_files_in_hand(
  name, tmp_path, videos, monkeypatch
):
  store, asked = tmp_path / 'store', []
  _prepare(videos, Quarters(), store)
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
    _prepare(videos, Quarters(), store, should_stop=lambda: bool(asked))
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
      _prepare(videos, Quarters(), store)
  assert [p.name for p in _files(store)] == ['identity.json']
  assert len(_prepare(videos, Quarters(), store)) == 4


def test_progress_is_printed(tmp_path, videos, capsys):
  store = tmp_path / 'store'
  _prepare(videos, Quarters(), store, progress=True)
  lines = capsys.readouterr().out.splitlines()
  assert '4 videos' in lines[0] and str(store) in lines[0]
  assert '4/4' in lines[1]
  assert 'frames/s' in lines[1] and '0:00 left' in lines[1]
  assert '18 frames in' in lines[2] and '% of the time' in lines[2]
  _prepare(videos, Quarters(), store, progress=True)
  assert capsys.readouterr().out == ''


def test_a_store_that_cannot_be_made(tmp_path, videos):
  (tmp_path / 'file').touch()
  with pytest.raises(DataError, match='features_dir'):
    _prepare(videos, Quarters(), tmp_path / 'file' / 'store')


def test_default_features_dir(tmp_path, monkeypatch):
  monkeypatch.setenv('HOME', str(tmp_path))
  monkeypatch.delenv('XDG_CACHE_HOME', raising=False)
  expected = tmp_path / '.cache' / 'hman_jax' / 'features'
  assert extract.default_features_dir() == expected
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'c'))
  expected = tmp_path / 'c' / 'hman_jax' / 'features'
  assert extract.default_features_dir() == expected


@pytest.mark.parametrize('name', sorted(features.EXTRACTORS))
def test_registered_extractors_keep_the_contract(tmp_path, name):
  if name == 'resnet152':
    (tmp_path / 'a.h5').write_bytes(b'\x89HDF\r\n\x1a\n')
    extractor = features.create(name, str(tmp_path / 'a.h5'))
  else:
    extractor = features.create(name)
  assert extractor.identity['extractor'] == name
  assert extractor.identity['feature_shape'] == list(extractor.feature_shape)
  assert extract.store_identity(extractor)['decoder'].startswith('PyAV')


def test_a_record_tells_what_it_is_of(tmp_path, videos):
  path = _prepare(videos[:1], Quarters(), tmp_path / 'store')[videos[0]]
  record = store_lib.read(path)
  assert record.sha256 == hashlib.sha256(videos[0].read_bytes()).hexdigest()
  assert record.num_decoded == record.num_declared == 3
  assert record.identity == extract.store_identity(Quarters())
  assert record.identity['extractor'] == 'quarters'
  assert 'libavcodec' in record.identity['decoder']


def test_damaged_records_are_made_anew(tmp_path, videos, capsys):
  store, extractor = tmp_path / 'store', Quarters()
  paths = _prepare(videos, extractor, store)
  whole = {p: p.read_bytes() for p in paths.values()}
  cut, flipped = paths[videos[1]], paths[videos[2]]
  cut.write_bytes(whole[cut][:-9])
  flipped.write_bytes(whole[flipped][:200] + b'\1' + whole[flipped][201:])
  _prepare(videos, extractor, store)
  assert extractor.frames == 18 + 4
  assert f'WARNING: {cut}: damaged' in capsys.readouterr().out
  _prepare(videos, extractor, store, verify=True)
  assert extractor.frames == 18 + 4 + 5
  assert f'WARNING: {flipped}: damaged' in capsys.readouterr().out
  assert {p: p.read_bytes() for p in paths.values()} == whole


def test_a_flipped_number_is_found_before_it_is_used(tmp_path, videos):
  paths = _prepare(videos, Quarters(), tmp_path / 'store')
  source = _source(paths.values())
  raw = bytearray(paths[videos[2]].read_bytes())
  raw[140] ^= 4
  paths[videos[2]].write_bytes(raw)
  source[1]
  with pytest.raises(DataError, match=r'wave/2\.avi.*damaged.*checksum'):
    source[2]


def test_one_clip_alone_has_the_same_record(tmp_path, videos):
  for dtype in store_lib.DTYPES:
    paths = _prepare(videos, Quarters(), tmp_path / 'one', dtype=dtype)
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
      assert again == record and not extractor.frames


def test_two_at_once_make_one_store(tmp_path, videos):
  with concurrent.futures.ThreadPoolExecutor(2) as pool:
    stores = [tmp_path / 'a', tmp_path / 'a']
    done = list(pool.map(lambda s: _prepare(videos, Quarters(), s), stores))
  assert done[0] == done[1]
  alone = _prepare(videos, Quarters(), tmp_path / 'b')
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
  source = _source(done.paths.values())
  exact = _source(_prepare(videos, Quarters(), tmp_path / 's').values())
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
    _prepare(videos, Broken(), tmp_path)


def test_a_video_that_changes_meanwhile_is_refused(
  tmp_path, videos, monkeypatch
):
  monkeypatch.setattr(extract.videos, 'sha256', lambda path: 'a' * 64)
  with pytest.raises(DataError, match='changed while it was read'):
    _prepare(videos[:1], Quarters(), tmp_path)


def test_other_extractors_and_weights():
  with pytest.raises(DataError, match=r'expected one of .*, got .vgg'):
    features.create('vgg')
  with pytest.raises(DataError, match=r'data\.weights: expected .. with'):
    features.create('none', 'a.h5')


# --- the clip source --------------------------------------------------------


def _source(paths, **options):
  paths = list(paths)
  return features.VideoFeatures(
    [f'wave/{k}.avi' for k in range(len(paths))],
    paths,
    [k % 2 for k in range(len(paths))],
    **{'class_names': ('sit', 'wave'), 'identity': {'name': 'x'}, **options},
  )


def test_video_features_are_a_clip_source(tmp_path, videos):
  paths = _prepare(videos, Quarters(), tmp_path / 'store')
  source = _source(paths.values())
  assert len(source) == 4
  assert source.feature_shape == (4, 3)
  assert source.lengths.tolist() == [3, 4, 5, 6]
  assert source.labels.tolist() == [0, 1, 0, 1]
  assert not source.has_truth
  assert isinstance(source[1]['features'], np.memmap)
  np.testing.assert_array_equal(
    source[1]['features'], np.load(paths[videos[1]])
  )
  assert source[1]['label'] == 1
  pipeline.check_labels(source)
  batch = next(iter(pipeline.eval_batches(source, batch_size=4, num_frames=8)))
  assert batch['features'].shape == (4, 8, 4, 3)
  assert batch['mask'].sum(axis=1).tolist() == [3, 4, 5, 6]
  assert (batch['target'] == -1).all()


def test_damaged_features_are_named(tmp_path, videos):
  paths = _prepare(videos, Quarters(), tmp_path / 'store')
  path = paths[videos[2]]
  good = path.read_bytes()
  zipped = io.BytesIO()
  np.savez(zipped, features=np.zeros((2, 4, 3), np.float16))
  for content in (
    b'',
    good[:40],
    good[:-5],
    pickle.dumps({'a': 1}),
    zipped.getvalue(),
  ):
    path.write_bytes(content)
    with pytest.raises(DataError, match='damaged') as error:
      _source(paths.values())
    assert str(path) in str(error.value)


@pytest.mark.parametrize(
  'array',
  [
    np.zeros((3, 4, 3), np.float32),
    np.zeros((3, 4), np.float16),
    np.zeros((0, 4, 3), np.float16),
    np.array([{}, 'code'], dtype=object),
  ],
)
def test_other_arrays_are_no_features(tmp_path, array):
  path = tmp_path / 'a.npy'
  np.save(path, array)
  with pytest.raises(DataError, match=r'a\.npy'):
    _source([path])


def test_features_of_one_shape(tmp_path):
  for name, size in (('a', 3), ('b', 5)):
    records.write(tmp_path / f'{name}.npy', np.zeros((2, 4, size)))
  with pytest.raises(DataError, match='features of one kind'):
    _source([tmp_path / 'a.npy', tmp_path / 'b.npy'])


@pytest.mark.real_data
@pytest.mark.skipif(
  'HMAN_REAL_DATA' not in os.environ,
  reason='set HMAN_REAL_DATA to the folder that holds jhmdb/',
)
def test_real_clips(tmp_path, extractor):
  root = pathlib.Path(os.environ['HMAN_REAL_DATA'], 'jhmdb')
  clips = hmdb51.read(root, 1).test[::60]
  paths = _prepare([c.path for c in clips], extractor, tmp_path)
  source = features.VideoFeatures(
    [c.name for c in clips],
    [paths[c.path] for c in clips],
    [c.label for c in clips],
    class_names=hmdb51.read(root, 1).class_names,
    identity={},
  )
  for k, clip in enumerate(clips):
    maps = source[k]['features']
    assert maps.shape == (len(decode(clip.path)), 49, 1280)
    assert np.isfinite(maps).all() and 0.05 < maps.mean() < 1
