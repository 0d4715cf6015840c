"""A run as one web page to look at: curves, classes, and clips to scrub.

python -m experiments.report --workdir=W [--out=W/report.html] [--clips=60]
    [--figures=DIR] [--data_root=DIR]

The page holds everything, reads nothing from any network, and opens from disk.
With --figures the same is drawn as .png and .pdf for a paper.
"""

import base64
import hashlib
import html
import io
import json
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import config as config_lib
from experiments import program
from experiments.errors import HmanError
from hman_jax.cells import OPERATION_NAMES

FLAGS = program.new_flags()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of a trained run.', flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
  'out', None, 'Page. Default: report.html in the workdir.', flag_values=FLAGS
)
_CLIPS = flags.DEFINE_integer(
  'clips', 60, 'Test clips to show.', lower_bound=1, flag_values=FLAGS
)
_FIGURES = flags.DEFINE_string(
  'figures', None, 'Folder for .png and .pdf files.', flag_values=FLAGS
)
program.define_moved_data(FLAGS)

MAX_BYTES = 20_000_000  # of the page
_MARGIN = 2_000  # what a clip's picture adds in JSON around its bytes
_PAGE = pathlib.Path(__file__).parent / 'report_page'
_COLUMNS = 8  # frames side by side in the picture of a clip
_NUM_LIKELY = 5  # classes with a curve, and the true one
_MAX_FRAMES = 240  # pictures of a clip; of longer ones every second, third...
# Height and JPEG quality of a frame, best first; None: lossless.
_RUNGS = ((144, None), (144, 75), (144, 55), (104, 50), (72, 45), (56, 40))
_LOSSLESS_HEIGHT = 64  # only small grey canvases are worth it
_NUM_FIGURES = 6  # clips drawn for a paper


class Material(NamedTuple):
  """What a report is made of.

  Attributes:
    run: `trained.TrainedRun`.
    source: the test clips.
    scores: from `evaluate.score`.
    records: from `curves.read`.
    views: the clips to show, `clips.ClipView`.
  """

  run: Any
  source: Any
  scores: dict
  records: list[dict]
  views: list


def main(positional: list[str]) -> None:
  """Scores the best model of a run on the test clips and writes the page."""
  if positional:
    raise HmanError(f'{positional[0]!r}: write flags as --name=value.')
  workdir = pathlib.Path(program.required(FLAGS, 'workdir'))

  # Imported late: a mistake in a flag is told before JAX starts.
  from experiments import evaluate, runtime

  runtime.enable_compilation_cache()
  changes = evaluate.data_changes(FLAGS.data_root, FLAGS.features_dir)
  material = collect(workdir, FLAGS.clips, changes)
  page = render(material)
  out = pathlib.Path(FLAGS.out or workdir / 'report.html')
  _write(out, page)
  size = len(page.encode()) / 1e6
  print(f'wrote {out}: {len(material.views)} clips, {size:.1f} MB')
  if FLAGS.figures:
    write_figures(material, pathlib.Path(FLAGS.figures))
    print(f'wrote the figures in {FLAGS.figures}')


def collect(
  workdir: pathlib.Path, num_clips: int, changes: dict | None = None
) -> Material:
  """Runs the best model of a run over its test clips.

  Args:
    workdir: directory of a trained run.
    num_clips: how many clips to show, at least 1.
    changes: config fields to set, for data that have moved.

  Returns:
    `Material`.

  Raises:
    HmanError: if there is no run.
    DataError: if its data are missing or changed.
  """
  from experiments import clips, curves, evaluate, evaluation, trained
  from experiments.predictions import Predictions

  run = trained.read(workdir, changes=changes)
  records = curves.read(run.workdir)
  source = run.open_data().test
  draws = clips.run(run, source)
  predictions = Predictions(
    clip_names=tuple(source.clip_names),
    labels=np.asarray(source.labels),
    scores=np.array([evaluation.clip_probabilities(source, d) for d in draws]),
    class_names=run.class_names,
    about={'split': 'test', 'step': run.step},
  )
  predicted = predictions.scores.mean(axis=0).argmax(axis=1)
  chosen = clips.choose(source.labels, predicted, num_clips)
  stride = run.config.data.frame_stride
  return Material(
    run=run,
    source=source,
    scores=evaluate.score(predictions),
    records=records,
    views=[clips.view(draws, source, i, stride=stride) for i in chosen],
  )


def render(material: Material) -> str:
  """The page, within `MAX_BYTES`.

  Args:
    material: from `collect`.

  Returns:
    HTML text.

  Raises:
    HmanError: if so many clips do not fit.
  """
  from experiments import clips

  source, views = material.source, material.views
  described = [_describe(view, source) for view in views]
  data = {**_summary(material), 'clips': described}
  room = (MAX_BYTES - len(_fill(data).encode())) // max(len(views), 1)
  for clip, shown in zip(described, clips.frames(source, views)):
    clip['sprite'] = None if shown is None else _sprite(shown, room - _MARGIN)
  page = _fill(data)
  size = len(page.encode())
  if size > MAX_BYTES:
    raise HmanError(
      f'--clips: {len(views)} clips make a page of {size / 1e6:.1f} MB, more '
      f'than {MAX_BYTES / 1e6:.1f}. Ask for fewer.'
    )
  return page


def _summary(material: Material) -> dict[str, Any]:
  """Everything on the page but the clips; undefined numbers are None."""
  from experiments import curves

  config, scores = material.run.config, material.scores
  fields = config_lib.flatten(config.to_dict())
  charts = curves.charts(material.records, config.model.attention)
  confusion = np.array(scores['confusion'])
  right, taken = np.diagonal(confusion), confusion.sum(axis=0)
  return {
    'title': f'{config.model.name} on {config.data.name}',
    'step': material.run.step,
    'num_clips': scores['num_clips'],
    'side': material.views[0].side,
    'scores': [
      [name, scores['metrics'][key], guesses]
      for name, key, guesses in (
        ('top-1 accuracy', 'acc/top1', 1),
        ('top-5 accuracy', 'acc/top5', 5),
        ('mean class accuracy', 'acc/mean1', 1),
        ('mean average precision', 'mAP', None),
      )
    ],
    # Folders tell about the user's machine, not about the run.
    'config': [
      [name, str(value)]
      for name, value in sorted(fields.items())
      if name not in ('data.root', 'data.features_dir')
    ],
    'classes': list(material.run.class_names),
    'confusion': scores['confusion'],
    'per_class': [
      {
        'clips': row['num_clips'],
        'right': int(r),
        'accuracy': row['accuracy'],
        'precision': float(r / t) if t else None,
        'average_precision': row['average_precision'],
      }
      for row, r, t in zip(scores['per_class'], right, taken)
    ],
    'charts': [
      {**chart._asdict(), 'series': [_line(s) for s in chart.series]}
      for chart in charts
    ],
    'operations': list(OPERATION_NAMES),
  }


def _line(series) -> dict[str, Any]:
  return {**series._asdict(), 'y': [float(f'{y:.5g}') for y in series.y]}


def _describe(clip, source) -> dict[str, Any]:
  """A clip as the page's program reads it."""
  likely = np.argsort(-clip.scores, kind='stable')[:_NUM_LIKELY].tolist()
  if clip.label not in likely:
    likely.append(clip.label)
  return {
    'index': clip.index,
    'name': clip.name,
    'label': clip.label,
    'predicted': clip.predicted,
    'stride': clip.stride,
    'steps': len(clip.probabilities),
    'starts': clip.starts,
    # In thousandths: a pixel of the chart is more.
    'likely': [
      {
        'class': c,
        'score': float(clip.scores[c]),
        'steps': np.rint(1000 * clip.probabilities[:, c]).astype(int).tolist(),
      }
      for c in likely
    ],
    **_attention(clip.weights),
    'operation': _digits(clip.operation),
    'z': _digits(clip.z),
    'boundaries': (
      None
      if clip.boundaries is None
      else np.flatnonzero(clip.boundaries).tolist()
    ),
    'parts': _parts(clip, source),
    'target': None if clip.target is None else clip.target.tolist(),
    'sprite': None,
  }


def _attention(weights: np.ndarray | None) -> dict[str, Any]:
  """The location picked at each step; and a byte a location if it is spread."""
  if weights is None:
    return {'pick': None, 'heat': None, 'heaviest': None}
  heaviest = weights.max(axis=1)
  heat = None
  if (heaviest < 1).any():
    share = np.rint(255 * weights / heaviest[:, None]).astype(np.uint8)
    heat = base64.b64encode(share.tobytes()).decode()
  return {
    'pick': weights.argmax(axis=1).tolist(),
    'heat': heat,
    'heaviest': [round(float(w), 3) for w in heaviest] if heat else None,
  }


def _digits(values: np.ndarray | None) -> list[str] | None:
  """One text a layer, one digit a step."""
  if values is None:
    return None
  return [''.join(map(str, row)) for row in values.T.astype(int).tolist()]


def _parts(clip, source) -> list[str] | None:
  """Names of what lies between the true boundaries, where a class has any."""
  if clip.boundaries is None or not hasattr(source, 'sub_actions'):
    return None
  return source.class_names[clip.label].split('-')


def _sprite(pictures: np.ndarray, room: int) -> dict[str, Any]:
  """All frames side by side in one picture of at most `room` characters.

  The best rung of size and quality that fits; below the last one, fewer frames.
  """
  every = -(-len(pictures) // _MAX_FRAMES)
  while True:
    for height, quality in _RUNGS:
      lossless = quality is None
      if lossless and (
        pictures.ndim == 4 or pictures.shape[1] > _LOSSLESS_HEIGHT
      ):
        continue
      sprite = _encode(pictures[::every], height, quality)
      if len(sprite['uri']) <= room:
        return {**sprite, 'every': every}
    if every >= len(pictures):
      return {**sprite, 'every': every}  # the page tells if it is too much
    every *= 2


def _encode(pictures, height: int, quality: int | None) -> dict[str, Any]:
  from PIL import Image

  full_height, full_width = pictures.shape[1:3]
  height = min(height, full_height)
  width = max(round(full_width * height / full_height), 1)
  columns = min(_COLUMNS, len(pictures))
  rows = -(-len(pictures) // columns)
  mode = 'L' if pictures.ndim == 3 else 'RGB'
  sheet = Image.new(mode, (columns * width, rows * height))
  for n, picture in enumerate(pictures):
    frame = Image.fromarray(picture)
    if frame.size != (width, height):
      frame = frame.resize((width, height), Image.Resampling.BILINEAR)
    sheet.paste(frame, (n % columns * width, n // columns * height))
  file = io.BytesIO()
  if quality is None:
    sheet.save(file, 'PNG', optimize=True)
  else:
    sheet.save(file, 'JPEG', quality=quality, optimize=True)
  kind = 'png' if quality is None else 'jpeg'
  text = base64.b64encode(file.getvalue()).decode()
  return {
    'uri': f'data:image/{kind};base64,{text}',
    'width': width,
    'height': height,
    'columns': columns,
  }


def _fill(data: dict) -> str:
  """The page's template with its style, its program and the data."""
  from experiments import figures  # imports matplotlib

  style = _read('page.css')
  colours = {
    **{
      name.lower(): colour
      for name, colour in zip(OPERATION_NAMES, figures.OPERATION_COLOURS)
    },
    'attended': figures.ATTENDED,
    'actor': figures.ACTOR,
    **{f'line-{n}': colour for n, colour in enumerate(figures.LINES)},
  }
  named = ''.join(f'--{name}:{colour};' for name, colour in colours.items())
  style = f':root{{{named}}}\n{style}'
  script = _read('page.js')
  policy = '; '.join(
    (
      "default-src 'none'",
      'img-src data:',
      f"style-src '{_digest(style)}'",
      f"script-src '{_digest(script)}'",
      "base-uri 'none'",
      "form-action 'none'",
    )
  )
  parts = {
    'policy': policy,
    'title': html.escape(data['title']),
    'style': style,
    'script': script,
    'data': _embed(data),
  }
  # One pass: what is put in is not looked at again.
  return re.sub(r'@@(\w+)@@', lambda m: parts[m[1]], _read('page.html'))


def _embed(data: dict) -> str:
  """JSON that no name in it can break out of."""
  text = json.dumps(data, allow_nan=False, separators=(',', ':'))
  for sign in '<>&':
    text = text.replace(sign, f'\\u{ord(sign):04x}')
  return text


def _digest(text: str) -> str:
  digest = hashlib.sha256(text.encode()).digest()
  return f'sha256-{base64.b64encode(digest).decode()}'


def _read(name: str) -> str:
  return (_PAGE / name).read_text(encoding='utf-8')


def _write(path: pathlib.Path, page: str) -> None:
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding='utf-8')
  except OSError as e:
    raise HmanError(f'--out: cannot write {path}: {e.strerror}.') from e


def write_figures(material: Material, folder: pathlib.Path) -> None:
  """Curves, confusion matrix and some of the clips, as .png and .pdf.

  Args:
    material: from `collect`.
    folder: where to; made if missing.

  Raises:
    HmanError: if it cannot be made.
  """
  from experiments import clips, curves, figures

  try:
    folder.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise HmanError(f'--figures: cannot write {folder}: {e.strerror}.') from e
  source, views = material.source, material.views
  names = material.run.class_names
  attention = material.run.config.model.attention
  charts = curves.charts(material.records, attention)
  if charts:
    figures.save_curves(charts, folder / 'curves')
  confusion = np.array(material.scores['confusion'])
  figures.save_confusion(confusion, names, folder / 'confusion')
  wanted = clips.choose(
    np.array([v.label for v in views]),
    np.array([v.predicted for v in views]),
    _NUM_FIGURES,
  )
  drawn = [views[place] for place in wanted]
  for clip, pictures in zip(drawn, clips.frames(source, drawn)):
    stem = folder / f'clip_{clip.index:05d}'
    figures.save_clip(clip, pictures, names, stem)


if __name__ == '__main__':
  program.run(main, FLAGS, __doc__)
