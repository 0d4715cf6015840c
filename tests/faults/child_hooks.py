"""What a child does to itself before it becomes the trainer."""

import functools
import importlib
import os
import pathlib
import resource
import sys
import time

import numpy as np


def clock_one_hour_on():
  """The clock is wrong."""
  _shift_clock(3600.0)


def clock_one_month_back():
  """The clock is wrong."""
  _shift_clock(-30 * 86400.0)


def _shift_clock(seconds):
  now, now_ns = time.time, time.time_ns
  time.time = lambda: now() + seconds
  time.time_ns = lambda: now_ns() + int(seconds * 1e9)


def screen_is_full():
  """Standard output is a file on a full disk."""
  os.dup2(os.open('/dev/full', os.O_WRONLY), 1)


def files_are_small():
  """No file may be longer than this."""
  _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(resource.RLIMIT_FSIZE, (5000, hard))


def tell_phases():
  """A line whenever such a phase begins."""
  from experiments import checkpoint, evaluation

  _tell(evaluation.Evaluator, '_outputs', 'evaluation')
  _tell(checkpoint._Directory, 'save', 'saving')
  _tell(checkpoint._Directory, 'restore', 'reading')


def tell_joining():
  """A line when it begins to wait for the other processes."""
  import jax

  _tell(jax.distributed, 'initialize', 'joining')


def _tell(owner, name, phase):
  function = getattr(owner, name)

  def told(*args, **kwargs):
    print(f'PHASE {phase}', flush=True)
    return function(*args, **kwargs)

  setattr(owner, name, told)


def hangs(module, name):
  """A function tells that it begins, and takes a minute longer."""
  owner = functools.reduce(
    getattr, name.split('.')[:-1], importlib.import_module(module)
  )
  name = name.split('.')[-1]
  function = getattr(owner, name)

  def slow(*args, **kwargs):
    print('PHASE slow', flush=True)
    time.sleep(60)
    return function(*args, **kwargs)

  setattr(owner, name, slow)


def only_saves():
  """Instead of training: four steps of arithmetic, saved as training is."""
  from experiments import workdir
  from experiments.checkpoint import Checkpoints

  flag = next(a for a in sys.argv if a.startswith('--workdir='))
  directory = pathlib.Path(flag.partition('=')[2])
  first = {'w': np.arange(600, dtype=np.float32).reshape(20, 30),
           'step': np.zeros((), np.int32)}  # fmt: skip
  with workdir.owned(directory):
    checkpoints = Checkpoints(directory, 1, {'seed': 0})
    state = checkpoints.restore_latest(first) or first
    for step in range(int(state['step']) + 1, 5):
      w = np.sin(np.asarray(state['w']) + np.float32(step))
      state = {'w': w, 'step': np.asarray(step, np.int32)}
      print(f'step {step}/4', flush=True)
      if step % 2 == 0:
        checkpoints.save_best(step, state, 0.5)
        checkpoints.save(step, state)
    checkpoints.close()
  sys.exit()


def slow_extractor():
  """Features take half a second a batch."""
  _extractor(0.5)


def fast_extractor():
  """The same features at once."""
  _extractor(0.0)


def _extractor(seconds):
  from data import features

  features.EXTRACTORS['efficientnet_lite0'] = lambda: Cells(seconds)


class Cells:
  """Means of the picture's cells, and a line for each call."""

  batch_size = 6
  image_size = (14, 14)
  feature_shape = (49, 3)
  identity = {'extractor': 'cells', 'weights': 'none'}  # noqa: RUF012

  def __init__(self, seconds):
    self._seconds = seconds

  def extract(self, frames):
    print('PHASE features', flush=True)
    time.sleep(self._seconds)
    cells = frames.reshape(-1, 7, 2, 7, 2, 3).mean((2, 4)) / 255
    return cells.reshape(-1, 49, 3).astype(np.float16)
