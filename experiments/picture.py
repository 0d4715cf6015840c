"""A clip with its attention and boundaries, as a picture.

python -m experiments.picture --workdir=W --out=clip.png [--clip=0]
"""

import pathlib
import sys

import jax
import matplotlib
import numpy as np
from absl import app, flags, logging

from experiments import trained
from experiments.errors import HmanError

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

_WORKDIR = flags.DEFINE_string('workdir', None, 'Directory of a finished run.')
_OUT = flags.DEFINE_string('out', None, 'Picture to write, .png or .pdf.')
_CLIP = flags.DEFINE_integer('clip', 0, 'Which test clip.', lower_bound=0)

_NUM_SHOWN = 10
_COLOURS = {0: '#d9d9d9', 1: '#74a9cf', 2: '#d7301f'}  # COPY, UPDATE, FLUSH
_NAMES = {0: 'COPY', 1: 'UPDATE', 2: 'FLUSH'}


def main(argv: list[str]) -> None:
  """Loads the best model of a run and draws one test clip."""
  del argv
  logging.set_verbosity(logging.WARNING)
  for name in ('workdir', 'out'):
    if flags.FLAGS[name].value is None:
      raise HmanError(f'--{name}: missing.')
  workdir = pathlib.Path(_WORKDIR.value)
  run = trained.read(workdir)
  if run.config.data.name != 'composite_actions':
    raise HmanError(
      f'{workdir}: pictures are drawn of composite actions, this is a run on '
      f'{run.config.data.name}.'
    )
  if run.config.model.cell != 'hm_lstm':
    raise HmanError(f'{workdir}: a {run.config.model.cell} has no boundaries.')
  source = run.open_data().test
  if _CLIP.value >= len(source):
    raise HmanError(
      f'--clip: expected 0..{len(source) - 1}, got {_CLIP.value}.'
    )
  features = source[_CLIP.value]['features'][None]
  out = jax.device_get(
    run.model.apply(run.params, features, deterministic=True)
  )
  draw(source, _CLIP.value, out, pathlib.Path(_OUT.value))
  print(f'wrote {_OUT.value}')


def draw(source, index: int, out, path: pathlib.Path) -> None:
  """Draws frames with the attended cell, and the layers' operations below.

  Args:
    source: `CompositeActions`.
    index: which clip.
    out: `RecogniserOutput` of the clip, arrays `[1, T, ...]`.
    path: the file to write.
  """
  frames, clip = source.frames(index), source[index]
  num_frames = len(frames)
  picks = out.attention.weights[0].argmax(axis=-1)
  shown = np.linspace(0, num_frames - 1, _NUM_SHOWN).round().astype(int)
  figure = plt.figure(figsize=(11, 3.6))
  grid = figure.add_gridspec(2, _NUM_SHOWN, height_ratios=(1, 1.25), hspace=0.3)
  for column, t in enumerate(shown):
    axes = figure.add_subplot(grid[0, column])
    axes.imshow(frames[t], cmap='gray', vmin=0, vmax=255)
    for cell, colour, width in (
      (clip['target'][t], '#31a354', 3.0),
      (picks[t], '#feb24c', 1.5),
    ):
      row, place = divmod(int(cell), 7)
      corner = (place * 8 - 0.5, row * 8 - 0.5)
      axes.add_patch(
        Rectangle(corner, 8, 8, fill=False, edgecolor=colour, linewidth=width)
      )
    axes.set_title(f'{t}', fontsize=8)
    axes.axis('off')
  _draw_operations(figure.add_subplot(grid[1, :]), out, clip, num_frames)
  predicted = source.class_names[int(out.logits[0].mean(axis=0).argmax())]
  true = source.class_names[clip['label']]
  figure.suptitle(
    f'true: {true}   recognised: {predicted}   (green: the actor, orange: '
    'where the network looks)',
    fontsize=9,
  )
  figure.savefig(path, dpi=120, bbox_inches='tight')
  plt.close(figure)


def _draw_operations(axes, out, clip, num_frames: int) -> None:
  operation = out.cell.operation[0]
  num_layers = operation.shape[1]
  for layer in range(num_layers):
    for t in range(num_frames):
      colour = _COLOURS[int(operation[t, layer])]
      axes.add_patch(Rectangle((t, layer), 1, 0.85, color=colour, linewidth=0))
  for t in np.flatnonzero(clip['boundaries']):
    axes.axvline(t, color='#31a354', linewidth=2)
  axes.set(xlim=(0, num_frames), ylim=(0, num_layers), xlabel='frame')
  axes.set_yticks(
    np.arange(num_layers) + 0.4,
    [f'layer {layer + 1}' for layer in range(num_layers)],
  )
  handles = [Rectangle((0, 0), 1, 1, color=c) for c in _COLOURS.values()]
  axes.legend(
    handles,
    _NAMES.values(),
    ncols=3,
    loc='upper right',
    bbox_to_anchor=(1, -0.12),
    fontsize=8,
    frameon=False,
  )


def run() -> None:
  """Entry point: a user's mistake ends in one message."""
  try:
    app.run(main)
  except HmanError as e:
    print(f'error: {e}', file=sys.stderr)
    sys.exit(e.exit_code)


if __name__ == '__main__':
  run()
