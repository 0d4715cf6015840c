"""TFDS builders over our readers, without TensorFlow: records in ArrayRecord.

They describe clips: name, path, label, source video. The videos stay where they
are, and their features have a store of their own (`data.features`).

Example:
  builder = tfds_builders.Hmdb51(manual_dir='~/hmdb51', data_dir='~/tfds')
  builder.download_and_prepare()
  builder.as_data_source(split='train')[0]
"""

import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow_datasets as tfds

from data import clips, hmdb51, olympic_sports, ucf_sports, video_folder
from data.clips import Clip, Dataset


class _Clips(tfds.core.GeneratorBasedBuilder, skip_registration=True):
  """Clips of a reader, validation held out of training by source video.

  Args:
    manual_dir: the root of the data set, unpacked by the user.
    data_dir: where prepared data sets go; None: TFDS' own folder.
    split: official split, or the seed of a random one.
    validation_fraction: of the training clips of every class, in (0, 1).
    seed: of the choice of validation clips.
    **options: of the reader.

  Raises:
    DataError: as the reader does.
  """

  VERSION = tfds.core.Version('1.0.0')

  def __init__(
    self,
    *,
    manual_dir: str | pathlib.Path,
    data_dir: str | pathlib.Path | None = None,
    split: int = 1,
    validation_fraction: float = 0.1,
    seed: int = 0,
    **options: Any,
  ):
    self._root = pathlib.Path(manual_dir).expanduser().absolute()
    self._dataset = self._read(self._root, split, **options)
    self._parts = clips.partition(self._dataset, validation_fraction, seed)
    digest = clips.digest(self._parts)
    super().__init__(
      file_format=tfds.core.FileFormat.ARRAY_RECORD,
      data_dir=None if data_dir is None else str(data_dir),
      # Other clips, or other sides, are another folder.
      config=tfds.core.BuilderConfig(
        name=f'split{split}_seed{seed}_{digest[:12]}',
        description=f'Split {split}, validation by seed {seed}.',
      ),
    )

  def _read(self, root: pathlib.Path, split: int, **options: Any) -> Dataset:
    raise NotImplementedError

  def _info(self) -> tfds.core.DatasetInfo:
    return tfds.core.DatasetInfo(
      builder=self,
      description=type(self).__doc__,
      features=tfds.features.FeaturesDict(
        {
          'name': tfds.features.Text(),
          'path': tfds.features.Text(),
          'label': tfds.features.ClassLabel(names=self._dataset.class_names),
          'source': tfds.features.Text(),
        }
      ),
    )

  def _split_generators(
    self, dl_manager: tfds.download.DownloadManager
  ) -> dict[str, Iterator[tuple[str, dict[str, Any]]]]:
    del dl_manager  # nothing is downloaded
    return {
      side: self._generate_examples(part)
      for side, part in self._parts._asdict().items()
      if part
    }

  def _generate_examples(
    self, part: Sequence[Clip]
  ) -> Iterator[tuple[str, dict[str, Any]]]:
    for clip in part:
      path = clip.path.relative_to(self._root).as_posix()
      yield (
        clip.name,
        {
          'name': clip.name,
          'path': path,  # below manual_dir
          'label': clip.label,
          'source': clip.source,
        },
      )


class Hmdb51(_Clips, skip_registration=True):
  """HMDB51 (Kuehne et al., ICCV 2011), or any subset of its classes."""

  name = 'hman_hmdb51'

  def _read(self, root, split, **options):
    return hmdb51.read(root, split, **options)


class UcfSports(_Clips, skip_registration=True):
  """UCF Sports (Rodriguez et al., CVPR 2008), split at random."""

  name = 'hman_ucf_sports'

  def _read(self, root, split, **options):
    return ucf_sports.read(root, split, **options)


class OlympicSports(_Clips, skip_registration=True):
  """Olympic Sports (Niebles et al., ECCV 2010), official lists."""

  name = 'hman_olympic_sports'

  def _read(self, root, split, **options):
    return olympic_sports.read(root, **options)


class VideoFolder(_Clips, skip_registration=True):
  """Any videos: class folders or lists."""

  name = 'hman_video_folder'

  def _read(self, root, split, **options):
    return video_folder.read(root, split=split, **options)
