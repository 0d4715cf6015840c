"""Looks at what a training step gave: a signal, or what is not finite."""

import textwrap

import ml_collections
import numpy as np

from data import pipeline
from experiments import distributed, storage
from experiments.checkpoint import Checkpoints
from experiments.errors import NonFiniteError
from experiments.stopping import Stop

_MOST_NAMES = 16  # of clips in a message; more go into a file
_NONFINITE = {
  1: 'the loss or its gradient is not finite',
  2: 'the loss and its gradient are finite, but not the state after the update',
}


class StepWatch:
  """Looks at the steps' metrics, one step late so that no step is waited for.

  Args:
    train: config.train.
    source: the training clips, for their names.
    stop: told of a signal to any process.
    checkpoints: of the run.
  """

  def __init__(
    self,
    train: ml_collections.ConfigDict,
    source,
    stop: Stop,
    checkpoints: Checkpoints,
  ):
    self._train, self._source, self._stop = train, source, stop
    self._checkpoints = checkpoints
    self._pending: tuple | None = None

  def add(self, step: int, metrics: dict, batch: pipeline.Batch) -> None:
    """Checks the step before, and takes this one, out of it the signal."""
    self.check()
    self._pending = step, metrics, metrics.pop('signal', 0), batch['clip']

  def check(self) -> None:
    """Raises `NonFiniteError` if the last step taken is one too many."""
    if self._pending is None:
      return
    step, metrics, signal, clips = self._pending
    self._pending = None
    self._stop.agreed = int(signal) or self._stop.agreed
    wrong = int(metrics['nonfinite'])
    if not wrong:
      return
    skipped = metrics['skipped']
    what = f'step {step}: {_NONFINITE[wrong]}. {self._named(step, clips)}'
    allowed = self._train.max_skipped
    if self._train.on_nonfinite == 'skip' and int(skipped) <= allowed:
      print(
        f'WARNING: {what}; skipped ({int(skipped)} of {allowed})', flush=True
      )
      return
    raise NonFiniteError(
      f'{what}. Nothing of this step is kept; last good checkpoint: step '
      f'{self._checkpoints.latest_step()}. Look for damaged features among '
      'these clips; else try a smaller config.train.learning_rate or '
      'config.train.clip_norm, or config.train.on_nonfinite=skip (with a '
      'larger config.train.max_skipped).'
    )

  def _named(self, step: int, clips: np.ndarray) -> str:
    """All clips of a batch, of which a process knows its rows."""
    names = [self._source.clip_names[i] for i in clips]
    whose, file = 'Clips of the batch', f'nonfinite_step_{step}'
    if distributed.count() > 1:
      whose += f' in process {distributed.index()} (the others name theirs)'
      file += f'_process_{distributed.index()}'
    if len(names) > _MOST_NAMES:
      path = self._checkpoints.workdir / f'{file}.txt'
      try:
        storage.write_whole(path, '\n'.join(names) + '\n')
        return f'{whose}: {len(names)}, listed in {path}'
      except OSError:  # then in the message after all
        pass
    return f'{whose}:\n' + textwrap.fill(
      ', '.join(names),
      initial_indent='  ',
      subsequent_indent='  ',
      break_long_words=False,
      break_on_hyphens=False,
    )
