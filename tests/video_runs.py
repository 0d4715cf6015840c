"""Runs on little videos as after training, made quickly, without it."""

import pathlib

import jax
import numpy as np
import pytest

from configs import hmdb51
from data import features
from experiments import train
from experiments.trained import TrainedRun

import video_files
from tiny_runs import tiny_config, untrained_in

CLASSES = ('bright', 'dark')
SHAPE = (49, 6)
T = 12


class Stub:
  """Mean and corner of each of 7 x 7 cells: an extractor without a network."""

  image_size = (14, 14)
  feature_shape = SHAPE
  batch_size = 8
  identity = {'extractor': 'stub', 'size': [14, 14]}  # noqa: RUF012

  def extract(self, frames: np.ndarray) -> np.ndarray:
    cells = frames.reshape(-1, 7, 2, 7, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    cells = cells.reshape(len(frames), 49, 4, 3) / 255.0
    parts = [cells.mean(axis=2), cells[:, :, 0]]
    return np.concatenate(parts, axis=-1).astype(np.float16)


def use_stub(patch):
  """The run's extractor is the stub."""
  patch.setitem(features.EXTRACTORS, 'efficientnet_lite0', Stub)


def clip(rng, label, num_frames):
  """A square that walks over noise, on a bright or a dark ground."""
  ground = rng.integers(0, 60, (num_frames, 28, 42, 3)) + (120 - 100 * label)
  for t, frame in enumerate(ground):
    frame[10:18, t % 34 : t % 34 + 8] = (230, 40, 40)
  return ground.clip(0, 255).astype(np.uint8)


def write_videos(folder):
  """HMDB51's layout: 2 classes, 4 training and 2 test clips each."""
  rng = np.random.default_rng(0)
  (folder / 'splits').mkdir(parents=True)
  for label, name in enumerate(CLASSES):
    lines = []
    for k in range(6):
      file = f'source{k}_{name}_{k}.avi'
      frames = clip(rng, label, 10 + 5 * k)
      video_files.write(folder / name / file, frames)
      lines.append(f'{file} {1 if k < 4 else 2} \n')
    (folder / 'splits' / f'{name}_test_split1.txt').write_text(''.join(lines))
  return folder


def make(folder, root):
  """A run on `write_videos`, its best model a random one; its directory."""
  config = tiny_config(
    hmdb51,
    **{
      'data.root': str(root),
      'data.features_dir': str(folder / 'features'),
      'data.num_frames': T,
      'data.validation_fraction': 0.3,
      'model.boundary_rate': 0.5,
    },
  )
  with pytest.MonkeyPatch.context() as patch:
    use_stub(patch)
    return untrained_in(folder / 'run', config)


def untrained(seed=0, num_classes=3, **changes):
  """A run with random parameters: boundaries and attention are lively."""
  config = tiny_config(
    hmdb51,
    **{
      'data.num_frames': T,
      'model.boundary_rate': 0.4,
      'model.position_code': 'none',
      **changes,
    },
  )
  model = train.make_model(config, num_classes, SHAPE)
  params = model.init(jax.random.key(seed), np.zeros((1, 1, *SHAPE)))
  return TrainedRun(
    workdir=pathlib.Path('run'),
    config=config,
    class_names=tuple(f'class {c}' for c in range(num_classes)),
    data={'preprocessing': Stub.identity, 'feature_shape': SHAPE},
    model=model,
    params=params,
    step=0,
  )


def features_of(num_frames, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(0, 3, (num_frames, *SHAPE)).astype(np.float16)
