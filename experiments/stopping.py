"""Stopping on a signal: the first asks, the second ends at once."""

import contextlib
import os
import signal
import threading

from experiments import distributed
from experiments.errors import StoppedRun

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
  """Notes SIGTERM and SIGINT, for loops to look at between two steps.

  A scheduler sends SIGTERM some seconds before it kills; the loops then save
  and leave. A second signal ends the process without saving.

  Of several processes only some may be sent one, at different times: all
  stop once they agreed to, at the same place.

  Attributes:
    signal: number of the signal that came, or None.
    agreed: number of the signal that all processes know of, or None.
  """

  def __init__(self) -> None:
    self.signal: int | None = None
    self.agreed: int | None = None

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
    name = signal.Signals(number).name
    with contextlib.suppress(OSError):  # no screen: the second is heard still
      os.write(2, f'\n{name}: stopping; again to stop at once\n'.encode())
