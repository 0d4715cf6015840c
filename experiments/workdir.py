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
from experiments import integrity, storage
from experiments.datasets import Splits
from experiments.errors import StorageError, WorkdirError

_CONFIG, _DATA, _LABELS = 'config.json', 'data.json', 'label_map.txt'
_METRICS, _TABLE = 'metrics.json', 'table.txt'
_LOG = 'metrics.jsonl'
_MANIFEST = 'manifest.json'  # what these files hold, and what was changed
LOCK = '.lock'


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
  path = workdir / LOCK
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    file = path.open('a+b', buffering=0)
  except OSError as e:
    raise StorageError(f'{workdir}: cannot write here: {e.strerror}.') from e
  with file:
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
      file.seek(0)
      owner = file.read().decode(errors='replace') or 'another process'
      raise StorageError(
        f'{workdir}: in use by {owner}. Wait for it or stop it, or give '
        'another --workdir.'
      ) from e
    except OSError as e:
      raise StorageError(
        f'{path}: cannot be locked: {e.strerror}. Give a --workdir on a file '
        'system that has locks (flock).'
      ) from e
    now = datetime.datetime.now().astimezone().isoformat(timespec='seconds')
    text = f'process {os.getpid()} on {socket.gethostname()} since {now}'
    try:
      file.truncate(0)
      file.write(text.encode())
    except OSError as e:
      raise storage.refusal(workdir, str(path), e.strerror, len(text)) from e
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
  old = read_tree(workdir, _CONFIG)
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
    the data's identity, the clips left out of them, the digest of the videos.
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
    'skipped_clips': list(splits.skipped),
    'videos': splits.videos,
  }


def _identity(splits: Splits) -> dict:
  sources = splits._asdict()
  del sources['skipped']  # the sources' identities say it
  del sources['videos']  # runs from before it have none: see fingerprint
  identity = {
    'preprocessing': sources.pop('preprocessing'),
    'feature_shape': list(splits.train.feature_shape),
    **{name: source.identity for name, source in sources.items()},
  }
  return json.loads(json.dumps(identity))  # tuples as they are read again


def finished_table(workdir: pathlib.Path) -> str | None:
  """The final table of a complete run; None if there is more to do."""
  return read(workdir, _TABLE)


def changes(workdir: pathlib.Path) -> dict[str, list]:
  """Values, by part of the fingerprint, before a change that was allowed.

  Raises:
    WorkdirError: if the file that says so is damaged.
  """
  return _manifest(workdir)['changes']


def claim(
  workdir: pathlib.Path,
  config: ml_collections.ConfigDict,
  splits: Splits,
  allowed: Collection[str] = (),
) -> None:
  """Writes what is needed to use the model: config, classes, data.

  Comes after everything that a user may have to correct, so that a mistake
  leaves no directory that refuses the corrected command.

  Args:
    workdir: the working directory, owned.
    config: a resolved config, checked by `check`.
    splits: the clips.
    allowed: see `check`; what such a field was is remembered.

  Raises:
    WorkdirError: if the run here had other data.
    StorageError: if nothing can be written.
  """
  identity = _identity(splits)
  old = read_tree(workdir, _DATA)
  if old is not None and old != identity:
    parts = [k for k in identity if old.get(k) != identity[k]]
    raise WorkdirError(
      f'{workdir}: holds a run on other data ({", ".join(parts)} differ from '
      f'{_DATA}). Give another --workdir, or the old data to continue it.'
    )
  changed = changes(workdir)
  fields = config_lib.flatten(config.to_dict())
  old = config_lib.flatten(read_tree(workdir, _CONFIG) or fields)
  for name in allowed:
    was = old.get(name, config_lib.ADDED.get(name))
    known = changed.get(f'config.{name}', [])
    if was != fields[name] and was not in known:
      changed[f'config.{name}'] = [*known, was]
  texts = {
    _LABELS: ''.join(f'{name}\n' for name in splits.train.class_names),
    _DATA: _json(identity),
    _CONFIG: config_lib.to_json(config),
  }
  _write(workdir, texts, changed)


def finish(workdir: pathlib.Path, scores: dict, table: str) -> pathlib.Path:
  """Writes the scores, then the table, whose presence means: complete.

  From then on the log is proved as well.

  Args:
    workdir: the working directory.
    scores: `{'test': ..., 'validation': ...}`.
    table: the final table.

  Returns:
    The file of the scores.
  """
  texts = {_METRICS: _json(scores), _TABLE: table + '\n'}
  _write(workdir, texts, changes(workdir), _bytes(workdir / _LOG))
  return workdir / _METRICS


def _json(tree: Any) -> str:
  return json.dumps(tree, indent=2) + '\n'


def read_tree(workdir: pathlib.Path, name: str) -> dict | None:
  """The object that a JSON file of a run holds; as `read`."""
  text = read(workdir, name)
  if text is None:
    return None
  try:
    tree = json.loads(text)
    if not isinstance(tree, dict):
      raise ValueError('not an object')
    return tree
  except ValueError as e:
    raise _damaged(workdir / name, str(e)) from e


def read(workdir: pathlib.Path, name: str) -> str | None:
  """The content of a file of a run; None if there is none.

  Args:
    workdir: the working directory.
    name: such as 'config.json'.

  Raises:
    WorkdirError: if it is not as it was written; older runs do not say how
      that was.
    StorageError: if it cannot be read.
  """
  raw = _bytes(workdir / name)
  if raw is None:
    return None
  # After the file: it may be written meanwhile, after the manifest.
  digests = _manifest(workdir)['files'].get(name)
  if digests and _digest(raw) not in digests:
    raise _damaged(workdir / name, 'it is not as it was written')
  try:
    return raw.decode()
  except UnicodeDecodeError as e:
    raise _damaged(workdir / name, str(e)) from e


def _damaged(path: pathlib.Path, why: str) -> WorkdirError:
  return WorkdirError(
    f'{path}: damaged ({why}). Put back a copy of it, or give another '
    f'--workdir; if you wrote it yourself, delete {_MANIFEST} beside it.'
  )


def _bytes(path: pathlib.Path) -> bytes | None:
  try:
    return path.read_bytes()
  except (FileNotFoundError, NotADirectoryError):
    return None
  except OSError as e:
    raise StorageError(f'{path}: cannot read: {e.strerror}.') from e


def _digest(raw: bytes) -> str:
  return hashlib.sha256(raw).hexdigest()


def _manifest(workdir: pathlib.Path) -> dict[str, dict[str, list]]:
  """SHA-256s that each file may have, and what was changed."""
  path = workdir / _MANIFEST
  raw = _bytes(path)
  if raw is None:
    return {'files': {}, 'changes': {}}
  try:
    tree = json.loads(raw)
  except ValueError:
    tree = None
  if not integrity.is_sealed(tree):
    raise WorkdirError(
      f'{path}: damaged. Put back a copy of it; or delete it, and config.json '
      'and the other files beside it are taken as they are.'
    )
  return tree


def _write(
  workdir: pathlib.Path,
  texts: dict[str, str],
  changed: dict[str, list],
  log: bytes | None = None,
) -> None:
  """Writes files in turn, after what says that they may hold this.

  A kill leaves each as it was or as it shall be: both are in the manifest.
  The log, to which a run adds, is there only when that has ended.
  """
  files = dict(_manifest(workdir)['files'])
  files[_LOG] = [] if log is None else [_digest(log)]
  for name, text in texts.items():
    raw = _bytes(workdir / name)
    was = [] if raw is None else [_digest(raw)]
    known = files.get(name, was)
    kept = [digest for digest in was if digest in known]
    files[name] = list(dict.fromkeys([*kept, _digest(text.encode())]))
  manifest = integrity.sealed({'files': files, 'changes': changed})
  for name, text in {_MANIFEST: _json(manifest), **texts}.items():
    try:
      storage.write_whole(workdir / name, text)
    except OSError as e:
      path = str(workdir / name)
      raise storage.refusal(workdir, path, e.strerror, len(text)) from e
