"""Train and evaluate: python -m experiments.main --config=configs/NAME.py."""

import contextlib
import os
import pathlib
import sys
from typing import NoReturn

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import config as config_lib
from experiments import distributed, storage
from experiments.errors import HmanError, StoppedRun, StorageError
from experiments.stopping import Stop

_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Directory of this run; a run that is there is continued. Default: '
  'work_dirs/<config>/<time>.',
)
_ALLOWED = flags.DEFINE_list(
  'allow_config_change',
  [],
  'Fields, as train.learning_rate, in which a continued run may differ.',
)
_REFUSE_DAMAGED = flags.DEFINE_bool(
  'refuse_damaged',
  False,
  'Stop at a damaged checkpoint, where the one before it would be used.',
)
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


def main(argv: list[str]) -> None:
  """Reads the config, prepares data, trains, evaluates, prints the table."""
  if not _DEBUG.value:  # Orbax's threads print what it raises as well
    logging.set_verbosity(logging.FATAL)
    sys.unraisablehook = lambda _: None
  if len(argv) > 1:
    raise HmanError(
      f'{argv[1]!r}: no positional arguments; write flags as --name=value.'
    )
  if not flags.FLAGS['config'].present:
    raise HmanError('--config: missing; for example configs/quickstart.py.')
  config = config_lib.resolve(_config())
  allowed = config_lib.changeable(_ALLOWED.value)

  place = distributed.place(
    _COORDINATOR.value,
    _NUM_PROCESSES.value,
    _PROCESS_ID.value,
    _DISTRIBUTED.value,
  )

  # Imported late: a mistake in a flag is told before JAX starts.
  distributed.start(place, _WATCHDOG.value)
  stop = Stop()
  stop.install()
  from experiments import workdir

  if distributed.count() > 1:
    _check_same_program(config, allowed)
  default = _WORKDIR.value or str(workdir.default(_recipe()))
  directory = pathlib.Path(distributed.from_first(default)).expanduser()
  first = distributed.is_first()
  if first:
    workdir.check(directory, config, allowed)
  table = distributed.from_first(workdir.finished_table(directory))
  if table is None:
    with workdir.owned(directory) if first else contextlib.nullcontext():
      distributed.check_shared(directory / workdir.LOCK)
      _run(config, directory, allowed, stop)
  elif first:
    print(f'already complete at step {config.train.num_steps}: {directory}')
    print(table, end='')
  distributed.finish()


def _check_same_program(config, allowed: list[str]) -> None:
  """Refuses processes with another config, code or flags, before any work."""
  import jax

  fields = config_lib.flatten(config.to_dict())
  for local in ('data.root', 'data.features_dir'):  # disks of a machine
    del fields[local]
  distributed.check_same(
    {
      **{f'config.{name}': value for name, value in fields.items()},
      '--workdir': _WORKDIR.value,
      '--allow_config_change': allowed,
      '--refuse_damaged': _REFUSE_DAMAGED.value,
      'version of jax': jax.__version__,
      'code': distributed.code_digest(),
    }
  )


def _run(config, directory: pathlib.Path, allowed: list[str], stop) -> None:
  """A run in its own directory, from wherever it is to the table."""
  from data.errors import StoppedError
  from experiments import datasets, runtime, sharding, train, workdir
  from experiments.checkpoint import Checkpoints
  from experiments.reporting import RunLog, SilentLog

  runtime.enable_compilation_cache()
  mesh = sharding.make_mesh(config.train)

  def stopping() -> bool:
    distributed.beat('preparing the data', alone=True)
    return stop.requested()

  try:
    splits = distributed.after_first(
      lambda: datasets.load(config, should_stop=stopping), stop.requested
    )
  except StoppedError as e:
    assert stop.signal is not None
    raise StoppedRun(stop.signal, str(e)) from e
  stop.agree()
  fingerprint = workdir.fingerprint(config, splits)
  distributed.check_same(fingerprint)
  first = distributed.is_first()
  if first:
    workdir.claim(directory, config, splits)
    print(
      f'workdir: {directory}\nto continue after a stop, the same command with '
      f'--workdir={directory}\n{len(splits.train.class_names)} classes; '
      f'{len(splits.train)} training, {len(splits.validation)} validation, '
      f'{len(splits.test)} test clips',
      flush=True,
    )
  checkpoints = Checkpoints(
    directory,
    config.checkpoint.keep,
    fingerprint,
    _REFUSE_DAMAGED.value,
    allowed=[f'config.{name}' for name in allowed],
  )
  make_log = RunLog if first else SilentLog
  log = make_log(directory, config.train.log_every, config.train.log_seconds)
  with contextlib.closing(checkpoints), contextlib.closing(log):
    train.run(config, splits, mesh, checkpoints, log, stop)
    text, scores = train.final_evaluation(
      config, splits, mesh, checkpoints, log, stop
    )
  if first:
    path = workdir.finish(directory, scores, text)
    print(f'\n{text}\n\nmetrics: {path}')


def _config():
  """What the config file returned; a file that fails is the user's."""
  try:
    config = flags.FLAGS.config
  except Exception as e:
    raise HmanError(f'--config: {e}') from e
  if not isinstance(config, ml_collections.ConfigDict):
    kind = type(config).__name__
    raise HmanError(f'--config: get_config() returned {kind}, no ConfigDict.')
  return config


def _recipe() -> str:
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


def run() -> None:
  """Entry point: a user's mistake ends in one message, and no traceback."""
  from data.errors import DataError

  try:
    config_lib.check_flags(sys.argv[1:])
    config_flags.DEFINE_config_file(  # reads sys.argv
      'config', None, 'Recipe, a file in configs/.', lock_config=True
    )
    app.run(main, flags_parser=_parse)
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


if __name__ == '__main__':
  run()
