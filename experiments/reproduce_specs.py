"""What the tables of `experiments.reproduce` consist of."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from experiments import published
from experiments.published import Related

NUM_DRAWS = 8  # of the ablation with sampled evaluation
FIXED_SKIP = 3  # frames; so layer 2 moves on every 3, and layer 3 every 9

PRESET_LABELS = {
  'softmax_regression': 'softmax regression on frames',
  'lstm_mean': 'LSTM, average-pooled',
  'lstm_soft': 'LSTM, soft attention (baseline)',
  'hm_soft': 'HM-AN, soft attention',
  'hm_reinforce': 'HM-AN, REINFORCE',
  'hm_gumbel': 'HM-AN, Gumbel-softmax, constant temperature',
  'hm_gumbel_adaptive': 'HM-AN, Gumbel-softmax, adaptive temperature',
}
# Whose training curves are drawn, where a table has both (fig. 5-7).
CONVERGENCE_PRESETS = ('hm_reinforce', 'hm_gumbel_adaptive')
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

  def convergence_pairs(self) -> dict[str, list[Variant]]:
    """Rows whose training curves are drawn together, by the figure's name."""
    by_name = {v.name: v for v in self.variants}
    pairs = {}
    for suffix in ('', '_location'):
      names = [f'{preset}{suffix}' for preset in CONVERGENCE_PRESETS]
      if all(name in by_name for name in names):
        pairs[f'convergence{suffix}'] = [by_name[name] for name in names]
    return pairs


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
