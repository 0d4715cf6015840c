"""The working directory of a run: what it holds, and who may continue it."""

import contextlib
import datetime
import fcntl
import hashlib
import json
import os
import pathlib
import socket
from collections.abc import Collection, Iterator
from typing import Any

import ml_collections

from experiments import config as config_lib
from experiments.datasets import Splits
from experiments.errors import StorageError, WorkdirError

_CONFIG, _DATA, _LABELS = 'config.json', 'data.json', 'label_map.txt'
_METRICS, _TABLE = 'metrics.json', 'table.txt'
_LOCK = '.lock'


def default(recipe: str) -> pathlib.Path:
  """work_dirs/<recipe>/<time>, for a recipe's file name."""
  now = datetime.datetime.now().strftime('%Y%m%d_%H%M%S')
  return pathlib.Path('work_dirs') / pathlib.Path(recipe).stem / now


@contextlib.contextmanager
def owned(workdir: pathlib.Path) -> Iterator[None]:
  """Makes the directory and owns it until the end; the kernel frees it.

  Args:
    workdir: the working directory, made if missing.

  Raises:
    StorageError: naming the owner if there is one; or nothing can be written.
  """
  path = workdir / _LOCK
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = path.open('a+')
  except OSError as e:
    raise StorageError(f'{workdir}: cannot write here: {e.strerror}.') from e
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      file.seek(0)
      raise StorageError(
        f'{workdir}: in use by {file.read().strip() or "another process"}. '
        'Wait for it or stop it, or give another --workdir.'
      ) from e
    now = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
    try:
      file.truncate(0)
      file.write(f'process {os.getpid()} on {socket.gethostname()} since {now}')
      file.flush()
    except OSError as e:
      raise StorageError(f'{path}: cannot write: {e.strerror}.') from e
    yield


def check(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  allowed: Collection[str] = (),
) -> None:
  """Checks that a run found here has this config; writes nothing.

  Args:
    workdir: the working directory; it need not exist.
    config: a resolved config.
    allowed: fields that may differ although they change the run's numbers.

  Raises:
    WorkdirError: naming the fields that differ, or a damaged file.
  """
  old = _read(workdir / _CONFIG)
  if old is None:
    return
  forbidden, harmless = config_lib.differences(old, config.to_dict(), allowed)
  if forbidden:
    raise WorkdirError(
      f'{workdir}: holds a run with another config:\n  '
      + '\n  '.join(f'config.{line}' for line in forbidden)
      + ''.join(f'\n  config.{line} (may differ)' for line in harmless)
      + '\nGive another --workdir, or the old values to continue it; or, '
      'knowing that the run is then no longer one recipe, '
      '--allow_config_change=FIELD,...'
    )
  for line in harmless:
    print(f'continued with config.{line}', flush=True)


def fingerprint(
  config: ml_collections.ConfigDict, splits: Splits
) -> dict[str, Any]:
  """What a run is: a checkpoint of another one is refused.

  Args:
    config: a resolved config.
    splits: the clips.

  Returns:
    Fields of the config that change numbers, the class names, the digest of
    the data's identity.
  """
  fields = config_lib.flatten(config.to_dict())
  identity = _json(_identity(splits)).encode()
  return {
    **{
      f'config.{name}': value
      for name, value in fields.items()
      if name not in config_lib.RESUMABLE
    },
    'class_names': list(splits.train.class_names),
    'data': hashlib.sha256(identity).hexdigest(),
  }


def _identity(splits: Splits) -> dict:
  sources = splits._asdict()
  identity = {
    'preprocessing': sources.pop('preprocessing'),
    'feature_shape': list(splits.train.feature_shape),
    **{name: source.identity for name, source in sources.items()},
  }
  return json.loads(json.dumps(identity))  # tuples as they are read again


def finished_table(workdir: pathlib.Path) -> str | None:
  """The final table of a complete run; None if there is more to do."""
  path = workdir / _TABLE
  return path.read_text() if path.exists() else None


def claim(
  workdir: pathlib.Path, config: ml_collections.ConfigDict, splits: Splits
) -> None:
  """Writes what is needed to use the model: config, classes, data.

  Comes after everything that a user may have to correct, so that a mistake
  leaves no directory that refuses the corrected command.

  Args:
    workdir: the working directory, owned.
    config: a resolved config, checked by `check`.
    splits: the clips.

  Raises:
    WorkdirError: if the run here had other data.
    StorageError: if nothing can be written.
  """
  identity = _identity(splits)
  old = _read(workdir / _DATA)
  if old is not None and old != identity:
    parts = [k for k in identity if old.get(k) != identity[k]]
    raise WorkdirError(
      f'{workdir}: holds a run on other data ({", ".join(parts)} differ from '
      f'{_DATA}). Give another --workdir, or the old data to continue it.'
    )
  labels = ''.join(f'{name}\n' for name in splits.train.class_names)
  _write(workdir / _LABELS, labels)
  _write(workdir / _DATA, _json(identity))
  _write(workdir / _CONFIG, config_lib.to_json(config))


def finish(workdir: pathlib.Path, scores: dict, table: str) -> pathlib.Path:
  """Writes the scores, then the table, whose presence means: complete.

  Args:
    workdir: the working directory.
    scores: `{'test': ..., 'validation': ...}`.
    table: the final table.

  Returns:
    The file of the scores.
  """
  _write(workdir / _METRICS, _json(scores))
  _write(workdir / _TABLE, table + '\n')
  return workdir / _METRICS


def _json(tree: Any) -> str:
  return json.dumps(tree, indent=2) + '\n'


def _read(path: pathlib.Path) -> dict | None:
  if not path.exists():
    return None
  try:
    tree = json.loads(path.read_text())
    if not isinstance(tree, dict):
      raise ValueError('not an object')
    return tree
  except (OSError, ValueError) as e:
    raise WorkdirError(
      f'{path}: damaged ({e}). Put back a copy of it, or give another '
      '--workdir.'
    ) from e


def _write(path: pathlib.Path, text: str) -> None:
  """Moved into place when whole: a kill leaves the old file or the new one."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  try:
    temporary.write_text(text)
    temporary.replace(path)
  except OSError as e:
    raise StorageError(
      f'{path}: cannot write: {e.strerror}. Mend this and run the same command '
      'to go on.'
    ) from e
