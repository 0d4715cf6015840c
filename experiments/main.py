"""Train and evaluate: python -m experiments.main --config=configs/NAME.py."""

import contextlib
import pathlib

from absl import flags

from experiments import config as config_lib
from experiments import distributed, launch
from experiments.errors import HmanError
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


def main(argv: list[str]) -> None:
  """Reads the config, prepares data, trains, evaluates, prints the table."""
  if len(argv) > 1:
    raise HmanError(
      f'{argv[1]!r}: no positional arguments; write flags as --name=value.'
    )
  if not flags.FLAGS['config'].present:
    raise HmanError('--config: missing; for example configs/quickstart.py.')
  stop = Stop()
  stop.install()
  stop.release()  # until `train.run` has something to save
  config = config_lib.resolve(launch.config())
  allowed = config_lib.changeable(_ALLOWED.value)

  launch.join_processes()
  # Imported late: a mistake in a flag is told before JAX starts.
  from experiments import workdir

  if distributed.count() > 1:
    _check_same_program(config, allowed)
  default = _WORKDIR.value or str(workdir.default(launch.recipe()))
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
  from experiments import datasets, runtime, sharding, train, workdir
  from experiments.checkpoint import Checkpoints
  from experiments.reporting import RunLog, SilentLog

  runtime.enable_compilation_cache()
  mesh = sharding.make_mesh(config.train)

  splits = distributed.after_first(lambda: datasets.load(config))
  fingerprint = workdir.fingerprint(config, splits)
  distributed.check_same(fingerprint)
  first = distributed.is_first()
  if first:
    workdir.claim(directory, config, splits, allowed)
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
    stop.release()
    text, scores = train.final_evaluation(
      config, splits, mesh, checkpoints, log, stop
    )
  if first:
    path = workdir.finish(directory, scores, text)
    print(f'\n{text}\n\nmetrics: {path}')


def run() -> None:
  """Entry point: a user's mistake ends in one message, and no traceback."""
  launch.run(main)


if __name__ == '__main__':
  run()
