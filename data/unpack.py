"""Unpacks data sets: python -m data.unpack ARCHIVE... --to=FOLDER.

Archives are .zip, .tar, .tar.gz, .tar.bz2, .tar.xz or .rar; several go into one
folder, such as the 51 of HMDB51. Links, paths that lead outside and whatever
else is no plain file is refused; on any error nothing is left behind.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from data import archives, command
from data.errors import DataError

_FLAGS = command.new_flags(config=False, json=False)
flags.DEFINE_string(
  'to', None, 'Folder to make; it must not exist.', flag_values=_FLAGS
)
flags.DEFINE_integer(
  'max_gigabytes',
  archives.MAX_BYTES // 10**9,
  'Limit of all that is unpacked.',
  lower_bound=1,
  flag_values=_FLAGS,
)


def main(paths: Sequence[str]) -> int:
  """Unpacks, and says how much; 0."""
  if not paths:
    raise DataError('no archive given: python -m data.unpack ARCHIVE --to=DIR.')
  if not _FLAGS.to:
    raise DataError('--to: missing; the folder to make.')
  done = archives.unpack(
    [pathlib.Path(p).expanduser() for p in paths],
    pathlib.Path(_FLAGS.to).expanduser(),
    max_bytes=_FLAGS.max_gigabytes * 10**9,
  )
  print(f'{_FLAGS.to}: {done.num_files} files, {done.num_bytes} bytes')
  return 0


if __name__ == '__main__':
  command.run(main, _FLAGS, __doc__ or '', takes_rest=True)
