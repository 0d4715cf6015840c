"""What a run recorded while it trained, as charts to draw."""

import json
import math
import pathlib
from typing import NamedTuple

from experiments import workdir as workdir_lib
from experiments.errors import WorkdirError

MAX_POINTS = 1000  # of a series; longer ones are thinned


class Series(NamedTuple):
  """One line of a chart.

  Attributes:
    name: what it shows.
    colour: index of its colour; lines of one thing have one colour.
    dashed: beside a line of the same colour, or a chance level.
    x: steps.
    y: values, all finite.
  """

  name: str
  colour: int
  dashed: bool
  x: list[int]
  y: list[float]


class Chart(NamedTuple):
  """One chart: values against the training step.

  Attributes:
    title: what is measured.
    unit: '' or of y; '%' for values in [0, 1] shown as percent.
    log: whether y is on a logarithmic scale.
    series: the lines.
  """

  title: str
  unit: str
  log: bool
  series: list[Series]


def read(workdir: pathlib.Path) -> list[dict]:
  """The records of metrics.jsonl; a last line torn by a kill is left out.

  Raises:
    WorkdirError: if it is missing, or another line is damaged.
  """
  path = workdir / 'metrics.jsonl'
  text = workdir_lib.read(workdir, path.name)
  if text is None:
    raise WorkdirError(f'{path}: missing; cannot read the records.')
  lines = text.splitlines()
  records = []
  for number, line in enumerate(lines, start=1):
    try:
      record = json.loads(line)
      records.append({**record, 'mode': record['mode'], 'step': record['step']})
    except (ValueError, KeyError, TypeError) as e:
      if number < len(lines):
        raise WorkdirError(f'{path}:{number}: damaged record: {e!r}.') from e
  return records


def charts(records: list[dict], attention: str) -> list[Chart]:
  """Loss, accuracy, gradient, attention and boundaries against the step.

  Args:
    records: from `read`.
    attention: name of the attention, for what it has.

  Returns:
    Charts with at least one point.
  """
  layers = range(1, 1 + _num_layers(records))
  train, held_out = ('training', 0, False), ('validation', 1, True)
  plans: list[tuple[str, str, bool, list[tuple]]] = [
    ('Loss', 'nats', False, [
      (*train, 'train', 'loss'), (*held_out, 'validation', 'loss'),
    ]),
    ('Accuracy', '%', False, [
      (*train, 'train', 'acc/step'), (*held_out, 'validation', 'acc/top1'),
    ]),
    ('Gradient norm before clipping', '', True, [
      (*train, 'train', 'grad_norm'),
    ]),
    ('Boundary rate', '%', False, [
      (f'z{layer} {name}', layer - 1, dashed, mode, f'boundary/rate_{layer}')
      for layer in layers
      for (name, _, dashed), mode in (
        (train, 'train'), (held_out, 'validation')
      )
    ]),
    ('Attention entropy', 'nats', False, [
      (*train, 'train', 'attention/entropy'),
      (*held_out, 'validation', 'attention/entropy'),
    ]),
    ('Attention on the actor', '%', False, [
      ('validation', 1, False, 'validation', 'attention/hit_rate'),
      ('chance', 2, True, 'validation', 'attention/hit_rate_chance'),
    ]),
    ('Boundary F1', '%', False, [
      (f'z{layer} {name}', layer - 1, dashed, 'validation', key + end)
      for layer in layers
      for key in ['boundary/f1' if layer == 1 else f'boundary/f1_{layer}']
      for name, dashed, end in (
        ('validation', False, ''), ('chance', True, '_chance')
      )
    ]),
  ]  # fmt: skip
  if attention.startswith('gumbel'):
    plans.insert(3, ('Temperature of the attention', '', False, [
      (*train, 'train', 'attention/temperature'),
      (*held_out, 'validation', 'attention/temperature'),
    ]))  # fmt: skip
  found = [
    Chart(title, unit, log, [
      _series(records, *line, positive=log) for line in lines
    ])
    for title, unit, log, lines in plans
  ]  # fmt: skip
  kept = [c._replace(series=[s for s in c.series if s.x]) for c in found]
  return [c for c in kept if c.series]


def _num_layers(records: list[dict]) -> int:
  layer = 0
  while any(f'boundary/rate_{layer + 1}' in r for r in records):
    layer += 1
  return layer


def _series(records, name, colour, dashed, mode, key, *, positive) -> Series:
  points = [
    (r['step'], r[key])
    for r in records
    if r['mode'] == mode
    and isinstance(r.get(key), int | float)
    and math.isfinite(r[key])
    and (r[key] > 0 or not positive)
  ]
  every = max(-(-len(points) // MAX_POINTS), 1)
  # Counted from the end, which is the point that matters most.
  points = points[::-1][::every][::-1]
  return Series(
    name, colour, dashed, [p[0] for p in points], [p[1] for p in points]
  )
