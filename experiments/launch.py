"""How the trainer is started: its config, its processes, and how it ends."""

import os
import sys
from collections.abc import Callable
from typing import NoReturn

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import config as config_lib
from experiments import distributed, storage
from experiments.errors import HmanError, StoppedRun, StorageError

_COORDINATOR = flags.DEFINE_string(
  'coordinator_address',
  None,
  'Several processes: HOST:PORT of process 0, the same for all. Or '
  'JAX_COORDINATOR_ADDRESS.',
)
_NUM_PROCESSES = flags.DEFINE_integer(
  'num_processes', None, 'How many there are. Or JAX_NUM_PROCESSES.'
)
_PROCESS_ID = flags.DEFINE_integer(
  'process_id', None, 'Which this is, from 0. Or JAX_PROCESS_ID.'
)
_DISTRIBUTED = flags.DEFINE_bool(
  'distributed',
  False,
  'Several processes, as SLURM, Kubernetes, Open MPI or Cloud TPU tell.',
)
_WATCHDOG = flags.DEFINE_float(
  'watchdog_s',
  distributed.WATCHDOG_S,
  'Several processes: seconds without getting on after which all end.',
  lower_bound=1.0,
)
_DEBUG = flags.DEFINE_bool('debug', False, 'Show tracebacks of user errors.')


def join_processes() -> None:
  """Joins the other processes of the run, if it has several.

  Raises:
    ConfigError: if what tells this process its place is incomplete or wrong.
    PeerError: if the others do not come.
  """
  place = distributed.place(
    _COORDINATOR.value,
    _NUM_PROCESSES.value,
    _PROCESS_ID.value,
    _DISTRIBUTED.value,
  )
  distributed.start(place, _WATCHDOG.value)


def config() -> ml_collections.ConfigDict:
  """What the config file returned.

  Raises:
    HmanError: if the file fails, or returns something else.
  """
  try:
    value = flags.FLAGS.config
  except Exception as e:
    raise HmanError(f'--config: {e}') from e
  if not isinstance(value, ml_collections.ConfigDict):
    kind = type(value).__name__
    raise HmanError(f'--config: get_config() returned {kind}, no ConfigDict.')
  return value


def recipe() -> str:
  """The file of the config."""
  return config_flags.get_config_filename(flags.FLAGS['config'])


def _parse(argv: list[str]) -> list[str]:
  """The parser of absl, with our message for a wrong field or value."""
  try:
    return flags.FLAGS(argv)
  except SystemExit as e:
    if any(a.lstrip('-').startswith('help') for a in argv):
      raise
    raise HmanError(f'--config: the file left by exit({e.code}).') from e
  except Exception as e:  # a config is code: whatever it raises is its file's
    raise HmanError(f'command line: {e}') from e


def run(main: Callable[[list[str]], None]) -> None:
  """Runs a program: a user's mistake ends in one message, and no traceback.

  Args:
    main: takes the arguments that are no flags, after the program's name.
  """
  from data.errors import DataError

  try:
    config_lib.check_flags(sys.argv[1:])
    config_flags.DEFINE_config_file(  # reads sys.argv
      'config', None, 'Recipe, a file in configs/.', lock_config=True
    )
    app.run(_quiet(main), flags_parser=_parse)
  except (HmanError, DataError) as e:
    # Flags are not parsed if a flag is the mistake.
    if '--debug' in sys.argv[1:] or (_DEBUG.present and _DEBUG.value):
      raise
    word = 'stopped' if isinstance(e, StoppedRun) else 'error'
    if distributed.count() > 1:
      word += f': process {distributed.index()}'
    _leave(getattr(e, 'exit_code', 2), word, e)
  except OSError as e:
    # As where the screen is a file on the disk that is full.
    if e.errno not in storage.ERRORS or '--debug' in sys.argv[1:]:
      raise
    _leave(StorageError.exit_code, 'error', e)
  except Exception as e:
    if distributed.count() == 1:
      raise
    distributed.lost(e)


def _quiet(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  def run_quietly(argv):
    if not _DEBUG.value:  # Orbax's threads print what it raises as well
      logging.set_verbosity(logging.FATAL)
      sys.unraisablehook = lambda _: None
    main(argv)

  return run_quietly


def _leave(code: int, word: str, error: Exception) -> NoReturn:
  """Tells and ends, also where what it tells goes to a full disk."""
  for stream, text in ((sys.stdout, ''), (sys.stderr, f'{word}: {error}\n')):
    try:
      stream.write(text)
      stream.flush()
    except OSError:
      os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
  distributed.leave(code, str(error))
  sys.exit(code)
