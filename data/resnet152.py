"""ResNet-152 features: 7 x 7 x 2048, the paper's, by Keras on JAX.

He et al., arXiv 1512.03385. Keras builds the network and reads the weights;
preprocessing and the jitted program are ours. Weights are those that Keras
publishes, trained on ImageNet, which it fetches once into `~/.keras/models`; or
a file of one's own in Keras' formats (`model.save_weights`). Such a file is
HDF5: it is read by Keras 3.15 or newer, after a look that nothing in it points
to other files. Give it only files whose origin you know: HDF5 is read by C
code, in this process.
"""

import functools
import hashlib
import os
import pathlib
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data import fixed_batches
from data.errors import DataError

IMAGE_SIZE = 224
MEAN_BGR = (103.939, 116.779, 123.68)  # of ImageNet, by Keras' `caffe` mode
_URL = (
  'https://storage.googleapis.com/tensorflow/keras-applications/resnet/'
  'resnet152_weights_tf_dim_ordering_tf_kernels_notop.h5'
)
_MD5 = 'ee4c566cf9a93f14d82f913c2dc6dd0c'  # as in keras.applications
_NUM_ARRAYS = 930  # 155 convolutions with bias, each with its normalisation
_SUFFIX = '.h5'
_SHAPE = (49, 2048)
_MEND = 'Give a file of weights by --config.data.weights=FILE.h5'


def preprocess(frames: jax.Array) -> jax.Array:
  """What the network takes: blue, green, red, less their means.

  Args:
    frames: uint8 `[..., 3]`, RGB.

  Returns:
    float32 `[..., 3]`, in [-123.68, 151.061].
  """
  mean = jnp.asarray(MEAN_BGR, jnp.float32)
  mean = mean.reshape((1,) * (frames.ndim - 1) + (3,))
  return frames[..., ::-1].astype(jnp.float32) - mean


def _import_keras() -> Any:
  """Keras on JAX; the variable that says so is put back."""
  before = os.environ.get('KERAS_BACKEND')
  os.environ['KERAS_BACKEND'] = 'jax'
  try:
    import keras
  except ImportError as e:
    raise DataError(
      f'resnet152: needs Keras ({e}). Run: pip install -e '
      "'.[experiments,resnet]'"
    ) from e
  finally:
    if before is None:
      del os.environ['KERAS_BACKEND']
    else:
      os.environ['KERAS_BACKEND'] = before
  found = (
    keras.config.backend(),
    keras.config.image_data_format(),
    keras.config.floatx(),
  )
  if found != ('jax', 'channels_last', 'float32'):
    raise DataError(
      'resnet152: expected Keras with jax, channels_last and float32, found '
      f'{", ".join(found)}. Mend ~/.keras/keras.json; and nothing else may '
      'import Keras first.'
    )
  return keras


def published_weights() -> pathlib.Path:
  """Keras' own ImageNet weights: kept on disk, fetched if they are not.

  Returns:
    The file, of the MD5 that Keras states.

  Raises:
    DataError: if Keras is not installed, or the file cannot be fetched.
  """
  keras = _import_keras()
  try:
    path = keras.utils.get_file(
      origin=_URL, file_hash=_MD5, cache_subdir='models'
    )
  except Exception as e:  # Keras raises Exception itself
    raise DataError(
      f'resnet152: cannot fetch its ImageNet weights: {e}. On a machine with a '
      f'network get {_URL}, and copy it here. {_MEND}.'
    ) from e
  return pathlib.Path(path)


def check_file(path: pathlib.Path) -> str:
  """Looks whether a file may hold weights, without reading them.

  Args:
    path: the file.

  Returns:
    Its SHA-256.

  Raises:
    DataError: if it cannot be read, or is no HDF5 file by name and first bytes.
  """
  try:
    with open(path, 'rb') as file:
      is_hdf5 = file.read(8) == b'\x89HDF\r\n\x1a\n'
      file.seek(0)
      digest = hashlib.file_digest(file, 'sha256').hexdigest()
  except (OSError, ValueError) as e:
    reason = getattr(e, 'strerror', None) or e
    raise DataError(
      f'config.data.weights: {path}: cannot read: {reason}. {_MEND}.'
    ) from e
  if not is_hdf5 or path.suffix != _SUFFIX:
    raise DataError(
      f'config.data.weights: {path}: expected weights of Keras (HDF5, named '
      f'*{_SUFFIX}), as model.save_weights writes and keras.io publishes.'
    )
  return digest


def _count_arrays(group: Any) -> int:
  """The arrays in an open HDF5 file; all lie in the file itself."""
  import h5py  # comes with Keras

  count = 0
  for name in group:
    if not isinstance(group.get(name, getlink=True), h5py.HardLink):
      raise ValueError(f'{group.name}/{name} is a link to elsewhere')
    item = group[name]
    if isinstance(item, h5py.Group):
      count += _count_arrays(item)
    elif not isinstance(item, h5py.Dataset) or item.is_virtual or item.external:
      raise ValueError(f'{item.name} lies in another file')
    else:
      count += 1
  return count


def build(path: pathlib.Path) -> Any:
  """The network with the weights of a file.

  Args:
    path: checked by `check_file`.

  Returns:
    A `keras.Model`: float32 `[B, 224, 224, 3]` -> `[B, 7, 7, 2048]`.

  Raises:
    DataError: if Keras is missing, or the weights are of another network.
  """
  keras = _import_keras()
  import h5py

  try:
    with h5py.File(path, 'r') as file:
      count = _count_arrays(file)
    if count < _NUM_ARRAYS:
      raise ValueError(f'{count} arrays, where {_NUM_ARRAYS} are expected')
    model = keras.applications.ResNet152(
      include_top=False, weights=None, input_shape=(IMAGE_SIZE, IMAGE_SIZE, 3)
    )
    with warnings.catch_warnings():  # Keras warns of what it leaves out
      warnings.simplefilter('error', UserWarning)
      model.load_weights(path)
  except (OSError, ValueError, KeyError, TypeError, RuntimeError,
          UserWarning) as e:  # fmt: skip
    reason = str(e).strip().splitlines() or [repr(e)]
    raise DataError(
      f'config.data.weights: {path}: no weights of '
      f'keras.applications.ResNet152(include_top=False): {reason[0]}.'
    ) from e
  return model


class ResNet152:
  """Extractor `resnet152`; see `data.features.Extractor`.

  Args:
    weights: a file of weights; '' is Keras' own of ImageNet.
  """

  image_size = (IMAGE_SIZE, IMAGE_SIZE)
  feature_shape = _SHAPE

  def __init__(self, weights: str = ''):
    self._weights = weights

  @functools.cached_property
  def batch_size(self) -> int:
    """Frames in one call of the network."""
    return fixed_batches.default_size()

  @functools.cached_property
  def _path(self) -> pathlib.Path:
    if self._weights:
      return pathlib.Path(self._weights).expanduser()
    return published_weights()

  @functools.cached_property
  def identity(self) -> dict:
    """What determines the numbers; the weights are fetched if they must."""
    return {
      'extractor': 'resnet152',
      'weights_sha256': check_file(self._path),
      'image_size': IMAGE_SIZE,
      'feature_shape': list(_SHAPE),
      'dtype': 'float16',
    }

  @functools.cached_property
  def _network(self):
    check_file(self._path)
    model = build(self._path)
    # Copies: Keras deletes its own when it is called.
    constants = jax.device_put(
      tuple(
        [np.array(v.value) for v in variables]
        for variables in (model.trainable_variables,
                          model.non_trainable_variables)
      )
    )  # fmt: skip

    @jax.jit
    def run(constants, frames):
      with jax.default_matmul_precision('highest'):  # GPUs round to TF32
        maps, _ = model.stateless_call(
          *constants, preprocess(frames), training=False
        )
      return maps

    return functools.partial(run, constants)

  def maps(self, frames: np.ndarray) -> np.ndarray:
    """The last feature maps, unrounded.

    Args:
      frames: uint8 `[T, 224, 224, 3]`, RGB.

    Returns:
      float32 `[T, 7, 7, 2048]`, >= 0.
    """
    return fixed_batches.run(self._network, frames, self.batch_size)

  def extract(self, frames: np.ndarray) -> np.ndarray:
    """Features of the frames of a clip.

    Args:
      frames: uint8 `[T, 224, 224, 3]`, RGB.

    Returns:
      float16 `[T, 49, 2048]`, locations row by row.
    """
    with np.errstate(over='ignore'):  # infinity: the store refuses it
      features = self.maps(frames).astype(np.float16)
    return features.reshape(len(frames), *_SHAPE)
