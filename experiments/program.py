"""The command line of a program: flags of its own, one message for a mistake.

Each program has its own `FlagValues`, so that several can be imported at once.
"""

import contextlib
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterator

from absl import flags, logging

from data.errors import DataError
from experiments.errors import HmanError


def new_flags() -> flags.FlagValues:
  """Flags of one program, with --help and --debug; in any order with others."""
  values = flags.FlagValues()
  values.set_gnu_getopt(True)
  flags.DEFINE_bool('help', False, 'Show this.', flag_values=values)
  flags.DEFINE_bool(
    'debug', False, 'Show tracebacks of user errors.', flag_values=values
  )
  return values


def define_checkpoint(values: flags.FlagValues) -> None:
  """--checkpoint: which state of a trained run."""
  flags.DEFINE_enum(
    'checkpoint',
    'best',
    ['best', 'latest'],
    'The best on validation, or the latest.',
    flag_values=values,
  )


def define_moved_data(values: flags.FlagValues) -> None:
  """--data_root and --features_dir: where the data of a run are by now."""
  flags.DEFINE_string(
    'data_root', None, 'Where the data are, if moved.', flag_values=values
  )
  flags.DEFINE_string(
    'features_dir', None, 'Store of features, if moved.', flag_values=values
  )


def run(
  main: Callable[[list[str]], int | None], values: flags.FlagValues, doc: str
) -> None:
  """Parses the command line, runs a program, and exits.

  Args:
    main: takes the positional arguments; returns the exit code, None is 0.
    values: its flags, from `new_flags`.
    doc: what --help says before the flags.
  """
  debug = any(a in ('--debug', '-debug') for a in sys.argv[1:])
  logging.set_verbosity(logging.ERROR)  # Orbax tells every detail
  try:
    positional = _parse(values)
    if values.help:
      print(f'{doc}\n{values.get_help()}')
      sys.exit(0)
    code = main(positional)
  except (HmanError, DataError) as e:
    if debug:
      raise
    print(f'error: {e}', file=sys.stderr)
    code = getattr(e, 'exit_code', 2)
  sys.exit(code or 0)


def _parse(values: flags.FlagValues) -> list[str]:
  try:
    return values(sys.argv)[1:]
  except flags.Error as e:
    raise HmanError(f'command line: {e}') from e


def required(values: flags.FlagValues, name: str) -> str:
  """The value of a flag that must be given.

  Raises:
    HmanError: if it was not.
  """
  value = values[name].value
  if value in (None, ''):
    raise HmanError(f'--{name}: missing. --help shows all flags.')
  return value


@contextlib.contextmanager
def staged(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder beside, whose files come into `folder` if all goes well."""
  folder.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(
    prefix=f'.{folder.name}.', dir=folder.parent
  ) as name:
    stage = pathlib.Path(name)
    yield stage
    folder.mkdir(exist_ok=True)
    for file in sorted(stage.iterdir()):
      file.replace(folder / file.name)
