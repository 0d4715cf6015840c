"""Scores a trained run, by the block protocol.

python -m experiments.evaluate --workdir=W [--split=test] [--num_samples=N]
    [--dump=predictions.parquet]
python -m experiments.evaluate --from_dump=predictions.parquet [--out=FILE]

Every T-frame block of every clip is read once; the softmax is averaged over the
valid steps of a block, then over the blocks of a clip. With --num_samples=N the
boundaries are drawn N times: scores are averaged over the draws, and the spread
of each metric over single draws is told.
"""

import json
import math
import pathlib
from typing import Any

import numpy as np
from absl import flags

from experiments import predictions as predictions_lib
from experiments import program, reporting
from experiments.errors import HmanError
from experiments.predictions import Predictions
from hman_jax import metrics

FLAGS = program.new_flags()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of a trained run.', flag_values=FLAGS
)
_SPLIT = flags.DEFINE_enum(
  'split', 'test', ['test', 'validation'], 'What to score.', flag_values=FLAGS
)
_NUM_SAMPLES = flags.DEFINE_integer(
  'num_samples',
  None,
  'Draws of the boundaries; 0: deterministic. Default: as the config says.',
  lower_bound=0,
  flag_values=FLAGS,
)
_DUMP = flags.DEFINE_string(
  'dump',
  None,
  'Write the class scores of every clip here: .parquet or .jsonl.',
  flag_values=FLAGS,
)
_FROM_DUMP = flags.DEFINE_string(
  'from_dump', None, 'Score this dump, without the model.', flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
  'out',
  None,
  'Where the numbers go. Default: evaluation.json in the workdir '
  '(evaluation_validation.json for --split=validation).',
  flag_values=FLAGS,
)
program.define_checkpoint(FLAGS)
program.define_moved_data(FLAGS)
_NUM_CONFUSIONS = 5


def main(positional: list[str]) -> None:
  """Scores a run or a dump; prints the table, writes the numbers."""
  if positional:
    raise HmanError(f'{positional[0]!r}: write flags as --name=value.')
  if FLAGS.from_dump:
    _check_alone()
    predictions = predictions_lib.read(pathlib.Path(FLAGS.from_dump))
    report = score(predictions)
    out = pathlib.Path(FLAGS.out) if FLAGS.out else None
  else:
    workdir = pathlib.Path(program.required(FLAGS, 'workdir'))
    dump = pathlib.Path(FLAGS.dump) if FLAGS.dump else None
    if dump:
      predictions_lib.check_path(dump)
    predictions, report = evaluate(
      workdir,
      FLAGS.split,
      num_samples=FLAGS.num_samples,
      checkpoint=FLAGS.checkpoint,
      changes=data_changes(FLAGS.data_root, FLAGS.features_dir),
    )
    if dump:
      predictions_lib.write(dump, predictions)
      print(f'wrote {dump}')
    suffix = '' if FLAGS.split == 'test' else f'_{FLAGS.split}'
    out = pathlib.Path(FLAGS.out or workdir / f'evaluation{suffix}.json')
  print(describe(report))
  if out:
    write_report(out, report)
    print(f'\nwrote {out}')


def _check_alone() -> None:
  for name in ('workdir', 'dump', 'num_samples', 'data_root', 'features_dir'):
    if FLAGS[name].present:
      raise HmanError(f'--{name}: has no meaning with --from_dump.')


def data_changes(data_root: str | None, features_dir: str | None) -> dict:
  """Config changes for data that have moved."""
  given = {'data.root': data_root, 'data.features_dir': features_dir}
  return {name: value for name, value in given.items() if value is not None}


def evaluate(
  workdir: str | pathlib.Path,
  split: str = 'test',
  *,
  num_samples: int | None = None,
  checkpoint: str = 'best',
  changes: dict[str, Any] | None = None,
) -> tuple[Predictions, dict]:
  """Runs a trained model over a split of its data.

  Args:
    workdir: working directory of the run.
    split: 'test' or 'validation'.
    num_samples: draws of the boundaries; 0 is deterministic, None is as the
      config says.
    checkpoint: 'best' or 'latest'.
    changes: config fields to set, for data that have moved.

  Returns:
    (predictions, report): see `score`; the report has the metrics of attention
    and boundaries besides.

  Raises:
    HmanError: if there is no run, or it draws no boundaries to sample.
    DataError: if its data are missing or changed.
  """
  from experiments import evaluation, runtime, trained  # JAX is slow to start

  changes = dict(changes or {})
  if num_samples is not None:
    changes['eval.boundary_mode'] = 'sample' if num_samples else 'deterministic'
    changes['eval.num_samples'] = max(num_samples, 1)
  directory = pathlib.Path(workdir)
  if num_samples:
    trained.check_draws(trained.read_config(directory))
  run = trained.read(directory, checkpoint=checkpoint, changes=changes)
  runtime.enable_compilation_cache()
  source = getattr(run.open_data(), split)
  evaluator = evaluation.Evaluator(run.config, run.model)
  draws = evaluator.run(run.params, source)
  predictions = Predictions(
    clip_names=tuple(source.clip_names),
    labels=np.asarray(source.labels),
    scores=np.array([evaluation.clip_probabilities(source, d) for d in draws]),
    class_names=run.class_names,
    about={
      'workdir': str(workdir),
      'model': run.config.model.name,
      'data': source.identity,
      'split': split,
      'checkpoint': checkpoint,
      'step': run.step,
      'mode': run.config.eval.boundary_mode,
    },
  )
  report = score(predictions)
  report['metrics'] = evaluator.summarise(source, draws)
  return predictions, report


def score(predictions: Predictions) -> dict:
  """All classification metrics of predictions, averaged over draws.

  Args:
    predictions: from `evaluate` or a dump.

  Returns:
    JSON-able dict of `about`, `num_clips`, `num_samples`, `metrics` (fractions
    by name), `spread` (of each metric over single draws: mean, sample standard
    deviation, min, max; empty for one draw), `per_class` (name, number of
    clips, accuracy, average precision; None for a class without a clip), and
    `confusion` (counts, row: true class, column: predicted).
  """
  from experiments.evaluation import classification_scores

  labels = predictions.labels
  p = predictions.scores.mean(axis=0)
  single = [classification_scores(draw, labels) for draw in predictions.scores]
  counts = np.bincount(labels, minlength=p.shape[1])
  return {
    'about': predictions.about,
    'num_clips': len(labels),
    'num_samples': len(single),
    'metrics': classification_scores(p, labels),
    'spread': {
      name: _spread([s[name] for s in single])
      for name in single[0]
      if len(single) > 1
    },
    'per_class': [
      {
        'class': name,
        'num_clips': int(count),
        'accuracy': _number(accuracy),
        'average_precision': _number(ap),
      }
      for name, count, accuracy, ap in zip(
        predictions.class_names,
        counts,
        metrics.per_class_accuracy(p, labels),
        metrics.average_precision(p, labels),
      )
    ],
    'confusion': metrics.confusion_matrix(p, labels, p.shape[1]).tolist(),
  }


def _spread(values: list[float]) -> dict[str, float]:
  return {
    'mean': float(np.mean(values)),
    'std': float(np.std(values, ddof=1)),
    'min': min(values),
    'max': max(values),
  }


def _number(value: float) -> float | None:
  return None if math.isnan(value) else float(value)


def write_report(path: pathlib.Path, report: dict) -> None:
  """Writes a report as JSON, moved into place when whole.

  Raises:
    HmanError: if it cannot be written there.
  """
  temporary = path.with_name(f'.{path.name}.tmp')
  known = {
    name: _number(value) for name, value in report['metrics'].items()
  }  # JSON has no NaN
  text = json.dumps({**report, 'metrics': known}, indent=2, allow_nan=False)
  try:
    temporary.write_text(text + '\n')
    temporary.replace(path)
  except OSError as e:
    raise HmanError(f'{path}: cannot write: {e.strerror or e}.') from e


def describe(report: dict) -> str:
  """A report as text: metrics, spread, classes, worst confusions."""
  about = report['about']
  draws = report['num_samples']
  title = (
    f'{about.get("model", "?")}, {report["num_clips"]} '
    f'{about.get("split", "")} clips, step {about.get("step", "?")}, '
    + (f'{draws} draws averaged' if draws > 1 else about.get('mode', ''))
  )
  notes = []
  if report['spread']:
    notes.append('over single draws, %:   mean     std     min     max')
  for name, of in report['spread'].items():
    if name != 'loss':
      values = (of[k] for k in ('mean', 'std', 'min', 'max'))
      notes.append(f'  {name:18}' + ''.join(f'{100 * v:8.2f}' for v in values))
  names = [row['class'] for row in report['per_class']]
  width = max(len('class'), *map(len, names))
  notes += ['', f'{"class":{width}}  clips  accuracy %    AP %']
  for row in report['per_class']:
    values = (row['accuracy'], row['average_precision'])
    shown = ['-' if v is None else f'{100 * v:.1f}' for v in values]
    notes.append(
      f'{row["class"]:{width}}  {row["num_clips"]:5}  {shown[0]:>10}  '
      f'{shown[1]:>6}'
    )
  notes += _worst_confusions(names, report['confusion'])
  scores = {**report['metrics'], 'num_classes': len(names)}
  return reporting.table(title, scores, notes)


def _worst_confusions(names: list[str], confusion: list[list[int]]) -> list:
  wrong = sorted(
    (
      (-count, names[row], names[column])
      for row, counts in enumerate(confusion)
      for column, count in enumerate(counts)
      if row != column and count
    ),
  )[:_NUM_CONFUSIONS]
  if not wrong:
    return []
  return ['', 'most often confused:'] + [
    f'  {-count} x {true} taken for {found}' for count, true, found in wrong
  ]


if __name__ == '__main__':
  program.run(main, FLAGS, __doc__)
