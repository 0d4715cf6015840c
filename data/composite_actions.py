"""Composite actions: generated clips whose truth is known.

A handwritten digit, the actor, walks over a canvas of 7 x 7 cells among moving
distractors and still clutter. An action is a sequence of four sub-actions of
random lengths. All actions consist of the same sub-actions: only their order
tells them apart, so that neither one frame nor a bag of frames is enough. Each
clip comes with the frames at which its sub-actions change, and the cell of the
actor in every frame.

A clip is a pure function of (seed, split, index): nothing is stored.
"""

import functools
import itertools
from typing import NamedTuple

import numpy as np

from data.errors import DataError

SIDE = 7  # cells on a side of the canvas
CELL = 8  # pixels on a side of a cell, the size of scikit-learn's digits
NUM_CELLS = SIDE * SIDE
ACTOR_DIGIT = 0

# Cyclic displacements (rows down, columns right) of a cell a frame.
SUB_ACTIONS: dict[str, tuple[tuple[int, int], ...]] = {
  'left': ((0, -1), (0, 0)),
  'right': ((0, 1), (0, 0)),
  'up': ((-1, 0), (0, 0)),
  'down': ((1, 0), (0, 0)),
  'circle': ((0, 1), (1, 0), (0, -1), (-1, 0)),
  'shake': ((0, 1), (0, -1)),
  'jump': ((-1, 0), (-1, 0), (1, 0), (1, 0)),
  'stand': ((0, 0),),
}
DEFAULT_SUB_ACTIONS = ('left', 'circle', 'right', 'jump')

# scikit-learn's 1797 digits are the test set of UCI optdigits: 13 writers, in
# the order of the file about 138 digits each. Writer names are not published,
# so splits are blocks of the file with a writer's worth of digits left out
# between them: no writer can stand on both sides.
SPLITS = ('train', 'validation', 'test')
_BLOCKS = {'train': (0, 1000), 'validation': (1140, 1300), 'test': (1440, 1797)}

_CLUTTER_LEVEL = 0.6
_CLUTTER_KEPT = 0.6  # share of pixel rows of a fragment that are kept
_MAX_PIXEL = 16


class Digits(NamedTuple):
  """Digits of one split: float32 `[n, 64]` in [0, 1]."""

  actors: np.ndarray
  others: np.ndarray


class Truth(NamedTuple):
  """What is known of a clip before it is drawn.

  Attributes:
    cells: int32 `[T]`, the actor's cell in each frame, row-major.
    boundaries: bool `[T]`, True at the first frame of a new sub-action.
  """

  cells: np.ndarray
  boundaries: np.ndarray


@functools.lru_cache
def _digits(split: str) -> Digits:
  from sklearn.datasets import load_digits  # slow to import

  digits = load_digits()
  first, last = _BLOCKS[split]
  pixels = (digits.data[first:last] / _MAX_PIXEL).astype(np.float32)
  is_actor = digits.target[first:last] == ACTOR_DIGIT
  return Digits(pixels[is_actor], pixels[~is_actor])


def action_orders(num_sub_actions: int) -> list[tuple[int, ...]]:
  """The orders that make the classes: rotations, forwards and backwards.

  Every sub-action stands equally often at every place, so that knowing what
  happened first (or last) leaves two classes, and how often nothing at all.

  Args:
    num_sub_actions: 3 or 4.

  Returns:
    2 * num_sub_actions orders, each a permutation of range(num_sub_actions).

  Example:
    >>> action_orders(3)[:3]
    [(0, 1, 2), (1, 2, 0), (2, 0, 1)]
  """
  base = list(range(num_sub_actions))
  orders = [
    tuple(order[(start + k) % num_sub_actions] for k in base)
    for order in (base, base[::-1])
    for start in base
  ]
  return orders


def walk(
  start: tuple[int, int],
  sub_actions: list[str],
  durations: list[int],
) -> Truth:
  """The path of an actor that carries out sub-actions one after the other.

  A step into a wall stays where it is.

  Args:
    start: row and column of the first frame, each in 0..6.
    sub_actions: names from `SUB_ACTIONS`.
    durations: frames of each sub-action.

  Returns:
    The `Truth` of sum(durations) frames.

  Example:
    >>> walk((0, 6), ['right', 'left'], [2, 4]).cells.tolist()
    [6, 6, 5, 5, 4, 4]
  """
  moves = itertools.chain.from_iterable(
    itertools.islice(itertools.cycle(SUB_ACTIONS[name]), count)
    for name, count in zip(sub_actions, durations)
  )
  row, column = start
  cells = []
  for t, (down, right) in enumerate(moves):
    if t > 0:
      row = min(max(row + down, 0), SIDE - 1)
      column = min(max(column + right, 0), SIDE - 1)
    cells.append(row * SIDE + column)
  boundaries = np.zeros(len(cells), bool)
  boundaries[np.cumsum(durations)[:-1]] = True
  return Truth(np.array(cells, np.int32), boundaries)


class CompositeActions:
  """One split of the composite actions, as a random-access clip source.

  Attributes:
    class_names: names of the classes, such as 'left-circle-right-jump'.
    clip_names: one name a clip.
    labels: int32 `[num_clips]`, balanced.
    lengths: int32 `[num_clips]`, frames of each clip.
    feature_shape: (49, 64): cells, raw pixels of a cell.
    has_truth: True: clips carry 'boundaries' and 'target'.
    identity: what determines the data, for checkpoints.

  Args:
    split: 'train', 'validation' or 'test'; each has its own writers.
    num_clips: number of clips, at least 1.
    seed: seed of all clips, >= 0.
    sub_actions: 3 or 4 different names from `SUB_ACTIONS`.
    min_duration: fewest frames of a sub-action, >= 2.
    max_duration: most frames of a sub-action.
    num_distractors: other digits that move about.
    num_clutter: cells with a still fragment of a digit, 0..49.

  Raises:
    DataError: if an argument is out of range.

  Example:
    >>> clips = CompositeActions('train', num_clips=8, seed=0)
    >>> clip = clips[3]
    >>> clip['features'].shape[1:], clip['label']
    ((49, 64), 3)
  """

  feature_shape = (NUM_CELLS, CELL * CELL)
  has_truth = True

  def __init__(
    self,
    split: str,
    *,
    num_clips: int,
    seed: int = 0,
    sub_actions: tuple[str, ...] = DEFAULT_SUB_ACTIONS,
    min_duration: int = 6,
    max_duration: int = 10,
    num_distractors: int = 2,
    num_clutter: int = 8,
  ):
    _check('split', split, split in SPLITS, f'one of {SPLITS}')
    _check('num_clips', num_clips, num_clips >= 1, 'at least 1')
    _check('seed', seed, seed >= 0, 'at least 0')
    _check(
      'sub_actions',
      sub_actions,
      len(sub_actions) in (3, 4)
      and len(set(sub_actions)) == len(sub_actions)
      and set(sub_actions) <= set(SUB_ACTIONS),
      f'3 or 4 different names of {tuple(SUB_ACTIONS)}',
    )
    _check(
      'min_duration, max_duration',
      (min_duration, max_duration),
      2 <= min_duration <= max_duration,
      '2 <= min_duration <= max_duration',
    )
    _check('num_distractors', num_distractors, num_distractors >= 0, '>= 0')
    _check('num_clutter', num_clutter, 0 <= num_clutter <= NUM_CELLS, '0..49')
    self.split = split
    self.seed = seed
    self.sub_actions = tuple(sub_actions)
    self.num_distractors = num_distractors
    self.num_clutter = num_clutter
    self._duration_range = (min_duration, max_duration)
    self._orders = action_orders(len(sub_actions))
    self.class_names = tuple(
      '-'.join(self.sub_actions[k] for k in order) for order in self._orders
    )
    self.clip_names = tuple(f'{split}_{i:06d}' for i in range(num_clips))
    self.labels = np.arange(num_clips, dtype=np.int32) % len(self._orders)
    self.lengths = np.array(
      [sum(self._durations(self._generator(i))) for i in range(num_clips)],
      np.int32,
    )
    self.identity = {
      'name': 'composite_actions',
      'split': split,
      'num_clips': num_clips,
      'seed': seed,
      'sub_actions': list(sub_actions),
      'durations': [min_duration, max_duration],
      'num_distractors': num_distractors,
      'num_clutter': num_clutter,
    }

  def __len__(self) -> int:
    return len(self.clip_names)

  def __getitem__(self, index: int) -> dict:
    """Clip `index`: features float16 `[T, 49, 64]`, label, truth."""
    pixels, truth = self._draw(index)
    return {
      'features': pixels,
      'label': int(self.labels[index]),
      'boundaries': truth.boundaries,
      'target': truth.cells,
    }

  def frames(self, index: int) -> np.ndarray:
    """The clip as pictures: uint8 `[T, 56, 56]`, 0 black."""
    pixels = self[index]['features']
    pictures = pixels.reshape(-1, SIDE, SIDE, CELL, CELL)
    pictures = pictures.transpose(0, 1, 3, 2, 4).reshape(
      -1, SIDE * CELL, SIDE * CELL
    )
    return np.round(pictures.astype(np.float32) * 255).astype(np.uint8)

  def _generator(self, index: int) -> np.random.Generator:
    key = (self.seed, SPLITS.index(self.split), index)
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(key)))

  def _durations(self, rng: np.random.Generator) -> list[int]:
    low, high = self._duration_range
    return rng.integers(low, high + 1, len(self.sub_actions)).tolist()

  def _draw(self, index: int) -> tuple[np.ndarray, Truth]:
    """The pixels of a clip `[T, 49, 64]` and its truth."""
    rng = self._generator(index)
    durations = self._durations(rng)
    order = self._orders[self.labels[index]]
    truth = self._walk(rng, order, durations)
    digits = _digits(self.split)
    background = np.zeros(self.feature_shape, np.float32)
    where = rng.choice(NUM_CELLS, self.num_clutter, replace=False)
    background[where] = self._fragments(rng, digits.others)
    frames = np.repeat(background[None].astype(np.float16), sum(durations), 0)
    every = np.arange(len(frames))
    for _ in range(self.num_distractors):
      order = rng.permutation(len(self.sub_actions))
      path = self._walk(rng, order, rng.permutation(durations).tolist())
      frames[every, path.cells] = rng.choice(digits.others)
    frames[every, truth.cells] = rng.choice(digits.actors)
    return frames, truth

  def _walk(self, rng, order, durations) -> Truth:
    start = tuple(rng.integers(0, SIDE, 2).tolist())
    return walk(start, [self.sub_actions[k] for k in order], durations)

  def _fragments(self, rng, others: np.ndarray) -> np.ndarray:
    """Faint pieces of digits that are not the actor: `[num_clutter, 64]`."""
    pieces = rng.choice(others, self.num_clutter).reshape(-1, CELL, CELL)
    pieces = np.roll(pieces, rng.integers(1, CELL), axis=2)
    kept = rng.random((self.num_clutter, CELL, 1)) < _CLUTTER_KEPT
    return (_CLUTTER_LEVEL * pieces * kept).reshape(-1, CELL * CELL)


def _check(name: str, value, good: bool, expected: str) -> None:
  if not good:
    raise DataError(
      f'composite_actions: {name}: expected {expected}, got {value!r}.'
    )
