"""Makes the features of a data set: python -m data.prepare --config=FILE.

Training does it by itself; this is for machines that share the work: each
takes one part, `--shard=1/4` to `--shard=4/4`, into one folder or into folders
that are copied together afterwards. What is there already is read to its end,
and made anew if damaged.

With `--beam` the work is an Apache Beam pipeline, which Dataflow, Flink or
Spark may run: `--beam -- --runner=FlinkRunner --flink_master=HOST`. Its workers
need this code, the videos and the store under the same paths as here.
"""

import json
import os
import pathlib
import re
import signal
from collections.abc import Sequence

from absl import flags

from data import clips, command, extract, features, store
from data.errors import DataError, StoppedError

_FLAGS = command.new_flags()
flags.DEFINE_string(
  'shard', '1/1', 'Which part of the videos to take, i/n.', flag_values=_FLAGS
)
flags.DEFINE_bool(
  'beam',
  False,
  'Run an Apache Beam pipeline; what stands behind -- are its options.',
  flag_values=_FLAGS,
)


def main(rest: Sequence[str]) -> int:
  """Prepares the videos of a config, or a part of them; 0."""
  if rest and not _FLAGS.beam:
    raise DataError(
      f'{rest[0]!r}: no positional arguments; write flags as --name=value.'
    )
  share = part_of(_FLAGS.shard)
  opened = command.open_config(_FLAGS)
  data = opened.data
  clips.checked(opened.dataset, data.root, data.allow_missing)
  every = sorted({clip.path for part in opened.parts for clip in part})
  signals: list[int] = []
  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda n, _: _stop(signals, n))
  try:
    folder = pathlib.Path(data.features_dir or extract.default_features_dir())
    options = {
      'fps': data.fps or None,
      'dtype': data.store_dtype,
      'on_bad': data.on_bad_video,
    }
    if _FLAGS.beam:
      from data import beam_extract  # it may not be installed

      prepared = beam_extract.prepare(
        every[share],
        data.features,
        folder,
        weights=data.weights,
        options=rest,
        **options,
      )
    else:
      prepared = extract.prepare(
        every[share],
        features.create(data.features, data.weights),
        folder,
        verify=True,
        progress=not _FLAGS.json,
        should_stop=lambda: bool(signals),
        **options,
      )
  except StoppedError as e:
    print(f'stopped: {e}', flush=True)
    return 128 + signals[0]
  records = [store.read(path) for path in set(prepared.paths.values())]
  tree = {
    'videos': len(every[share]),
    'records': len(records),
    'frames': sum(record.num_decoded for record in records),
    'bytes': sum(record.path.stat().st_size for record in records),
    'bad': {str(video): str(e) for video, e in prepared.bad.items()},
    'frames_per_second': prepared.speed,
    'notes': extract.summary(records),
  }
  if _FLAGS.json:
    print(json.dumps(tree, indent=2))
    return 0
  print(
    f'{tree["videos"]} videos, {len(tree["bad"])} of them bad; '
    f'{tree["records"]} records of {tree["frames"]} frames in all, '
    f'{tree["bytes"] / 1e6:.0f} MB'
  )
  for line in tree['notes']:
    print(line)
  return 0


def part_of(shard: str) -> slice:
  """Which items of a list are those of `--shard=i/n`.

  Args:
    shard: 'i/n', 1 <= i <= n.

  Raises:
    DataError: if it is something else.

  Example:
    >>> 'abcdefg'[part_of('2/3')]
    'be'
  """
  match = re.fullmatch(r'([0-9]{1,9})/([0-9]{1,9})', shard)
  first, count = map(int, match.groups()) if match else (0, 0)
  if not 1 <= first <= count:
    raise DataError(
      f'--shard: expected i/n with 1 <= i <= n, as 2/8, got {shard!r}.'
    )
  return slice(first - 1, None, count)


def _stop(signals: list[int], number: int) -> None:
  """Notes the first signal; the second ends the program at once."""
  if signals:
    os._exit(128 + number)
  signals.append(number)
  os.write(2, b'\nstopping after this video; again to stop at once\n')


if __name__ == '__main__':
  command.run(main, _FLAGS, __doc__ or '', takes_rest=True)
