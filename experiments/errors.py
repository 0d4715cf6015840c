"""Errors that end a program with one message and an exit code, no traceback.

2: the user's input; 3: the machine (disk, lock, memory, another process of the
run); 4: training is not finite; 128 + signal: asked to stop.
"""

import signal


class HmanError(Exception):
  """Base of the programs' errors; the message says what, where and how."""

  exit_code = 2


class ConfigError(HmanError):
  """A field of the config is unknown, out of range, or does not fit."""


class WorkdirError(HmanError):
  """The working directory holds a run that this command cannot continue."""


class CheckpointError(HmanError):
  """A checkpoint is damaged, or is not of this model."""


class StorageError(HmanError):
  """A file cannot be read or written, or the working directory is in use."""

  exit_code = 3


class PeerError(HmanError):
  """Another process of the run is dead, stuck, or did not come."""

  exit_code = 3


class NonFiniteError(HmanError):
  """The loss or its gradient is infinite or not a number."""

  exit_code = 4


class StoppedRun(HmanError):
  """A signal asked the program to stop; what is done is saved.

  Args:
    number: of the signal.
    message: what was saved, and how to go on.
  """

  def __init__(self, number: int, message: str = ''):
    name = signal.Signals(number).name
    super().__init__(message or f'stopped by {name}.')
    self.number = number
    self.exit_code = 128 + number
