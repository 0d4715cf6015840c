"""The working directory of a run: what it holds, and who may continue it."""

import datetime
import json
import os
import pathlib
from typing import Any

import ml_collections

from experiments import config as config_lib
from experiments.datasets import Splits
from experiments.errors import WorkdirError

_CONFIG, _DATA, _LABELS = 'config.json', 'data.json', 'label_map.txt'
_METRICS, _TABLE = 'metrics.json', 'table.txt'


def default(recipe: str) -> pathlib.Path:
  """work_dirs/<recipe>/<time>, for a recipe's file name."""
  now = datetime.datetime.now().strftime('%Y%m%d_%H%M%S')
  return pathlib.Path('work_dirs') / pathlib.Path(recipe).stem / now


def check(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Checks that a run found here has this config; writes nothing.

  Args:
    workdir: the working directory; it need not exist.
    config: a resolved config.

  Raises:
    WorkdirError: naming the fields that differ, or a damaged file.
  """
  old = _read(workdir / _CONFIG)
  changed = config_lib.differences(old, config.to_dict()) if old else []
  if changed:
    raise WorkdirError(
      f'{workdir}: holds a run with another config:\n  '
      + '\n  '.join(changed)
      + '\nGive another --workdir, or the old values to continue it.'
    )


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
    workdir: the working directory, made if missing.
    config: a resolved config, checked by `check`.
    splits: the clips.

  Raises:
    WorkdirError: if the run here had other data, or nothing can be written.
  """
  sources = splits._asdict()
  identity = {
    'preprocessing': sources.pop('preprocessing'),
    'feature_shape': list(splits.train.feature_shape),
    **{name: source.identity for name, source in sources.items()},
  }
  identity = json.loads(json.dumps(identity))  # tuples as they are read again
  old = _read(workdir / _DATA)
  if old is not None and old != identity:
    parts = [k for k in identity if old.get(k) != identity[k]]
    raise WorkdirError(
      f'{workdir}: holds a run on other data ({", ".join(parts)} differ from '
      f'{_DATA}). Give another --workdir, or the old data to continue it.'
    )
  labels = ''.join(f'{name}\n' for name in splits.train.class_names)
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    _write(workdir / _LABELS, labels)
    _write(workdir / _DATA, _json(identity))
    _write(workdir / _CONFIG, config_lib.to_json(config))
  except OSError as e:
    raise WorkdirError(f'{workdir}: cannot write here: {e.strerror}.') from e


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
    return json.loads(path.read_text())
  except (OSError, ValueError) as e:
    raise WorkdirError(
      f'{path}: damaged ({e}). Put back a copy of it, or give another '
      '--workdir.'
    ) from e


def _write(path: pathlib.Path, text: str) -> None:
  """Moved into place when whole: a kill leaves the old file or the new one."""
  temporary = path.with_name(f'.{path.name}.{os.getpid()}.tmp')
  temporary.write_text(text)
  temporary.replace(path)
