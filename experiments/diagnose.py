"""Looks behind a run: gradient noise, temperature, and where it looks.

python -m experiments.diagnose --workdir=W[,W2,...] [--num_draws=64]
    [--boundary_noise=0] [--out=DIR] [--data_root=DIR]

On one batch of training clips, at the first parameters and at the trained ones,
the gradient is drawn many times by soft attention, Gumbel-softmax at a constant
and at a learned temperature, and REINFORCE: the variance over these draws is
the estimator's own. On the test clips: attention against uniform and against
always looking at the centre, its temperature, and boundaries where the truth is
known. Writes diagnosis.json and figures (.png, .pdf) into --out, by default
W/diagnosis. Several runs, of several seeds, are also summed up.
"""

import json
import math
import pathlib
from typing import Any

import numpy as np
from absl import flags

from experiments import program
from experiments.errors import HmanError, WorkdirError

FLAGS = program.new_flags()
_WORKDIR = flags.DEFINE_list(
  'workdir', None, 'Directories of trained runs.', flag_values=FLAGS
)
_NUM_DRAWS = flags.DEFINE_integer(
  'num_draws', 64, 'Gradients of each kind.', lower_bound=2, flag_values=FLAGS
)
_BOUNDARY_NOISE = flags.DEFINE_float(
  'boundary_noise',
  0.0,
  "Scale of the boundaries' noise while gradients are drawn: 0, and all "
  'variance is of the attention; 1 is that of the start of training.',
  lower_bound=0.0,
  flag_values=FLAGS,
)
_OUT = flags.DEFINE_string(
  'out',
  None,
  'Folder to write into. Default: diagnosis in the workdir.',
  flag_values=FLAGS,
)
program.define_checkpoint(FLAGS)
program.define_moved_data(FLAGS)

# What a reader asks of the variances: numerator and denominator.
_RATIOS = (
  ('reinforce', 'gumbel'),
  ('reinforce', 'gumbel_adaptive'),
  ('reinforce_trained', 'gumbel_adaptive'),
  ('gumbel', 'gumbel_adaptive'),
)


def main(positional: list[str]) -> None:
  """Diagnoses each run; prints and writes what it finds."""
  if positional:
    raise HmanError(f'{positional[0]!r}: write flags as --name=value.')
  if not FLAGS.workdir:
    raise HmanError('--workdir: missing. --help shows all flags.')
  if FLAGS.out and len(FLAGS.workdir) > 1:
    raise HmanError('--out: of one run; leave it out with several.')

  # Imported late: a mistake in a flag is told before JAX starts.
  from experiments import evaluate, figures, runtime

  runtime.enable_compilation_cache()
  changes = evaluate.data_changes(FLAGS.data_root, FLAGS.features_dir)
  made = []
  for name in FLAGS.workdir:
    found = diagnose(
      pathlib.Path(name),
      num_draws=FLAGS.num_draws,
      boundary_noise=FLAGS.boundary_noise,
      checkpoint=FLAGS.checkpoint,
      changes=changes,
    )
    print(describe(found), flush=True)
    out = pathlib.Path(FLAGS.out or pathlib.Path(name) / 'diagnosis')
    try:
      out.mkdir(parents=True, exist_ok=True)
      text = json.dumps(found, indent=2, allow_nan=False)
      (out / 'diagnosis.json').write_text(text + '\n')
      figures.save_diagnosis(found, out / 'diagnosis')
    except OSError as e:
      raise HmanError(f'{out}: cannot write: {e.strerror or e}.') from e
    print(f'\nwrote {out}/diagnosis.json, .png, .pdf\n', flush=True)
    made.append(found)
  if len(made) > 1:
    print(describe_together(made))


def diagnose(
  workdir: pathlib.Path,
  *,
  num_draws: int = 64,
  boundary_noise: float = 0.0,
  checkpoint: str = 'best',
  changes: dict | None = None,
) -> dict[str, Any]:
  """All diagnostics of a run.

  Args:
    workdir: directory of a trained run.
    num_draws: gradients of each kind, at least 2.
    boundary_noise: see `estimators.sample`.
    checkpoint: 'best' or 'latest'.
    changes: config fields to set, for data that have moved.

  Returns:
    JSON-able dict: `about`; `gradients` (by 'initial' or 'trained', by
    estimator: see `estimators.describe`); `attention` (see
    `looking.describe`); `temperature` (`step` and `value`, over the training;
    empty without a record).

  Raises:
    WorkdirError: if there is no run, or it has no attention.
    DataError: if its data are missing or changed.
  """
  from data import pipeline
  from experiments import curves, estimators, looking, train, trained

  run = trained.read(workdir, checkpoint=checkpoint, changes=changes)
  config = run.config
  if config.model.attention == 'none':
    raise WorkdirError(
      f'{workdir}: {config.model.name} has no attention to look behind.'
    )
  splits = run.open_data()
  batch = next(
    pipeline.train_batches(
      splits.train,
      batch_size=config.train.batch_size,
      num_frames=config.data.num_frames,
      frame_stride=config.data.frame_stride,
      seed=config.seed,
    )
  )
  first = train.init_state(
    config, run.model, train.make_optimizer(config.train), run.feature_shape
  ).params
  if 'features' in run.params['params']:  # statistics of the data
    kept = {'features': run.params['params']['features']}
    first = {'params': {**first['params'], **kept}}
  gradients = {}
  for when, params in (('initial', first), ('trained', run.params)):
    drawn = {
      name: estimators.sample(
        config,
        params,
        batch,
        len(run.class_names),
        name,
        num_draws=num_draws,
        boundary_noise=boundary_noise,
        seed=config.seed,
      )
      for name in estimators.ESTIMATORS
    }
    truth = drawn[estimators.REFERENCE]
    gradients[when] = {
      name: estimators.describe(found, truth) for name, found in drawn.items()
    }
  records = [
    (r['step'], r['attention/temperature'])
    for r in curves.read(run.workdir)
    if r['mode'] == 'train' and 'attention/temperature' in r
  ]
  return {
    'about': {
      'workdir': str(workdir),
      'model': config.model.name,
      'attention': config.model.attention,
      'scorer': config.model.scorer,
      'data': config.data.name,
      'step': run.step,
      'seed': config.seed,
      'num_clips': len(batch['label']),
      'num_draws': num_draws,
      'boundary_noise': boundary_noise,
    },
    'gradients': gradients,
    'attention': looking.describe(run, splits.test),
    'temperature': {
      'step': [step for step, _ in records],
      'value': [value for _, value in records],
    },
  }


def describe(found: dict[str, Any]) -> str:
  """A diagnosis as text."""
  about = found['about']
  lines = [
    f'{about["model"]} ({about["attention"]}, {about["scorer"]} scorer) on '
    f'{about["data"]}, step {about["step"]}, seed {about["seed"]}',
    f'gradient of the cross-entropy: {about["num_draws"]} draws, '
    f'{about["num_clips"]} training clips, boundary noise '
    f'{about["boundary_noise"]:g}',
  ]
  for when, of_when in found['gradients'].items():
    lines += ['', f'at the {when} parameters:']
    lines.append(
      f'  {"part":11} {"estimator":17} {"variance":>10} {"/ |mean|^2":>10} '
      f'{"cosine":>7} {"bias":>7}'
    )
    parts = dict.fromkeys(p for of in of_when.values() for p in of)
    for part in parts:
      for name, of in of_when.items():
        if part in of:
          lines.append(f'  {part:11} {name:17} ' + _row(of[part]))
  lines += [
    '', 'cosine, bias: of the mean, against that of REINFORCE (unbiased); -: '
    'not above the noise of the draws, or itself',
    *_looks(found['attention']),
  ]  # fmt: skip
  trace = found['temperature']['value']
  if trace and about['attention'] == 'gumbel_adaptive':
    lines.append(
      f'temperature in training: {trace[0]:.3f} at first, {min(trace):.3f} at '
      f'least, {trace[-1]:.3f} at the end'
    )
  return '\n'.join(lines)


def _row(of: dict[str, Any]) -> str:
  return (
    f'{of["variance"]:10.3g} {_shown(of["relative_variance"], "10.3g")} '
    f'{_shown(of.get("cosine"), "7.3f")} '
    f'{_shown(of.get("relative_bias"), "7.2g")}'
  )


def _shown(value: float | None, form: str) -> str:
  width = int(form.partition('.')[0])
  return f'{"-":>{width}}' if value is None else f'{value:{form}}'


def _looks(of: dict[str, Any]) -> list[str]:
  percent = lambda name: f'{100 * of[name]:.1f} %'
  lines = [
    '', 'on the test clips:',
    f'attention entropy {of["entropy"]:.3f} nats (uniform '
    f'{of["entropy_uniform"]:.3f}); of its mean map {of["map_entropy"]:.3f}',
    f'mean distance from the centre {of["distance"]:.2f} cells (uniform '
    f'{of["distance_uniform"]:.2f})',
    f'top-1 {percent("top1")}; always looking at the centre '
    f'{percent("top1_centre")}',
  ]  # fmt: skip
  if 'hit_rate' in of:
    lines.append(
      f'hit rate {percent("hit_rate")}; always the centre '
      f'{percent("hit_rate_centre")}, best fixed place '
      f'{percent("hit_rate_best_fixed")}, chance {percent("hit_rate_chance")}'
    )
  lines += [
    f'boundary F1, layer {b["layer"]}: {100 * b["f1"]:.1f} %, chance '
    f'{100 * b["f1_chance"]:.1f} %'
    for b in of.get('boundaries', ())
  ]
  return lines


def ratios(found: dict[str, Any]) -> dict[str, float]:
  """How many times larger one estimator's variance is than another's.

  Args:
    found: from `diagnose`.

  Returns:
    Ratios by 'WHEN, PART, KIND: A / B'; those of zeros or of unknowns are left
    out.
  """
  made = {}
  for when, of in found['gradients'].items():
    for part in of['gumbel']:
      for kind in ('variance', 'relative_variance'):
        for one, other in _RATIOS:
          above, below = of[one][part][kind], of[other][part][kind]
          if above and below:
            name = f'{when}, {part}, {kind}: {one} / {other}'
            made[name] = above / below
  return made


def describe_together(made: list[dict[str, Any]]) -> str:
  """Ratios of variances over several runs, as text."""
  lines = [f'ratios over {len(made)} runs: geometric mean (least to most)']
  found = [ratios(m) for m in made]
  for name in found[0]:
    values = [r[name] for r in found if name in r]
    mean = math.exp(float(np.mean(np.log(values))))
    known = '' if len(values) == len(made) else f', known in {len(values)}'
    lines.append(
      f'  {name}: {mean:.3g} ({min(values):.3g} to {max(values):.3g}{known})'
    )
  return '\n'.join(lines)


if __name__ == '__main__':
  program.run(main, FLAGS, __doc__)
