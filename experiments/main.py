"""Train and evaluate: python -m experiments.main --config=configs/NAME.py."""

import datetime
import json
import pathlib
import sys

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import config as config_lib
from experiments.errors import HmanError, WorkdirError

_CONFIG = config_flags.DEFINE_config_file(
  'config', None, 'Recipe, a file in configs/.', lock_config=True
)
_WORKDIR = flags.DEFINE_string(
  'workdir',
  None,
  'Directory of this run; a run that is there is continued. Default: '
  'work_dirs/<config>/<time>.',
)
_DEBUG = flags.DEFINE_bool('debug', False, 'Show tracebacks of user errors.')


def main(argv: list[str]) -> None:
  """Reads the config, prepares data, trains, evaluates, prints the table."""
  logging.set_verbosity(logging.WARNING)  # Orbax tells every detail
  if len(argv) > 1:
    raise HmanError(
      f'{argv[1]!r}: no positional arguments; write flags as --name=value.'
    )
  if _CONFIG.value is None:
    raise HmanError('--config: missing; for example configs/quickstart.py.')
  config = config_lib.resolve(_config())
  workdir = pathlib.Path(_WORKDIR.value or _default_workdir())
  _claim(workdir, config)

  # Imported late: a mistake in a flag is told before JAX starts.
  from experiments import datasets, runtime, train
  from experiments.checkpoint import Checkpoints
  from experiments.reporting import RunLog

  runtime.enable_compilation_cache()
  splits = datasets.load(config)
  _describe(workdir, splits)
  checkpoints = Checkpoints(workdir, config.checkpoint.keep)
  if checkpoints.latest_step() == config.train.num_steps:
    print(f'already complete at step {config.train.num_steps}: {workdir}')
    print((workdir / 'table.txt').read_text(), end='')
    return
  log = RunLog(workdir, config.train.log_every, config.train.log_seconds)
  train.run(config, splits, checkpoints, log)
  text, scores = train.final_evaluation(config, splits, checkpoints, log)
  (workdir / 'metrics.json').write_text(json.dumps(scores, indent=2) + '\n')
  (workdir / 'table.txt').write_text(text + '\n')
  print(f'\n{text}\n\nmetrics: {workdir / "metrics.json"}')
  log.close()
  checkpoints.close()


def _config():
  """What the config file returned; a file that fails is the user's."""
  try:
    config = _CONFIG.value
    config.to_dict()
  except Exception as e:
    raise HmanError(f'--config: {e}') from e
  return config


def _default_workdir() -> str:
  name = pathlib.Path(_config_path()).stem
  now = datetime.datetime.now().strftime('%Y%m%d_%H%M%S')
  return f'work_dirs/{name}/{now}'


def _config_path() -> str:
  return config_flags.get_config_filename(flags.FLAGS['config'])


def _claim(workdir: pathlib.Path, config) -> None:
  """Writes the config to a new workdir, or checks that of a run to go on."""
  path = workdir / 'config.json'
  if path.exists():
    old = json.loads(path.read_text())
    changed = config_lib.differences(old, config.to_dict())
    if changed:
      raise WorkdirError(
        f'{workdir}: holds a run with another config:\n  '
        + '\n  '.join(changed)
        + '\nGive another --workdir, or the old values to continue it.'
      )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    path.write_text(config_lib.to_json(config))
  except OSError as e:
    raise WorkdirError(f'{workdir}: cannot write here: {e.strerror}.') from e
  print(
    f'workdir: {workdir}\nto continue after a stop, the same command with '
    f'--workdir={workdir}',
    flush=True,
  )


def _describe(workdir: pathlib.Path, splits) -> None:
  """Writes what else is needed to use the model: classes and data."""
  names = splits.train.class_names
  (workdir / 'label_map.txt').write_text(''.join(f'{n}\n' for n in names))
  identity = {
    'preprocessing': splits.preprocessing,
    'feature_shape': list(splits.train.feature_shape),
    'train': splits.train.identity,
    'validation': splits.validation.identity,
    'test': splits.test.identity,
  }
  (workdir / 'data.json').write_text(json.dumps(identity, indent=2) + '\n')
  print(
    f'{len(names)} classes; {len(splits.train)} training, '
    f'{len(splits.validation)} validation, {len(splits.test)} test clips',
    flush=True,
  )


def _parse(argv: list[str]) -> list[str]:
  """absl's parser, with our message for a wrong field or value."""
  config_lib.check_flags(argv[1:])
  try:
    return flags.FLAGS(argv)
  except Exception as e:  # a config is code: whatever it raises is its file's
    raise HmanError(f'command line: {e}') from e


def run() -> None:
  """Entry point: a user's mistake ends in one message, and no traceback."""
  from data.errors import DataError

  try:
    app.run(main, flags_parser=_parse)
  except (HmanError, DataError) as e:
    if '--debug' in sys.argv[1:]:
      raise
    print(f'error: {e}', file=sys.stderr)
    sys.exit(getattr(e, 'exit_code', 2))


if __name__ == '__main__':
  run()
