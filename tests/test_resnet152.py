"""ResNet-152 by Keras: preprocessing, weights of one's own, the same numbers.

Slow tests: the network takes a minute to build and compile on two cores.
"""

import importlib.util
import os
import pathlib
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest

from data import resnet152
from data.errors import DataError

ROOT = pathlib.Path(__file__).resolve().parent.parent
REAL = os.environ.get('HMAN_REAL_DATA')

needs_keras = pytest.mark.skipif(
  importlib.util.find_spec('keras') is None,
  reason="pip install -e '.[resnet]'",
)
# Keras' variables have an __array__ as before NumPy 2.
keras_warns = pytest.mark.filterwarnings(
  'ignore:__array__ implementation:DeprecationWarning'
)


def _frames(number):
  """Of real clips where they are, else noise."""
  if REAL is None:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (number, 224, 224, 3), np.uint8)
  from data.videos import decode

  clips = sorted(pathlib.Path(REAL, 'jhmdb', 'videos').glob('*/*.avi'))
  return np.stack(
    [decode(c, (224, 224))[9] for c in clips[:: len(clips) // number][:number]]
  )


def test_preprocessing():
  """Caffe's: blue, green, red, each less its mean over ImageNet."""
  rng = np.random.default_rng(0)
  frames = rng.integers(0, 256, (2, 5, 7, 3), np.uint8)
  red, green, blue = np.moveaxis(frames.astype(float), -1, 0)
  expected = np.stack([blue - 103.939, green - 116.779, red - 123.68], -1)
  for function in (resnet152.preprocess, jax.jit(resnet152.preprocess)):
    found = function(frames)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
  one = resnet152.preprocess(np.array([255, 0, 0], np.uint8))
  np.testing.assert_allclose(one, [-103.939, -116.779, 131.32], atol=1e-5)


@needs_keras
@pytest.mark.slow
def test_preprocessing_is_that_of_keras():
  keras = resnet152._import_keras()
  frames = _frames(2)
  expected = keras.applications.resnet.preprocess_input(frames.astype('f4'))
  np.testing.assert_allclose(resnet152.preprocess(frames), expected, atol=2e-5)


@pytest.mark.parametrize(
  ('name', 'content', 'message'),
  [
    ('none.h5', None, 'No such file'),
    ('a.h5', b'', 'expected weights of Keras'),
    ('a.h5', b'\x80\x04pickle', 'expected weights of Keras'),
    ('a.pt', b'\x89HDF\r\n\x1a\n', 'expected weights of Keras'),
    ('a.keras', b'PK\x03\x04', 'expected weights of Keras'),
  ],
)
def test_files_that_are_no_weights(tmp_path, name, content, message):
  path = tmp_path / name
  if content is not None:
    path.write_bytes(content)
  for ask in (
    lambda: resnet152.ResNet152(str(path)).identity,
    lambda: resnet152.ResNet152(str(path)).extract(_frames(1)),
  ):
    with pytest.raises(DataError, match=message) as error:
      ask()
    assert str(path) in str(error.value)
    assert 'config.data.weights' in str(error.value)


def test_without_keras(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'keras', None)
  monkeypatch.delenv('KERAS_BACKEND', raising=False)
  with pytest.raises(DataError, match=r'pip install -e .*resnet'):
    resnet152.ResNet152().identity  # noqa: B018
  assert 'KERAS_BACKEND' not in os.environ
  monkeypatch.setenv('KERAS_BACKEND', 'torch')
  with pytest.raises(DataError, match='needs Keras'):
    resnet152.published_weights()
  assert os.environ['KERAS_BACKEND'] == 'torch'


@needs_keras
@pytest.mark.slow
@pytest.mark.parametrize('backend', [None, 'tensorflow'])
def test_offline(tmp_path, backend):
  """No network and no weights: what to do is said, without a traceback."""
  code = """if True:
    import socket
    def refuse(*_, **__): raise OSError('no network')
    socket.socket.connect = socket.getaddrinfo = refuse
    from data import errors, resnet152
    import os
    try:
      resnet152.ResNet152().identity
    except errors.DataError as e:
      print(os.environ.get('KERAS_BACKEND'), e)
  """
  env = os.environ | {'HOME': str(tmp_path), 'KERAS_HOME': str(tmp_path)}
  env.pop('KERAS_BACKEND', None)
  if backend:
    env['KERAS_BACKEND'] = backend
  done = subprocess.run(
    [sys.executable, '-c', code],
    cwd=ROOT, env=env, capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert f'{backend} resnet152: cannot fetch its' in done.stdout
  assert resnet152._URL in done.stdout
  assert '--config.data.weights=FILE.h5' in done.stdout


@needs_keras
def test_keras_of_another_backend(monkeypatch):
  class Other:
    config = type('config', (), {
      'backend': lambda: 'torch', 'floatx': lambda: 'float32',
      'image_data_format': lambda: 'channels_first',
    })  # fmt: skip

  monkeypatch.setitem(sys.modules, 'keras', Other)
  with pytest.raises(DataError, match='torch, channels_first, float32'):
    resnet152.ResNet152().identity  # noqa: B018


@needs_keras
@pytest.mark.slow
def test_what_is_published_is_what_is_fetched(monkeypatch, tmp_path):
  keras = resnet152._import_keras()
  table = importlib.import_module('keras.src.applications.resnet')
  base, hashes = table.BASE_WEIGHTS_PATH, table.WEIGHTS_HASHES['resnet152']
  assert resnet152._URL.startswith(base + 'resnet152_')
  assert hashes[1] == resnet152._MD5
  asked = {}
  monkeypatch.setattr(
    keras.utils, 'get_file', lambda **k: asked.update(k) or tmp_path / 'a.h5'
  )
  assert resnet152.published_weights() == tmp_path / 'a.h5'
  assert asked['origin'] == resnet152._URL
  assert asked['file_hash'] == resnet152._MD5


@pytest.fixture(scope='module')
def keras_model(tmp_path_factory):
  """A network of random weights and its file; residuals small, as trained."""
  keras = resnet152._import_keras()
  rng = np.random.default_rng(0)
  keras.utils.set_random_seed(0)
  model = keras.applications.ResNet152(
    include_top=False, weights=None, input_shape=(224, 224, 3)
  )
  for v in model.variables:
    if v.path.endswith('3_bn/gamma'):
      v.assign(np.full(v.shape, 0.2))
    elif v.path.endswith(('beta', 'moving_mean')):
      v.assign(rng.normal(0, 0.1, v.shape))
    elif v.path.endswith('moving_variance'):
      v.assign(rng.uniform(0.5, 2, v.shape))
  path = tmp_path_factory.mktemp('weights') / 'random.weights.h5'
  model.save_weights(path)
  return model, path


@needs_keras
@keras_warns
@pytest.mark.slow
def test_the_same_numbers_as_keras(keras_model):
  """Ours against `model.predict` of `keras.applications`, to 1e-4."""
  keras = resnet152._import_keras()
  model, path = keras_model
  frames = _frames(11)  # more than a batch
  ours = resnet152.ResNet152(str(path))
  maps = ours.maps(frames)
  expected = model.predict(
    keras.applications.resnet.preprocess_input(frames.astype('f4')),
    batch_size=4,
    verbose=0,
  )
  assert maps.shape == expected.shape == (11, 7, 7, 2048)
  error = np.abs(maps - expected).max() / np.abs(expected).max()
  print(
    f'\nlargest difference {np.abs(maps - expected).max():.2e} of values up to '
    f'{expected.max():.2f}: {error:.2e}'
  )
  assert error < 1e-4
  assert maps.std() > 0.01 and np.abs(maps[0] - maps[1]).max() > 0.01
  features = ours.extract(frames)
  assert features.dtype == np.float16 and features.shape == (11, 49, 2048)
  np.testing.assert_array_equal(
    features, maps.reshape(11, 49, 2048).astype(np.float16)
  )
  # A frame's features do not depend on the others of its batch.
  np.testing.assert_array_equal(ours.extract(frames[3:4]), features[3:4])


@needs_keras
@keras_warns
@pytest.mark.slow
def test_weights_decide_the_identity(keras_model, tmp_path):
  model, path = keras_model
  one = resnet152.ResNet152(str(path)).identity
  moved = tmp_path / 'moved.h5'
  moved.write_bytes(path.read_bytes())
  assert resnet152.ResNet152(str(moved)).identity == one
  other = tmp_path / 'other.weights.h5'
  kernel = next(v for v in model.variables if v.path.endswith('kernel'))
  before = np.array(kernel.value)
  kernel.assign(before + 1e-3)
  model.save_weights(other)
  kernel.assign(before)
  assert resnet152.ResNet152(str(other)).identity != one
  assert one['feature_shape'] == [49, 2048] and one['image_size'] == 224


@needs_keras
@keras_warns
@pytest.mark.slow
def test_weights_of_another_network(keras_model, tmp_path):
  """Cut, of a smaller network, or with a link to another file."""
  import h5py

  keras = resnet152._import_keras()
  _, path = keras_model
  raw = path.read_bytes()
  cut = tmp_path / 'cut.weights.h5'
  cut.write_bytes(raw[: len(raw) // 2])
  small = tmp_path / 'small.weights.h5'
  keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]).save_weights(
    small
  )
  linked = tmp_path / 'linked.weights.h5'
  linked.write_bytes(raw)
  with h5py.File(linked, 'a') as file:
    file['secret'] = h5py.ExternalLink(str(path), '/')
  outside = tmp_path / 'outside.h5'
  with h5py.File(outside, 'w') as file:
    file.create_dataset('x', (4,), 'u1', external=[('/etc/hosts', 0, 4)])
  for file, message in (
    (cut, 'no weights of'),
    (small, '2 arrays, where 930 are expected'),
    (linked, 'secret is a link to elsewhere'),
    (outside, '/x lies in another file'),
  ):
    with pytest.raises(DataError, match=message) as error:
      resnet152.ResNet152(str(file)).extract(_frames(1))
    assert str(file) in str(error.value)


@needs_keras
@keras_warns
@pytest.mark.slow
def test_weights_as_they_are_published(keras_model, tmp_path):
  """The older of Keras' formats: layers in order, arrays by their number."""
  import h5py

  legacy = importlib.import_module('keras.src.legacy.saving.legacy_h5_format')
  model, _ = keras_model
  path = tmp_path / 'resnet152_weights_tf_dim_ordering_tf_kernels_notop.h5'
  with h5py.File(path, 'w') as file:
    legacy.save_weights_to_hdf5_group(file, model)
  found = resnet152.build(path)
  assert len(found.variables) == len(model.variables) == 930
  for one, two in zip(found.variables, model.variables):
    np.testing.assert_array_equal(np.array(one.value), np.array(two.value))


@needs_keras
@keras_warns
@pytest.mark.slow
def test_as_many_arrays_of_other_shapes(keras_model, tmp_path):
  import h5py

  _, path = keras_model
  other = tmp_path / 'other.weights.h5'
  other.write_bytes(path.read_bytes())
  with h5py.File(other, 'a') as file:
    names = []
    file.visititems(
      lambda n, i: names.append(n) if isinstance(i, h5py.Dataset) else None
    )
    name = next(n for n in names if file[n].ndim == 4)
    del file[name]
    file[name] = np.zeros((1, 1, 3, 3), 'f4')
  with pytest.raises(DataError, match='no weights of'):
    resnet152.build(other)


@needs_keras
@pytest.mark.slow
def test_a_zip_named_h5_runs_nothing(tmp_path):
  path = tmp_path / 'a.weights.h5'
  with zipfile.ZipFile(path, 'w') as file:
    file.writestr('config.json', '{}')
  with pytest.raises(DataError, match='expected weights of Keras'):
    resnet152.ResNet152(str(path)).extract(_frames(1))
