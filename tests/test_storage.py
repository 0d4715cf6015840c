"""Files of a run on a disk that fails, and signals."""

import errno
import json
import os
import pathlib
import signal
import struct
import time

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from experiments import storage
from experiments.errors import StoppedRun, StorageError
from experiments.reporting import RunLog
from experiments.stopping import SIGNALS, Stop

SCORES = {'acc/top1': 0.5, 'loss': 1.0}


def _no_space(_):
  raise OSError(errno.ENOSPC, 'No space left on device')


def test_a_file_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
  path = tmp_path / 'file.json'
  storage.write_whole(path, 'äöü\n')
  monkeypatch.setattr(storage.os, 'fsync', _no_space)
  with pytest.raises(OSError, match='No space'):
    storage.write_whole(path, 'new')
  monkeypatch.undo()
  assert path.read_bytes() == 'äöü\n'.encode()
  storage.write_whole(path, 'new')
  assert path.read_text() == 'new'
  assert list(tmp_path.iterdir()) == [path]


def test_a_refusal_says_what_is_needed_free_and_safe(tmp_path):
  for step in ('4', '8', '12', '7abc'):
    (tmp_path / 'checkpoints' / step).mkdir(parents=True)
    if step != '8':
      (tmp_path / 'checkpoints' / step / 'manifest.json').write_text('{}')
  refusal = storage.refusal(
    tmp_path, 'FILE', 'why', 3_000_000, leave_out=12
  )  # fmt: skip
  text = str(refusal)
  assert text.startswith('FILE cannot be written (why). It needs 3.0 MB; ')
  assert f'MB are free in {tmp_path}. Last good step: 4.' in text
  assert 'Last good step: none.' in str(
    storage.refusal(tmp_path / 'empty', 'FILE', 'why', 0)
  )


def _log(tmp_path, step=0):
  log = RunLog(tmp_path, every=1, seconds=0)
  log.begin(step, 9, 8)
  return log


def test_a_full_disk_stops_the_log_at_once(tmp_path):
  log = _log(tmp_path)
  log.evaluation(1, 'validation', SCORES)
  os.symlink('/dev/full', tmp_path / 'full')
  (tmp_path / 'full').replace(tmp_path / 'metrics.jsonl')
  with pytest.raises(StorageError, match=r'metrics\.jsonl: the log .*No space'):
    log.evaluation(2, 'validation', SCORES)
  log.close()


def test_a_full_disk_stops_tensorboard_at_once(tmp_path):
  """More values than the queue of tensorboardX's own writer holds."""
  log = _log(tmp_path)
  events = log._events._file._py_recordio_writer  # pyright: ignore
  events._writer.close()
  events._writer = open('/dev/full', 'wb')  # noqa: SIM115
  with pytest.raises(StorageError, match=r'the log cannot .*No space'):
    log.evaluation(1, 'validation', {f'value_{i}': 0.0 for i in range(50)} | {
      **SCORES})  # fmt: skip
  with pytest.raises(StorageError, match=r'the log cannot .*No space'):
    log.close()
  events._writer.raw.close()


def _events(path: pathlib.Path) -> list[Event]:
  raw, found = path.read_bytes(), []
  while raw:
    (length,) = struct.unpack('Q', raw[:8])
    found.append(Event.FromString(raw[12 : 12 + length]))
    raw = raw[16 + length :]
  return found


def test_tensorboard_reads_starts_in_order_whatever_the_clock(
  tmp_path, monkeypatch
):
  for start in range(3):
    monkeypatch.setattr(time, 'time', lambda start=start: 2e9 - 1e6 * start)
    log = _log(tmp_path, step=4)
    log.evaluation(5 + start, 'validation', SCORES)
    log.close()
  files = sorted((tmp_path / 'tensorboard').iterdir())
  assert len(files) == 3
  for start, path in enumerate(files):
    assert 'tfevents' in path.name
    events = _events(path)
    restart = [e.session_log.status == SessionLog.START for e in events]
    assert events[restart.index(True)].step == 5  # it drops 5 and later
    values = {e.summary.value[0].tag: e for e in events if e.summary.value}
    assert {e.step for e in values.values()} == {5 + start}
    top1 = values['validation/acc/top1'].summary.value[0].simple_value
    assert top1 == pytest.approx(0.5)


@pytest.mark.parametrize(
  'line',
  ['', '5', 'null', '{"mode": "tra', '{"mode": "train"}', '\x00\x00',
   '{"mode": "train", "step": null}', '{"mode": "train", "step": "x"}',
   '{"mode": [], "step": 1}', '{"mode": "train", "step": NaN}'],
)  # fmt: skip
def test_lines_of_the_log_that_are_no_records_are_dropped(
  tmp_path, line, capsys
):
  good = [json.dumps({'mode': 'train', 'step': s}) for s in (1, 2)]
  path = tmp_path / 'metrics.jsonl'
  path.write_text('\n'.join([good[0], line, good[1], line]))
  log = _log(tmp_path, step=2)
  log.close()
  assert path.read_text().splitlines() == good
  assert log.has('train', 2) and not log.has('train', 3)
  told = f'WARNING: {path}:2: damaged record'  # the last may be torn by a kill
  assert capsys.readouterr().out.count(told) == bool(line)
  if line:
    assert (tmp_path / 'damaged' / path.name).read_text() == line + '\n'


def test_a_flipped_bit_in_the_log_is_told_and_its_bytes_are_kept(
  tmp_path, capsys
):
  path = tmp_path / 'metrics.jsonl'
  good = [json.dumps({'mode': 'train', 'step': s}) + '\n' for s in (1, 2, 3)]
  damaged = good[1].encode()[:5] + b'\xff\x85' + good[1].encode()[6:]
  path.write_bytes(good[0].encode() + damaged + good[2].encode())
  _log(tmp_path, step=3).close()
  assert path.read_text() == good[0] + good[2]
  assert (tmp_path / 'damaged' / path.name).read_bytes() == damaged
  assert capsys.readouterr().out.count(f'{path}:2: damaged record') == 1


@pytest.mark.parametrize('number', SIGNALS)
def test_a_signal_is_noted(number):
  before = {n: signal.getsignal(n) for n in SIGNALS}
  wakeup = signal.set_wakeup_fd(-1)
  try:
    stop = Stop()
    stop.install()
    stop.check()
    assert not stop.requested()
    os.kill(os.getpid(), number)
    end = time.monotonic() + 10
    while not stop.requested() and time.monotonic() < end:
      time.sleep(0.01)
    with pytest.raises(StoppedRun) as error:
      stop.check()
    assert error.value.exit_code == 128 + number
  finally:
    signal.set_wakeup_fd(wakeup)
    for n, handler in before.items():
      signal.signal(n, handler)
