"""Files of a run: written whole or not at all, and on the disk for good."""

import errno
import os
import pathlib
import shutil

from experiments.errors import StorageError

# The disk, not the program, is at fault.
ERRORS = (
  errno.ENOSPC,
  errno.EDQUOT,
  errno.EFBIG,
  errno.EIO,
  errno.EROFS,
)
_MANIFEST = 'manifest.json'  # of a finished checkpoint, see integrity.py


def write_whole(path: pathlib.Path, text: str) -> None:
  """Moves a file into place when the disk holds all of it.

  A kill or a power cut leaves the old file or the new one.

  Args:
    path: the file.
    text: its content.

  Raises:
    OSError: if it cannot be written; the old file is as it was.
  """
  temporary = path.with_name(f'.{path.name}.tmp')
  with temporary.open('w', encoding='utf-8') as file:
    file.write(text)
  sync(temporary)
  temporary.replace(path)
  sync(path.parent)


def append(path: pathlib.Path, text: str) -> None:
  """Adds to the end of a file; the disk then holds it.

  Args:
    path: the file, made if missing.
    text: what is added.

  Raises:
    OSError: if it cannot be written; some of it may be there.
  """
  with path.open('a', encoding='utf-8') as file:
    file.write(text)
  sync(path)


def sync(path: pathlib.Path) -> None:
  """Waits until the disk holds a file or the names in a directory."""
  descriptor = os.open(path, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)


def refusal(
  workdir: pathlib.Path,
  what: str,
  why: object,
  needed: int,
  *,
  leave_out: int | None = None,
) -> StorageError:
  """The error that says what is needed, what is free, and what is safe.

  Args:
    workdir: of the run.
    what: what could not be written.
    why: the system's reason.
    needed: bytes.
    leave_out: a step that is not good although its files are there.

  Returns:
    The error, to be raised.
  """
  steps = [
    int(path.parent.name)
    for path in (workdir / 'checkpoints').glob(f'*/{_MANIFEST}')
    if path.parent.name.isdigit() and int(path.parent.name) != leave_out
  ]
  try:
    free = f'{shutil.disk_usage(workdir).free / 1e6:.1f} MB are free'
  except OSError:
    free = 'free space unknown'
  return StorageError(
    f'{what} cannot be written ({why}). It needs {needed / 1e6:.1f} MB; '
    f'{free} in {workdir}. Last good step: {max(steps, default="none")}. '
    'Mend this and run the same command to go on from there.'
  )
