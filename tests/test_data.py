"""Composite actions and the input pipeline."""

import itertools

import jax
import numpy as np
import pytest

from data import composite_actions as ca
from data import pipeline
from data.errors import DataError


@pytest.fixture(scope='module')
def clips():
  return ca.CompositeActions('train', num_clips=320, seed=3)


def test_every_sub_action_is_equally_often_at_every_place():
  for n in (3, 4):
    orders = np.array(ca.action_orders(n))
    assert len({tuple(o) for o in orders}) == 2 * n
    for place in range(n):
      assert np.bincount(orders[:, place]).tolist() == [2] * n
    assert (np.sort(orders, axis=1) == np.arange(n)).all()


@pytest.mark.parametrize(
  ('name', 'cells'),
  [
    ('left', [24, 24, 23, 23, 22]),
    ('right', [24, 24, 25, 25, 26]),
    ('up', [24, 24, 17, 17, 10]),
    ('down', [24, 24, 31, 31, 38]),
    ('circle', [24, 31, 30, 23, 24]),
    ('shake', [24, 23, 24, 23, 24]),
    ('jump', [24, 17, 24, 31, 24]),
    ('stand', [24, 24, 24, 24, 24]),
  ],
)
def test_motions(name, cells):
  """From the middle: the first frame shows the start, moves follow."""
  assert ca.walk((3, 3), [name], [5]).cells.tolist() == cells


def test_walls_stop():
  assert ca.walk((0, 0), ['left', 'up'], [4, 4]).cells.tolist() == [0] * 8


def test_boundaries_are_the_first_frames_of_new_sub_actions():
  truth = ca.walk((3, 3), ['left', 'stand', 'up'], [3, 2, 4])
  assert np.flatnonzero(truth.boundaries).tolist() == [3, 5]
  assert len(truth.cells) == 9


def test_a_clip_is_a_function_of_its_index(clips):
  again = ca.CompositeActions('train', num_clips=40, seed=3)
  for i in (0, 7, 39):
    a, b = clips[i], again[i]
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])
  other = ca.CompositeActions('train', num_clips=40, seed=4)
  assert (clips[0]['features'].shape != other[0]['features'].shape) or (
    clips[0]['features'] != other[0]['features']
  ).any()


def test_truth_agrees_with_the_picture(clips):
  """The actor is the same digit in the target cell of every frame."""
  for i in range(20):
    clip = clips[i]
    pixels = clip['features'][np.arange(len(clip['target'])), clip['target']]
    assert (pixels == pixels[0]).all()
    assert pixels.max() > 0.5
    assert len(clip['boundaries']) == clips.lengths[i]
    assert clip['boundaries'].sum() == 3 and not clip['boundaries'][0]
    assert clip['features'].dtype == np.float16
    assert clip['label'] == clips.labels[i]
  picture = clips.frames(0)
  assert picture.shape == (clips.lengths[0], 56, 56)
  row, column = divmod(int(clips[0]['target'][0]), 7)
  cell = picture[0, row * 8 : row * 8 + 8, column * 8 : column * 8 + 8]
  expected = clips[0]['features'][0, row * 7 + column].reshape(8, 8)
  np.testing.assert_allclose(cell / 255, expected, atol=2e-3)


def test_splits_share_no_digit():
  digits = {s: ca._digits(s) for s in ca.SPLITS}
  for a, b in itertools.combinations(ca.SPLITS, 2):
    rows = lambda s: {r.tobytes() for d in digits[s] for r in d}
    assert len(rows(a) & rows(b)) <= 2  # equal 8 x 8 pictures of two writers
  blocks = sorted(ca._BLOCKS.values())
  assert all(x[1] + 138 <= y[0] for x, y in itertools.pairwise(blocks))


def test_classes_lengths_and_starts_vary(clips):
  assert np.bincount(clips.labels).tolist() == [40] * 8
  assert clips.lengths.min() < 28 and clips.lengths.max() > 36
  assert clips.lengths.max() <= 40
  starts = np.bincount(
    [clips[i]['target'][0] for i in range(320)], minlength=49
  )
  assert (starts > 0).sum() > 40


def test_a_bag_of_frames_is_not_enough(clips):
  from sklearn.linear_model import LogisticRegression

  test = ca.CompositeActions('test', num_clips=320, seed=3)
  bag = lambda s: np.stack(
    [
      s[i]['features'].astype(np.float32).mean(axis=0).ravel()
      for i in range(320)
    ]
  )
  model = LogisticRegression(C=0.01, max_iter=200).fit(bag(clips), clips.labels)
  assert model.score(bag(test), test.labels) < 0.3


@pytest.mark.parametrize(
  ('options', 'message'),
  [
    ({'split': 'dev'}, 'split'),
    ({'num_clips': 0}, 'num_clips'),
    ({'sub_actions': ('left', 'fly', 'up')}, 'sub_actions'),
    ({'sub_actions': ('left', 'left', 'up')}, 'sub_actions'),
    ({'min_duration': 1}, 'min_duration'),
    ({'num_clutter': 50}, 'num_clutter'),
  ],
)
def test_bad_options_are_named(options, message):
  with pytest.raises(DataError, match=message):
    ca.CompositeActions(**{'split': 'train', 'num_clips': 8, **options})


# --- the pipeline -----------------------------------------------------------

PIPELINE = {'batch_size': 8, 'num_frames': 10, 'seed': 5}


def _take(n, source, **options):
  return list(
    itertools.islice(
      pipeline.train_batches(source, **{**PIPELINE, **options}), n
    )
  )


def _assert_same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize(
  ('start', 'prefetch'), [(1, 0), (39, 8), (41, 2), (85, 1)]
)
def test_a_resumed_pipeline_goes_on_exactly(clips, start, prefetch):
  """Whatever is made ahead, before and after."""
  whole = _take(start + 2, clips)
  resumed = _take(2, clips, start_step=start, prefetch=prefetch)
  for a, b in zip(whole[start:], resumed):
    _assert_same(a, b)


def test_every_epoch_has_every_clip_once_in_another_order(clips):
  order = np.concatenate([b['clip'] for b in _take(80, clips)])
  first, second = order[:320], order[320:]
  assert sorted(first) == sorted(second) == list(range(320))
  assert (first != second).any()


@pytest.mark.parametrize('num_shards', [2, 4])
def test_shards_joined_are_the_batch(clips, num_shards):
  whole = _take(2, clips)
  parts = [
    _take(2, clips, num_shards=num_shards, shard=k) for k in range(num_shards)
  ]
  for s, batch in enumerate(whole):
    joined = {k: np.concatenate([part[s][k] for part in parts]) for k in batch}
    _assert_same(joined, batch)


def test_windows_are_windows_of_the_clip(clips):
  starts = set()
  for batch in _take(5, clips):
    for row in range(8):
      clip, start = clips[batch['clip'][row]], batch['start'][row]
      window = slice(start, start + 10)
      np.testing.assert_array_equal(
        batch['features'][row], clip['features'][window]
      )
      np.testing.assert_array_equal(
        batch['target'][row], clip['target'][window]
      )
      assert batch['mask'][row].all()
      starts.add(int(start))
  assert len(starts) > 5


def test_short_clips_are_padded(clips):
  batch = _take(1, clips, num_frames=50)[0]
  lengths = clips.lengths[batch['clip']]
  assert batch['mask'].sum(axis=1).tolist() == lengths.tolist()
  assert not batch['features'][~batch['mask']].any()
  assert (batch['target'][~batch['mask']] == -1).all()


@pytest.mark.parametrize('stride', [1, 3])
def test_blocks_cover_every_frame_once(clips, stride):
  batches = pipeline.eval_batches(
    clips, batch_size=7, num_frames=4, frame_stride=stride
  )
  seen = [np.zeros(-(-n // stride), int) for n in clips.lengths]
  rows = 0
  for batch in batches:
    assert batch['features'].shape[:2] == (7, 4)
    for row in range(7):
      if not batch['weight'][row]:
        assert not batch['mask'][row].any()
        continue
      rows += 1
      clip, start = batch['clip'][row], batch['start'][row]
      valid = batch['mask'][row].sum()
      seen[clip][start : start + valid] += 1
      frames = clips[clip]['features'][::stride][start : start + valid]
      np.testing.assert_array_equal(batch['features'][row, :valid], frames)
  assert all((s == 1).all() for s in seen)
  assert rows == len(batches.blocks) == sum(-(-len(s) // 4) for s in seen)


def test_striding_keeps_every_boundary(clips):
  for batch in pipeline.eval_batches(
    clips, batch_size=40, num_frames=20, frame_stride=2
  ):
    counts = batch['boundaries'].sum(axis=1)[batch['weight'] > 0]
    assert (counts == 3).all()


class Ramp:
  """Three clips of int8 features: 10 t, times a scale that tells the clip."""

  class_names, clip_names = ('a', 'b'), ('x', 'y', 'z')
  labels, lengths = np.arange(3) % 2, np.array([3, 8, 5])
  feature_shape, has_truth, identity = (2, 4), False, {'name': 'ramp'}

  def __len__(self):
    return 3

  def __getitem__(self, index):
    time = 10 * np.arange(self.lengths[index], dtype=np.int8)
    scale = np.full(4, 0.5 + index, np.float32)
    features = np.tile(time[:, None, None], (1, 2, 4))
    return {'features': features, 'scale': scale, 'label': self.labels[index]}


def test_int8_is_scaled_where_it_is_used():
  batches = list(pipeline.eval_batches(Ramp(), batch_size=2, num_frames=4))
  assert all(b['features'].dtype == np.int8 for b in batches)
  for batch in batches:
    for features in (
      pipeline.features_of(batch),
      jax.jit(pipeline.features_of)(batch),
    ):
      assert features.dtype == np.float16
      time = batch['start'][:, None] + np.arange(4)
      expected = 10 * time * (0.5 + batch['clip'])[:, None] * batch['mask']
      np.testing.assert_array_equal(features[:, :, 1, 3], expected)
  batch = next(
    pipeline.train_batches(Ramp(), batch_size=4, num_frames=3, seed=0)
  )
  assert batch['features'].dtype == np.int8 and batch['scale'].shape == (4, 4)
  mean, _ = pipeline.feature_statistics(Ramp())
  values = [
    10 * t * (0.5 + k) for k, n in enumerate((3, 8, 5)) for t in range(n)
  ]
  np.testing.assert_allclose(mean, np.mean(values), rtol=1e-6)


@pytest.mark.parametrize('devices', [1, 4])
def test_memory_is_used_again_only_when_nothing_has_it(devices):
  buffers = pipeline._Buffers()
  mesh = jax.make_mesh((devices,), ('data',), devices=jax.devices()[:devices])
  spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
  shape, dtype = (4, 1024), np.dtype(np.float16)

  def ones():
    array = buffers.take(shape, dtype)
    array[:] = 1
    return array

  kept = jax.device_put(ones(), spread)
  doubled = jax.jit(lambda x: x * 2)(ones())
  part = ones()[1:, 5:7]
  for _ in range(3):
    other = buffers.take(shape, dtype)
    other[:] = 7
  assert (np.asarray(kept) == 1).all() and (part == 1).all()
  assert (np.asarray(doubled) == 2).all()
  address = other.ctypes.data
  del other
  assert buffers.take(shape, dtype).ctypes.data == address


def test_bad_sizes_are_named(clips):
  with pytest.raises(DataError, match='batch_size'):
    pipeline.train_batches(clips, **{**PIPELINE, 'batch_size': 0})
  with pytest.raises(DataError, match='num_shards=3'):
    pipeline.train_batches(clips, **PIPELINE, num_shards=3)


def test_labels_are_checked():
  clips = ca.CompositeActions('train', num_clips=8)
  pipeline.check_labels(clips)
  clips.labels[3] = 8
  with pytest.raises(DataError, match=r"'train_000003'.*0\.\.7.*got 8"):
    pipeline.check_labels(clips)


def test_feature_statistics_are_those_of_all_frames(clips):
  source = ca.CompositeActions('train', num_clips=3)
  mean, scale = pipeline.feature_statistics(source, max_frames=10**6)
  x = np.concatenate([source[i]['features'] for i in range(3)])
  x = x.astype(np.float64).reshape(-1, x.shape[-1])
  deviation = x.std(axis=0)
  np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-5, atol=1e-6)
  floor = 0.1 * deviation.mean()
  np.testing.assert_allclose(scale, deviation + floor, rtol=1e-4)
  few, _ = pipeline.feature_statistics(clips, max_frames=1)  # one frame a clip
  assert np.isfinite(few).all()
  assert mean.dtype == scale.dtype == np.float32
