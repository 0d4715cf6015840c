"""Archives of strangers: what is plain comes out, all else is refused."""

import bz2
import gzip
import io
import os
import pathlib
import runpy
import stat
import struct
import sys
import tarfile
import zipfile
import zlib

import pytest

from data import archives
from data.errors import DataError

CLIP = bytes(range(256)) * 20
# Names as HMDB51 and others have them.
GOOD = {
  'wave/-dash #1 (best)_wave_0.avi': CLIP,
  'wave/a&b;c !.avi': CLIP[::-1],
  'sit/two  blanks/img_00001.jpg': b'jpg',
  'sit/empty.txt': b'',
  'brosse à dents.avi': b'x',
}


# --- writers: {name: bytes, or what tells a special member} -----------------


class Odd:
  """A member that is no plain file: by the kind of its mode and its target."""

  def __init__(self, form: int, target: str = '/etc/hosts', hard: bool = False):
    self.form, self.target, self.hard = form, target, hard


LINK = Odd(stat.S_IFLNK)
HARD_LINK = Odd(stat.S_IFREG, 'a.avi', hard=True)
DEVICE = Odd(stat.S_IFCHR)
PIPE = Odd(stat.S_IFIFO)


def _tar(path, members, mode='w', pad=True):
  types = {
    stat.S_IFLNK: tarfile.SYMTYPE, stat.S_IFREG: tarfile.LNKTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE, stat.S_IFIFO: tarfile.FIFOTYPE,
  }  # fmt: skip
  with tarfile.open(path, mode) as tar:
    for name, content in members:
      info = tarfile.TarInfo(name.rstrip('/') or '/')
      info.name = name
      if isinstance(content, Odd):
        info.type, info.linkname = types[content.form], content.target
        tar.addfile(info)
      elif name.endswith('/'):
        info.type = tarfile.DIRTYPE
        tar.addfile(info)
      else:
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))


def _zip(path, members):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as file:
    for name, content in members:
      info = zipfile.ZipInfo('x')
      info.filename = info.orig_filename = name
      info.compress_type = zipfile.ZIP_DEFLATED
      if isinstance(content, Odd):
        info.create_system = 3
        info.external_attr = (content.form | 0o644) << 16
        content = content.target.encode()
      with pytest.MonkeyPatch.context() as patch:  # two of a name are a warning
        patch.setattr('warnings.warn', lambda *_, **__: None)
        file.writestr(info, content)


def _rar3(path, members):
  """Stored members, as of RAR 2.9: tools that write .rar are not free."""

  def block(kind, flags, body, data=b''):
    head = struct.pack('<BHH', kind, flags, 7 + len(body)) + body
    return struct.pack('<H', zlib.crc32(head) & 0xFFFF) + head + data

  raw = b'Rar!\x1a\x07\0' + block(0x73, 0, bytes(6))
  for name, content in members:
    flags, mode, method = 0x8000, stat.S_IFREG | 0o644, 0x30
    if isinstance(content, Odd):
      mode, content = content.form | 0o644, content.target.encode()
    elif name.endswith('/'):
      flags, mode = 0x80E0, stat.S_IFDIR | 0o755
    elif content.startswith(b'compressed'):
      method = 0x33
    body = struct.pack(
      '<IIBIIBBHI', len(content), len(content), 3, zlib.crc32(content),
      0x5A000000, 29, method, len(name.encode()), mode,
    )  # fmt: skip
    raw += block(0x74, flags, body + name.encode(), content)
  path.write_bytes(raw + block(0x7B, 0x4000, b''))


def _rar5(path, members):
  """Stored members, as of RAR 5."""

  def number(value):
    low, value = value & 127, value >> 7
    return bytes([low | 128]) + number(value) if value else bytes([low])

  def block(fields, rest=b'', data=b''):
    head = b''.join(map(number, fields)) + rest
    head = number(len(head)) + head
    return struct.pack('<I', zlib.crc32(head)) + head + data

  raw = b'Rar!\x1a\x07\1\0' + block([1, 0, 0])
  for name, content in members:
    extra, mode = b'', stat.S_IFREG | 0o644
    if isinstance(content, Odd):
      target = content.target.encode()
      kind = 4 if content.hard else 1
      extra = b''.join(map(number, (5, kind, 0, len(target)))) + target
      extra = number(len(extra)) + extra
      mode, content = content.form | 0o644, b''
    is_folder = name.endswith('/')
    name = name.rstrip('/').encode()
    fields = [2, 3, len(extra), len(content), 5 if is_folder else 4,
              len(content), mode]  # fmt: skip
    crc = struct.pack('<I', zlib.crc32(content))
    rest = crc + b''.join(map(number, (0, 1, len(name)))) + name + extra
    raw += block(fields, rest, content)
  path.write_bytes(raw + block([5, 0, 0]))


WRITERS = {
  'tar': _tar,
  'tar.gz': lambda p, m: _tar(p, m, 'w:gz'),
  'tar.bz2': lambda p, m: _tar(p, m, 'w:bz2'),
  'tar.xz': lambda p, m: _tar(p, m, 'w:xz'),
  'zip': _zip,
  'rar3': _rar3,
  'rar5': _rar5,
}
PLAIN = ('tar', 'zip', 'rar3', 'rar5')


def _write(folder, kind, members) -> pathlib.Path:
  path = folder / f'archive.{kind}'
  WRITERS[kind](path, list(members))
  return path


def _tree(folder):
  return {
    str(p.relative_to(folder)): p.read_bytes()
    for p in sorted(folder.rglob('*'))
    if p.is_file()
  }


def _refused(tmp_path, archive, match, **options):
  """Refuses, and leaves nothing but what was there."""
  before = _tree(tmp_path)
  with pytest.raises(DataError, match=match) as error:
    archives.unpack([archive], tmp_path / 'a' / 'out', **options)
  assert str(archive) in str(error.value)
  assert _tree(tmp_path) == before
  assert not list((tmp_path / 'a').iterdir())


# --- what comes out ---------------------------------------------------------


@pytest.mark.parametrize('kind', WRITERS)
def test_plain_files_come_out(tmp_path, kind):
  members = [('wave/', b''), *GOOD.items(), ('none/', b'')]
  path = _write(tmp_path, kind, members)
  done = archives.unpack([path], tmp_path / 'out')
  assert _tree(tmp_path / 'out') == GOOD
  assert (tmp_path / 'out' / 'none').is_dir()
  assert done == (len(GOOD), sum(map(len, GOOD.values())))
  assert sorted(os.listdir(tmp_path)) == [path.name, 'out']


def test_several_archives_into_one_folder(tmp_path):
  """As the 51 inner archives of HMDB51, and an empty folder that is there."""
  paths = []
  for k, (name, content) in enumerate(GOOD.items()):
    paths.append(tmp_path / f'{k}.tar')
    _tar(paths[-1], [('./', b''), (f'./{name}', content)])
  (tmp_path / 'out').mkdir()
  archives.unpack(paths, tmp_path / 'out')
  assert _tree(tmp_path / 'out') == GOOD
  with pytest.raises(DataError, match=r'1\.tar: .* that of'):
    archives.unpack([*paths, paths[1]], tmp_path / 'other')


def test_permissions_do_not_come_out(tmp_path):
  with tarfile.open(tmp_path / 'a.tar', 'w') as tar:
    info = tarfile.TarInfo('run.sh')
    info.mode, info.uid, info.gid = 0o6777, 1234, 1234
    tar.addfile(info)
  archives.unpack([tmp_path / 'a.tar'], tmp_path / 'out')
  found = (tmp_path / 'out' / 'run.sh').stat()
  assert not found.st_mode & 0o7111 and found.st_uid == os.getuid()


# --- what does not (D10) ----------------------------------------------------

NAMES = {
  'parent': '../escaped.avi',
  'parent within': 'wave/../../escaped.avi',
  'absolute': '/tmp/escaped.avi',
  'drive': 'C:escaped.avi',
  'backslash': '..\\escaped.avi',
  'line': 'a\nb.avi',
  'escape': 'a\x1b[31m.avi',
  'long': 'a' * 300,
  'deep': 'a/' * 40 + 'b.avi',
  'folder': '../escaped/',
}


@pytest.mark.parametrize('kind', PLAIN)
@pytest.mark.parametrize('name', NAMES)
def test_paths_that_lead_outside(tmp_path, kind, name):
  path = _write(tmp_path, kind, [('a.avi', CLIP), (NAMES[name], b'')])
  _refused(tmp_path, path, 'expected a path below the folder')


SPECIAL = [
  *((kind, LINK) for kind in PLAIN),
  ('tar', HARD_LINK),
  ('rar5', HARD_LINK),
  *((kind, DEVICE) for kind in ('tar', 'zip', 'rar3')),
  *((kind, PIPE) for kind in ('tar', 'zip', 'rar3')),
]


@pytest.mark.parametrize(('kind', 'odd'), SPECIAL)
def test_links_and_devices(tmp_path, kind, odd):
  path = _write(tmp_path, kind, [('a.avi', CLIP), ('b', odd), ('b/c', b'')])
  _refused(tmp_path, path, 'link|device|special file')


@pytest.mark.parametrize('kind', PLAIN)
@pytest.mark.parametrize(
  ('one', 'two'),
  [
    ('a.avi', 'a.avi'),
    ('a.avi', './a.avi'),
    ('wave/a.avi', 'wave/A.avi'),
    ('wave/a.avi', 'Wave/b.avi'),
    ('Straße', 'STRASSE'),
    ('caf\u00e9', 'cafe\u0301'),  # one name on a Mac
    ('a', 'a/b'),
    ('a/b', 'a'),
  ],
)
def test_names_that_are_one(tmp_path, kind, one, two):
  path = _write(tmp_path, kind, [(one, CLIP), (two, b'')])
  _refused(tmp_path, path, 'on some disks|damaged')  # rarfile opens the last


@pytest.mark.parametrize('kind', ['tar.gz', 'tar.bz2', 'tar.xz', 'zip'])
def test_zeros(tmp_path, kind):
  path = _write(tmp_path, kind, [('a.avi', CLIP), ('b.avi', bytes(2**23))])
  assert path.stat().st_size < 2**16
  _refused(tmp_path, path, 'too large')


def test_zeros_as_a_header(tmp_path):
  """tarfile would take it into memory."""
  head = tarfile.TarInfo('x')
  head.type, head.size = tarfile.GNUTYPE_LONGNAME, 2**31
  path = tmp_path / 'a.tar.gz'
  path.write_bytes(gzip.compress(head.tobuf() + bytes(2**22)))
  _refused(tmp_path, path, 'a header of 2147483648 bytes')


@pytest.mark.parametrize('kind', PLAIN)
def test_the_limits(tmp_path, kind, monkeypatch):
  path = _write(tmp_path, kind, GOOD.items())
  total = sum(map(len, GOOD.values()))
  _refused(tmp_path, path, 'too large', max_bytes=total - 1)
  monkeypatch.setattr(archives, 'MAX_MEMBERS', len(GOOD) - 1)
  _refused(tmp_path, path, 'too large')
  monkeypatch.undo()
  archives.unpack([path], tmp_path / 'out', max_bytes=total)


def test_a_lying_size(tmp_path):
  path = _write(tmp_path, 'zip', [('a.avi', CLIP)])
  raw = bytearray(path.read_bytes())
  at = raw.index(b'PK\1\2') + 24
  assert struct.unpack_from('<I', raw, at) == (len(CLIP),)
  for size in (len(CLIP) - 1, len(CLIP) + 1):
    struct.pack_into('<I', raw, at, size)
    path.write_bytes(raw)
    _refused(tmp_path, path, 'damaged')


@pytest.mark.parametrize('kind', WRITERS)
def test_cut_archives(tmp_path, kind):
  path = _write(tmp_path, kind, GOOD.items())
  raw = path.read_bytes()
  end = len(raw.rstrip(b'\0')) if kind == 'tar' else len(raw)
  for size in {*range(0, end, len(raw) // 30), min(end, 512), end - 1}:
    path.write_bytes(raw[:size])
    _refused(tmp_path, path, 'damaged|expected a')


@pytest.mark.parametrize('kind', WRITERS)
def test_damaged_archives(tmp_path, kind):
  """A plain tar has checksums of its headers only."""
  path = _write(tmp_path, kind, [('a.avi', CLIP), ('b.avi', CLIP[1:])])
  raw = path.read_bytes()
  place = 0 if kind == 'tar' else len(raw) // 2
  for at in (place, place + 9):
    damaged = bytearray(raw)
    damaged[at] ^= 0x55
    path.write_bytes(damaged)
    _refused(tmp_path, path, 'damaged|expected a')


def test_a_damaged_header_within_a_tar(tmp_path):
  """tarfile takes it for the end."""
  path = _write(tmp_path, 'tar', [('a.avi', b''), ('b.avi', b'')])
  raw = bytearray(path.read_bytes())
  raw[512] ^= 1
  path.write_bytes(raw)
  _refused(tmp_path, path, 'cut, or its headers are')


def test_two_tars_in_one_file(tmp_path):
  path = _write(tmp_path, 'tar', [('a.avi', b'')])
  path.write_bytes(path.read_bytes() * 2)
  _refused(tmp_path, path, 'behind its end')


@pytest.mark.parametrize(
  'content', [b'', b'x', b'RIFF....AVI ' * 99, gzip.compress(b'no tar'),
              bz2.compress(bytes(2000)), bytes(4096)]
)  # fmt: skip
def test_other_files(tmp_path, content):
  path = tmp_path / 'a.zip'
  path.write_bytes(content)
  _refused(tmp_path, path, r'expected a \.zip|damaged|no files')


def test_a_password(tmp_path):
  path = _write(tmp_path, 'zip', [('a.avi', CLIP)])
  raw = bytearray(path.read_bytes())
  raw[raw.index(b'PK\1\2') + 8] |= 1
  path.write_bytes(raw)
  _refused(tmp_path, path, 'password')


def test_rar_without_a_tool(tmp_path, monkeypatch):
  rarfile = pytest.importorskip('rarfile')
  monkeypatch.setenv('PATH', str(tmp_path))
  monkeypatch.setattr(rarfile, 'CURRENT_SETUP', None)
  path = _write(tmp_path, 'rar3', [('a.avi', b'compressed' * 99)])
  _refused(tmp_path, path, 'need unrar or bsdtar')


def test_rar_without_its_reader(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'rarfile', None)
  path = _write(tmp_path, 'rar5', GOOD.items())
  _refused(tmp_path, path, r'pip install -e .*rar')


# --- where it goes ----------------------------------------------------------


def test_nothing_is_overwritten(tmp_path):
  path = _write(tmp_path, 'zip', GOOD.items())
  for k, make in enumerate((
    lambda p: (p.mkdir(), (p / 'mine').touch()),
    lambda p: p.touch(),
    lambda p: p.symlink_to(tmp_path),
  )):  # fmt: skip
    target = tmp_path / f'{k}'
    make(target)
    with pytest.raises(DataError, match=r'already|cannot unpack'):
      archives.unpack([path], target)


def test_two_runs_and_a_killed_one(tmp_path):
  path = _write(tmp_path, 'tar', GOOD.items())
  left = tmp_path / 'out.unpacking' / 'wave'
  left.mkdir(parents=True)
  (left / 'half.avi').touch()
  with (
    archives._new_folder(tmp_path / 'out'),
    pytest.raises(DataError, match='another run'),
  ):
    archives.unpack([path], tmp_path / 'out')
  left.mkdir(parents=True)
  (left / 'half.avi').touch()
  archives.unpack([path], tmp_path / 'out')
  assert _tree(tmp_path / 'out') == GOOD


def _run(monkeypatch, capsys, *arguments):
  """(exit code, stdout, stderr) of the program."""
  monkeypatch.setattr(sys, 'argv', ['unpack', *map(str, arguments)])
  monkeypatch.delitem(sys.modules, 'data.unpack', raising=False)
  with pytest.raises(SystemExit) as done:
    runpy.run_module('data.unpack', run_name='__main__')
  return done.value.code, *capsys.readouterr()


def test_the_program(tmp_path, monkeypatch, capsys):
  path, out = _write(tmp_path, 'zip', GOOD.items()), tmp_path / 'out'
  done = _run(monkeypatch, capsys, path, f'--to={out}')
  assert done == (0, f'{out}: 5 files, 10244 bytes\n', '')
  assert _tree(out) == GOOD


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('none.zip', '--to=out'), 'none.zip: cannot read'),
    (('none.zip',), '--to: missing'),
    (('--to=out',), 'no archive given'),
    (('none.zip', '--too=x'), 'command line'),
    (('none.zip', '--to=out', '--max_gigabytes=0'), 'command line'),
  ],
)
def test_mistakes_end_in_one_message(
  tmp_path, monkeypatch, capsys, arguments, message
):
  monkeypatch.chdir(tmp_path)
  code, shown, error = _run(monkeypatch, capsys, *arguments)
  assert code == 2 and not shown and not os.listdir(tmp_path)
  assert message in error and error.startswith('error: ')
