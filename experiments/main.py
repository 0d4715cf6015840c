"""Train and evaluate: python -m experiments.main --config=configs/NAME.py."""

import contextlib
import pathlib
import sys

import ml_collections
from absl import app, flags, logging
from ml_collections import config_flags

from experiments import config as config_lib
from experiments.errors import HmanError, StoppedRun

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
_DEBUG = flags.DEFINE_bool('debug', False, 'Show tracebacks of user errors.')


def main(argv: list[str]) -> None:
  """Reads the config, prepares data, trains, evaluates, prints the table."""
  logging.set_verbosity(logging.WARNING)  # Orbax tells every detail
  if len(argv) > 1:
    raise HmanError(
      f'{argv[1]!r}: no positional arguments; write flags as --name=value.'
    )
  if not flags.FLAGS['config'].present:
    raise HmanError('--config: missing; for example configs/quickstart.py.')
  config = config_lib.resolve(_config())
  allowed = config_lib.changeable(_ALLOWED.value)

  # Imported late: a mistake in a flag is told before JAX starts.
  from experiments import workdir
  from experiments.stopping import Stop

  stop = Stop()
  stop.install()
  directory = pathlib.Path(_WORKDIR.value or workdir.default(_recipe()))
  workdir.check(directory, config, allowed)
  table = workdir.finished_table(directory)
  if table is not None:
    print(f'already complete at step {config.train.num_steps}: {directory}')
    print(table, end='')
    return
  with workdir.owned(directory):
    _run(config, directory, allowed, stop)


def _run(config, directory: pathlib.Path, allowed: list[str], stop) -> None:
  """A run in its own directory, from wherever it is to the table."""
  from data.errors import StoppedError
  from experiments import datasets, runtime, train, workdir
  from experiments.checkpoint import Checkpoints
  from experiments.reporting import RunLog

  runtime.enable_compilation_cache()
  mesh = train.data_mesh(config.train)
  try:
    splits = datasets.load(config, should_stop=stop.requested)
  except StoppedError as e:
    assert stop.signal is not None
    raise StoppedRun(stop.signal, str(e)) from e
  stop.check()
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
    workdir.fingerprint(config, splits),
    _REFUSE_DAMAGED.value,
    allowed=[f'config.{name}' for name in allowed],
  )
  log = RunLog(directory, config.train.log_every, config.train.log_seconds)
  with contextlib.closing(checkpoints), contextlib.closing(log):
    train.run(config, splits, mesh, checkpoints, log, stop)
    text, scores = train.final_evaluation(
      config, splits, checkpoints, log, stop
    )
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
    print(f'{word}: {e}', file=sys.stderr)
    sys.exit(getattr(e, 'exit_code', 2))


if __name__ == '__main__':
  run()
