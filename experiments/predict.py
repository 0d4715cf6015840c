"""Recognises the actions in any videos with a trained run.

python -m experiments.predict --workdir=W VIDEO... [--topk=5] [--json]
    [--out=DIR] [--num_samples=N]
python -m experiments.predict --workdir=W --stream=-|/dev/video0

A VIDEO is a file or a folder of frames (img_00001.jpg, ...). Below --out, each
video gets a folder with prediction.json (sorted labels and scores),
frames.jsonl (scores, attention and boundaries of every frame), segments.json
(what the layers cut it into, like ActivityNet) and overlay.mp4. Videos are
streamed from a process that decodes them, with limits: memory does not grow
with their length, and what crashes or hangs the decoder is a bad video.

With --stream, frames are read from standard input, a named pipe or a camera as
they come, and one line of JSON is printed for each, at once. In Python:
experiments.recognise.VideoRecogniser, and, from features,
hman_jax.FeatureRecogniser.
"""

import collections
import contextlib
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from absl import flags

from data import decoding, live, videos
from data.errors import VideoError
from experiments import program
from experiments.errors import HmanError

FLAGS = program.new_flags()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of a trained run on videos.', flag_values=FLAGS
)
_TOPK = flags.DEFINE_integer(
  'topk', 5, 'Labels to show.', lower_bound=1, flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
  'out', None, 'Folder for files of each video.', flag_values=FLAGS
)
_JSON = flags.DEFINE_bool(
  'json', False, 'Print JSON, and nothing else.', flag_values=FLAGS
)
_STATE = flags.DEFINE_enum(
  'state',
  'carried',
  ['carried', 'blocks'],
  'Carry the state through the whole video, or begin anew every T frames and '
  'average, as experiments.evaluate does.',
  flag_values=FLAGS,
)
_STREAM = flags.DEFINE_string(
  'stream',
  None,
  'Recognise frames as they come: "-" is standard input (motion JPEG, '
  'yuv4mpegpipe, Matroska or MPEG-TS), else the path of a pipe or a camera.',
  flag_values=FLAGS,
)
_NUM_SAMPLES = flags.DEFINE_integer(
  'num_samples',
  None,
  'Draws of the boundaries to average over; 0: deterministic. Default: as the '
  'config of the run says.',
  lower_bound=0,
  flag_values=FLAGS,
)
_SEED = flags.DEFINE_integer(
  'seed', None, 'Of the draws. Default: that of the run.', flag_values=FLAGS
)
program.define_checkpoint(FLAGS)
_FPS = flags.DEFINE_float(
  'fps',
  25.0,
  'Frames a second of videos that do not tell, such as folders of frames.',
  lower_bound=1e-3,
  flag_values=FLAGS,
)
_BAD_VIDEO = 2  # exit code
_DIGITS = 6  # of scores in frames.jsonl


def main(positional: list[str]) -> int:
  """Recognises the videos; a bad one does not stop the others."""
  workdir = program.required(FLAGS, 'workdir')
  is_live = FLAGS.stream is not None
  if is_live:
    _check_live(positional)
  elif not positional:
    raise HmanError('VIDEO: missing; name one or more videos.')
  out = pathlib.Path(FLAGS.out) if FLAGS.out else None
  folders = _folders(out, positional)

  from experiments import runtime  # JAX is slow to start
  from experiments.recognise import LIMITS, VideoRecogniser

  runtime.enable_compilation_cache()
  options: dict[str, Any] = {'at_once': 1} if is_live else {}
  with decoding.Decoders(1, LIMITS) as decoders:
    recogniser = VideoRecogniser.load(
      workdir,
      checkpoint=FLAGS.checkpoint,
      carry_state=FLAGS.state == 'carried',
      num_samples=FLAGS.num_samples,
      seed=FLAGS.seed,
      decoders=decoders,
      **options,
    )
    if is_live:
      watch(recogniser, FLAGS.stream, FLAGS.topk, FLAGS.fps)
      return 0
    return _recognise_all(recogniser, positional, folders)


def _recognise_all(
  recogniser, positional: list[str], folders: list[pathlib.Path | None]
) -> int:
  """Recognises and tells of videos; the exit code."""
  results, code = [], 0
  for video, folder in zip(positional, folders):
    try:
      result = recognise(recogniser, video, folder, FLAGS.topk, FLAGS.fps)
    except VideoError as e:
      code = _BAD_VIDEO
      result = {'video': video, 'error': str(e)}
      print(f'error: {e}', file=sys.stderr)
    results.append(result)
    if not FLAGS.json and 'error' not in result:
      print(describe(result, folder), flush=True)
  if FLAGS.json:
    print(json.dumps(results, indent=2))
  return code


def _check_live(positional: list[str]) -> None:
  if positional:
    raise HmanError(
      f'--stream: one source and no videos beside it, got {positional[0]!r}.'
    )
  if FLAGS.out:
    raise HmanError(
      '--out: not with --stream, which has no end: its lines tell all; send '
      'them to a file.'
    )


def watch(recogniser, source: str, top_k: int = 5, fps: float = 25.0) -> None:
  """Recognises a live source; prints a line of JSON for each frame.

  A line is what `frame_record` tells, the likeliest label so far with its
  `score`, and the `segments` that ended with it. The last line has the
  `num_frames` and the `predictions` of all, and the segments that the end
  ended. SIGINT and SIGTERM end it with the next frame.

  Args:
    recogniser: a `VideoRecogniser`.
    source: see `live.stream`.
    top_k: labels of the last line.
    fps: frames a second, for times, if the run does not sample at its own.

  Raises:
    VideoError: if the source cannot be read; what came before it is printed.
  """
  from experiments.recognise import Segments
  from experiments.stopping import Stop

  stop = Stop()
  stop.install()
  fps = recogniser.fps or fps
  segments = Segments(recogniser, fps)
  count, output = 0, None

  def frames() -> Iterator[np.ndarray]:
    nonlocal count
    size = recogniser.extractor.image_size
    for (frame,) in live.stream(source, [size], fps=recogniser.fps):
      count += 1
      yield frame
      if stop.requested():
        return

  show = lambda tree: print(json.dumps(tree), flush=True)
  for output in recogniser.stream(frames()):
    segments.add(output)
    record = frame_record(recogniser, output, fps)
    score = round(float(output.running.max()), _DIGITS)
    show({**record, 'score': score, 'segments': segments.take()})
  if output is None:
    raise VideoError(f'{source}: no frames in it.')
  show(
    {
      'num_frames': count,
      'predictions': recogniser.ranked(output.running, top_k),
      'segments': segments.finish(count),
    }
  )


def _folders(
  out: pathlib.Path | None, names: list[str]
) -> list[pathlib.Path | None]:
  """A folder of its own for each video, named as it is."""
  if out is None:
    return [None] * len(names)
  used: collections.Counter[str] = collections.Counter()
  folders: list[pathlib.Path | None] = []
  for name in names:
    path = pathlib.Path(name).resolve()
    stem = path.name if path.is_dir() else path.stem
    used[stem] += 1
    folders.append(out / (f'{stem}_{used[stem]}' if used[stem] > 1 else stem))
  return folders


def recognise(
  recogniser,
  video: str | pathlib.Path,
  folder: pathlib.Path | None,
  top_k: int = 5,
  default_fps: float = 25.0,
) -> dict[str, Any]:
  """Recognises one video, and writes its files.

  Args:
    recogniser: a `VideoRecogniser`.
    video: a video file or a folder of frames.
    folder: for the files, made if missing; None writes nothing. Files come into
      it when all are whole.
    top_k: labels to give.
    default_fps: of a video that does not tell.

  Returns:
    JSON-able dict of `video`, `num_frames`, `fps`, `predictions` and, if the
    model has boundaries, `segments`.

  Raises:
    VideoError: if the video cannot be read or decoded.
    HmanError: if the files cannot be written.
  """
  sizes: list[videos.Size] = [recogniser.extractor.image_size]
  if folder:
    from experiments import overlay

    sizes.append(overlay.FIT)
  try:
    with contextlib.ExitStack() as stack:
      stage = stack.enter_context(program.staged(folder)) if folder else None
      header, decoded = stack.enter_context(recogniser.decoded(video, sizes))
      fps = recogniser.fps or header.fps or default_fps
      files = _Files(stack, stage, recogniser, fps)
      output = None
      for output in recogniser.stream(files.frames(decoded)):
        files.add(output)
      if output is None:
        raise VideoError(f'{video}: no frames in it.')
      result = {
        'video': str(video),
        'num_frames': files.num_frames,
        'fps': fps,
        'predictions': recogniser.ranked(output.running, top_k),
      }
      files.finish(result)
  except OSError as e:
    raise HmanError(f'{folder}: cannot write: {e.strerror or e}.') from e
  return result


class _Files:
  """What is written of one video as it streams by; nothing without a stage."""

  def __init__(self, stack, stage: pathlib.Path | None, recogniser, fps: float):
    from experiments.recognise import Segments

    self._stack = stack
    self._stage = stage
    self._recogniser = recogniser
    self._fps = fps
    self._segments = Segments(recogniser, fps)
    self._pending: collections.deque[np.ndarray] = collections.deque()
    self._num_shown = 0
    self._overlay: Any = None
    self._last: Any = None
    self._record: IO | None = None
    if stage:
      self._record = stack.enter_context((stage / 'frames.jsonl').open('w'))
    self.num_frames = 0

  def frames(self, decoded) -> Iterator[np.ndarray]:
    """The frames for the extractor; those to show are put aside."""
    for small, *shown in decoded:
      self.num_frames += 1
      if shown:
        self._put_aside(shown[0])
      yield small

  def _put_aside(self, frame: np.ndarray) -> None:
    from experiments import overlay

    if self._overlay is None:
      assert self._stage
      self._size = frame.shape[:2]
      self._overlay = overlay.Overlay(
        self._stage / 'overlay.mp4',
        self._size,
        self._fps,
        self._recogniser.num_layers,
        self._recogniser.class_names,
      )
      self._stack.callback(self._overlay.close)
    if frame.shape[:2] != self._size:  # others than the first
      frame = videos.resize(frame, self._size)
    self._pending.append(frame)

  def add(self, output) -> None:
    """Takes the output of the next frame that the model reads."""
    self._segments.add(output)
    self._show_until(output.index)  # frames between, by the stride
    self._last = output
    self._show_until(output.index + 1)
    if self._record:
      record = frame_record(self._recogniser, output, self._fps)
      self._record.write(json.dumps(record) + '\n')

  def _show_until(self, index: int) -> None:
    while self._pending and self._num_shown < index:
      self._overlay.add(self._pending.popleft(), self._last)
      self._num_shown += 1

  def finish(self, result: dict) -> None:
    """Adds the segments to a result, and writes what is left."""
    self._show_until(self.num_frames)
    if self._recogniser.num_layers:
      result['segments'] = self._segments.finish(self.num_frames)
    if not self._stage:
      return
    run = self._recogniser.run
    about = {
      'model': run.config.model.name,
      'step': run.step,
      'state': 'carried' if self._recogniser.carry_state else 'blocks',
      'num_samples': self._recogniser.num_samples,
    }
    self._write('prediction.json', {**result, 'about': about})
    name = pathlib.Path(result['video']).name
    self._write(
      'segments.json',
      {
        'version': 'hman_jax',
        'results': {name: result.get('segments', [])},
        'external_data': about,
      },
    )

  def _write(self, name: str, tree: dict) -> None:
    assert self._stage
    (self._stage / name).write_text(json.dumps(tree, indent=2) + '\n')


def frame_record(recogniser, output, fps: float) -> dict[str, Any]:
  """A line of frames.jsonl.

  Args:
    recogniser: a `VideoRecogniser`.
    output: a `FrameOutput`.
    fps: frames a second.

  Returns:
    JSON-able dict of `frame` (from 0), `time` (seconds), `label` (likeliest so
    far), `scores` (of this frame, in the order of label_map.txt), and, where
    the model has them, `attention` (weights of the locations, row by row),
    `boundaries` (0 or 1 a layer) and `operations` (0 COPY, 1 UPDATE, 2 FLUSH).
  """
  short = lambda values: [round(float(v), _DIGITS) for v in values]
  record: dict[str, Any] = {
    'frame': output.index,
    'time': round(output.index / fps, _DIGITS),
    'label': recogniser.class_names[int(output.running.argmax())],
    'scores': short(output.probabilities),
  }
  if output.weights is not None:
    record['attention'] = short(output.weights)
  if output.z is not None:
    record['boundaries'] = output.z.astype(int).tolist()
    record['operations'] = output.operation.tolist()
  return record


def describe(result: dict, folder: pathlib.Path | None) -> str:
  """A result as text."""
  seconds = result['num_frames'] / result['fps']
  lines = [f'{result["video"]}: {result["num_frames"]} frames, {seconds:.1f} s']
  lines += [
    f'  {100 * p["score"]:5.1f} %  {p["label"]}' for p in result['predictions']
  ]
  counts = collections.Counter(s['layer'] for s in result.get('segments', ()))
  if counts:
    parts = [f'layer {layer}: {counts[layer]}' for layer in sorted(counts)]
    lines.append(f'  segments: {", ".join(parts)}')
  if folder:
    lines.append(f'  files: {folder}')
  return '\n'.join(lines)


if __name__ == '__main__':
  program.run(main, FLAGS, __doc__)
