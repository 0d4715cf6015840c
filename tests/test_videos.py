"""Videos, features and the HMDB51 layout."""

import collections
import os
import pathlib
import pickle

import av
import jax
import numpy as np
import pytest

from data import efficientnet_lite0 as lite0
from data import features, hmdb51, torch_weights, videos
from data.errors import DataError, VideoError


def write_video(path, num_frames=5, size=(48, 64), codec='mpeg4'):
  """A video of one grey level a frame."""
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), 'w') as container:
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width = size
    stream.pix_fmt = 'yuv420p'
    for t in range(num_frames):
      pixels = np.full((*size, 3), 20 + 40 * t, np.uint8)
      frame = av.VideoFrame.from_ndarray(pixels, format='rgb24')
      container.mux(stream.encode(frame))
    container.mux(stream.encode())


def test_decode_gives_every_frame_in_order(tmp_path):
  path = tmp_path / '-odd #name (1)!.avi'
  write_video(path)
  frames = videos.decode(path, (32, 40))
  assert frames.shape == (5, 32, 40, 3) and frames.dtype == np.uint8
  levels = frames.mean(axis=(1, 2, 3))
  np.testing.assert_allclose(levels, [20, 60, 100, 140, 180], atol=6)
  assert videos.decode(path).shape == (5, 48, 64, 3)


@pytest.mark.parametrize('content', [b'', b'x', b'no video at all\n' * 99])
def test_what_is_no_video_is_named(tmp_path, content):
  path = tmp_path / 'clip.avi'
  path.write_bytes(content)
  with pytest.raises(VideoError, match=r'clip\.avi: '):
    videos.decode(path)
  with pytest.raises(VideoError, match=r'missing\.avi: '):
    videos.decode(tmp_path / 'missing.avi')


class Level:
  """An extractor for tests: the mean level of quarters of the frame."""

  image_size = (16, 16)
  feature_shape = (4, 2)

  def __init__(self):
    self.identity = {'extractor': 'level', 'version': 1}
    self.calls = 0

  def extract(self, frames):
    self.calls += 1
    quarters = frames.reshape(-1, 2, 8, 2, 8, 3).mean(axis=(2, 4, 5))
    quarters = quarters.reshape(-1, 4, 1).repeat(2, axis=2)
    return (quarters / 255).astype(np.float16)


def test_prepare_does_what_is_missing_and_nothing_else(tmp_path, capsys):
  paths = [tmp_path / f'{i}.avi' for i in range(3)]
  for i, path in enumerate(paths):
    write_video(path, 3 + i)
  store, extractor = tmp_path / 'store', Level()
  first = features.prepare(paths, extractor, store)
  assert extractor.calls == 3
  assert '3/3 videos' in capsys.readouterr().out
  assert [len(np.load(first[p])) for p in paths] == [3, 4, 5]
  moved = tmp_path / 'moved.avi'
  paths[0].rename(moved)
  first[paths[1]].unlink()
  second = features.prepare([moved, *paths[1:]], extractor, store)
  assert extractor.calls == 4
  assert second[moved] == first[paths[0]]
  assert not list(store.rglob('*.tmp'))
  extractor.identity = {'extractor': 'level', 'version': 2}
  features.prepare(paths[1:], extractor, store)
  assert extractor.calls == 6  # another identity is another store


def test_prepare_names_all_bad_videos_after_the_pass(tmp_path):
  good = tmp_path / 'good.avi'
  write_video(good)
  bad = [tmp_path / f'bad{i}.avi' for i in range(2)]
  for i, path in enumerate(bad):
    path.write_bytes(b'not a video %d' % i)
  extractor = Level()
  with pytest.raises(DataError, match='2 of 3 videos are bad') as error:
    features.prepare([bad[0], good, bad[1]], extractor, tmp_path / 'store')
  assert all(str(p) in str(error.value) for p in bad)
  assert extractor.calls == 1


def test_prepare_stops_when_asked_and_goes_on_later(tmp_path):
  paths = [tmp_path / f'{i}.avi' for i in range(3)]
  for i, path in enumerate(paths):
    write_video(path, 3 + i)
  extractor = Level()
  with pytest.raises(DataError, match='goes on from here'):
    features.prepare(
      paths, extractor, tmp_path / 'store', should_stop=lambda: True
    )
  assert extractor.calls == 1
  features.prepare(paths, extractor, tmp_path / 'store')
  assert extractor.calls == 3


def test_video_features_are_a_clip_source(tmp_path):
  path = tmp_path / 'a.npy'
  np.save(path, np.ones((3, 4, 2), np.float16))
  make = lambda p: features.VideoFeatures(
    ['a'], [p], [0], class_names=['x'], identity={}
  )
  clips = make(path)
  assert clips.feature_shape == (4, 2) and clips.lengths.tolist() == [3]
  assert isinstance(clips[0]['features'], np.memmap)
  np.save(path, np.ones((3, 4, 2), np.float64))
  with pytest.raises(DataError, match='expected features float16'):
    make(path)
  path.write_bytes(path.read_bytes()[:90])
  with pytest.raises(DataError, match='damaged'):
    make(path)
  np.save(path, np.array([{}], dtype=object), allow_pickle=True)
  with pytest.raises(DataError, match='damaged'):
    make(path)


# --- EfficientNet-Lite0 -----------------------------------------------------


@pytest.fixture(scope='module')
def weights():
  return torch_weights.read(lite0.weights_path(), lite0.SHA256)


def _plain_network(weights, frames):
  """The network written a second time: stock convolutions, nothing folded."""
  relu6 = lambda v: jax.numpy.clip(v, 0, 6)

  def conv(x, name, norm, stride=1, groups=1):
    y = jax.lax.conv_general_dilated(
      x,
      weights[f'{name}.weight'].transpose(2, 3, 1, 0),
      (stride, stride),
      'SAME',
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      feature_group_count=groups,
    )
    names = ('running_mean', 'running_var', 'weight', 'bias')
    mean, variance, scale, shift = (
      weights[f'{norm}.{k}'].reshape(1, 1, 1, -1) for k in names
    )
    return (y - mean) / np.sqrt(variance + 1e-3) * scale + shift

  x = (frames.astype(np.float32) - 127) / 128
  x = relu6(conv(x, '_conv_stem', '_bn0', 2))
  for i, stride in enumerate(lite0.STRIDES):
    p, y = f'_blocks.{i}', x
    if f'{p}._expand_conv.weight' in weights:
      y = relu6(conv(y, f'{p}._expand_conv', f'{p}._bn0'))
    y = relu6(
      conv(y, f'{p}._depthwise_conv', f'{p}._bn1', stride, y.shape[-1])
    )
    y = conv(y, f'{p}._project_conv', f'{p}._bn2')
    x = x + y if x.shape == y.shape else y
  return relu6(conv(x, '_conv_head', '_bn1'))


def _photographs():
  import skimage.data
  import skimage.transform

  pictures = [skimage.data.coffee(), skimage.data.cat()]
  small = [
    skimage.transform.resize(p, (224, 224), anti_aliasing=True) for p in pictures
  ]
  return (np.stack(small) * 255).astype(np.uint8)


def test_network_equals_a_second_implementation_and_knows_photographs(weights):
  frames = _photographs()
  ours = np.asarray(lite0.network(lite0.fold(weights), frames))
  theirs = np.asarray(_plain_network(weights, frames))
  assert ours.shape == (2, 7, 7, 1280)
  np.testing.assert_allclose(ours, theirs, atol=1e-4)
  stored = lite0.EfficientNetLite0().extract(frames)
  np.testing.assert_allclose(
    stored.astype(np.float32), ours.reshape(2, 49, 1280), atol=4e-3
  )
  logits = ours.mean(axis=(1, 2)) @ weights['_fc.weight'].T + weights['_fc.bias']
  espresso, cup = 967, 968
  tabby, tiger_cat, egyptian_cat = 281, 282, 285
  assert logits[0].argmax() in (espresso, cup)
  assert logits[1].argmax() in (tabby, tiger_cat, egyptian_cat)


def test_another_weights_file_is_refused(tmp_path):
  path = tmp_path / 'weights.pth'
  path.write_bytes(b'something else')
  with pytest.raises(DataError, match='SHA-256'):
    torch_weights.read(path, lite0.SHA256)
  with pytest.raises(DataError, match='cannot read the weights'):
    torch_weights.read(tmp_path / 'none.pth', lite0.SHA256)


class _Evil:
  def __reduce__(self):
    return os.mkdir, ('canary',)


def test_a_weights_file_runs_no_code(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  path = tmp_path / 'evil.pth'
  path.write_bytes(pickle.dumps(_Evil()))
  with pytest.raises(DataError, match='tensors only'):
    torch_weights.read_tensors(path)
  header = [pickle.dumps(v) for v in (0x1950A86A20F9469CFC6C, 1001)]
  header.append(pickle.dumps({'little_endian': True}))
  evil = pickle.dumps(collections.OrderedDict(a=_Evil()))
  path.write_bytes(b''.join([*header, evil]))
  with pytest.raises(DataError, match='tensors only'):
    torch_weights.read_tensors(path)
  assert not pathlib.Path('canary').exists()


# --- HMDB51 -----------------------------------------------------------------

CLASSES = ('climb_stairs', 'walk')
NAMES = (
  'A#b_{c}_f_cm_np1_fr_med_0.avi',
  '-x (y)!_{c}_f_cm_np1_fr_med_1.avi',
  'p & q;r_{c}_f_cm_np1_fr_med_2.avi',
  'p & q;r_{c}_f_cm_np1_fr_med_3.avi',
  'test one_{c}_f_cm_np1_fr_med_4.avi',
  'unused_{c}_f_cm_np1_fr_med_5.avi',
)
MARKS = (1, 1, 1, 1, 2, 0)


def write_hmdb51(root, videos_in='', lists_in='splits', make=None):
  """A data set of 2 classes with 4 training and 2 test clips... and names."""
  make = make or (lambda path: path.write_bytes(b'video'))
  for class_name in CLASSES:
    folder = root / videos_in / class_name
    folder.mkdir(parents=True)
    lines = []
    for name, mark in zip(NAMES, MARKS):
      file = name.format(c=class_name)
      if mark:
        make(folder / file)
      lines.append(f'{file} {mark} \n')
    lists = root / lists_in
    lists.mkdir(parents=True, exist_ok=True)
    for split in (1, 2, 3):
      path = lists / f'{class_name}_test_split{split}.txt'
      path.write_text(''.join(lines))


@pytest.mark.parametrize('videos_in', ['', 'videos'])
@pytest.mark.parametrize(
  'lists_in',
  ['splits', 'testTrainMulti_7030_splits',
   'testTrainMulti_7030_splits/testTrainMulti_7030_splits'],
)  # fmt: skip
def test_both_layouts_and_odd_names(tmp_path, videos_in, lists_in):
  write_hmdb51(tmp_path, videos_in, lists_in)
  data = hmdb51.read(tmp_path, 2)
  assert data.class_names == CLASSES
  assert [c.name for c in data.test] == [
    f'{c}/test one_{c}_f_cm_np1_fr_med_4.avi' for c in CLASSES
  ]
  assert len(data.train) == 8 and all(c.path.is_file() for c in data.train)
  assert {c.source for c in data.train} == {'A#b', '-x (y)!', 'p & q;r'}
  assert {c.label for c in data.train} == {0, 1}


def test_validation_is_held_out_of_train_by_source(tmp_path):
  write_hmdb51(tmp_path)
  data = hmdb51.read(tmp_path, 1)
  for seed in range(5):
    parts = hmdb51.partition(data, 0.5, seed)
    key = lambda c: (c.label, c.source)
    assert not {key(c) for c in parts.train} & {key(c) for c in parts.validation}
    assert {c.label for c in parts.validation} == {0, 1}
    assert {c.label for c in parts.train} == {0, 1}
    assert sorted(c.name for c in parts.train + parts.validation) == sorted(
      c.name for c in data.train
    )
    assert parts.test == list(data.test)


@pytest.mark.parametrize(
  ('line', 'message'),
  [
    ('clip.avi 3', r'split1\.txt:7: expected'),
    ('clip.avi', r'split1\.txt:7: expected'),
    ('clip.mp4 1', r'split1\.txt:7: expected'),
    ('../walk/clip.avi 1', r'split1\.txt:7: .*path'),
    (NAMES[0].format(c='walk') + ' 1', r'split1\.txt:7: .*listed twice'),
    ('gone.avi 1', r'1 listed videos are missing:\n  walk/gone\.avi'),
  ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
  write_hmdb51(tmp_path)
  path = tmp_path / 'splits' / 'walk_test_split1.txt'
  path.write_text(path.read_text() + line + '\r\n')
  with pytest.raises(DataError, match=message):
    hmdb51.read(tmp_path, 1)


def test_no_data_set_says_where_to_get_it(tmp_path):
  for root in ('', tmp_path):
    with pytest.raises(DataError) as error:
      hmdb51.read(root, 1)
    for part in ('hmdb51_org.rar', '<class>/<clip>.avi', 'quickstart.py'):
      assert part in str(error.value)
  (tmp_path / 'splits').mkdir()
  (tmp_path / 'splits' / 'walk_test_split1.txt').write_text('a.avi 1\n')
  with pytest.raises(DataError, match='no folder of a class'):
    hmdb51.read(tmp_path, 1)
  with pytest.raises(DataError, match='1, 2 or 3'):
    hmdb51.read(tmp_path, 4)


REAL = os.environ.get('HMAN_REAL_DATA')
needs_real_data = pytest.mark.skipif(
  not REAL, reason='set HMAN_REAL_DATA to a folder with jhmdb/'
)


@pytest.mark.real_data
@needs_real_data
@pytest.mark.parametrize('split', [1, 2, 3])
def test_real_clips_are_found(split):
  data = hmdb51.read(pathlib.Path(REAL) / 'jhmdb', split)
  assert len(data.class_names) == 12
  assert len(data.train) + len(data.test) == 551
  parts = hmdb51.partition(data, 0.1, 0)
  assert 30 < len(parts.validation) < 100


@pytest.mark.real_data
@needs_real_data
def test_real_clips_decode_fully():
  data = hmdb51.read(pathlib.Path(REAL) / 'jhmdb', 1)
  for clip in data.test[::8]:
    frames = videos.decode(clip.path, (224, 224))
    assert 15 <= len(frames) <= 40 and frames.std() > 5
