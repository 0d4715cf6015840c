"""Tells when another process of a run is dead or stuck, and ends this one.

Every process says each second how far it has come (a beat), through the
key-value store of JAX's coordination service, and reads what the others say.
One that is not heard from is dead or stopped; if nobody gets on, the one that
is furthest behind is stuck; if nothing is heard at all, the service is gone.
Without this, those that wait in a collective wait for ever.
"""

import contextlib
import faulthandler
import json
import os
import resource
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

from experiments.errors import PeerError

BEAT_S = 1.0
SILENT_S = 20.0  # not heard from for so long: dead, stopped or cut off
SUSPECT_S = 5.0  # the same, once a collective has failed
GRACE_S = 5.0  # for the others to come to the end that one process told
LEAVE_S = 3.0  # for telling that this process ends
BUSY = 0.02  # processors used by what is not stuck; waiting takes a tenth
_FOLDER = 'hman_jax/beat/'


class Peer(NamedTuple):
  """What is known of a process.

  Attributes:
    name: for messages: number, process id, host.
    turns: how often it did what all do as often.
    moves: how often it got on.
    where: what it does.
    note: why it left; empty if it has not.
    code: its exit code, if it left.
    changed: when its last beat came, by the clock of this process.
    moved: when it last got on, by the same clock.
  """

  name: str
  turns: int
  moves: int
  where: str
  note: str
  code: int
  changed: float
  moved: float


class Verdict(NamedTuple):
  """Why this process has to end.

  Attributes:
    message: for the user.
    stacks: whether the stacks of this process belong to the answer.
    code: exit code.
  """

  message: str
  stacks: bool
  code: int = PeerError.exit_code


def judge(
  me: int,
  peers: Mapping[int, Peer],
  now: float,
  answered: float,
  *,
  stuck_s: float,
  suspicious: bool = False,
) -> Verdict | None:
  """What is wrong with the processes, if anything.

  Args:
    me: number of this process.
    peers: what is known, this process included, by number.
    now: the clock.
    answered: when the coordinator last told of them.
    stuck_s: seconds without getting on that are too many.
    suspicious: whether a collective has failed here already.

  Returns:
    None while all is well.
  """
  others = [peer for number, peer in peers.items() if number != me]
  silent_s = SUSPECT_S if suspicious else SILENT_S
  if now - answered > silent_s:
    return Verdict(
      f'the coordinator has not answered for {now - answered:.0f} s: it (a '
      'child of process 0), the host of process 0, or the way there is gone; '
      'the other processes may be well. Start all processes again with the '
      'same commands: they go on from the last checkpoint.',
      stacks=not suspicious,
    )
  # Nobody is heard from while the coordinator is silent.
  silent = [p for p in others if not p.note and answered - p.changed > silent_s]
  if silent:
    worst = min(silent, key=lambda p: p.changed)
    return Verdict(
      f'{worst.name} has not been heard from for {now - worst.changed:.0f} s '
      f'(its last word: {worst.where}): it is dead, stopped or cut off. '
      'Start all processes again with the same commands: they go on from the '
      'last checkpoint.',
      stacks=not suspicious,
    )
  for peer in others:
    if peer.note and now - peer.changed > GRACE_S:
      code = peer.code if peer.code > 128 else PeerError.exit_code  # a signal
      return Verdict(f'{peer.name} ended: {peer.note}', False, code)
  quiet_s = now - max(p.moved for p in peers.values())
  if quiet_s > stuck_s:
    least = min(p.turns for p in peers.values())
    behind = [p for p in peers.values() if p.turns == least]
    names = '; '.join(f'{p.name} ({p.where})' for p in behind)
    if len(behind) == len(peers):
      what = f'all processes stand at the same place: {behind[0].where}'
    else:
      what = f'stuck, the others wait for it: {names}'
    return Verdict(
      f'nothing has moved for {quiet_s:.0f} s (--watchdog_s='
      f'{stuck_s:g}); {what}. The stacks above are those of this process; '
      'those of the stuck one tell why. Start all processes again with the '
      'same commands: they go on from the last checkpoint.',
      stacks=True,
    )
  return None


class Watchdog:
  """Beats for this process, and watches the others; two threads.

  Args:
    client: of JAX's coordination service.
    index: number of this process.
    count: how many there are.
    stuck_s: seconds without getting on that are too many.
  """

  def __init__(self, client: Any, index: int, count: int, stuck_s: float):
    self._client, self._index, self._stuck_s = client, index, stuck_s
    self._name = f'process {index} (process id {os.getpid()} on '
    self._name += f'{socket.gethostname()})'
    self._turns, self._moves, self._where = 0, 0, 'starting'
    self._note, self._code = '', 0
    self._alone, self._work = False, _work()
    self._sent = 0
    self._suspicious = False
    now = self._answered = time.monotonic()
    unheard = lambda i: Peer(
      f'process {i}', 0, 0, 'starting', '', 0, changed=now, moved=now
    )
    self._peers = {i: unheard(i) for i in range(count)}
    self._texts: dict[int, str] = {}
    self._closed = threading.Event()
    self._talking = threading.Lock()
    self._threads = [
      threading.Thread(target=target, daemon=True)
      for target in (self._talk_on, self._judge_on)
    ]

  def start(self) -> None:
    """Starts beating and watching."""
    for thread in self._threads:
      thread.start()

  def close(self) -> None:
    """Ends both; nothing is watched any more."""
    self._closed.set()
    for thread in self._threads:
      thread.join()

  def beat(self, where: str = '', alone: bool = False) -> None:
    """This process got on.

    Args:
      where: what it does now; empty: as before.
      alone: whether it is for this process, which waits in no collective and
        may take long: until the next beat it gets on while it uses the
        processor or the disk. Else all do it as often: who has not, is behind.
    """
    self._turns += not alone
    self._moves += 1
    self._alone = alone
    self._where = where or self._where

  def suspect(self) -> None:
    """A collective has failed: the others are given less time to be heard."""
    self._suspicious = True

  def leave(self, note: str, code: int) -> None:
    """Tells the others that this process ends, and why."""
    self._note, self._code = note, code
    # If the service is gone they hear nothing, and find out.
    thread = threading.Thread(target=self._try_to_talk, daemon=True)
    thread.start()
    thread.join(LEAVE_S)

  def _talk_on(self) -> None:
    while not self._closed.wait(BEAT_S):
      self._look_at_work()
      self._try_to_talk()

  def _look_at_work(self) -> None:
    work = _work()
    busy = work.processor - self._work.processor > BUSY * BEAT_S
    self._moves += self._alone and (busy or work.blocks > self._work.blocks)
    self._work = work

  def _try_to_talk(self) -> None:
    with contextlib.suppress(Exception):  # no answer: `_judge_on` looks for it
      self._talk()

  def _talk(self) -> None:
    with self._talking:
      self._sent += 1
      mine = (
        self._name, self._turns, self._moves, self._where, self._note,
        self._code, self._sent,
      )  # fmt: skip
      self._client.key_value_set(
        f'{_FOLDER}{self._index}', json.dumps(mine), allow_overwrite=True
      )
      answer = self._client.key_value_dir_get(_FOLDER)
      now = self._answered = time.monotonic()
      for key, text in answer:
        number = int(key.rpartition('/')[2])
        if text != self._texts.get(number):
          self._texts[number] = text
          name, turns, moves, where, note, code, _ = json.loads(text)
          old = self._peers[number]
          moved = now if moves != old.moves else old.moved
          self._peers[number] = Peer(
            name, turns, moves, where, note, code, now, moved
          )

  def _judge_on(self) -> None:
    while not self._closed.wait(BEAT_S / 2):
      verdict = judge(
        self._index,
        dict(self._peers),
        time.monotonic(),
        self._answered,
        stuck_s=self._stuck_s,
        suspicious=self._suspicious,
      )
      if verdict is not None:
        self._end(verdict)

  def _end(self, verdict: Verdict) -> None:
    # Not by way of sys.stdout and sys.stderr, whose locks a stuck thread may
    # hold; and it ends also where nothing can be told, as on a full disk.
    with contextlib.suppress(OSError):
      if verdict.stacks:
        os.write(2, f'stacks of {self._name}:\n'.encode())
        faulthandler.dump_traceback(2, all_threads=True)
      # One write: the lines of several processes must not mix.
      word = 'stopped' if verdict.code > 128 else 'error'
      text = f'{word}: process {self._index}: {verdict.message}\n'
      os.write(2, text.encode())
    os._exit(verdict.code)


class _Work(NamedTuple):
  processor: float
  blocks: int


def _work() -> _Work:
  """Seconds of the processor and blocks of the disk that this process used."""
  use = resource.getrusage(resource.RUSAGE_SELF)
  return _Work(use.ru_utime + use.ru_stime, use.ru_inblock + use.ru_oublock)
