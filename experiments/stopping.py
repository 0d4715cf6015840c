"""Stopping on a signal: the first asks, the second ends at once."""

import os
import signal
from types import FrameType

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
    """Takes over the signals of this process; main thread only."""
    for number in SIGNALS:
      signal.signal(number, self._note)

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

  def _note(self, number: int, frame: FrameType | None) -> None:
    del frame
    if self.signal is not None:
      os._exit(128 + number)
    self.signal = number
    name = signal.Signals(number).name
    # print() is not safe in a handler: it may interrupt another print().
    os.write(2, f'\n{name}: stopping; again to stop at once\n'.encode())
