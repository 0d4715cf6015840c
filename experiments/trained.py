"""A trained run, read back from its working directory alone."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments import checkpoint as checkpoint_lib
from experiments import config as config_lib
from experiments import datasets, train
from experiments import workdir as workdir_lib
from experiments.checkpoint import Checkpoints
from experiments.errors import ConfigError, HmanError, WorkdirError
from hman_jax import __version__

CHECKPOINTS = ('best', 'latest')


@dataclasses.dataclass(frozen=True)
class TrainedRun:
  """A model, and what is needed to use it.

  Attributes:
    workdir: where it was read.
    config: resolved, locked.
    class_names: names of the classes, by label.
    data: what the data and features were: `preprocessing`, `feature_shape`,
      and the identities of `train`, `validation` and `test`.
    model: from `train.make_model`.
    params: of the model.
    step: the training step that they are of.
    videos: digest of the bytes of all videos; empty if there are none, or it is
      not known.
  """

  workdir: pathlib.Path
  config: ConfigDict
  class_names: tuple[str, ...]
  data: dict
  model: Any
  params: Any
  step: int
  videos: str = ''

  @property
  def feature_shape(self) -> tuple[int, int]:
    """(N, D) of the features."""
    return tuple(self.data['feature_shape'])

  def open_data(self) -> datasets.Splits:
    """The data set of the run, preparing features where missing.

    Returns:
      `Splits`.

    Raises:
      DataError: if the data are missing or wrong.
      WorkdirError: if they are not those of the run: other classes, other
        features, other clips, other videos.
    """
    splits = datasets.load(self.config)
    self._check_classes(splits.train.class_names)
    self.check_preprocessing(splits.preprocessing)
    for name in ('train', 'validation', 'test'):
      source = getattr(splits, name)
      changed = _differences(self.data[name], source.identity)
      if changed:
        raise WorkdirError(
          f'{self.workdir}: the {name} clips are not those of the run: '
          f'{changed}. Give the run its data again.'
        )
    if self.videos and splits.videos != self.videos:
      raise WorkdirError(
        f'{self.workdir}: videos are not those of the run: at least one has '
        'the name of another. Give the run its data again.'
      )
    return splits

  def check_preprocessing(self, preprocessing: Mapping) -> None:
    """Refuses features of another kind.

    Raises:
      WorkdirError: naming what differs.
    """
    changed = _differences(self.data['preprocessing'], preprocessing)
    if changed:
      raise WorkdirError(
        f'{self.workdir}: the model was trained on other features: {changed}.'
      )

  def _check_classes(self, names: tuple[str, ...]) -> None:
    if tuple(names) == self.class_names:
      return
    extra = sorted(set(names) - set(self.class_names))
    gone = sorted(set(self.class_names) - set(names))
    what = f'{len(self.class_names)} classes, the data have {len(names)}'
    if extra or gone:
      what += f'; only in the data: {extra}; only in the run: {gone}'
    else:
      what += ', in another order'
    raise WorkdirError(
      f'{self.workdir}: other classes (label_map.txt): the run has {what}.'
    )


def read(
  workdir: str | pathlib.Path,
  *,
  checkpoint: str = 'best',
  changes: Mapping[str, Any] | None = None,
) -> TrainedRun:
  """Reads a run back.

  Args:
    workdir: working directory of `experiments.main`.
    checkpoint: 'best' on validation, or the 'latest'.
    changes: config fields to set, such as `{'data.root': FOLDER}` for data that
      have moved.

  Returns:
    `TrainedRun`.

  Raises:
    WorkdirError: if there is no run, or nothing trained yet, or a file is
      damaged.
    CheckpointError: if the checkpoint is damaged, or does not fit config.json
      and label_map.txt.
    ConfigError: if a change is wrong.
  """
  directory = pathlib.Path(workdir).expanduser()
  config = read_config(directory, changes)
  data = _read_json(directory, 'data.json')
  class_names = _read_labels(directory)
  shape = tuple(data['feature_shape'])
  model = train.make_model(config, len(class_names), shape)
  like = train.init_state(
    config, model, train.make_optimizer(config.train), shape
  )
  checkpoints = Checkpoints(
    directory,
    config.checkpoint.keep,
    {'class_names': list(class_names)},
    read_only=True,
  )
  try:
    if checkpoint == 'latest':
      state = checkpoints.restore_latest(like)
    else:
      state = checkpoints.restore_best(like)
    videos = checkpoints.videos(checkpoint == 'best') if state else ''
  finally:
    checkpoints.close()
  if state is None:
    raise WorkdirError(
      f'{directory}: the run has no {checkpoint} checkpoint yet. Go on '
      f'training it: python -m experiments.main with --workdir={directory}.'
    )
  return TrainedRun(
    workdir=directory,
    config=config,
    class_names=class_names,
    data=data,
    model=model,
    params=state.evaluated(),
    step=int(state.step),
    videos=videos,
  )


def read_config(
  directory: pathlib.Path, changes: Mapping[str, Any] | None = None
) -> ConfigDict:
  """The resolved config of a run.

  Args:
    directory: working directory.
    changes: config fields to set.

  Raises:
    WorkdirError: if there is no run, or its config is damaged or of another
      version.
    ConfigError: if a change is wrong.
  """
  path = directory / 'config.json'
  if not path.is_file():
    raise WorkdirError(
      f'{directory}: holds no run (no config.json). Give the --workdir of '
      'python -m experiments.main.'
    )
  tree = _read_json(directory, path.name)
  try:
    config = config_lib.resolve(config_lib.migrated(tree))
  except (ConfigError, ValueError, TypeError) as e:
    raise WorkdirError(
      f'{path}: damaged, or of another version (the run is by hman_jax '
      f'{checkpoint_lib.version_of(directory)}; this is {__version__}):\n{e}'
    ) from e
  if not changes:
    return config
  with config.unlocked():
    config.update_from_flattened_dict(dict(changes))
  return config_lib.resolve(config)


def num_draws(config: ConfigDict, asked: int | None) -> int:
  """Draws of the boundaries, 0 for none: as asked, else as the config says.

  Raises:
    HmanError: if draws are asked for of a model that has none.
  """
  if asked is None:
    drawn = config.model.cell == 'hm_lstm' and config.model.boundary == 'gumbel'
    sampled = drawn and config.eval.boundary_mode == 'sample'
    return config.eval.num_samples if sampled else 0
  if asked:
    check_draws(config)
  return asked


def check_draws(config: ConfigDict) -> None:
  """Refuses to draw the boundaries of a model that draws none.

  Raises:
    HmanError: saying what it has instead.
  """
  model = config.model
  if model.cell != 'hm_lstm' or model.boundary != 'gumbel':
    what = f'config.model.boundary={model.boundary!r}'
    if model.cell != 'hm_lstm':
      what = f'config.model.cell={model.cell!r}'
    raise HmanError(
      f'--num_samples: {model.name} draws no boundaries ({what}): its '
      'evaluation is always the same.'
    )


def _read_labels(directory: pathlib.Path) -> tuple[str, ...]:
  path = directory / 'label_map.txt'
  text = workdir_lib.read(directory, path.name)
  if text is None:
    raise WorkdirError(f'{path}: missing; cannot read the class names.')
  names = tuple(text.split('\n'))
  names = names[:-1] if names[-1] == '' else names
  if not names or '' in names or len(set(names)) < len(names):
    raise WorkdirError(
      f'{path}: damaged: expected one class name a line, all different.'
    )
  return names


def _read_json(directory: pathlib.Path, name: str) -> dict:
  tree = workdir_lib.read_tree(directory, name)
  if tree is None:
    raise WorkdirError(f'{directory / name}: missing.')
  return tree


def _differences(old: Mapping, new: Mapping) -> str:
  """'name: was 1, is 2; ...', or '' where two JSON-able dicts agree."""
  new = json.loads(json.dumps(new))  # tuples as they are read again
  return '; '.join(
    f'{name}: was {old.get(name)!r}, is {new.get(name)!r}'
    for name in sorted(old.keys() | new.keys())
    if old.get(name) != new.get(name)
  )
