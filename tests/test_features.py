"""Extractors by name; records of the store as a clip source."""

import io
import os
import pathlib
import pickle

import numpy as np
import pytest

from data import (
  efficientnet_lite0,
  extract,
  features,
  hmdb51,
  pipeline,
)
from data.errors import DataError
from data.videos import decode

import quarters
import records
import video_files
from quarters import Quarters


@pytest.fixture
def videos(tmp_path):
  return video_files.numbered(tmp_path / 'videos' / 'wave')


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


def test_other_extractors_and_weights():
  with pytest.raises(DataError, match=r'expected one of .*, got .vgg'):
    features.create('vgg')
  with pytest.raises(DataError, match=r'data\.weights: expected .. with'):
    features.create('none', 'a.h5')


def test_video_features_are_a_clip_source(tmp_path, videos):
  paths = quarters.prepare(videos, Quarters(), tmp_path / 'store')
  source = quarters.source(paths.values())
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
  paths = quarters.prepare(videos, Quarters(), tmp_path / 'store')
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
      quarters.source(paths.values())
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
    quarters.source([path])


def test_features_of_one_shape(tmp_path):
  for name, size in (('a', 3), ('b', 5)):
    records.write(tmp_path / f'{name}.npy', np.zeros((2, 4, size)))
  with pytest.raises(DataError, match='features of one kind'):
    quarters.source([tmp_path / 'a.npy', tmp_path / 'b.npy'])


@pytest.mark.real_data
@pytest.mark.skipif(
  'HMAN_REAL_DATA' not in os.environ,
  reason='set HMAN_REAL_DATA to the folder that holds jhmdb/',
)
def test_real_clips(tmp_path):
  extractor = efficientnet_lite0.EfficientNetLite0()
  root = pathlib.Path(os.environ['HMAN_REAL_DATA'], 'jhmdb')
  clips = hmdb51.read(root, 1).test[::60]
  paths = quarters.prepare([c.path for c in clips], extractor, tmp_path)
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
