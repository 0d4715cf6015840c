"""Tables of measured and published numbers: Markdown, CSV, LaTeX."""

import csv
import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Measure(NamedTuple):
  """Mean and spread of a number over runs, as fractions.

  Attributes:
    mean: the mean.
    std: sample standard deviation; NaN for one run.
    n: runs.
    chance: mean chance level, or None where there is none.
  """

  mean: float
  std: float
  n: int
  chance: float | None = None

  def text(self, plus_minus: str, percent: str) -> str:
    """'44.2 ± 0.5 (n=3), chance 2.0', in percent."""
    text = f'{100 * self.mean:.1f}'
    if self.n > 1:
      text += f' {plus_minus} {100 * self.std:.1f}'
    text += f' (n={self.n})'
    if self.chance is not None:
      text += f', chance {100 * self.chance:.1f}{percent}'
    return text


Value = Measure | float | None


class Table(NamedTuple):
  """A table of numbers, as fractions.

  Attributes:
    title: one line.
    columns: a heading each; the first column holds the rows' labels.
    rows: (label, values), a value a heading but the first. A float is a
      published number, None is nothing.
    notes: lines below the table.
  """

  title: str
  columns: tuple[str, ...]
  rows: Sequence[tuple[str, tuple[Value, ...]]]
  notes: tuple[str, ...]


def measure(
  values: Sequence[float], chances: Sequence[float] = ()
) -> Measure | None:
  """Mean and sample standard deviation; None of nothing.

  Example:
    >>> measure([0.25, 0.75])
    Measure(mean=0.5, std=0.3535533905932738, n=2, chance=None)
  """
  if not values:
    return None
  return Measure(
    float(np.mean(values)),
    float(np.std(values, ddof=1)) if len(values) > 1 else math.nan,
    len(values),
    float(np.mean(chances)) if chances else None,
  )


def _shown(value: Value, plus_minus: str = '±', percent: str = '') -> str:
  if value is None:
    return ''
  if isinstance(value, Measure):
    return value.text(plus_minus, percent)
  return f'{100 * value:.1f}'


def markdown(table: Table) -> str:
  """The table in Markdown, columns aligned, in percent."""
  cells = [list(table.columns)]
  cells += [
    [_in_markdown(label), *map(_shown, values)] for label, values in table.rows
  ]
  widths = [max(map(len, column)) for column in zip(*cells)]
  lines = [
    '| ' + ' | '.join(c.ljust(w) for c, w in zip(row, widths)) + ' |'
    for row in cells
  ]
  lines.insert(1, '|' + '|'.join('-' * (w + 2) for w in widths) + '|')
  notes = [f'- {note}' for note in table.notes]
  return '\n'.join([f'**{table.title}**', '', *lines, '', *notes]) + '\n'


def _in_markdown(text: str) -> str:
  return text.replace('|', '\\|').replace('_', '\\_')


def to_csv(table: Table) -> str:
  """The table as CSV: fractions, and mean, std, n, chance apart."""
  split = [_is_measured(table, i) for i in range(len(table.columns) - 1)]
  head = [table.columns[0]]
  for name, parts in zip(table.columns[1:], split):
    head += (
      [f'{name} {p}' for p in ('mean', 'std', 'n', 'chance')]
      if (parts)
      else [name]
    )
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(head)
  for label, values in table.rows:
    row: list[object] = [label]
    for value, parts in zip(values, split):
      if not parts:
        row.append('' if value is None else value)
      elif isinstance(value, Measure):
        std = '' if math.isnan(value.std) else value.std
        row += [value.mean, std, value.n, value.chance]
      else:
        row += [''] * 4
    writer.writerow(row)
  return out.getvalue()


def _is_measured(table: Table, index: int) -> bool:
  return any(isinstance(values[index], Measure) for _, values in table.rows)


_TEX_SPECIAL = {
  **{c: f'\\{c}' for c in '&%$#_{}'},
  '\\': r'\textbackslash{}',
  '~': r'\textasciitilde{}',
  '^': r'\textasciicircum{}',
  '±': r'$\pm$',
}


def _tex(text: str) -> str:
  return ''.join(_TEX_SPECIAL.get(c, c) for c in text)


def latex(table: Table) -> str:
  """The table as a LaTeX tabular (packages: booktabs), in percent."""
  lines = [
    f'% {table.title}',
    rf'\begin{{tabular}}{{l{"r" * (len(table.columns) - 1)}}}',
    r'\toprule',
    ' & '.join(map(_tex, table.columns)) + r' \\',
    r'\midrule',
  ]
  for label, values in table.rows:
    shown = [_shown(v, r'$\pm$') for v in values]
    lines.append(' & '.join([_tex(label), *shown]) + r' \\')
  lines += [r'\bottomrule', r'\end{tabular}']
  return '\n'.join(lines + [f'% {note}' for note in table.notes]) + '\n'
