"""Stopping on a signal: the first asks, the second ends at once."""

import os
import signal
from types import FrameType

from experiments.errors import StoppedRun

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
  """Notes SIGTERM and SIGINT, for loops to look at between two steps.

  A scheduler sends SIGTERM some seconds before it kills; the loops then save
  and leave. A second signal ends the process without saving.

  Attributes:
    signal: number of the signal that came, or None.
  """

  def __init__(self) -> None:
    self.signal: int | None = None

  def install(self) -> None:
    """Takes over the signals of this process; main thread only."""
    for number in SIGNALS:
      signal.signal(number, self._note)

  def requested(self) -> bool:
    """Whether a signal came."""
    return self.signal is not None

  def check(self) -> None:
    """Raises `StoppedRun` if a signal came."""
    if self.signal is not None:
      raise StoppedRun(self.signal)

  def _note(self, number: int, frame: FrameType | None) -> None:
    del frame
    if self.signal is not None:
      os._exit(128 + number)
    self.signal = number
    name = signal.Signals(number).name
    # print() is not safe in a handler: it may interrupt another print().
    os.write(2, f'\n{name}: stopping; again to stop at once\n'.encode())
