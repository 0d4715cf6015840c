"""Looks for everything that is wrong: python -m data.check --config=FILE.

Every clip is decoded. Exit code 0 without errors, 2 with; `--json` for tools.
"""

import collections
import itertools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from data import command, decoding
from data.clips import Clip, Finding, Partition
from data.errors import VideoError

_FLAGS = command.new_flags()

_SHORT = 2  # fewer frames have no motion
_IMBALANCE = 10  # training clips of the largest class, to those of the smallest


class Media(NamedTuple):
  """What decoding a clip told.

  Attributes:
    digest: SHA-256.
    num_frames: decoded.
    declared: by its header; None if it does not tell.
  """

  digest: str
  num_frames: int
  declared: int | None


def main() -> int:
  """Prints the report of a config's data set; 2 if there are errors."""
  opened = command.open_config(_FLAGS)
  found = examine(opened.parts)
  findings = [*opened.findings, *judge(opened.parts, found)]
  counts = command.class_counts(opened)
  findings += _balance(counts, pathlib.Path(opened.data.root))
  lengths = [m.num_frames for m in found.values() if isinstance(m, Media)]
  frames = command.frame_counts(lengths) if lengths else None
  window = opened.data.num_frames * opened.data.frame_stride
  short = sum(length <= window - opened.data.frame_stride for length in lengths)
  if opened.data.fps:  # windows are of other frames then
    short = 0
  fatal = any(f.fatal for f in findings)
  if _FLAGS.json:
    print(json.dumps(_tree(opened, counts, frames, short, findings), indent=2))
  else:
    print(_report(opened, counts, frames, short, findings))
  return 2 if fatal else 0


def examine(parts: Partition) -> dict[str, Media | VideoError]:
  """Decodes every clip, several at once, and keeps no frames.

  Args:
    parts: the clips.

  Returns:
    {name of a clip: what it is, or why it cannot be decoded}.
  """
  every = [clip for part in parts for clip in part]
  found = {}
  with decoding.Decoders() as decoders:
    ends = decoders.examine(clip.path for clip in every)
    shown = command.progress(ends, len(every), 'clips decoded')
    for clip, (_, end) in zip(every, shown):
      if isinstance(end, decoding.Decoded):
        end = Media(end.sha256, end.num_frames, end.num_declared)
      found[clip.name] = end
  return found


def judge(
  parts: Partition, found: dict[str, Media | VideoError]
) -> list[Finding]:
  """What is wrong with the clips themselves, and between sides.

  Args:
    parts: the clips.
    found: of `examine`.

  Returns:
    Findings of the kinds 'unreadable', 'short', 'header', 'duplicate' and
    'leakage'.
  """
  findings = []
  headers = []
  for clip in itertools.chain(*parts):
    media = found[clip.name]
    if isinstance(media, VideoError):
      message = str(media).removeprefix(f'{clip.path}: ')
      findings.append(Finding('unreadable', message, clip.path))
      continue
    if media.num_frames < _SHORT:
      message = f'{media.num_frames} frame: too short for any motion.'
      findings.append(Finding('short', message, clip.path, fatal=False))
    if media.declared not in (None, media.num_frames):
      headers.append((clip, media))
  if headers:
    clip, media = headers[0]
    message = (
      f'{len(headers)} headers declare another number of frames than there '
      f'are, such as this: {media.declared}, where {media.num_frames} are. The '
      'number decoded counts.'
    )
    findings.append(Finding('header', message, clip.path, fatal=False))
  return [*findings, *_same_files(parts, found), *_same_sources(parts)]


def _same_files(
  parts: Partition, found: dict[str, Media | VideoError]
) -> list[Finding]:
  copies: dict[str, list[tuple[str, Clip]]] = collections.defaultdict(list)
  for side, clips in parts._asdict().items():
    for clip in clips:
      media = found[clip.name]
      if isinstance(media, Media):
        copies[media.digest].append((side, clip))
  findings = []
  for same in copies.values():
    (side, clip), *others = same
    for other_side, other in others:
      between = f'the same video as {clip.path} ({side})'
      if other_side != side:
        message = f'{between}, but for {other_side}. Remove one.'
        findings.append(Finding('leakage', message, other.path))
      elif other.label != clip.label:
        message = f'{between}, but of another class. Remove one.'
        findings.append(Finding('duplicate', message, other.path))
      else:
        message = f'{between}.'
        findings.append(Finding('duplicate', message, other.path, fatal=False))
  return findings


def _same_sources(parts: Partition) -> list[Finding]:
  """Clips of one source video on two sides; official lists may have some."""
  findings = []
  sides = parts._asdict()
  for one, two in itertools.combinations(sides, 2):
    first = {(c.label, c.source): c for c in reversed(sides[one])}
    shared = {
      (c.label, c.source): c
      for c in reversed(sides[two])
      if (c.label, c.source) in first
    }
    for key, clip in sorted(shared.items()):
      message = (
        f'cut from the same video as {first[key].path}: {two} and {one}.'
      )
      findings.append(Finding('leakage', message, clip.path, fatal=False))
  return findings


def _balance(
  counts: dict[str, dict[str, int]], root: pathlib.Path
) -> list[Finding]:
  train = {name: sides['train'] for name, sides in counts.items()}
  if not train:
    return []
  most, fewest = (
    max(train, key=train.__getitem__),
    min(train, key=train.__getitem__),
  )
  if train[most] <= _IMBALANCE * train[fewest]:
    return []
  message = (
    f'{train[most]} training clips of {most!r}, {train[fewest]} of {fewest!r}.'
  )
  return [Finding('balance', message, root, fatal=False)]


def _tree(
  opened: command.Opened,
  counts: dict,
  frames: Any,
  short: int,
  findings: Sequence[Finding],
) -> dict[str, Any]:
  return {
    'data': opened.dataset.identity,
    'root': str(opened.data.root),
    'classes': counts,
    'frames': frames,
    'shorter_than_window': short,
    'errors': sum(f.fatal for f in findings),
    'warnings': sum(not f.fatal for f in findings),
    'findings': [
      f._asdict() | {'path': str(f.path)} for f in sorted(findings, key=_order)
    ],
  }


def _order(finding: Finding) -> tuple:
  return not finding.fatal, finding.kind, finding.path, finding.line or 0


def _report(
  opened: command.Opened,
  counts: dict,
  frames: Any,
  short: int,
  findings: Sequence[Finding],
) -> str:
  errors = sum(f.fatal for f in findings)
  parts = [command.title(opened), command.class_table(counts)]
  if frames:
    parts.append(command.histogram(frames))
  if short:
    window = opened.data.num_frames
    parts.append(f'{short} clips are shorter than a window of {window} frames')
  parts += [
    f'{"error" if f.fatal else "warning"}: {f} [{f.kind}]'
    for f in sorted(findings, key=_order)
  ]
  parts.append(f'{errors} errors, {len(findings) - errors} warnings')
  return '\n'.join(parts)


if __name__ == '__main__':
  command.run(main, _FLAGS, __doc__ or '')
