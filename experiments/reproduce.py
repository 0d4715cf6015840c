"""Makes a table of the paper, or of this repository, from scratch.

python -m experiments.reproduce --table=quickstart [--seeds=3] [--only=hm_soft]
    [--out=DIR] [--dry_run] [-- --config.data.root=ROOT --config.x=y ...]

Runs what is missing, one working directory a cell, each in a process of its
own; a second call continues where a stop came, and runs nothing that is done.
Then prints the table, and writes table.md, table.csv, table.tex and cells.csv.
Numbers are mean and sample standard deviation over n runs.
"""

import csv
import dataclasses
import importlib
import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections
from absl import flags

from experiments import config as config_lib
from experiments import program, published, tables, workdir
from experiments.errors import ConfigError, HmanError
from experiments.published import Related
from experiments.tables import Table, measure

ROOT = pathlib.Path(__file__).resolve().parent.parent
NUM_DRAWS = 8  # of the ablation with sampled evaluation
FIXED_SKIP = 3  # frames; so layer 2 moves on every 3, and layer 3 every 9
_OVERRIDE = '--config.'
_USER_ERROR = 2

PRESET_LABELS = {
  'softmax_regression': 'softmax regression on frames',
  'lstm_mean': 'LSTM, average-pooled',
  'lstm_soft': 'LSTM, soft attention (baseline)',
  'hm_soft': 'HM-AN, soft attention',
  'hm_reinforce': 'HM-AN, REINFORCE',
  'hm_gumbel': 'HM-AN, Gumbel-softmax, constant temperature',
  'hm_gumbel_adaptive': 'HM-AN, Gumbel-softmax, adaptive temperature',
}
HM_PRESETS = tuple(name for name in PRESET_LABELS if name.startswith('hm_'))


@dataclasses.dataclass(frozen=True)
class Variant:
  """A row of a table.

  Attributes:
    name: for --only, and of the folder of its runs.
    label: in the table.
    changes: config fields, against the recipe.
    trained_as: the variant whose runs it evaluates; '' is its own.
    num_draws: draws of the boundaries in evaluation; 0: as the config says.
  """

  name: str
  label: str
  changes: Mapping[str, Any]
  trained_as: str = ''
  num_draws: int = 0


@dataclasses.dataclass(frozen=True)
class Spec:
  """What a table consists of.

  Attributes:
    title: its first line.
    recipe: of all runs, a module in configs/.
    variants: its rows.
    metric: 'acc/top1' or 'mAP'.
    splits: official splits; the first has all seeds, the others one.
    random_splits: how many there are of a data set without official ones; seed
      after seed takes the next.
    published: numbers beside ours, by variant.
    related: published rows of other models.
    per_class: whether average precisions of the classes follow (Table II).
    notes: below the table.
  """

  title: str
  recipe: str
  variants: tuple[Variant, ...]
  metric: str = 'acc/top1'
  splits: tuple[int, ...] = ()
  random_splits: int = 0
  published: Mapping[str, float] = dataclasses.field(default_factory=dict)
  related: tuple[Related, ...] = ()
  per_class: bool = False
  notes: tuple[str, ...] = ()


def _presets() -> tuple[Variant, ...]:
  return tuple(
    Variant(name, label, {'model.name': name})
    for name, label in PRESET_LABELS.items()
  )


def _by_scorer() -> tuple[Variant, ...]:
  content = [
    Variant(
      name,
      f'{label}, content scorer' if name in HM_PRESETS else label,
      {'model.name': name, 'model.scorer': 'content'},
    )
    for name, label in PRESET_LABELS.items()
  ]
  location = [
    Variant(
      f'{name}_location',
      f'{PRESET_LABELS[name]}, location scorer (eq. 12)',
      {'model.name': name, 'model.scorer': 'location'},
    )
    for name in HM_PRESETS
  ]
  return (*content, *location)


def _ablations() -> tuple[Variant, ...]:
  change = lambda name, label, **of: Variant(
    name, label, {f'model.{field}': value for field, value in of.items()}
  )
  return (
    change('full', 'full model'),
    change(
      'no_hierarchy',
      'no hierarchy: a boundary at every frame',
      boundary='fixed',
      boundary_period=1,
    ),
    change(
      'fixed_skip',
      f'fixed skip: layer l ends a segment every {FIXED_SKIP}^l frames',
      boundary='fixed',
      boundary_period=FIXED_SKIP,
    ),
    change('no_top_detector', 'top detector off', top_detector=False),
    change('copied_zero', 'z forced to 0 under COPY', copied_boundary='zero'),
    Variant(
      'sampled',
      f'sampled evaluation, {NUM_DRAWS} draws',
      {},
      trained_as='full',
      num_draws=NUM_DRAWS,
    ),
  )


SPECS: dict[str, Spec] = {
  'hmdb51': Spec(
    'HMDB51, split 1, accuracy',
    'hmdb51',
    _presets(),
    splits=(1,),
    published=published.HMDB51,
    related=published.HMDB51_RELATED,
  ),
  'ucf_sports': Spec(
    'UCF Sports, accuracy',
    'ucf_sports',
    _presets(),
    random_splits=3,
    published=published.UCF_SPORTS,
    related=published.UCF_SPORTS_RELATED,
    notes=(
      'There is no official split: seeds 0, 1, 2 have random splits 1, 2, 3. '
      'Published '
      'numbers are multiples of 1/50 and 30/37: they are not of one 25 % split '
      'of 150 clips.',
    ),
  ),
  'olympic_sports': Spec(
    'Olympic Sports, mean average precision',
    'olympic_sports',
    _presets(),
    metric='mAP',
    published=published.OLYMPIC_SPORTS,
    related=published.OLYMPIC_SPORTS_RELATED,
    per_class=True,
    notes=(published.OLYMPIC_NOTE,),
  ),
  'quickstart': Spec(
    'Composite actions (generated), accuracy', 'quickstart', _by_scorer()
  ),
  'jhmdb': Spec(
    'J-HMDB clips, accuracy', 'jhmdb', _presets(), splits=(1, 2, 3)
  ),
  'ablations': Spec(
    'Ablations on composite actions (generated), accuracy',
    'quickstart',
    _ablations(),
  ),
}

FLAGS = program.new_flags()
_TABLE = flags.DEFINE_enum(
  'table', None, sorted(SPECS), 'Which table.', flag_values=FLAGS
)
_SEEDS = flags.DEFINE_integer(
  'seeds',
  3,
  'Runs of each row, with seeds 0, 1, ...; of splits 2 and 3 there is one.',
  lower_bound=1,
  flag_values=FLAGS,
)
_ONLY = flags.DEFINE_list(
  'only', [], 'Rows to run; default: all.', flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
  'out',
  None,
  'Folder of runs and tables. Default: work_dirs/reproduce/<table>.',
  flag_values=FLAGS,
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'List the cells and stop.', flag_values=FLAGS
)


@dataclasses.dataclass(frozen=True)
class Cell:
  """One run.

  Attributes:
    variant: the row whose training it is.
    recipe: of the run, a module in configs/.
    split: official split, 0 where there is none.
    seed: seed.
    config: resolved.
    arguments: `--config.` flags for `experiments.main`.
    workdir: its working directory.
  """

  variant: str
  recipe: str
  split: int
  seed: int
  config: ml_collections.ConfigDict
  arguments: tuple[str, ...]
  workdir: pathlib.Path

  @property
  def name(self) -> str:
    """Where it stands below the folder of runs."""
    return f'{self.variant}/{self.workdir.name}'

  def state(self) -> str:
    """'finished', 'started' or 'missing'."""
    if workdir.finished_table(self.workdir) is not None:
      return 'finished'
    return 'started' if self.workdir.exists() else 'missing'


def main(positional: list[str]) -> int:
  """Runs what is missing, then makes the table."""
  table = program.required(FLAGS, 'table')
  spec = SPECS[table]
  variants = choose(spec, FLAGS.only)
  out = pathlib.Path(FLAGS.out or f'work_dirs/reproduce/{table}')
  cells = plan(spec, variants, FLAGS.seeds, out, positional)
  if FLAGS.dry_run:
    for cell in cells:
      print(f'{cell.state():8}  {cell.name}  {" ".join(cell.arguments)}')
    return 0
  check_data(cells)
  failed = run_cells(cells, out, _evaluations(spec, variants))
  done = [c for c in cells if c.name not in failed]
  made = make_tables(spec, variants, done, failed)
  write(out, made, cells_csv(done))
  print('\n' + '\n'.join(map(tables.markdown, made)))
  print(f'wrote {out}/table.md, table.csv, table.tex, cells.csv')
  return 1 if failed else 0


def choose(spec: Spec, only: Iterable[str]) -> tuple[Variant, ...]:
  """The rows that --only names; all without it.

  Raises:
    HmanError: if there is no such row.
  """
  only = list(only)
  known = [v.name for v in spec.variants]
  for name in only:
    if name not in known:
      raise HmanError(
        f'--only: no row {name!r} in this table. Rows: {", ".join(known)}.'
      )
  return tuple(v for v in spec.variants if not only or v.name in only)


def plan(
  spec: Spec,
  variants: Sequence[Variant],
  seeds: int,
  out: pathlib.Path,
  overrides: Sequence[str],
) -> list[Cell]:
  """All runs of a table; nothing is run or written.

  Args:
    spec: the table.
    variants: its rows, from `choose`.
    seeds: runs a row.
    out: folder of runs.
    overrides: `--config.x=y`.

  Returns:
    Cells, the first seed of all rows first.

  Raises:
    ConfigError: if an override is wrong, or the table sets that field.
    WorkdirError: if a run is there that has another config.
  """
  given = parse_overrides(overrides, _set_by_table(spec))
  trained = {v.trained_as or v.name: v for v in variants}
  changes = {v.name: v.changes for v in spec.variants}
  runs = _runs(spec, seeds)
  cells = []
  for seed, split in runs:
    for name in trained:
      fields = {**changes[name], 'seed': seed}
      if split:
        fields['data.split'] = split
      config = importlib.import_module(f'configs.{spec.recipe}').get_config()
      config.update_from_flattened_dict({**fields, **given})
      folder = f'seed{seed}' if not split else f'split{split}_seed{seed}'
      cell = Cell(
        variant=name,
        recipe=spec.recipe,
        split=split,
        seed=seed,
        config=config_lib.resolve(config),
        arguments=tuple(
          f'{_OVERRIDE}{k}={v}' for k, v in {**fields, **given}.items()
        ),
        workdir=(out / 'cells' / name / folder).absolute(),
      )
      workdir.check(cell.workdir, cell.config)
      cells.append(cell)
  return cells


def _runs(spec: Spec, seeds: int) -> list[tuple[int, int]]:
  """(seed, split) of the runs of a row; split 0 where there is none."""
  if spec.random_splits:
    return [(seed, seed % spec.random_splits + 1) for seed in range(seeds)]
  first, *others = spec.splits or (0,)
  runs = [(seed, first) for seed in range(seeds)]
  return runs + [(0, split) for split in others]


def _set_by_table(spec: Spec) -> set[str]:
  fields = {name for v in spec.variants for name in v.changes} | {'seed'}
  return fields | (
    {'data.split'} if spec.splits or spec.random_splits else set()
  )


def parse_overrides(
  arguments: Sequence[str], taken: Iterable[str] = ()
) -> dict[str, Any]:
  """`--config.x=y` flags as values.

  Args:
    arguments: the flags.
    taken: fields that may not be set.

  Returns:
    Values by field.

  Raises:
    ConfigError: if an argument has another form, names no field or a taken
      one, or its value has the wrong type.
  """
  config_lib.check_flags(arguments)
  values = {}
  for argument in arguments:
    name, equals, text = argument.removeprefix(_OVERRIDE).partition('=')
    if not argument.startswith(_OVERRIDE) or not equals:
      raise ConfigError(
        f'{argument!r}: expected --config.FIELD=VALUE after "--".'
      )
    if name in taken:
      raise ConfigError(f'config.{name}: the table sets it; leave it out.')
    values[name] = _parse(config_lib.FIELDS[name], name, text)
  return values


def _parse(field: config_lib.Field, name: str, text: str) -> Any:
  parsers: dict[type, Callable[[str], Any]] = {
    int: int,
    float: float,
    str: str,
    bool: lambda t: {'true': True, 'false': False}[t.lower()],
  }
  try:
    return parsers[field.type](text)
  except (KeyError, ValueError) as e:
    raise ConfigError(
      f'config.{name}: expected {field.expected()}, got {text!r}.'
    ) from e


def check_data(cells: Sequence[Cell]) -> None:
  """Refuses to start without the folder of the data.

  Raises:
    HmanError: saying which flag is missing.
  """
  data = cells[0].config.data
  if data.name == 'composite_actions':
    return
  if data.root and pathlib.Path(data.root).expanduser().is_dir():
    return
  raise HmanError(
    f'config.data.root: expected the folder of the data ({data.name}), got '
    f'{data.root!r}. Add "-- --config.data.root=FOLDER" at the end.'
  )


def _evaluations(
  spec: Spec, variants: Sequence[Variant]
) -> dict[str, list[tuple[str, int | None]]]:
  """(file, draws) of the evaluations each trained variant needs besides."""
  needed: dict[str, list[tuple[str, int | None]]] = {}
  for variant in variants:
    of = needed.setdefault(variant.trained_as or variant.name, [])
    if variant.num_draws:
      of.append((_sampled_file(variant), variant.num_draws))
    if spec.per_class:
      of.append((_PER_CLASS_FILE, None))
  return needed


_PER_CLASS_FILE = 'evaluation.json'


def _sampled_file(variant: Variant) -> str:
  return f'evaluation_sampled_{variant.num_draws}.json'


def run_cells(
  cells: Sequence[Cell],
  out: pathlib.Path,
  evaluations: Mapping[str, Sequence[tuple[str, int | None]]],
) -> dict[str, str]:
  """Runs the cells that are not finished, one after the other.

  Args:
    cells: from `plan`.
    out: folder of runs; logs go to its `logs/`.
    evaluations: (file, draws) by variant: what to evaluate besides.

  Returns:
    What went wrong, by the name of the cell: crashes, which do not stop the
    other cells.

  Raises:
    HmanError: if a program says that its user made a mistake: other cells
      would say the same.
  """
  failed: dict[str, str] = {}
  to_go = [c for c in cells if c.state() != 'finished']
  started = time.monotonic()
  for number, cell in enumerate(to_go, start=1):
    print(f'[{number}/{len(to_go)}] {cell.name}', flush=True)
    error = _run(
      [
        'experiments.main',
        f'--config={ROOT / "configs" / cell.recipe}.py',
        f'--workdir={cell.workdir}',
        *cell.arguments,
      ],
      out / 'logs' / f'{cell.name.replace("/", "_")}.log',
    )
    if error:
      failed[cell.name] = error
      print(f'  FAILED: {error}', flush=True)
      continue
    spent = time.monotonic() - started
    left = spent / number * (len(to_go) - number)
    scores = final_scores(cell)
    print(
      f'  top-1 {100 * scores["acc/top1"]:.1f} %, mAP '
      f'{100 * scores["mAP"]:.1f} %, {_time(spent)} done, {_time(left)} left',
      flush=True,
    )
  for cell in cells:
    for file, draws in evaluations.get(cell.variant, ()):
      path = cell.workdir / file
      if cell.name in failed or path.exists():
        continue
      error = _run(
        [
          'experiments.evaluate',
          f'--workdir={cell.workdir}',
          f'--out={path}',
          *([] if draws is None else [f'--num_samples={draws}']),
          f'--data_root={cell.config.data.root}',
          f'--features_dir={cell.config.data.features_dir}',
        ],
        out / 'logs' / f'{cell.name.replace("/", "_")}_{path.stem}.log',
      )
      if error:
        failed[cell.name] = error
        print(f'{cell.name}: FAILED: {error}', flush=True)
  return failed


def _time(seconds: float) -> str:
  return f'{int(seconds // 3600)}:{int(seconds // 60 % 60):02d} h'


def _run(command: Sequence[str], log: pathlib.Path) -> str:
  """Runs a program; '' or what it said of its failure."""
  log.parent.mkdir(parents=True, exist_ok=True)
  paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
  environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(paths)}
  with log.open('w') as file:
    process = subprocess.Popen(
      [sys.executable, '-m', *command],
      env=environment,
      stdout=file,
      stderr=subprocess.STDOUT,
      start_new_session=True,  # a stop reaches it once, through this program
    )
    code = _wait(process)
  if code == 0:
    return ''
  said = _last_words(log.read_text(errors='replace'))
  if code == _USER_ERROR:
    raise HmanError(said)
  return f'exit code {code}: {said.splitlines()[0]} (see {log})'


def _last_words(text: str) -> str:
  """The message of an error of ours, or the last line."""
  _, found, message = ('\n' + text).rpartition('\nerror: ')
  lines = text.strip().splitlines() or ['no word']
  return message.strip() if found else lines[-1]


def _wait(process: subprocess.Popen) -> int:
  """The exit code; a stop of this program is handed on, and waited for."""

  def hand_on(number, frame):
    del frame
    process.send_signal(number)
    process.wait()
    sys.exit(128 + number)

  before = {
    number: signal.signal(number, hand_on)
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    return process.wait()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)


def final_scores(cell: Cell) -> dict[str, float]:
  """The final test scores of a finished run."""
  return json.loads((cell.workdir / 'metrics.json').read_text())['test']


def _scores(variant: Variant, cell: Cell) -> dict[str, float]:
  if not variant.num_draws:
    return final_scores(cell)
  path = cell.workdir / _sampled_file(variant)
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
  return (cell.workdir / 'label_map.txt').read_text().splitlines()


def _per_class_table(
  variants: Sequence[Variant], cells: Sequence[Cell]
) -> Table:
  """Table II: average precision of each class, published beside ours."""
  ours: dict[str, dict[str, list[float]]] = {}
  for cell in cells:
    report = json.loads((cell.workdir / _PER_CLASS_FILE).read_text())
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


if __name__ == '__main__':
  program.run(main, FLAGS, __doc__)
