"""From a config to the clips of training, validation and test."""

import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import ml_collections

from data import pipeline
from data.composite_actions import CompositeActions


class Splits(NamedTuple):
  """The three parts of a data set, each a clip source.

  Attributes:
    train, validation, test: see `data.pipeline`.
    preprocessing: how a video becomes features, JSON-able: for the workdir.
  """

  train: pipeline.ClipSource
  validation: pipeline.ClipSource
  test: pipeline.ClipSource
  preprocessing: dict


def load(
  config: ml_collections.ConfigDict,
  should_stop: Callable[[], bool] = lambda: False,
) -> Splits:
  """Opens the data set of a config, preparing features where missing.

  Args:
    config: a resolved config.
    should_stop: asked after each video that is made into features.

  Returns:
    `Splits`, with labels checked.

  Raises:
    DataError: if the data are missing or wrong.
    StoppedError: if `should_stop` said so; what is prepared is kept.
  """
  if config.data.name == 'composite_actions':
    splits = _composite_actions(config)
  else:
    splits = _videos(config, should_stop)
  for source in splits[:3]:
    pipeline.check_labels(source)
  return splits


def _composite_actions(config) -> Splits:
  data = config.data
  sizes = {
    'train': data.num_train,
    'validation': data.num_validation,
    'test': data.num_test,
  }
  sources = {
    split: CompositeActions(split, num_clips=n, seed=0)
    for split, n in sizes.items()
  }
  return Splits(
    **sources,
    preprocessing={'features': 'none', 'frame': '7 x 7 cells of 8 x 8 pixels'},
  )


def _videos(config, should_stop) -> Splits:
  from data import catalogue, clips, features  # these need PyAV

  data = config.data
  dataset = catalogue.read(data)
  for finding in dataset.findings[: clips.MAX_LISTED]:
    print(f'warning: {finding}', file=sys.stderr, flush=True)
  parts = clips.partition(dataset, data.validation_fraction, config.seed)
  extractor = features.EXTRACTORS[data.features]()
  directory = pathlib.Path(data.features_dir or features.default_features_dir())
  paths = features.prepare(
    [clip.path for part in parts for clip in part],
    extractor,
    directory,
    fps=data.fps or None,
    should_stop=should_stop,
  )
  sources = {
    name: features.VideoFeatures(
      [c.name for c in part],
      [paths[c.path] for c in part],
      [c.label for c in part],
      class_names=dataset.class_names,
      identity={**dataset.identity, 'part': name, **extractor.identity},
      videos=[c.path for c in part],
    )
    for name, part in zip(parts._fields, parts)
  }
  return Splits(**sources, preprocessing=dict(extractor.identity))
