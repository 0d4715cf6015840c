"""Errors of the data: one message, never a traceback."""


class DataError(ValueError):
  """Something about the data is wrong; the message says what and where."""


class VideoError(DataError):
  """A video cannot be decoded; the message names the file."""


class DiskError(DataError):
  """A file cannot be written or read: the machine's fault, not the user's."""

  exit_code = 3


class StoppedError(DataError):
  """The caller asked to stop; what is done so far is kept."""
