"""Unpacks archives of strangers: zip, tar (gz, bz2, xz) and rar.

Only plain files and folders come out, only below one new folder, and all or
nothing: members are written into a folder beside, which is moved into place
when every one was read and found whole. Whatever else an archive holds (links,
devices, paths that lead outside, names that some disks take for one) makes it
refused, not mended.
"""

import bz2
import contextlib
import fcntl
import functools
import gzip
import lzma
import os
import pathlib
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

from data.errors import DataError

MAX_BYTES = 2**40  # of all that is unpacked
MAX_MEMBERS = 2_000_000
MAX_RATIO = 100  # bytes out for a byte in; videos give about one
_FREE_BYTES = 2**20  # that the ratio does not count
_MAX_NAME = 255  # bytes of a name, of most disks
_MAX_DEPTH = 32
_CHUNK = 2**20
_RAR = b'Rar!\x1a\x07'  # of 4 and of 5
_COMPRESSED: dict[bytes, Callable[..., Any]] = {
  b'\x1f\x8b': gzip.open,
  b'BZh': bz2.open,
  b'\xfd7zXZ\0': lzma.open,
}


class Member(NamedTuple):
  """One entry of an archive.

  Attributes:
    name: as the archive has it.
    kind: 'file', 'folder', or in words what else it is.
    size: bytes, as declared.
    open: gives a file of its bytes.
  """

  name: str
  kind: str
  size: int
  open: Callable[[], Any]


class Total(NamedTuple):
  """What was unpacked."""

  num_files: int
  num_bytes: int


def unpack(
  archives: Sequence[pathlib.Path],
  folder: pathlib.Path,
  *,
  max_bytes: int = MAX_BYTES,
) -> Total:
  """Unpacks archives into one new folder, all or nothing.

  Args:
    archives: files; their kind is that of their first bytes.
    folder: made; it must not exist, or be empty.
    max_bytes: limit of all files together.

  Returns:
    The number of files and bytes.

  Raises:
    DataError: naming the archive and member, if one cannot be read or is
      damaged, needs a password, holds what is no file or folder, a path that
      leads outside or is none everywhere, two members of one name (or that
      differ in case alone), or is larger than the limits; if `folder` is there,
      cannot be written, or another run unpacks into it. Nothing is left then.
  """
  folder = pathlib.Path(folder)
  _check_target(folder)
  with _new_folder(folder) as new:
    names: dict[str, tuple[str, bool]] = {}
    done = Total(0, 0)
    for archive in archives:
      done = _unpack(pathlib.Path(archive), new, names, done, max_bytes)
    if not done.num_files:
      raise DataError(f'{", ".join(map(str, archives))}: no files inside.')
    _check_target(folder)  # again: hours may have gone by
    with _writing(folder):
      os.replace(new, folder)
  return done


def _check_target(folder: pathlib.Path) -> None:
  try:
    is_free = not os.listdir(folder)
  except FileNotFoundError:
    is_free = True
  except OSError as e:
    raise DataError(f'{folder}: cannot unpack here: {e.strerror}.') from e
  if not is_free or folder.is_symlink():
    raise DataError(
      f'{folder}: there is something already. Give a new folder by --to; '
      'several archives unpack into one folder in one command.'
    )


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
  try:
    yield
  except OSError as e:
    raise DataError(f'{path}: cannot write: {e.strerror or e}.') from e


@contextlib.contextmanager
def _new_folder(folder: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder beside, of this run alone; what a killed run left there goes."""
  new = folder.absolute().with_name(f'{folder.absolute().name}.unpacking')
  with _writing(new):
    new.parent.mkdir(parents=True, exist_ok=True)
    if new.is_symlink() or (new.exists() and not new.is_dir()):
      raise DataError(f'{new}: in the way of unpacking. Remove it.')
    new.mkdir(exist_ok=True)
    lock = os.open(new, os.O_RDONLY)
  try:
    try:
      fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      raise DataError(f'{new}: another run unpacks into it.') from e
    try:
      with _writing(new):
        for entry in os.scandir(new):
          if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
          else:
            os.unlink(entry)
      yield new
    finally:
      shutil.rmtree(new, ignore_errors=True)  # gone already when all went well
  finally:
    os.close(lock)


def _unpack(
  archive: pathlib.Path,
  new: pathlib.Path,
  names: dict[str, tuple[str, bool]],
  done: Total,
  max_bytes: int,
) -> Total:
  """Adds one archive; `names` are those so far, as some disks compare them."""
  num_files = num_bytes = 0
  try:
    limit = min(
      max_bytes - done.num_bytes,
      MAX_RATIO * archive.stat().st_size + _FREE_BYTES,
    )
    with _open(archive) as members:
      for member in members:
        where = f'{archive}: {member.name!r}'
        parts = _checked(where, member, names)
        if num_bytes + member.size > limit or len(names) > MAX_MEMBERS:
          raise DataError(
            f'{where}: too large: more than {limit} bytes come out of it, '
            f'which is {MAX_RATIO} times its own size or what is allowed, or '
            f'more than {MAX_MEMBERS} members.'
          )
        path = new.joinpath(*parts)
        is_file = member.kind == 'file'
        with _writing(path):
          (path.parent if is_file else path).mkdir(parents=True, exist_ok=True)
        if is_file:
          _copy(where, member, path)
          num_files += 1
          num_bytes += member.size
  except DataError:
    raise
  except (OSError, EOFError, ValueError, KeyError, NotImplementedError,
          RuntimeError, struct.error, tarfile.TarError, zipfile.BadZipFile,
          zlib.error, lzma.LZMAError) as e:  # fmt: skip
    reason = getattr(e, 'strerror', None) or str(e) or type(e).__name__
    raise DataError(
      f'{archive}: cannot read, or damaged: {reason}. Get it again.'
    ) from e
  return Total(done.num_files + num_files, done.num_bytes + num_bytes)


def _checked(
  where: str, member: Member, names: dict[str, tuple[str, bool]]
) -> list[str]:
  """The parts of a member's path, which is entered in `names`."""
  if member.kind not in ('file', 'folder'):
    raise DataError(
      f'{where}: {member.kind}; expected plain files and folders.'
    )
  name = member.name
  parts = [p for p in name.split('/') if p not in ('', '.')]
  if (
    name.startswith('/')
    or name[1:2] == ':'
    or '\\' in name
    or '..' in parts
    or any(unicodedata.category(c) == 'Cc' for c in name)
    or any(len(os.fsencode(p)) > _MAX_NAME for p in parts)
    or len(parts) > _MAX_DEPTH
    or (not parts and member.kind == 'file')
  ):
    raise DataError(
      f'{where}: expected a path below the folder: not from the root or a '
      "drive, without '..', backslash and control characters, of at most "
      f'{_MAX_DEPTH} names of {_MAX_NAME} bytes.'
    )
  if member.size < 0:
    raise DataError(f'{where}: damaged: its size is {member.size}.')
  for depth in range(1, len(parts) + 1):
    path = '/'.join(parts[:depth])
    is_file = depth == len(parts) and member.kind == 'file'
    key = unicodedata.normalize('NFC', path).casefold()
    before = names.get(key)
    if before is None:
      names[key] = (path, is_file)
    elif is_file or before != (path, False):
      raise DataError(
        f'{where}: its path is on some disks that of {before[0]!r}, which '
        'came before it.'
      )
  return parts


def _copy(where: str, member: Member, path: pathlib.Path) -> None:
  size = 0
  with member.open() as source:
    with _writing(path):
      target = open(path, 'xb')  # noqa: SIM115
    with target:
      while chunk := source.read(_CHUNK):
        size += len(chunk)
        if size > member.size:
          break
        with _writing(path):
          target.write(chunk)
  if size != member.size:
    raise DataError(
      f'{where}: damaged: {member.size} bytes declared, '
      f'{"more" if size > member.size else size} found. Get it again.'
    )


@contextlib.contextmanager
def _open(archive: pathlib.Path) -> Iterator[Iterator[Member]]:
  """The members of an archive of any kind, in order."""
  with open(archive, 'rb') as file:
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
      raise DataError(f'{archive}: expected a plain file.')
    head = file.read(6)
    file.seek(0)
    if head == _RAR:
      opened = _open_rar(archive)
    elif head[:4] in (b'PK\3\4', b'PK\5\6'):
      opened = _open_zip(file)
    else:
      opened = _open_tar(archive, file, head)
    with opened as members:
      yield members


@contextlib.contextmanager
def _open_zip(file: BinaryIO) -> Iterator[Iterator[Member]]:
  with zipfile.ZipFile(file) as archive:
    yield (
      Member(
        info.orig_filename,  # not cut at a zero byte
        _zip_kind(info),
        info.file_size,
        functools.partial(archive.open, info),
      )
      for info in archive.infolist()
    )


def _zip_kind(info: zipfile.ZipInfo) -> str:
  kind = 'folder' if info.is_dir() else 'file'
  form = stat.S_IFMT(info.external_attr >> 16)  # 0 where it was not on Unix
  if form not in (0, stat.S_IFDIR if kind == 'folder' else stat.S_IFREG):
    return 'a link or a special file'
  return 'needs a password' if info.flag_bits & 1 else kind


class _Stream:
  """The bytes of a tar file, read in small parts only.

  tarfile would read a header of any declared length into memory.

  Attributes:
    last: what was read last.
  """

  def __init__(self, file: Any):
    self._file = file
    self.last = b''
    self.tell, self.seek = file.tell, file.seek

  def read(self, size: int = -1) -> bytes:
    if not 0 <= size <= _CHUNK:
      raise ValueError(f'a header of {size} bytes')
    self.last = self._file.read(size)
    return self.last


@contextlib.contextmanager
def _open_tar(
  archive: pathlib.Path, file: BinaryIO, head: bytes
) -> Iterator[Iterator[Member]]:
  with contextlib.ExitStack() as stack:
    for magic, decompressed in _COMPRESSED.items():
      if head.startswith(magic):
        file = stack.enter_context(decompressed(file))
    stream = _Stream(file)
    try:
      tar = stack.enter_context(tarfile.open(fileobj=stream, mode='r:'))
    except tarfile.ReadError as e:
      raise DataError(
        f'{archive}: expected a .zip, .tar, .tar.gz, .tar.bz2, .tar.xz or .rar '
        f'file, found one that starts with {head!r}, or is damaged ({e}).'
      ) from e
    yield _tar_members(tar, stream)


def _tar_members(tar: tarfile.TarFile, stream: _Stream) -> Iterator[Member]:
  for info in tar:
    if info.isfile():
      kind = 'file'
    elif info.isdir():
      kind = 'folder'
    elif info.islnk() or info.issym():
      kind = 'a link'
    else:
      kind = 'a device or another special file'
    yield Member(
      info.name, kind, info.size, functools.partial(tar.extractfile, info)
    )
  # A cut, a damaged header and the end look alike to tarfile.
  if stream.last != bytes(tarfile.BLOCKSIZE):
    raise ValueError('cut, or its headers are')
  while rest := stream.read(_CHUNK):  # to the checksum of what is compressed
    if rest.strip(b'\0'):
      raise ValueError('there is something behind its end')


@contextlib.contextmanager
def _open_rar(archive: pathlib.Path) -> Iterator[Iterator[Member]]:
  try:
    import rarfile
  except ImportError as e:
    raise DataError(
      f"{archive}: .rar files need rarfile: pip install -e '.[rar]'"
    ) from e
  try:
    blocks: list[Any] = []
    with rarfile.RarFile(
      archive, info_callback=blocks.append, errors='strict'
    ) as rar:
      if all(b.type != rarfile.RAR_BLOCK_ENDARC for b in blocks):
        raise ValueError('its end is missing, or its headers need a password')
      yield (
        Member(
          info.filename,
          _rar_kind(info),
          info.file_size,
          functools.partial(rar.open, info),
        )
        for info in rar.infolist()
      )
  except rarfile.RarCannotExec as e:
    raise DataError(
      f'{archive}: .rar files need unrar or bsdtar, and neither is here. '
      'Debian and Ubuntu: apt-get install libarchive-tools; macOS has bsdtar.'
    ) from e
  except rarfile.Error as e:
    raise DataError(
      f'{archive}: cannot read, or damaged: {e}. Get it again.'
    ) from e


def _rar_kind(info: Any) -> str:
  if info.needs_password():
    return 'needs a password'
  if info.is_symlink() or getattr(info, 'file_redir', None):
    return 'a link'
  if info.is_dir():
    return 'folder'
  return 'file' if info.is_file() else 'a special file'
