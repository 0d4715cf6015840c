"""The runs behind a table: which there are, and how they are run."""

import dataclasses
import importlib
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import ml_collections

from experiments import config as config_lib
from experiments import workdir
from experiments.errors import ConfigError, HmanError
from experiments.reproduce_specs import Spec, Variant

ROOT = pathlib.Path(__file__).resolve().parent.parent
PER_CLASS_FILE = 'evaluation.json'  # in a workdir
_OVERRIDE = '--config.'
_USER_ERROR = 2


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


def evaluations(
  spec: Spec, variants: Sequence[Variant]
) -> dict[str, list[tuple[str, int | None]]]:
  """(file, draws) of the evaluations each trained variant needs besides."""
  needed: dict[str, list[tuple[str, int | None]]] = {}
  for variant in variants:
    of = needed.setdefault(variant.trained_as or variant.name, [])
    if variant.num_draws:
      of.append((sampled_file(variant), variant.num_draws))
    if spec.per_class:
      of.append((PER_CLASS_FILE, None))
  return needed


def sampled_file(variant: Variant) -> str:
  """Of a workdir: the evaluation of a row with drawn boundaries."""
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
  told = []

  def hand_on(number, frame):
    del frame
    told.append(number)
    process.send_signal(number)  # no wait: `process.wait` has its lock

  before = {
    number: signal.signal(number, hand_on)
    for number in (signal.SIGINT, signal.SIGTERM)
  }
  try:
    code = process.wait()
  finally:
    for number, handler in before.items():
      signal.signal(number, handler)
  if told:
    sys.exit(128 + told[-1])
  return code


def final_scores(cell: Cell) -> dict[str, float]:
  """The final test scores of a finished run."""
  scores = workdir.read_tree(cell.workdir, 'metrics.json')
  assert scores is not None, 'a finished run has scores'
  return scores['test']
