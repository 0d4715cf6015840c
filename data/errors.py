"""Errors of the data: always a user's file or field, never a traceback."""


class DataError(ValueError):
  """Something about the data is wrong; the message says what and where."""


class VideoError(DataError):
  """A video cannot be decoded; the message names the file."""


class StoppedError(DataError):
  """The caller asked to stop; what is done so far is kept."""
