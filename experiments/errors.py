"""Errors that a user can mend: one message, exit code 2, no traceback."""


class HmanError(Exception):
  """Base of the programs' errors; the message says what, where and how."""

  exit_code = 2


class ConfigError(HmanError):
  """A field of the config is unknown, out of range, or does not fit."""


class WorkdirError(HmanError):
  """The working directory holds a run that this command cannot continue."""
