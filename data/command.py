"""What `data.check` and `data.describe` share: flags, sides, tables."""

import collections
import io
import pathlib
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from absl import flags, logging
from ml_collections import config_flags

from data import catalogue, clips
from data.clips import Dataset, Finding, Partition
from data.errors import DataError

_PROGRESS_SECONDS = 5.0


class Opened(NamedTuple):
  """A data set, its sides, and what was found on the way.

  Attributes:
    data: the section of the config.
    dataset: as its reader found it.
    parts: training, validation and test clips.
    findings: the reader's, and of the choice of validation clips.
  """

  data: Any
  dataset: Dataset
  parts: Partition
  findings: list[Finding]


def new_flags(config: bool = True, json: bool = True) -> flags.FlagValues:
  """Flags of one program: --config, --json, --help and --debug.

  Args:
    config: whether it has --config.
    json: whether it has --json.

  Returns:
    The flags, to which a program adds its own.
  """
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  if config:
    config_flags.DEFINE_config_file(
      'config',
      None,
      'Recipe, a file in configs/.',
      flag_values=values,
      lock_config=True,
    )
  for name, text in (
    *((('json', 'Print JSON in place of a report.'),) if json else ()),
    ('help', 'Show this.'),
    ('debug', 'Show tracebacks of user errors.'),
  ):
    flags.DEFINE_bool(name, False, text, flag_values=values)
  return values


def open_config(values: flags.FlagValues) -> Opened:
  """Reads the data set that `--config` names.

  Args:
    values: of `new_flags`, parsed.

  Returns:
    `Opened`.

  Raises:
    DataError: if there is no config or no data set.
  """
  if values.config is None:
    raise DataError('--config: missing; for example configs/hmdb51.py.')
  try:
    config = values.config
    data, seed = config.data, config.seed
    if data.name == 'composite_actions':
      raise DataError(
        'config.data.name: composite_actions are generated: no files to look '
        'at. Give a config of videos.'
      )
    if data.name not in catalogue.SCANS:
      hint = clips.nearest(str(data.name), catalogue.SCANS)
      raise DataError(
        f'config.data.name: expected one of {", ".join(catalogue.SCANS)}, got '
        f'{data.name!r}.{hint}'
      )
    dataset = catalogue.scan(data)
    findings = list(dataset.findings)
    missing = sum(f.kind == 'missing' for f in findings)
    if missing <= data.allow_missing:
      findings = [
        f._replace(fatal=f.fatal and f.kind != 'missing') for f in findings
      ]
    try:
      parts = clips.partition(dataset, data.validation_fraction, seed)
    except DataError as e:
      findings.append(Finding('source', str(e), pathlib.Path(data.root)))
      parts = Partition(
        list(dataset.train), list(dataset.validation), list(dataset.test)
      )
  except AttributeError as e:  # a config of one's own
    raise DataError(f'--config: {e}') from e
  return Opened(data, dataset, parts, findings)


def class_counts(opened: Opened) -> dict[str, dict[str, int]]:
  """{class: {side: number of clips}}, in the order of the labels."""
  counts = {
    side: collections.Counter(c.label for c in part)
    for side, part in opened.parts._asdict().items()
  }
  return {
    name: {side: counter[label] for side, counter in counts.items()}
    for label, name in enumerate(opened.dataset.class_names)
  }


def title(opened: Opened) -> str:
  """One line: name, split, numbers."""
  identity = opened.dataset.identity
  split = f', split {identity["split"]}' if 'split' in identity else ''
  return (
    f'{identity["name"]}{split}: {len(opened.dataset.class_names)} classes, '
    f'{sum(map(len, opened.parts))} clips, in {opened.data.root}'
  )


def table(rows: Sequence[Sequence[Any]]) -> str:
  """Rows as aligned text: the first column to the left, others to the right.

  Example:
    >>> print(table([('class', 'train'), ('wave', 70)]))
    class  train
    wave      70
  """
  texts = [[str(cell) for cell in row] for row in rows]
  widths = [max(map(len, column)) for column in zip(*texts)]
  return '\n'.join(
    '  '.join(
      cell.ljust(width) if k == 0 else cell.rjust(width)
      for k, (cell, width) in enumerate(zip(row, widths))
    )
    for row in texts
  )


def class_table(counts: dict[str, dict[str, int]]) -> str:
  """The clips of each class and side."""
  sides = list(Partition._fields)
  totals = [sum(c[s] for c in counts.values()) for s in sides]
  return table(
    [
      ('class', *sides),
      *((name, *(c[s] for s in sides)) for name, c in counts.items()),
      ('all', *totals),
    ]
  )


def frame_counts(lengths: Sequence[int]) -> dict[str, Any]:
  """Smallest, largest, sum, and a histogram of at most 10 bins.

  Args:
    lengths: frames of each clip, at least one.

  Returns:
    {'min', 'max', 'total', 'histogram': [[first, last, clips], ...]}.

  Example:
    >>> frame_counts([3, 4, 30])['histogram'][0]
    [3, 5, 2]
  """
  low, high = min(lengths), max(lengths)
  width = max(-(-(high - low + 1) // 10), 1)
  bins = [
    [start, start + width - 1, 0] for start in range(low, high + 1, width)
  ]
  for length in lengths:
    bins[(length - low) // width][2] += 1
  return {'min': low, 'max': high, 'total': sum(lengths), 'histogram': bins}


def histogram(counts: dict[str, Any]) -> str:
  """The histogram of `frame_counts` as bars."""
  bins = counts['histogram']
  most = max(count for _, _, count in bins)
  rows = [
    (f'{first}-{last}', count, '#' * round(40 * count / most))
    for first, last, count in bins
  ]
  widths = [max(len(str(row[k])) for row in rows) for k in (0, 1)]
  lines = [
    f'  {name:>{widths[0]}}  {count:>{widths[1]}}  {bar}'.rstrip()
    for name, count, bar in rows
  ]
  return '\n'.join(['frames of a clip, number of clips', *lines])


def progress(items: Iterable[Any], total: int, what: str) -> Iterable[Any]:
  """Passes items on, with a line on stderr every few seconds."""
  shown = time.monotonic()
  for done, item in enumerate(items, start=1):
    yield item
    if time.monotonic() - shown > _PROGRESS_SECONDS:
      shown = time.monotonic()
      print(f'{what}: {done}/{total}', file=sys.stderr, flush=True)


def run(
  main: Callable[..., int],
  values: flags.FlagValues,
  doc: str,
  *,
  takes_rest: bool = False,
) -> None:
  """Parses the command line, runs a program, and exits.

  A user's mistake ends in one message, and exit code 2; a full disk in 3.

  Args:
    main: the program; it returns its exit code.
    values: its flags, of `new_flags`.
    doc: what --help says before the flags.
    takes_rest: whether `main` takes the list of what is no flag.
  """
  logging.set_verbosity(logging.WARNING)  # JAX tells which backends it tried
  for stream in (sys.stdout, sys.stderr):  # names of files may be no text
    if isinstance(stream, io.TextIOWrapper):
      stream.reconfigure(errors='backslashreplace')
  try:
    rest = _parse(values)
    if values.help:
      print(f'{doc}\n{values.get_help()}')
      sys.exit(0)
    if rest and not takes_rest:
      raise DataError(
        f'{rest[0]!r}: no positional arguments; write flags as --name=value.'
      )
    code = main(rest) if takes_rest else main()
  except DataError as e:
    if '--debug' in sys.argv[1:]:
      raise
    print(f'error: {e}', file=sys.stderr)
    code = getattr(e, 'exit_code', 2)
  sys.exit(code)


def _parse(values: flags.FlagValues) -> list[str]:
  try:
    return values(sys.argv)[1:]
  except Exception as e:  # a config is code: whatever it raises is its file's
    raise DataError(f'command line: {e}') from e
