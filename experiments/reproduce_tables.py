"""From finished runs to a table of measured and published numbers."""

import csv
import io
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from experiments import convergence, published, tables, workdir
from experiments.errors import HmanError
from experiments.reproduce_cells import (
  PER_CLASS_FILE,
  Cell,
  final_scores,
  sampled_file,
)
from experiments.reproduce_specs import Spec, Variant
from experiments.tables import Table, measure


def _scores(variant: Variant, cell: Cell) -> dict[str, float]:
  if not variant.num_draws:
    return final_scores(cell)
  path = cell.workdir / sampled_file(variant)
  return json.loads(path.read_text())['metrics']


def make_tables(
  spec: Spec,
  variants: Sequence[Variant],
  cells: Sequence[Cell],
  failed: Mapping[str, str],
) -> list[Table]:
  """The table of finished cells, and that of its classes where it has one.

  Args:
    spec: the table.
    variants: its rows.
    cells: finished ones.
    failed: why others are missing, by name.

  Returns:
    One or two tables.
  """
  scores = {
    v.name: [(c, _scores(v, c)) for c in cells if c.variant == _source(v)]
    for v in variants
  }
  columns = _columns(spec, scores)
  has_published = bool(spec.published or spec.related)
  rows = []
  for variant in variants:
    values = [make(scores[variant.name]) for _, make in columns]
    if has_published:
      values.insert(0, spec.published.get(variant.name))
    rows.append((variant.label, tuple(values)))
  for related in spec.related:
    empty = (None,) * len(columns)
    rows.append((f'{related.label} (published)', (related.value, *empty)))
  heads = ['model', *(['published %'] if has_published else [])]
  notes = [*spec.notes, *_notes(spec, cells, failed)]
  notes += convergence_notes(convergence_runs(spec, cells))
  made = [
    Table(
      spec.title,
      (*heads, *(name for name, _ in columns)),
      rows,
      tuple(notes),
    )
  ]
  if spec.per_class:
    made.append(_per_class_table(variants, cells))
  return made


def _source(variant: Variant) -> str:
  return variant.trained_as or variant.name


Scored = list[tuple[Cell, dict[str, float]]]


def _columns(
  spec: Spec, scores: Mapping[str, Scored]
) -> list[tuple[str, Callable[[Scored], tables.Value]]]:
  """(heading, how to make the value) of each column of our numbers."""
  metric = {'acc/top1': 'accuracy', 'mAP': 'mAP'}[spec.metric]
  columns: list[tuple[str, Callable[[Scored], tables.Value]]] = []
  if len(spec.splits) > 1:
    for split in spec.splits:
      columns.append(
        (f'split {split} %', lambda s, n=split: _measure(s, spec.metric, n))
      )
    columns.append(
      ('mean of splits %', lambda s: _over_splits(s, spec.metric, spec.splits))
    )
  else:
    columns.append((f'ours, {metric} %', lambda s: _measure(s, spec.metric)))
  found = {name for s in scores.values() for _, of in s for name in of}
  extra = {'attention/hit_rate': 'attention hit rate %'}
  for name in sorted(n for n in found if n.startswith('boundary/f1')):
    if not name.endswith('_chance'):
      layer = name.removeprefix('boundary/f1').lstrip('_') or '1'
      extra[name] = f'boundary F1, layer {layer} %'
  for name, head in extra.items():
    if name in found:
      columns.append((head, lambda s, n=name: _measure(s, n)))
  return columns


def _measure(scored: Scored, name: str, split: int = 0) -> Any:
  chosen = [
    s for cell, s in scored if name in s and (not split or cell.split == split)
  ]
  chance = f'{name}_chance'
  return measure(
    [s[name] for s in chosen], [s[chance] for s in chosen if chance in s]
  )


def _over_splits(
  scored: Scored, name: str, splits: Sequence[int]
) -> tables.Value:
  """Mean and spread over splits of each split's mean; None if one lacks."""
  means = [_measure(scored, name, split) for split in splits]
  if None in means:
    return None
  return measure([m.mean for m in means])


def _notes(spec: Spec, cells: Sequence[Cell], failed: Mapping) -> list[str]:
  notes = [
    'Mean ± sample standard deviation over n runs (seeds'
    + ('; for "mean of splits": splits' if len(spec.splits) > 1 else '')
    + '), test clips, model chosen on validation.'
  ]
  if cells:
    config = cells[0].config
    model, data, train = config.model, config.data, config.train
    what = f'{len(_class_names(cells[0]))} classes'
    if data.name != 'composite_actions':
      what += f', features {data.features}'
    notes.append(
      f'Ours: configs/{spec.recipe}.py: {what}, T = {data.num_frames}, '
      f'H = {model.hidden_size}, position code {model.position_code}, '
      f'{train.num_steps} steps of {train.batch_size} clips'
      + (f', scorer {model.scorer}.' if not _varies(spec) else '.')
    )
  if spec.published:
    notes.append(
      'Published numbers (arXiv 1708.07590) are of ResNet-152 features and '
      'the recipe of the paper: the same only where ours says so.'
    )
  notes += [f'Missing: {name}: {why}' for name, why in failed.items()]
  return notes


def _varies(spec: Spec) -> bool:
  return any('model.scorer' in v.changes for v in spec.variants)


def _class_names(cell: Cell) -> list[str]:
  names = workdir.read(cell.workdir, 'label_map.txt')
  assert names is not None, 'a finished run has the names of its classes'
  return names.splitlines()


def _per_class_table(
  variants: Sequence[Variant], cells: Sequence[Cell]
) -> Table:
  """Table II: average precision of each class, published beside ours."""
  ours: dict[str, dict[str, list[float]]] = {}
  for cell in cells:
    report = json.loads((cell.workdir / PER_CLASS_FILE).read_text())
    of_variant = ours.setdefault(cell.variant, {})
    for row in report['per_class']:
      name = published.OLYMPIC_FOLDERS.get(row['class'], row['class'])
      if row['average_precision'] is not None:
        of_variant.setdefault(name, []).append(row['average_precision'])
  names = list(published.OLYMPIC_CLASSES)
  extra = {n for of in ours.values() for n in of} - set(names)
  names += sorted(extra)
  columns, series = ['class'], []
  for related in ('Conv-Attention', 'CHAM'):
    columns.append(f'{related} (published) %')
    series.append(published.OLYMPIC_AP[related])
  for variant in variants:
    if variant.name in published.OLYMPIC_AP:
      columns.append(f'{variant.name} (published) %')
      series.append(published.OLYMPIC_AP[variant.name])
    columns.append(f'{variant.name} (ours) %')
    of = ours.get(variant.name, {})
    series.append({name: measure(values) for name, values in of.items()})
  return Table(
    'Olympic Sports, average precision of each class (Table II)',
    tuple(columns),
    [(name, tuple(s.get(name) for s in series)) for name in names],
    (published.OLYMPIC_NOTE,),
  )


def convergence_runs(
  spec: Spec, cells: Sequence[Cell]
) -> dict[str, dict[str, list[pathlib.Path]]]:
  """Runs whose training curves belong together, where both rows have some.

  Args:
    spec: the table.
    cells: finished ones; of each pair of rows, the splits and seeds that both
      have are taken.

  Returns:
    By the name of the figure: working directories by label.
  """
  found = {}
  for name, pair in spec.convergence_pairs().items():
    runs = [
      {(c.split, c.seed): c.workdir for c in cells if c.variant == v.name}
      for v in pair
    ]
    both = sorted(runs[0].keys() & runs[1].keys())
    if both:
      found[name] = {v.label: [r[k] for k in both] for v, r in zip(pair, runs)}
  return found


def convergence_notes(
  runs: Mapping[str, Mapping[str, Sequence[pathlib.Path]]],
) -> list[str]:
  """How many steps the models of each figure need, a line a figure.

  Args:
    runs: from `convergence_runs`.

  Raises:
    WorkdirError: if a run's record is missing or damaged.
  """
  notes = []
  for name, of in runs.items():
    mark, reached = convergence.steps_to_share(of)
    parts = [
      f'{label}: {_steps(reached[label])} ({len(reached[label])} of '
      f'{len(paths)} runs)'
      for label, paths in of.items()
    ]
    notes.append(
      f'Steps to a validation accuracy of {100 * mark:.1f} % '
      f'({100 * convergence.SHARE:.0f} % of the lower final one), {name}.png: '
      f'{"; ".join(parts)}.'
    )
  return notes


def _steps(values: Sequence[float]) -> str:
  found = measure(values)
  if found is None:
    return 'never'
  spread = f' ± {found.std:.0f}' if found.n > 1 else ''
  return f'{found.mean:.0f}{spread}'


def write_convergence(
  out: pathlib.Path,
  runs: Mapping[str, Mapping[str, Sequence[pathlib.Path]]],
) -> None:
  """Writes the training curves of each figure, as .png and .pdf.

  Raises:
    HmanError: if the folder cannot be written, or a record is damaged.
  """
  from experiments import figures  # imports matplotlib

  for name, of in runs.items():
    try:
      out.mkdir(parents=True, exist_ok=True)
      figures.save_convergence(convergence.panels(of), out / name)
    except OSError as e:
      raise HmanError(f'{out}: cannot write: {e.strerror or e}.') from e


def cells_csv(cells: Sequence[Cell]) -> str:
  """One line a run, with all its test scores."""
  scores = [final_scores(cell) for cell in cells]
  names = sorted({name for s in scores for name in s})
  out = io.StringIO()
  writer = csv.writer(out, lineterminator='\n')
  writer.writerow(['variant', 'split', 'seed', *names])
  for cell, of in zip(cells, scores):
    values = [of.get(name, '') for name in names]
    writer.writerow([cell.variant, cell.split or '', cell.seed, *values])
  return out.getvalue()


def write(out: pathlib.Path, made: Sequence[Table], cells: str) -> None:
  """Writes table.md, table.csv, table.tex and cells.csv.

  Raises:
    HmanError: if the folder cannot be written.
  """
  formats = {'md': tables.markdown, 'csv': tables.to_csv, 'tex': tables.latex}
  try:
    out.mkdir(parents=True, exist_ok=True)
    for suffix, form in formats.items():
      text = '\n'.join(form(t) for t in made)
      (out / f'table.{suffix}').write_text(text, encoding='utf-8')
    (out / 'cells.csv').write_text(cells)
  except OSError as e:
    raise HmanError(f'{out}: cannot write: {e.strerror or e}.') from e
