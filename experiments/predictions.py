"""Class scores of clips on disk: written once, scored again without the model.

One row a clip and draw: `clip`, `draw`, `label` (index), `scores` (one a class,
in the order of the class names), and, for readers, `label_name` and
`prediction`. In .jsonl the first line holds what is common to all rows; in
.parquet the schema's metadata, under `hman_jax`.
"""

import json
import pathlib
from typing import Any, NamedTuple

import numpy as np

from experiments.errors import HmanError

SUFFIXES = ('.parquet', '.jsonl')
_KIND = 'hman_jax predictions'
_KEY = b'hman_jax'


class Predictions(NamedTuple):
  """Class scores of the clips of a split.

  Attributes:
    clip_names: M names.
    labels: int `[M]`, the true classes.
    scores: float64 `[N, M, C]`, N draws; each row sums to 1.
    class_names: C names.
    about: what was scored and how, JSON-able.
  """

  clip_names: tuple[str, ...]
  labels: np.ndarray
  scores: np.ndarray
  class_names: tuple[str, ...]
  about: dict


def check_path(path: pathlib.Path) -> None:
  """Refuses a name that cannot be written, before any work.

  Raises:
    HmanError: if the suffix is not one of `SUFFIXES`, the folder is missing,
      or the suffix is .parquet and pyarrow is not installed.
  """
  if path.suffix not in SUFFIXES:
    raise HmanError(
      f'{path}: expected a name ending in {" or ".join(SUFFIXES)}.'
    )
  if not path.parent.is_dir():
    raise HmanError(f'{path}: there is no folder {path.parent}.')
  if path.suffix == '.parquet':
    _pyarrow(path)


def write(path: pathlib.Path, predictions: Predictions) -> None:
  """Writes predictions, as the suffix says; moved into place when whole.

  Raises:
    HmanError: if they cannot be written there.
  """
  check_path(path)
  head = {
    'kind': _KIND,
    'class_names': list(predictions.class_names),
    'about': predictions.about,
  }
  temporary = path.with_name(f'.{path.name}.tmp')
  try:
    if path.suffix == '.jsonl':
      lines = [head, *_rows(predictions)]
      temporary.write_text(''.join(json.dumps(x) + '\n' for x in lines))
    else:
      pa, parquet = _pyarrow(path)
      table = pa.Table.from_pylist(_rows(predictions))
      table = table.replace_schema_metadata({_KEY: json.dumps(head).encode()})
      parquet.write_table(table, temporary)
    temporary.replace(path)
  except OSError as e:
    temporary.unlink(missing_ok=True)
    raise HmanError(f'{path}: cannot write: {e.strerror or e}.') from e


def read(path: pathlib.Path) -> Predictions:
  """Reads what `write` wrote, and checks it.

  Raises:
    HmanError: if the file is missing, damaged, or no predictions.
  """
  if path.suffix not in SUFFIXES:
    raise HmanError(
      f'{path}: expected a name ending in {" or ".join(SUFFIXES)}.'
    )
  try:
    head, rows = (
      _read_jsonl(path) if path.suffix == '.jsonl' else _read_parquet(path)
    )
  except OSError as e:
    raise HmanError(f'{path}: cannot read: {e.strerror or e}.') from e
  if not isinstance(head, dict) or head.get('kind') != _KIND:
    raise HmanError(
      f'{path}: no predictions of python -m experiments.evaluate --dump.'
    )
  return _assemble(path, head, rows)


def _rows(predictions: Predictions) -> list[dict]:
  names = predictions.class_names
  return [
    {
      'clip': clip,
      'draw': draw,
      'label': int(label),
      'label_name': names[label],
      'prediction': names[int(scores.argmax())],
      'scores': scores.tolist(),
    }
    for draw, of_draw in enumerate(predictions.scores)
    for clip, label, scores in zip(
      predictions.clip_names, predictions.labels, of_draw
    )
  ]


def _read_jsonl(path: pathlib.Path) -> tuple[Any, list[dict]]:
  parsed = []
  for number, line in enumerate(path.read_bytes().splitlines(), start=1):
    try:
      parsed.append(json.loads(line))
    except ValueError as e:
      raise HmanError(f'{path}:{number}: damaged line ({e}).') from e
  if not parsed:
    raise HmanError(f'{path}: empty.')
  return parsed[0], parsed[1:]


def _read_parquet(path: pathlib.Path) -> tuple[Any, list[dict]]:
  pa, parquet = _pyarrow(path)
  try:
    table = parquet.read_table(path)
    head = json.loads((table.schema.metadata or {}).get(_KEY, b'null'))
    return head, table.to_pylist()
  except (pa.ArrowException, ValueError) as e:
    raise HmanError(f'{path}: damaged, or not Parquet ({e}).') from e


def _assemble(path, head: dict, rows: list[dict]) -> Predictions:
  """Rows to arrays; every clip once in every draw, numbers in range."""
  names = tuple(head.get('class_names', ()))
  draws: dict[int, dict[str, tuple[int, list[float]]]] = {}
  for number, row in enumerate(rows, start=1):
    where = f'{path}: row {number}'
    try:
      clip, draw, label = row['clip'], row['draw'], row['label']
      scores = np.asarray(row['scores'], np.float64)
    except (KeyError, TypeError, ValueError) as e:
      raise HmanError(f'{where}: lacks clip, draw, label or scores.') from e
    if not isinstance(label, int) or not 0 <= label < len(names):
      raise HmanError(
        f'{where}: label: expected 0..{len(names) - 1}, got {label!r}.'
      )
    if scores.shape != (len(names),) or not np.isfinite(scores).all():
      raise HmanError(f'{where}: scores: expected {len(names)} finite numbers.')
    of_draw = draws.setdefault(draw, {})
    if clip in of_draw:
      raise HmanError(f'{where}: clip {clip!r} is there twice.')
    of_draw[clip] = (label, scores)
  if not draws:
    raise HmanError(f'{path}: holds no clips.')
  first = draws[min(draws)]
  labels = {clip: label for clip, (label, _) in first.items()}
  for draw, of_draw in draws.items():
    if {clip: label for clip, (label, _) in of_draw.items()} != labels:
      raise HmanError(
        f'{path}: draw {draw} has other clips or labels than draw {min(draws)}.'
      )
  return Predictions(
    clip_names=tuple(first),
    labels=np.array(list(labels.values()), np.int32),
    scores=np.array(
      [[draws[d][clip][1] for clip in first] for d in sorted(draws)]
    ),
    class_names=names,
    about=head.get('about', {}),
  )


def _pyarrow(path: pathlib.Path) -> tuple[Any, Any]:
  try:
    import pyarrow
    from pyarrow import parquet
  except ImportError as e:
    raise HmanError(
      f'{path}: Parquet needs pyarrow. Run: pip install pyarrow, or choose a '
      'name ending in .jsonl.'
    ) from e
  return pyarrow, parquet
