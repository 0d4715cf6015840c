"""Stopping on a signal: the first asks, the second ends at once."""

import contextlib
import os
import signal
import threading
from typing import NoReturn

from experiments import distributed
from experiments.errors import StoppedRun

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
  """Notes SIGTERM and SIGINT, for loops to look at between two steps.

  A scheduler sends SIGTERM some seconds before it kills; the loops then save
  and leave. A second signal ends the process without saving, and while there is
  nothing to save (`release`) the first does, wherever the program is.

  Of several processes only some may be sent one, at different times: all
  stop once they agreed to, at the same place; or, with nothing to save, as the
  watchdog tells them to.

  Attributes:
    signal: number of the signal that came, or None.
    agreed: number of the signal that all processes know of, or None.
  """

  def __init__(self) -> None:
    self.signal: int | None = None
    self.agreed: int | None = None
    self._held = True

  def install(self) -> None:
    """Takes over the signals of this process; main thread only.

    A thread looks at them: Python's handlers wait for the main thread, which
    may be compiling for minutes.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in SIGNALS:
      signal.signal(number, lambda *_: None)
    threading.Thread(target=self._watch, args=(reader,), daemon=True).start()

  def release(self) -> None:
    """All that is done is on disk: a signal ends the process, also a past one.

    Such an end is a kill, which loses nothing: what is being written is not
    used before it is whole.
    """
    self._held = False
    if self.signal is not None:
      self._end(self.signal)

  def hold(self) -> None:
    """There is something to save: a signal waits for a loop to look."""
    self._held = True

  def requested(self) -> bool:
    """Whether a signal came."""
    return self.signal is not None

  def check(self) -> None:
    """Raises `StoppedRun` if a signal came, and all processes know of it."""
    number = self.signal if distributed.count() == 1 else self.agreed
    if number is not None:
      raise StoppedRun(number)

  def agree(self) -> None:
    """Asks all processes, who all ask, and raises as `check`."""
    self.agreed = max(distributed.exchange(self.signal or 0)) or None
    self.check()

  def _watch(self, reader: int) -> None:
    while True:
      for number in os.read(reader, 1):
        if number in SIGNALS:
          self._note(number)

  def _note(self, number: int) -> None:
    if self.signal is not None:
      os._exit(128 + number)
    self.signal = number
    if not self._held:
      self._end(number)
    _tell(f'{signal.Signals(number).name}: stopping; again to stop at once')

  def _end(self, number: int) -> NoReturn:
    why = str(StoppedRun(number))
    _tell(f'{why} The same command goes on from here.')
    distributed.leave(128 + number, why)
    os._exit(128 + number)


def _tell(text: str) -> None:
  with contextlib.suppress(OSError):  # no screen: the second is heard still
    os.write(2, f'\n{text}\n'.encode())
