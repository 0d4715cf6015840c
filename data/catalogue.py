"""The data sets of videos, by the name that a config gives them."""

from collections.abc import Callable
from typing import Any

from data import clips, hmdb51, olympic_sports, ucf_sports, video_folder
from data.clips import Dataset
from data.errors import DataError

# `data` is the section of a config: see configs/default.py for its fields.
SCANS: dict[str, Callable[[Any], Dataset]] = {
  'hmdb51': lambda data: hmdb51.scan(data.root, data.split),
  'ucf_sports': lambda data: ucf_sports.scan(
    data.root, data.split, data.test_fraction
  ),
  'olympic_sports': lambda data: olympic_sports.scan(data.root),
  'video_folder': lambda data: video_folder.scan(
    data.root,
    train_list=data.train_list,
    validation_list=data.validation_list,
    test_list=data.test_list,
    label_map=data.label_map,
    split=data.split,
    test_fraction=data.test_fraction,
  ),
}


def scan(data: Any) -> Dataset:
  """Reads a data set, with everything that is wrong as findings.

  Args:
    data: the section of a config, with a name of `SCANS`.

  Returns:
    `Dataset`.

  Raises:
    DataError: if there is no data set, or it cannot be read.
  """
  try:
    return SCANS[data.name](data)
  except OSError as e:
    raise DataError(
      f'{e.filename or data.root}: cannot read: {e.strerror or e}.'
    ) from e


def read(data: Any) -> Dataset:
  """Reads a data set, or tells what is wrong with it.

  Args:
    data: the section of a config, with a name of `SCANS`.

  Returns:
    `Dataset`, without fatal findings.

  Raises:
    DataError: if there is no data set, or if it has fatal findings.
  """
  return clips.checked(scan(data), data.root, data.allow_missing)
