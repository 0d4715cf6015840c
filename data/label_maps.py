"""The classes of a data set, from a file of their names."""

import json
import pathlib
import re
from typing import NamedTuple

from data import clips
from data.errors import DataError

_NUMBERED = re.compile(r'([0-9]{1,9})\s+(\S.*)')


class LabelMap(NamedTuple):
  """The classes of a file.

  Attributes:
    names: in the order of their labels.
    first: what lists write for the first of them: 0, or 1 with classInd.txt.
  """

  names: tuple[str, ...]
  first: int


def read(path: pathlib.Path) -> LabelMap:
  """Reads the names of the classes.

  Args:
    path: one name a line; or lines `<number> <name>` with the numbers 1..n
      (classInd.txt) or 0..n-1; or JSON: `{name: number}` or a list of names.

  Returns:
    `LabelMap`.

  Raises:
    DataError: naming the file, and the line of a name that is there twice.
  """
  lines = clips.read_lines(path)
  if path.suffix.lower() == '.json':
    names = _json_names(path)
    return LabelMap(tuple(names), 0)
  numbered = [_NUMBERED.fullmatch(text.strip()) for _, text in lines]
  numbers = sorted(int(m[1]) for m in numbered if m)
  if len(numbers) == len(lines) and numbers[0] <= 1:
    first = numbers[0]
    if numbers != list(range(first, first + len(numbers))):
      raise DataError(
        f'{path}: expected the numbers {first}..{first + len(numbers) - 1}, '
        'each once.'
      )
    named = sorted(
      (int(m[1]), line, m[2]) for (line, _), m in zip(lines, numbered) if m
    )
  else:
    first = 0
    named = [(k, line, text.strip()) for k, (line, text) in enumerate(lines)]
  seen: dict[str, int] = {}
  for _, line, name in named:
    if not name.isprintable():
      raise DataError(f'{path}:{line}: expected a name, got {name!r}.')
    if name in seen:
      raise DataError(
        f'{path}:{line}: class {name!r} is there twice, first in line '
        f'{seen[name]}.'
      )
    seen[name] = line
  return LabelMap(tuple(seen), first)


def _json_names(path: pathlib.Path) -> list[str]:
  expected = f'{path}: expected {{"class": 0, ...}} or ["class", ...] in JSON'
  try:
    tree = json.loads(
      path.read_text(encoding='utf-8-sig'), object_pairs_hook=list
    )
  except (ValueError, RecursionError) as e:
    raise DataError(f'{expected}: {e}.') from e
  if not isinstance(tree, list) or not tree:
    raise DataError(f'{expected}, got {str(tree)[:40]!r}.')
  if all(isinstance(item, tuple) for item in tree):
    pairs = [(label, name) for name, label in tree]
    if not all(type(label) is int for label, _ in pairs) or sorted(
      label for label, _ in pairs
    ) != list(range(len(pairs))):
      raise DataError(
        f'{path}: expected the labels 0..{len(pairs) - 1}, each once.'
      )
    names = [name for _, name in sorted(pairs)]
  else:
    names = tree
  if not all(
    isinstance(name, str) and name and name.isprintable() for name in names
  ):
    raise DataError(f'{expected}, got a name that is no text.')
  if len(set(names)) < len(names):
    twice = next(n for n in names if names.count(n) > 1)
    raise DataError(f'{path}: class {twice!r} is there twice.')
  return names
