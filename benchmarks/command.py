"""What the command lines of all benchmarks share."""

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax

from benchmarks import measure

SIZES = {
  'batch': (64, 'clips in a batch'),
  'steps': (60, 'frames in a clip'),
  'locations': (49, 'locations of a feature map'),
  'size': (2048, 'numbers in a feature'),
  'hidden': (512, 'units of a layer'),
  'layers': (3, 'layers'),
  'classes': (51, 'classes'),
}


def parser(name: str, doc: str, **defaults: int) -> argparse.ArgumentParser:
  """The flags of a benchmark: sizes, --repeats, --clock and --json.

  Args:
    name: of the module in `benchmarks`.
    doc: its docstring, of which the first line is shown.
    **defaults: of sizes, where they are not the paper's; 0: no such flag.

  Returns:
    A parser to add flags to, for `parse`.
  """
  made = argparse.ArgumentParser(
    prog=f'python -m benchmarks.{name}', description=doc.splitlines()[0]
  )
  sizes = {**SIZES, 'repeats': (7, 'counted repeats of each')}
  for size, (default, text) in sizes.items():
    default = defaults.get(size, default)
    if default:
      made.add_argument(
        f'--{size}', type=positive, default=default, help=f'{text} ({default})'
      )
  made.add_argument(
    '--clock',
    choices=tuple(measure.CLOCKS),
    default='wall',
    help='cpu: seconds of processor time, for a busy machine (wall)',
  )
  made.add_argument('--json', metavar='OUT', help='file for the result')
  return made


def positive(text: str) -> int:
  """An int of at least 1."""
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'expected at least 1, got {value}')
  return value


def parse(
  made: argparse.ArgumentParser, argv: list[str] | None
) -> argparse.Namespace:
  """Reads the flags; a mistake ends the program with one message."""
  args = made.parse_args(argv)
  if args.json and not os.path.isdir(os.path.dirname(args.json) or '.'):
    made.error(f'--json: expected a file in an existing folder, got '
               f'{args.json!r}')  # fmt: skip
  return args


def setting(args: argparse.Namespace) -> dict[str, Any]:
  """The flags and the machine, for the result."""
  return {
    **{k: v for k, v in vars(args).items() if k != 'json'},
    'device': jax.devices()[0].device_kind,
    'cores': len(os.sched_getaffinity(0)),
    'machine': platform.machine(),
    'jax': jax.__version__,
  }


def heading(what: str, setting: Mapping[str, Any]) -> str:
  """The first line of a table."""
  letters = {
    'batch': 'B', 'steps': 'T', 'locations': 'N', 'size': 'D', 'hidden': 'H',
    'layers': 'L',
  }  # fmt: skip
  sizes = [
    f'{letter}={setting[name]}'
    for name, letter in letters.items()
    if name in setting
  ]
  return (
    f'{what}{": " if sizes else ""}{" ".join(sizes)}; {setting["device"]}, '
    f'{setting["cores"]} cores; median of {setting["repeats"]}, '
    f'{setting["clock"]} clock'
  )


def columns(
  titles: Sequence[tuple[Any, str]], rows: Iterable[Sequence[Any] | str]
) -> list[str]:
  """The lines of a table: its titles, then its rows.

  Args:
    titles: of each column its title, and the format of what is below it, such
      as '{:9.3f}'; the title is at the left where the format has '<'.
    rows: of each column a value, None for nothing; or a line as it is.

  Returns:
    Lines.

  Example:
    >>> columns([('', '{:<5}'), ('MB', '{:6.1f}')], [('ours', 2), 'the end'])
    ['         MB', 'ours    2.0', 'the end']
  """
  widths = [len(form.format(0)) for _, form in titles]
  head = (
    f'{title:{"<" if "<" in form else ">"}{width}}'
    for (title, form), width in zip(titles, widths)
  )
  lines = [''.join(head)]
  for row in rows:
    cells = (
      ' ' * width if value is None else form.format(value)
      for value, (_, form), width in zip(row, titles, widths)
    )
    lines.append(row if isinstance(row, str) else ''.join(cells))
  return lines


def finish(
  args: argparse.Namespace,
  result: Mapping[str, Any],
  table: Callable[[Mapping[str, Any]], str],
) -> None:
  """Prints the table, and writes --json."""
  print(table(result))
  if args.json:
    with open(args.json, 'w', encoding='utf-8') as file:
      json.dump(result, file, indent=2)
      file.write('\n')
