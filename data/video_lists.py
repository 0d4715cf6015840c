"""Lists of videos, line by line, as they are written in a file.

A line `path label` a video, split from the right; `folder number_of_frames
label` for a folder of frames; or a csv file with a header, as of Kinetics
(label, youtube_id, time_start, time_end) or with columns for path and label.
"""

import csv
import io
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

from data import clips
from data.clips import Finding
from data.videos import SUFFIXES

INTEGER = re.compile(r'[+-]?[0-9]{1,18}')
_PATH_COLUMNS = ('video_path', 'path', 'video', 'file', 'filename', 'relpath')
_LABEL_COLUMNS = ('label', 'label_name', 'class', 'action')
_TIME_COLUMNS = ('start', 'end')


class Line(NamedTuple):
  """One video of a list, as it is written there.

  Attributes:
    number: of the line, from 1.
    path: below the root, the number of frames included where there is one.
    label: number, name, or None where there is none.
    any_suffix: the path has no suffix (Kinetics).
  """

  number: int
  path: str
  label: int | str | None
  any_suffix: bool = False


def read(path: pathlib.Path, findings: list[Finding]) -> list[Line]:
  """Reads a list of videos.

  Args:
    path: lines `path label`, or `folder frames label`, split from the right; or
      a .csv file with commas, with a header or of lines `path,label`.
    findings: where wrong lines go.

  Returns:
    The lines that are right.

  Raises:
    DataError: if it cannot be read or is empty.
  """
  lines = clips.read_lines(path)
  if path.suffix.lower() == '.csv' and ',' in lines[0][1]:
    return _read_csv(path, findings)
  entries = []
  for number, text in lines:
    left, label = ([''] + text.strip().rsplit(maxsplit=1))[-2:]
    if label.lower().endswith(SUFFIXES):  # the end of a path with blanks
      left, label = text.strip(), None
    elif not left:
      left, label = label, None
    entries.append(_line(number, left, label))
  return entries


def _line(number: int, path: str, label: str | None) -> Line:
  """A line with its label as a number where it is one."""
  if label is not None and INTEGER.fullmatch(label):
    return Line(number, path, int(label))
  return Line(number, path, label or None)


def _read_csv(path: pathlib.Path, findings: list[Finding]) -> list[Line]:
  text = path.read_text(encoding='utf-8-sig')
  rows = csv.reader(io.StringIO(text, newline=''))
  entries: list[Line] = []
  columns: dict[str, int] | None = None
  first = True
  try:
    for cells in rows:
      cells = [cell.strip() for cell in cells]
      if not any(cells):
        continue
      if first:
        first = False
        columns = _columns(cells)
        if columns:
          continue
      if columns:
        entries += _row(path, rows.line_num, cells, columns, findings)
      elif len(cells) == 2:
        entries.append(_line(rows.line_num, *cells))
      else:
        message = f'expected "path,label", got {len(cells)} cells.'
        findings.append(Finding('line', message, path, rows.line_num))
  except csv.Error as e:
    findings.append(Finding('line', f'no csv: {e}.', path, rows.line_num))
  return entries


def _columns(cells: Sequence[str]) -> dict[str, int] | None:
  """{column: index} if this is a header."""
  columns = {cell.lower(): k for k, cell in enumerate(cells)}
  known = (*_PATH_COLUMNS, 'youtube_id')
  if any(c in columns for c in known) and any(
    c in columns for c in _LABEL_COLUMNS
  ):
    return columns
  return None


def _row(
  path: pathlib.Path,
  number: int,
  cells: Sequence[str],
  columns: dict[str, int],
  findings: list[Finding],
) -> list[Line]:
  """One row under a header; nothing if it is wrong."""

  def cell(*names):
    for name in names:
      if name in columns and columns[name] < len(cells):
        return cells[columns[name]]
    return ''

  def wrong(message):
    findings.append(Finding('line', message, path, number))
    return []

  label = cell(*_LABEL_COLUMNS)
  if not label:
    return wrong('no label.')
  video = cell(*_PATH_COLUMNS)
  if video:
    start, end = (cell(name) for name in _TIME_COLUMNS)
    if end or start.strip('0.'):
      return wrong(
        f'a part of a video (start {start!r}, end {end!r}): parts are not cut '
        'out. Make a file of each, and leave start and end empty.'
      )
    return [_line(number, video, label)]
  times = [cell('time_start'), cell('time_end')]
  if not cell('youtube_id') or not all(re.fullmatch('[0-9]{1,6}', t)
                                       for t in times):  # fmt: skip
    return wrong(
      'expected youtube_id, time_start and time_end in whole seconds, got '
      f'{cell("youtube_id")!r}, {times[0]!r}, {times[1]!r}.'
    )
  start, end = map(int, times)
  name = f'{label}/{cell("youtube_id")}_{start:06d}_{end:06d}'
  return [Line(number, name, label, any_suffix=True)]
