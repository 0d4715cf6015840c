"""What a run says: metrics.jsonl, TensorBoard events, lines on the screen."""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping

import jax
from tensorboardX import summary
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog

from experiments import storage
from experiments.errors import StorageError

_SCREEN = (
  ('acc/step', 'acc', '{:.3f}'),
  ('grad_norm', 'grad', '{:.2f}'),
  ('attention/temperature', 'tau', '{:.2f}'),
)


class RunLog:
  """Records of a run, in its working directory.

  Args:
    workdir: the working directory.
    every: steps between records.
    seconds: between lines on the screen.
  """

  def __init__(self, workdir: pathlib.Path, every: int, seconds: float):
    self._workdir = workdir
    self._path = workdir / 'metrics.jsonl'
    self._every = every
    self._seconds = seconds
    self._events: _Events | None = None

  def begin(self, step: int, num_steps: int, batch_size: int) -> None:
    """Starts at a step; records of later steps, of a lost run, are dropped."""
    try:
      self._done = self._drop_after(step)
      self._events = _Events(self._workdir / 'tensorboard', step)
    except OSError as e:
      raise self._refusal(e) from e
    self._num_steps = num_steps
    self._batch_size = batch_size
    self._first = self._last_record = step
    self._started = self._shown = self._recorded = time.perf_counter()
    self._data_time = 0.0
    self._compiled = False

  def step(
    self, step: int, metrics: Mapping, *, epoch, lr, data_time: float
  ) -> None:
    """Takes the metrics of a training step; records some of them."""
    self._data_time += data_time
    if not self._compiled:
      self._compiled = True
      jax.block_until_ready(metrics)
      now = time.perf_counter()
      print(f'compiled in {now - self._started:.1f} s', flush=True)
      self._started = self._recorded = now
      self._first, self._last_record, self._data_time = step, step, 0.0
    if step % self._every and step != self._num_steps:
      return
    values = {k: float(v) for k, v in jax.device_get(metrics).items()}
    now = time.perf_counter()
    steps = max(step - self._last_record, 1)
    values |= {
      'epoch': float(epoch),
      'lr': float(lr),
      'time': (now - self._recorded) / steps,
      'data_time': self._data_time / steps,
    }
    self._record('train', step, values)
    self._last_record, self._recorded, self._data_time = step, now, 0.0
    if now - self._shown >= self._seconds or step == self._num_steps:
      self._shown = now
      print(self._line(step, values, now), flush=True)

  def evaluation(self, step: int, split: str, scores: Mapping) -> None:
    """Records and shows scores of a split."""
    self._record(split, step, dict(scores))
    shown = [f'top-1 {100 * scores["acc/top1"]:.1f} %']
    shown.append(f'loss {scores["loss"]:.3f}')
    if 'boundary/rate_1' in scores:
      shown.append('boundary rates ' + _rates(scores))
    if 'attention/hit_rate' in scores:
      shown.append(f'hit rate {scores["attention/hit_rate"]:.3f}')
    print(f'step {step}: {split}: ' + ', '.join(shown), flush=True)
    self._recorded = time.perf_counter()  # evaluation is no step's time

  def last_train(self) -> dict[str, float]:
    """The last training record."""
    records = map(json.loads, self._path.read_text().splitlines())
    return [r for r in records if r['mode'] == 'train'][-1]

  def has(self, mode: str, step: int) -> bool:
    """Whether there is a record of this kind at this step."""
    return (mode, step) in self._done

  def close(self) -> None:
    """Writes what is still in memory."""
    if self._events is not None:
      try:
        self._events.close()
      except OSError as e:
        raise self._refusal(e) from e

  def _record(self, mode: str, step: int, values: dict) -> None:
    # JSON has no word for what is not finite.
    record = {'mode': mode, 'step': step} | {
      k: v if math.isfinite(v) else None for k, v in values.items()
    }
    assert self._events is not None, 'begin() comes first'
    try:
      storage.append(self._path, json.dumps(record) + '\n')
      self._events.add(step, {f'{mode}/{k}': v for k, v in values.items()})
    except OSError as e:
      raise self._refusal(e) from e
    self._done.add((mode, step))

  def _refusal(self, error: OSError) -> StorageError:
    what = error.filename or self._path
    return storage.refusal(
      self._workdir, f'{what}: the log', error.strerror, 1 << 16
    )

  def _line(self, step: int, values: Mapping, now: float) -> str:
    speed = (step - self._first) / max(now - self._started, 1e-9)
    left = (self._num_steps - step) / speed if speed else 0.0
    parts = [f'step {step}/{self._num_steps}', f'loss {values["loss"]:.3f}']
    for name, label, form in _SCREEN:
      if name in values:
        parts.append(f'{label} {form.format(values[name])}')
    if 'boundary/rate_1' in values:
      parts.append('z ' + _rates(values))
    parts.append(f'{speed * self._batch_size:.0f} clips/s')
    parts.append(f'ETA {int(left // 60)}:{int(left % 60):02d}')
    return '  '.join(parts)

  def _drop_after(self, step: int) -> set[tuple[str, int]]:
    """Drops records of later steps; what the others are of.

    The last line may be torn by a kill; another one that is no record is
    damaged: it is told of, and its bytes are kept.
    """
    if not self._path.exists():
      return set()
    *lines, torn = self._path.read_bytes().split(b'\n')
    for number, line in enumerate(lines, start=1):
      if line and _step_of(line) is None:
        aside = self._workdir / 'damaged' / self._path.name
        aside.parent.mkdir(exist_ok=True)
        with aside.open('ab') as file:
          file.write(line + b'\n')
        print(
          f'WARNING: {self._path}:{number}: damaged record; left out, and '
          f'added to {aside}',
          flush=True,
        )
    steps = [(_step_of(line), line) for line in (*lines, torn)]
    kept = [x.decode() for at, x in steps if at is not None and at <= step]
    storage.write_whole(self._path, ''.join(line + '\n' for line in kept))
    records = map(json.loads, kept)
    return {(record['mode'], record['step']) for record in records}


class SilentLog(RunLog):
  """Says and writes nothing: of all processes of a run but the first."""

  def begin(self, step: int, num_steps: int, batch_size: int) -> None:
    """Knows of no records."""
    self._done = set()

  def step(
    self, step: int, metrics: Mapping, *, epoch, lr, data_time: float
  ) -> None:
    """Drops them."""

  def evaluation(self, step: int, split: str, scores: Mapping) -> None:
    """Drops them."""

  def last_train(self) -> dict[str, float]:
    """Nothing."""
    return {}


def _step_of(line: bytes) -> float | None:
  """The step of a record, None if it is none; infinite for the final test."""
  try:
    record = json.loads(line.decode())
    mode, step = record['mode'], record['step']
  except (ValueError, KeyError, TypeError):
    return None
  if type(mode) is not str or type(step) is not int:
    return None
  # The final test is made again by a run that goes on.
  return float('inf') if mode == 'test' else step


class _Events:
  """TensorBoard's events of one start, written by the thread that trains.

  tensorboardX's own writer has a thread: a full disk ends it without a word,
  and the training then waits for it for ever.
  """

  def __init__(self, folder: pathlib.Path, step: int):
    folder.mkdir(exist_ok=True)
    # TensorBoard reads the files by name: by number, whatever the clock says.
    number = sum(1 for _ in folder.iterdir())
    self._file = EventsWriter(str(folder / f'{number:06d}'), f'.{os.getpid()}')
    lost = step + 1  # TensorBoard drops what an earlier start wrote from here
    self._write(Event(step=lost, file_version='brain.Event:2'))
    start = SessionLog(status=SessionLog.START)
    self._write(Event(step=lost, session_log=start))

  def add(self, step: int, values: Mapping[str, float]) -> None:
    """Adds values of a step; the disk then holds them."""
    for name, value in values.items():
      self._write(Event(step=step, summary=summary.scalar(name, value)))
    self._file.flush()

  def close(self) -> None:
    """Writes what is still in memory."""
    self._file.close()

  def _write(self, event: Event) -> None:
    event.wall_time = time.time()
    self._file.write_event(event)


def _rates(values: Mapping, suffix: str = '') -> str:
  rates = []
  layer = 1
  while f'boundary/rate_{layer}{suffix}' in values:
    rates.append(f'{values[f"boundary/rate_{layer}{suffix}"]:.2f}')
    layer += 1
  return '/'.join(rates)


def table(title: str, scores: Mapping, notes: list[str]) -> str:
  """The final table, as text.

  Args:
    title: what was scored.
    scores: from `evaluation.Evaluator.score`.
    notes: lines below the table.

  Returns:
    Text of several lines.
  """
  rows = []

  def percent(label, name, chance=None):
    if name in scores:
      beside = f'{100 * chance:.1f}' if chance is not None else ''
      rows.append((label, f'{100 * scores[name]:.1f}', beside))

  num_classes = scores['num_classes']
  percent('top-1 accuracy', 'acc/top1', 1 / num_classes)
  percent('top-5 accuracy', 'acc/top5', min(5 / num_classes, 1.0))
  percent('mean class accuracy', 'acc/mean1', 1 / num_classes)
  percent('mean average precision', 'mAP')
  percent(
    'attention hit rate',
    'attention/hit_rate',
    scores.get('attention/hit_rate_chance'),
  )
  layer = 1
  while f'boundary/rate_{layer}' in scores:
    f1 = 'boundary/f1' if layer == 1 else f'boundary/f1_{layer}'
    percent(f'boundary F1, layer {layer}', f1, scores.get(f'{f1}_chance'))
    layer += 1
  for number in range(1, layer):
    name = f'boundary/rate_{number}'
    percent(f'boundary rate, layer {number}: evaluation', name)
    percent('  deterministic', f'{name}_deterministic')
    percent('  sampled at noise 1', f'{name}_sampled')
    percent('  in training, at the end', f'{name}_train')
  width = max(len(r[0]) for r in rows)
  lines = [title, '', f'{"":{width}}  {"%":>6}  {"chance":>6}']
  lines += [f'{a:{width}}  {b:>6}  {c:>6}' for a, b, c in rows]
  return '\n'.join(lines + ([''] + notes if notes else []))
