"""The figures of the paper (fig. 5-10), drawn with matplotlib."""

import contextlib
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np

from experiments.clips import ClipView
from experiments.convergence import ConvergencePanel
from experiments.curves import Chart
from hman_jax.cells import OPERATION_NAMES

matplotlib.use('Agg')
from matplotlib import pyplot as plt
from matplotlib.patches import Rectangle

# COPY is quiet, FLUSH loud; told apart by the colour-blind, and in grey.
OPERATION_COLOURS = ('#b4b8bf', '#3d85c6', '#d7301f')
OPERATION_HEIGHTS = (0.25, 0.6, 0.95)
ATTENDED, ACTOR = '#ff9f1c', '#2ca25f'
LINES = ('#3d6fd0', '#d1495b', '#2e8b6f', '#8e5ea2', '#b07d2b', '#5f6b7a')

_NUM_SHOWN = 10
_STYLE = {
  'axes.spines.right': False,
  'axes.spines.top': False,
  'font.size': 8,
  'pdf.fonttype': 42,  # text stays text
}


def save_curves(charts: Sequence[Chart], stem: pathlib.Path) -> None:
  """All training curves in one figure.

  Args:
    charts: from `curves.charts`.
    stem: path of the files without .png and .pdf.
  """
  columns = min(len(charts), 3)
  rows = math.ceil(len(charts) / columns)
  with _figure(stem, (3.3 * columns, 2.6 * rows)) as figure:
    for place, chart in enumerate(charts, start=1):
      axes = figure.add_subplot(rows, columns, place)
      scale = 100 if chart.unit == '%' else 1
      for line in chart.series:
        axes.plot(
          line.x,
          scale * np.asarray(line.y),
          color=LINES[line.colour % len(LINES)],
          linestyle='--' if line.dashed else '-',
          linewidth=1.2,
          marker='.' if len(line.x) == 1 else None,
          label=line.name,
        )
      axes.set_title(chart.title + (f' ({chart.unit})' if chart.unit else ''))
      axes.set_xlabel('step')
      if chart.log:
        axes.set_yscale('log')
      axes.legend(
        frameon=False,
        fontsize=6,
        loc='upper center',
        bbox_to_anchor=(0.5, -0.2),
        ncols=max(len(chart.series) // 2, 2),
      )
    figure.tight_layout()


def save_confusion(
  matrix: np.ndarray, class_names: Sequence[str], stem: pathlib.Path
) -> None:
  """The confusion matrix: shares of each true class, with counts.

  Args:
    matrix: int `[C, C]`, row = true class.
    class_names: C names.
    stem: path of the files without .png and .pdf.
  """
  share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
  size = 1.8 + 0.3 * len(class_names)
  with _figure(stem, (size, size)) as figure:
    axes = figure.add_subplot()
    axes.imshow(share, cmap='Blues', vmin=0, vmax=1)
    axes.set_xticks(range(len(class_names)), class_names, rotation=90)
    axes.set_yticks(range(len(class_names)), class_names)
    _literal(*axes.get_xticklabels(), *axes.get_yticklabels())
    axes.set(xlabel='recognised as', ylabel='true class')
    axes.spines[:].set_visible(True)
    for row, column in np.argwhere(matrix):
      axes.text(
        column,
        row,
        str(matrix[row, column]),
        ha='center',
        va='center',
        fontsize=6,
        color='white' if share[row, column] > 0.5 else 'black',
      )


def save_clip(
  clip: ClipView,
  pictures: np.ndarray | None,
  class_names: Sequence[str],
  stem: pathlib.Path,
) -> None:
  """A strip of frames with the attention, and the layers' operations below.

  Args:
    clip: from `clips.view`.
    pictures: from `clips.frames`.
    class_names: C names.
    stem: path of the files; with a suffix .png or .pdf only that file.
  """
  num_steps = len(clip.probabilities)
  shown = np.unique(np.linspace(0, num_steps - 1, _NUM_SHOWN).round())
  has_bands = clip.operation is not None
  heights = (1, 0.8, 0.9) if has_bands else (1, 0.8)
  with _figure(stem, (11, 3.9 if has_bands else 2.6)) as figure:
    grid = figure.add_gridspec(
      len(heights), _NUM_SHOWN, height_ratios=heights, hspace=0.3
    )
    for column, t in enumerate(shown.astype(int)):
      axes = figure.add_subplot(grid[0, column])
      _draw_frame(axes, clip, None if pictures is None else pictures[t], t)
    axes = figure.add_subplot(grid[1, :])
    _draw_probabilities(axes, clip, class_names)
    if has_bands:
      _draw_operations(figure.add_subplot(grid[2, :]), clip)
    else:
      axes.set_xlabel('frame')
    notes = []
    if clip.weights is not None:
      notes.append('orange: where the network looks')
    if clip.target is not None:
      notes.append('green: the actor')
    figure.suptitle(
      f'{_plain(clip.name)}   true: {class_names[clip.label]}   recognised: '
      f'{class_names[clip.predicted]}'
      + (f'   ({", ".join(notes)})' if notes else ''),
      fontsize=9,
      parse_math=False,
    )


def save_diagnosis(found: dict[str, Any], stem: pathlib.Path) -> None:
  """Gradient variance by estimator, temperature, and where the network looks.

  Args:
    found: from `diagnose.diagnose`.
    stem: path of the files without .png and .pdf.
  """
  look = found['attention']
  with _figure(stem, (11, 5.6)) as figure:
    for place, (when, of) in enumerate(found['gradients'].items(), start=1):
      axes = figure.add_subplot(2, 3, place)
      _draw_variances(axes, of)
      axes.set_title(f'gradient variance, {when} parameters')
    axes = figure.add_subplot(2, 3, 3)
    side = math.isqrt(len(look['map']))
    image = axes.imshow(np.reshape(look['map'], (side, side)), cmap='Oranges')
    figure.colorbar(image, ax=axes, shrink=0.8)
    axes.set(title='mean attention', xticks=[], yticks=[])
    axes = figure.add_subplot(2, 3, 4)
    trace = found['temperature']
    axes.plot(trace['step'], trace['value'], color=LINES[0], linewidth=1.2)
    axes.set(title='temperature in training', xlabel='step', ylim=(0, 1.05))
    axes = figure.add_subplot(2, 3, 5)
    mean, std = (np.array(look['temperature'][k]) for k in ('mean', 'std'))
    frames = np.arange(len(mean))
    axes.plot(frames, mean, color=LINES[0], linewidth=1.2)
    axes.fill_between(
      frames, mean - std, mean + std, color=LINES[0], alpha=0.25, linewidth=0
    )
    axes.set(title='temperature on test clips', xlabel='step', ylim=(0, 1.05))
    axes = figure.add_subplot(2, 3, 6)
    bars = {
      'entropy\n/ uniform': look['entropy'] / look['entropy_uniform'],
      'top-1': look['top1'],
      'top-1,\ncentre': look['top1_centre'],
    }
    if 'hit_rate' in look:
      bars |= {
        'hit rate': look['hit_rate'],
        'hit rate,\ncentre': look['hit_rate_centre'],
      }
    drawn = axes.bar(list(bars), list(bars.values()), color=LINES[0])
    axes.bar_label(drawn, fmt='%.2f', fontsize=7)
    axes.tick_params('x', labelsize=6)
    axes.set(title='attention on test clips', ylim=(0, 1.12))
    figure.tight_layout()


def _draw_variances(axes, of: dict[str, Any]) -> None:
  """Bars by part of the model, one an estimator; zeros have none."""
  parts = [p for p in of['gumbel'] if p != 'temperature']
  width = 0.8 / len(of)
  for number, (name, described) in enumerate(of.items()):
    heights = np.array([described[p]['variance'] for p in parts])
    where = np.arange(len(parts)) + (number - (len(of) - 1) / 2) * width
    label = name.replace('_', ' ') + ('' if heights.any() else ' (0)')
    axes.bar(
      where, np.where(heights > 0, heights, np.nan), width,
      color=LINES[number], label=label,
    )  # fmt: skip
  axes.set_yscale('log')
  axes.set_xticks(range(len(parts)), parts)
  axes.legend(
    frameon=False,
    fontsize=6,
    loc='upper center',
    bbox_to_anchor=(0.5, -0.1),
    ncols=3,
  )


def save_convergence(
  panels: Sequence[ConvergencePanel], stem: pathlib.Path
) -> None:
  """Training curves of two models, mean and spread over runs (fig. 5-7).

  Args:
    panels: one a measure.
    stem: path of the files without .png and .pdf.
  """
  with _figure(stem, (3.6 * len(panels), 2.9)) as figure:
    for place, panel in enumerate(panels, start=1):
      axes = figure.add_subplot(1, len(panels), place)
      for number, curve in enumerate(panel.curves):
        scale = 100 if panel.unit == '%' else 1
        steps, mean = np.array(curve.steps), scale * np.array(curve.mean)
        spread = scale * np.array(curve.std)
        label = f'{curve.label} (n={curve.num_runs})'
        axes.plot(
          steps, mean, color=LINES[number], linewidth=1.2, label=label
        )  # fmt: skip
        axes.fill_between(
          steps, mean - spread, mean + spread,
          color=LINES[number], alpha=0.2, linewidth=0,
        )  # fmt: skip
      axes.set_title(panel.title + (f' ({panel.unit})' if panel.unit else ''))
      axes.set_xlabel('step')
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.tight_layout()
    legend = figure.legend(
      handles, labels, loc='upper center', bbox_to_anchor=(0.5, 0.02),
      ncols=2, frameon=False, fontsize=7,
    )  # fmt: skip
    _literal(*legend.get_texts())


def _literal(*texts) -> None:
  """A class may be called $x$: that is no formula."""
  for text in texts:
    text.set_parse_math(False)


def _plain(name: str) -> str:
  """A file name that is no Unicode, made so."""
  return name.encode('utf-8', 'replace').decode()


def _draw_frame(axes, clip: ClipView, picture, t: int) -> None:
  side = clip.side
  if picture is None:
    picture = np.full((8 * side, 8 * side), 128, np.uint8)
  axes.imshow(picture, cmap='gray', vmin=0, vmax=255)
  axes.set_title(f'{t * clip.stride}', fontsize=8)
  axes.axis('off')
  height, width = np.array(picture.shape[:2]) / side

  def mark(cell: int, **style) -> None:
    row, column = divmod(cell, side)
    corner = (column * width - 0.5, row * height - 0.5)
    axes.add_patch(Rectangle(corner, width, height, **style))

  if clip.target is not None and clip.target[t] >= 0:
    mark(int(clip.target[t]), fill=False, edgecolor=ACTOR, linewidth=3)
  if clip.weights is None:
    return
  weights = clip.weights[t]
  if weights.max() < 1:
    for cell, share in enumerate(weights / weights.max()):
      mark(cell, facecolor=ATTENDED, alpha=0.7 * float(share), linewidth=0)
  pick = int(weights.argmax())
  mark(pick, fill=False, edgecolor=ATTENDED, linewidth=1.5)


def _draw_probabilities(axes, clip: ClipView, class_names) -> None:
  likely = np.argsort(-clip.scores, kind='stable')[:4]
  x = clip.stride * np.arange(len(clip.probabilities))
  for place, c in enumerate(likely):
    axes.plot(
      x,
      clip.probabilities[:, c],
      color=LINES[place],
      linewidth=2 if c == clip.label else 1,
      label=class_names[c] + (' (true)' if c == clip.label else ''),
    )
  axes.set(ylim=(0, 1.02), ylabel='probability')
  axes.set_xlim(0, clip.stride * len(x))
  legend = axes.legend(
    frameon=False, fontsize=6, loc='center left', bbox_to_anchor=(1, 0.5)
  )
  _literal(*legend.get_texts())


def _draw_operations(axes, clip: ClipView) -> None:
  num_steps, num_layers = clip.operation.shape
  stride = clip.stride
  for layer in range(num_layers):
    for t, operation in enumerate(clip.operation[:, layer].tolist()):
      axes.add_patch(
        Rectangle(
          (stride * t, layer),
          stride,
          OPERATION_HEIGHTS[operation],
          color=OPERATION_COLOURS[operation],
          linewidth=0,
        )
      )
    ends = stride * (np.flatnonzero(clip.z[:, layer]) + 1)  # z ends a segment
    axes.vlines(ends, layer + 0.75, layer + 1, color='black', linewidth=1)
  if clip.boundaries is not None:
    for t in np.flatnonzero(clip.boundaries):
      axes.axvline(stride * t, color=ACTOR, linewidth=2)
  axes.set(
    xlim=(0, stride * num_steps), ylim=(0, num_layers), xlabel='frame'
  )  # fmt: skip
  names = [f'z{layer + 1}' for layer in range(num_layers)]
  axes.set_yticks(np.arange(num_layers) + 0.4, names)
  axes.legend(
    [Rectangle((0, 0), 1, 1, color=c) for c in OPERATION_COLOURS],
    OPERATION_NAMES,
    loc='center left',
    bbox_to_anchor=(1, 0.5),
    fontsize=6,
    frameon=False,
  )


@contextlib.contextmanager
def _figure(stem: pathlib.Path, size: tuple[float, float]) -> Iterator:
  """A figure that is written on leaving: as .png and .pdf, or as named."""
  paths = [stem]
  if stem.suffix not in ('.png', '.pdf'):
    paths = [stem.with_name(stem.name + end) for end in ('.png', '.pdf')]
  with plt.rc_context(_STYLE):
    figure = plt.figure(figsize=size)
    try:
      yield figure
      for path in paths:
        # Without dates, the same run gives the same bytes.
        undated = {'CreationDate': None} if path.suffix == '.pdf' else None
        figure.savefig(path, dpi=150, bbox_inches='tight', metadata=undated)
    finally:
      plt.close(figure)
