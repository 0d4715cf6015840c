"""What tests look at in the parts of a data set."""

import collections


def names(part):
  return [c.name for c in part]


def kinds(dataset, fatal=None):
  """How many findings there are of each kind."""
  return collections.Counter(
    f.kind for f in dataset.findings if fatal is None or f.fatal is fatal
  )


def sources(part):
  return {(c.label, c.source) for c in part}
