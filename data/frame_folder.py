"""A video as a folder of JPEG pictures, `img_00001.jpg` and so on."""

import os
import pathlib
import re

from data.errors import VideoError

SUFFIXES = ('.jpg', '.jpeg')
_NUMBERED = re.compile(r'(.*?)(\d+)\.jpe?g', re.IGNORECASE | re.DOTALL)
_FROM_ONE = ('img_', 'image_', 'frame_')


def is_frame(name: str) -> bool:
  """Whether a file of this name is a picture of a frame folder."""
  return not name.startswith('.') and name.lower().endswith(SUFFIXES)


def files(folder: pathlib.Path) -> list[pathlib.Path]:
  """The pictures of a folder, in order of the number that ends their names.

  Numbers have no gaps, whatever their number of digits; those of `img_`,
  `image_` and `frame_` begin with 0 or 1. Other files are left alone.

  Args:
    folder: a folder.

  Returns:
    Its .jpg and .jpeg files, at least one.

  Raises:
    VideoError: if it cannot be read, has no pictures, or if one is missing or
      there twice, or is not numbered like the others.
  """
  try:
    names = sorted(n for n in os.listdir(folder) if is_frame(n))
  except OSError as e:
    raise VideoError(f'{folder}: cannot read: {e.strerror}.') from e
  if not names:
    raise VideoError(
      f'{folder}: cannot read: it is a directory without frames '
      '(img_00001.jpg and so on).'
    )
  numbered: dict[int, str] = {}
  first = _NUMBERED.fullmatch(names[0])
  for name in names:
    match = _NUMBERED.fullmatch(name)
    if not match or not first or match[1] != first[1]:
      raise VideoError(
        f'{folder}: expected frames numbered alike (img_00001.jpg and so on), '
        f'got {names[0]!r} and {name!r}.'
      )
    number = int(match[2])
    if number in numbered:
      raise VideoError(
        f'{folder}: frame {number} is there twice: {numbered[number]!r} and '
        f'{name!r}.'
      )
    numbered[number] = name
  low = min(numbered)
  if first and first[1].lower() in _FROM_ONE:
    low = min(low, 1)
  for number in range(low, low + len(numbered)):
    if number not in numbered:
      raise VideoError(f'{folder}: frame {number} is missing.')
  return [folder / numbered[number] for number in sorted(numbered)]
