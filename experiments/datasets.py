"""From a config to the clips of training, validation and test."""

import hashlib
import pathlib
import sys
from typing import NamedTuple

import ml_collections

from data import pipeline
from data.composite_actions import CompositeActions


class Splits(NamedTuple):
  """The three parts of a data set, each a clip source.

  Attributes:
    train, validation, test: see `data.pipeline`.
    preprocessing: how a video becomes features, JSON-able: for the workdir.
    skipped: names of clips left out, since their videos are bad.
    videos: digest of the bytes of all videos, in order; empty without videos.
  """

  train: pipeline.ClipSource
  validation: pipeline.ClipSource
  test: pipeline.ClipSource
  preprocessing: dict
  skipped: tuple[str, ...] = ()
  videos: str = ''


def load(config: ml_collections.ConfigDict) -> Splits:
  """Opens the data set of a config, preparing features where missing.

  Args:
    config: a resolved config.

  Returns:
    `Splits`, with labels checked.

  Raises:
    DataError: if the data are missing or wrong.
  """
  if config.data.name == 'composite_actions':
    splits = _composite_actions(config)
  else:
    splits = _videos(config)
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


def _videos(config) -> Splits:
  from data import catalogue, clips, extract, features  # these need PyAV

  data = config.data
  dataset = catalogue.read(data)
  for finding in dataset.findings[: clips.MAX_LISTED]:
    print(f'warning: {finding}', file=sys.stderr, flush=True)
  parts = clips.partition(dataset, data.validation_fraction, config.seed)
  extractor = features.create(data.features, data.weights)
  prepared = extract.prepare(
    [clip.path for part in parts for clip in part],
    extractor,
    pathlib.Path(data.features_dir or extract.default_features_dir()),
    fps=data.fps or None,
    dtype=data.store_dtype,
    on_bad=data.on_bad_video,
  )
  sources, skipped = {}, []
  videos = hashlib.sha256()
  for name, part in zip(parts._fields, parts):
    kept = [c for c in part if c.path in prepared.paths]
    left_out = [c.name for c in part if c.path in prepared.bad]
    sources[name] = features.VideoFeatures(
      [c.name for c in kept],
      [prepared.paths[c.path] for c in kept],
      [c.label for c in kept],
      class_names=dataset.class_names,
      identity={
        **dataset.identity,
        'part': name,
        **extractor.identity,
        **({'skipped': left_out} if left_out else {}),
      },
      videos=[c.path for c in kept],
    )
    skipped += left_out
    for clip in kept:  # a record has the name of its video's SHA-256
      videos.update(f'{prepared.paths[clip.path].stem}\n'.encode())
  return Splits(
    **sources,
    preprocessing=dict(extractor.identity),
    skipped=tuple(skipped),
    videos=videos.hexdigest(),
  )
