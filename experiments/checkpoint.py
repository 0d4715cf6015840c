"""Checkpoints: the latest few, and the best on validation (Orbax, isolated).

Each holds the state, a record that proves its arrays (`integrity`), and last
of all a list of its files with their checksums: without that list a save was
not finished. A state that is not finite is never saved; an older one is deleted
only after the new one was read back and found whole.
"""

import json
import os
import pathlib
import re
import shutil
from collections.abc import Collection, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from experiments import config as config_lib
from experiments import distributed, integrity, storage
from experiments import workdir as workdir_lib
from experiments.errors import CheckpointError, NonFiniteError, StorageError
from hman_jax import __version__

FORMAT = 1
# Of fingerprints, since 0.1.0 was first used: what it meant not to have it.
_ADDED = {
  'skipped_clips': [],
  **{f'config.{name}': value for name, value in config_lib.ADDED.items()},
}
_ROOM = 2.2  # free space asked for, in sizes of the state: it is kept twice


class Checkpoints:
  """Saves and restores training states below a working directory.

  `checkpoints/` holds the latest `keep` states, `best/` the one with the
  highest score on validation; of equal scores the later one. A damaged state
  is moved to `damaged/`, with a line that says so; so is one that was not
  finished, when it is opened.

  Attributes:
    workdir: the working directory.

  Args:
    workdir: the working directory.
    keep: how many of the latest states to keep.
    fingerprint: what the run is; a state in which a part of it was another is
      refused, but for what it was before a change that was allowed
      (`workdir.changes`). None: any run's.
    refuse_damaged: raise at a damaged state, where the one before it would do.
    read_only: for programs beside the one that trains: nothing is written,
      moved or cleaned, and a damaged state is refused.
    allowed: parts of the fingerprint that may have been another.
  """

  def __init__(
    self,
    workdir: pathlib.Path,
    keep: int,
    fingerprint: Mapping[str, Any] | None = None,
    refuse_damaged: bool = False,
    read_only: bool = False,
    allowed: Collection[str] = (),
  ):
    self.workdir = workdir
    self._keep = keep
    self._fingerprint = fingerprint
    self._expected = {
      name: value
      for name, value in (fingerprint or {}).items()
      if name not in allowed
    }
    self._earlier = distributed.from_first(
      workdir_lib.changes(workdir) if distributed.is_first() else None
    )
    # Now: the files may change while this program runs.
    self._code = distributed.code_digest()
    self._read_only = read_only
    self._refuse_damaged = refuse_damaged or read_only
    self._latest = _Directory(workdir / 'checkpoints', read_only)
    self._best = _Directory(workdir / 'best', read_only)
    if not read_only:
      self._set_aside_unfinished(self._latest)
      self._set_aside_unfinished(self._best)

  def save(self, step: int, state: Any) -> None:
    """Saves the latest state.

    Raises:
      NonFiniteError: if a number of the state is not finite.
      StorageError: if it cannot be written; older states are as they were.
    """
    if step not in self._latest.steps():
      self._latest.save(step, state, self._proof())
    for old in self._latest.steps()[: -self._keep]:
      self._latest.delete(old)

  def save_best(self, step: int, state: Any, score: float) -> None:
    """Saves the state if its score is the highest so far; raises as `save`."""
    best = self.best_score()
    if best is None or (score >= best[1] and step > best[0]):
      self._best.save(step, state, {**self._proof(), 'score': score})
    for old in self._best.steps()[:-1]:
      self._best.delete(old)

  def best_score(self) -> tuple[int, float] | None:
    """(step, score) of the best state, or None.

    Raises:
      CheckpointError: if its record is damaged, or of another run.
    """
    if not self._best.steps():
      return None
    step = self._best.steps()[-1]
    try:
      record = self._best.record(step)
      self._best.check(step, record, self._expected, self._earlier)
      return step, record['fingerprint']['score']
    except (_DamagedError, KeyError) as e:
      raise self._best_damaged(step, str(e)) from e

  def latest_step(self) -> int | None:
    """The step of the latest state, or None."""
    steps = self._latest.steps()
    return steps[-1] if steps else None

  def restore_latest(self, like: Any) -> Any | None:
    """The latest whole state, or None if none was ever saved.

    Args:
      like: a state of the model: shapes, types and where to put the arrays.

    Returns:
      The state.

    Raises:
      CheckpointError: if a state is of another model or another run, or no
        state is whole.
    """
    damaged = []
    while steps := self._latest.steps():
      step = steps[-1]
      try:
        state = self._latest.restore(step, like, self._expected, self._earlier)
        written = self._latest.record(step)['fingerprint']
      except _DamagedError as e:
        path = self._latest.path / str(step)
        what = f'{path}: the checkpoint of step {step} is damaged ({e})'
        if self._refuse_damaged:
          raise CheckpointError(
            f'{what}. The program that trains uses the one before it, unless '
            'told --refuse_damaged.'
          ) from e
        aside = self._set_aside(path)
        self._latest.reload()
        if distributed.is_first():
          print(f'WARNING: {what}; set aside as {aside}', flush=True)
        damaged.append(step)
        continue
      if damaged and distributed.is_first():
        print(f'WARNING: going on from step {step}', flush=True)
      if self._fingerprint and distributed.is_first():
        for name, value in self._made_by().items():
          if written.get(name, value) != value:
            print(
              f'WARNING: step {step} was made by other {name}: was '
              f'{written[name]:.12}, is {value:.12}; its numbers may differ',
              flush=True,
            )
      return state
    if damaged:
      raise CheckpointError(
        f'{self._latest.path}: no checkpoint is whole; damaged: steps '
        f'{damaged[::-1]}, now in {self.workdir / "damaged"}. Put back copies '
        'of them, or start again with another --workdir.'
      )
    return None

  def restore_best(self, like: Any) -> Any | None:
    """The best state on validation, or None; as `restore_latest`."""
    if not self._best.steps():
      return None
    step = self._best.steps()[-1]
    try:
      return self._best.restore(step, like, self._expected, self._earlier)
    except _DamagedError as e:
      raise self._best_damaged(step, str(e)) from e

  def videos(self, best: bool) -> str:
    """Digest of the videos that the best or latest state was trained on.

    Empty if there are none, or the state is older than such digests.
    """
    directory = self._best if best else self._latest
    record = directory.record(directory.steps()[-1])
    return record['fingerprint'].get('videos', '')

  def close(self) -> None:
    """Waits for what is being written."""
    self._latest.close()
    self._best.close()

  def _made_by(self) -> dict[str, str]:
    """What may change between two starts of a run; told, not refused."""
    return {'code': self._code, 'jax': jax.__version__}

  def _proof(self) -> dict[str, Any]:
    return {**(self._fingerprint or {}), **self._made_by()}

  def _best_damaged(self, step: int, why: str) -> CheckpointError:
    path = self._best.path / str(step)
    return CheckpointError(
      f'{path}: the best state is damaged ({why}). Put back a copy of it, or '
      'delete it: the best of the evaluations still to come, else the last '
      'state, then takes its place.'
    )

  def _set_aside_unfinished(self, directory: '_Directory') -> None:
    """What a kill left of a save: whatever it was made of comes again."""
    unfinished = [s for s in directory.steps() if not directory.is_finished(s)]
    for step in distributed.from_first(unfinished):
      path = directory.path / str(step)
      aside = self._set_aside(path)
      if distributed.is_first():
        print(
          f'WARNING: {path}: its save was not finished; set aside as {aside}',
          flush=True,
        )
    directory.reload()

  def _set_aside(self, path: pathlib.Path) -> pathlib.Path:
    """Process 0 moves a damaged state away; all call it."""
    aside = self._move_aside(path) if distributed.is_first() else ''
    return pathlib.Path(distributed.from_first(str(aside)))

  def _move_aside(self, path: pathlib.Path) -> pathlib.Path:
    folder = self.workdir / 'damaged'
    number = 0
    name = f'{path.parent.name}_{path.name}'
    while (aside := folder / f'{name}_{number}').exists():
      number += 1
    try:
      folder.mkdir(exist_ok=True)
      path.rename(aside)
    except OSError as e:
      raise StorageError(
        f'{path}: damaged, and cannot be moved to {aside}: {e.strerror}.'
      ) from e
    return aside


def version_of(workdir: pathlib.Path) -> str:
  """The hman_jax that saved a run's checkpoints, or 'of unknown version'."""
  for path in workdir.glob('*/*/integrity/metadata'):
    try:
      return str(json.loads(path.read_text())['version'])
    except (OSError, ValueError, KeyError, TypeError):
      continue
  return 'of unknown version'


class _DamagedError(Exception):
  """A state is not what was saved; the message says how."""


class _Directory:
  """States by step in one directory."""

  def __init__(self, path: pathlib.Path, read_only: bool):
    self.path = path
    self._read_only = read_only
    options = ocp.CheckpointManagerOptions(
      enable_async_checkpointing=False,
      cleanup_tmp_directories=not read_only,
      create=not read_only,
      read_only=read_only,
    )
    try:
      self._manager = ocp.CheckpointManager(path.absolute(), options=options)
    except OSError as e:
      raise StorageError(f'{path}: {e.strerror or e}.') from e

  def steps(self) -> list[int]:
    """Steps of the states, ascending; who only reads sees finished ones.

    All processes call it and get what process 0 sees: a shared disk may show
    another of them less, which would then go on from another step.
    """
    found = [
      step
      for step in sorted(self._manager.all_steps())
      if not self._read_only or self.is_finished(step)
    ]
    return distributed.from_first(found)

  def is_finished(self, step: int) -> bool:
    """Whether all of a state was written; it may be damaged since."""
    try:
      return integrity.is_finished(self.path / str(step))
    except OSError as e:
      raise self._unreadable(step, e) from e

  def reload(self) -> None:
    """Looks at the disk again."""
    self._manager.reload()

  def save(self, step: int, state: Any, fingerprint: Mapping) -> None:
    """Writes a state, and reads it back."""
    arrays = integrity.arrays_of(state)
    for name, x in arrays.items():
      if not np.isfinite(_as_number(x)).all():
        raise NonFiniteError(
          f'the state of step {step} is not finite in {name}; it is not saved.'
        )
    needed = sum(x.nbytes for x in arrays.values())
    record = integrity.make(step, state, {'format': FORMAT, **fingerprint})
    try:
      free = shutil.disk_usage(self.path).free
      if free < _ROOM * needed:
        raise OSError('too little space is free')
      if distributed.is_first():  # the others wait for it in a collective
        distributed.beat(f'writing step {step}', alone=True)
      self._manager.save(
        step,
        args=ocp.args.Composite(
          state=ocp.args.StandardSave(state),
          integrity=ocp.args.JsonSave(record),
        ),
        force=True,
      )
      self._manager.wait_until_finished()
      distributed.beat(alone=True)
      if distributed.is_first():
        integrity.write_manifest(self.path / str(step))
      distributed.wait()
      self.restore(step, state, {})
    except Exception as e:  # Orbax and TensorStore raise what they like
      if distributed.is_connection(e):  # not the disk
        raise
      if distributed.is_first():
        integrity.drop_manifest(self.path / str(step))
      raise storage.refusal(
        self.path.parent,
        f'{self.path}: the checkpoint of step {step}',
        _first_line(e),
        round(_ROOM * needed),
        leave_out=step,
      ) from e

  def restore(
    self,
    step: int,
    like: Any,
    fingerprint: Mapping,
    earlier: Mapping[str, list] | None = None,
  ) -> Any:
    """Reads a state and proves it."""
    record = self.record(step)
    shapes = integrity.shape_differences(like, record)
    self.check(step, record, fingerprint, earlier, shapes)
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    try:
      args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
      state = self._manager.restore(step, args=args).state
    except Exception as e:
      if distributed.is_connection(e):
        raise
      raise self._unreadable(step, e) from e
    found = distributed.exchange(integrity.damaged_arrays(state, record))
    wrong = sorted(set().union(*found))
    if wrong:
      more = f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''
      raise _DamagedError(f'wrong checksum: {", ".join(wrong[:3])}{more}')
    return state

  def record(self, step: int) -> integrity.Record:
    """The record of a state; damaged unless sealed and of this step."""
    # Orbax never sees a file that is not as it was written.
    path = self.path / str(step)
    distributed.beat(f'reading {path}', alone=True)
    try:
      wrong = integrity.damaged_files(path) if distributed.is_first() else ''
    except OSError as e:
      raise self._unreadable(step, e) from e
    wrong = distributed.from_first(wrong)
    if wrong:
      raise _DamagedError(wrong)
    args = ocp.args.Composite(integrity=ocp.args.JsonRestore())
    try:
      record = self._manager.restore(step, args=args).integrity
    except Exception as e:
      if distributed.is_connection(e):
        raise
      raise self._unreadable(step, e) from e
    if not integrity.is_sealed(record) or record['step'] != step:
      raise _DamagedError('its record is not as it was written')
    return record

  def check(
    self,
    step: int,
    record: integrity.Record,
    fingerprint: Mapping,
    earlier: Mapping[str, list] | None,
    differences: Collection[str] = (),
  ) -> None:
    """Refuses a state of another format, run or, by `differences`, model."""
    written = record['fingerprint']
    if written['format'] != FORMAT:
      raise CheckpointError(
        f'{self.path / str(step)}: checkpoint of format {written["format"]} '
        f'(hman_jax {record["version"]}); this version reads {FORMAT} '
        f'(hman_jax {__version__}).'
      )
    lines = integrity.fingerprint_differences(
      # A state from before there was a digest of the videos is of any.
      {**_ADDED, 'videos': fingerprint.get('videos'), **written},
      fingerprint,
      earlier,
    )
    lines += differences
    if lines:
      raise CheckpointError(
        f'{self.path / str(step)}: a checkpoint of another run or model (by '
        f'hman_jax {record["version"]}; this is {__version__}):\n  '
        + '\n  '.join(lines)
        + '\nGive another --workdir, or the old values to continue it; or '
        '--allow_config_change=FIELD,... for fields of the config.'
      )

  def _unreadable(self, step: int, error: Exception) -> StorageError:
    """Nothing shows damage: memory, rights or another process are at fault.

    It is not set aside, and one process that cannot read it ends alone: the
    others are told by the watchdog.
    """
    return StorageError(
      f'{self.path / str(step)}: the checkpoint of step {step} cannot be read '
      f'({_first_line(error)}). It is left as it is: see to memory, rights, '
      'open files and the disk, and run the same command again.'
    )

  def delete(self, step: int) -> None:
    """Deletes a state."""
    try:
      self._manager.delete(step)
    except OSError as e:
      raise StorageError(f'{self.path / str(step)}: {e.strerror}.') from e

  def close(self) -> None:
    """Waits for what is being written."""
    self._manager.close()


def _as_number(x: np.ndarray) -> np.ndarray:
  """What numpy can test for being finite: bfloat16 as float32."""
  if x.dtype.kind in 'biuf':
    return x
  return x.astype(np.float32)


def _first_line(error: Exception) -> str:
  text = str(error).strip() or type(error).__name__
  line = text.splitlines()[0]
  # TensorStore tells the system's reason last, after long paths.
  if code := re.search(r"os_error_code='(\d+)'", text):
    line = f'{os.strerror(int(code[1]))}: {line}'
  return line if len(line) <= 200 else f'{line[:200]}...'
