"""Writes records of the store, for tests."""

import pathlib

import numpy as np

from data import store


def write(
  path: pathlib.Path,
  features: np.ndarray,
  dtype: str = 'float16',
  *,
  declared: int | None = None,
) -> store.Record:
  """`[T, N, D]` as a record; folders are made."""
  path.parent.mkdir(parents=True, exist_ok=True)
  writer = store.Writer(path, features.shape[1:], dtype)
  writer.append(features.astype(np.float16))
  identity = {'extractor': 'given', 'fps': None}
  return writer.commit(identity, len(features), declared)
