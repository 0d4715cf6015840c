"""The typed schema of a config: names, types, ranges, choices and presets.

`configs/default.py` holds the values and explains them; this table says which
values a field may have.
"""

import dataclasses
import difflib
import json
import math
import os
import re
import struct
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import ml_collections

from experiments.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Field:
  """What one field may hold.

  Attributes:
    type: int, float, bool or str; a float field takes an int as well. An int
      has 32 bits at most; a float is what float32 makes of it; a text is one
      that can be a path.
    low, high: range, None: open-ended.
    open_low, open_high: whether the ends themselves are excluded.
    choices: allowed strings, or None.
  """

  type: type
  low: float | None = None
  high: float | None = None
  open_low: bool = False
  open_high: bool = False
  choices: tuple[str, ...] | None = None

  def expected(self) -> str:
    """The allowed values in words."""
    if self.choices:
      return 'one of ' + ', '.join(repr(c) for c in self.choices)
    text = {
      int: 'an integer',
      float: 'a number',
      bool: 'True or False',
      str: f'a path of at most {_LONGEST} bytes ({_LONGEST_PART} a part)',
    }[self.type]
    if self.low is not None:
      text += f' {">" if self.open_low else ">="} {self.low:g}'
    if self.high is not None:
      join = ' and' if self.low is not None else ''
      text += f'{join} {"<" if self.open_high else "<="} {self.high:g}'
    return text

  def accepts(self, value: Any) -> bool:
    """Whether a value has the type and lies in the range."""
    if self.type is bool:
      return isinstance(value, bool)
    if self.type is str:
      if not isinstance(value, str):
        return False
      return (
        _may_be_path(value) if self.choices is None else (value in self.choices)
      )
    if isinstance(value, bool) or not isinstance(value, int | float):
      return False
    if self.type is int:
      return (
        isinstance(value, int)
        and abs(value) <= _LARGEST
        and self._in_range(value)
      )
    value = _in_float32(value)
    return math.isfinite(value) and self._in_range(value)

  def _in_range(self, value: float) -> bool:
    low, high = self.low, self.high
    above = low is None or value > low or (value == low and not self.open_low)
    below = (
      high is None or value < high or (value == high and not self.open_high)
    )
    return above and below


_LARGEST = 2**31 - 1
_LONGEST, _LONGEST_PART = 1000, 255  # bytes of a path
_SMALLEST = 2.0**-126  # of the normal float32: smaller ones may be taken as 0


def _in_float32(value: float) -> float:
  """What a computation in float32 sees of a number."""
  try:
    (value,) = struct.unpack('f', struct.pack('f', value))
  except (OverflowError, struct.error):  # an int beyond all floats
    return math.inf
  return value if abs(value) >= _SMALLEST or math.isnan(value) else 0.0


def _may_be_path(text: str) -> bool:
  try:
    path = os.fsencode(text)
  except UnicodeEncodeError:
    return False
  parts = path.split(b'/')
  longest = max(len(part) for part in parts)
  return (
    len(path) <= _LONGEST and longest <= _LONGEST_PART and b'\0' not in path
  )


def _count(low: int = 1, high: int | None = None) -> Field:
  return Field(int, low=low, high=high)


def _choice(*choices: str) -> Field:
  return Field(str, choices=choices)


# Ends far beyond anything of use, where memory or time would give out.
_WIDTH, _DEPTH, _DRAWS, _FRAMES = 2**16, 64, 1000, 100_000
_CLIPS, _BATCH = 10_000_000, 2**20
_POSITIVE = Field(float, low=0, open_low=True)
_TEMPERATURE = Field(float, low=1e-3, high=1e3)
_NOT_NEGATIVE = Field(float, low=0)
_RATE = Field(float, low=0, high=1, open_high=True)
_FRACTION = Field(float, low=0, high=1)
_OPEN_FRACTION = Field(float, low=0, high=1, open_low=True, open_high=True)

PRESETS: dict[str, dict[str, str]] = {
  'lstm_soft': {
    'cell': 'lstm', 'attention': 'soft', 'initial_state': 'mean_features',
  },
  'hm_soft': {
    'cell': 'hm_lstm', 'attention': 'soft', 'initial_state': 'zeros',
  },
  'hm_reinforce': {
    'cell': 'hm_lstm', 'attention': 'reinforce', 'initial_state': 'zeros',
  },
  'hm_gumbel': {
    'cell': 'hm_lstm', 'attention': 'gumbel', 'initial_state': 'zeros',
  },
  'hm_gumbel_adaptive': {
    'cell': 'hm_lstm', 'attention': 'gumbel_adaptive', 'initial_state': 'zeros',
  },
  'lstm_mean': {
    'cell': 'lstm', 'attention': 'none', 'initial_state': 'mean_features',
  },
  'softmax_regression': {
    'cell': 'none', 'attention': 'none', 'initial_state': 'zeros',
  },
}  # fmt: skip

FIELDS: dict[str, Field] = {
  'seed': Field(int, low=0, high=2**31 - 1),
  'data.name': _choice(
    'hmdb51',
    'ucf_sports',
    'olympic_sports',
    'video_folder',
    'composite_actions',
  ),
  'data.root': Field(str),
  'data.features': _choice('efficientnet_lite0', 'resnet152', 'none'),
  'data.weights': Field(str),
  'data.features_dir': Field(str),
  'data.store_dtype': _choice('float16', 'int8'),
  'data.on_bad_video': _choice('error', 'skip'),
  'data.train_list': Field(str),
  'data.validation_list': Field(str),
  'data.test_list': Field(str),
  'data.label_map': Field(str),
  'data.split': Field(int, low=1, high=3),
  'data.test_fraction': _OPEN_FRACTION,
  'data.allow_missing': _count(0),
  'data.num_frames': _count(high=_FRAMES),
  'data.frame_stride': _count(high=_FRAMES),
  'data.fps': _NOT_NEGATIVE,
  'data.validation_fraction': _OPEN_FRACTION,
  'data.num_train': _count(high=_CLIPS),
  'data.num_validation': _count(high=_CLIPS),
  'data.num_test': _count(high=_CLIPS),
  'model.name': _choice(*PRESETS),
  'model.cell': _choice('', 'hm_lstm', 'lstm', 'none'),
  'model.attention': _choice(
    '', 'soft', 'reinforce', 'gumbel', 'gumbel_adaptive', 'none'
  ),
  'model.initial_state': _choice('', 'zeros', 'mean_features'),
  'model.scorer': _choice('location', 'content'),
  'model.position_code': _choice('none', 'onehot', 'sincos'),
  'model.scorer_size': _count(high=_WIDTH),
  'model.hidden_size': _count(high=_WIDTH),
  'model.num_layers': _count(high=_DEPTH),
  'model.head': _choice('concat', 'gated_embedding'),
  'model.feature_norm': _choice('none', 'layer', 'standard'),
  'model.global_context': Field(bool),
  'model.dropout': _RATE,
  'model.input_dropout': _RATE,
  'model.attention_temperature': _TEMPERATURE,
  'model.boundary': _choice('gumbel', 'straight_through', 'soft', 'fixed'),
  'model.boundary_period': _count(),
  'model.boundary_temperature': _TEMPERATURE,
  'model.boundary_rate': _OPEN_FRACTION,
  'model.top_detector': Field(bool),
  'model.copied_boundary': _choice('recompute', 'zero'),
  'model.layer_norm': Field(bool),
  'model.output_activation': _choice('tanh', 'identity'),
  'model.dtype': _choice('float32', 'bfloat16'),
  'model.backward': _choice('deferred', 'autodiff', 'pallas'),
  'model.remat': Field(bool),
  'loss.label_smoothing': _RATE,
  'loss.reinforce_weight': _NOT_NEGATIVE,
  'loss.entropy_weight': _NOT_NEGATIVE,
  'loss.baseline_decay': _FRACTION,
  'loss.rewards_to_go': Field(bool),
  'loss.num_samples': _count(high=_DRAWS),
  'loss.doubly_stochastic': _NOT_NEGATIVE,
  'loss.boundary_rate_weight': _NOT_NEGATIVE,
  'loss.boundary_rate_target': _FRACTION,
  'train.batch_size': _count(high=_BATCH),
  'train.num_steps': _count(),
  'train.optimizer': _choice('adam', 'adamw'),
  'train.learning_rate': _POSITIVE,
  'train.schedule': _choice('step', 'cosine', 'constant'),
  'train.drop_step': _count(),
  'train.drop_factor': Field(float, low=0, high=1, open_low=True),
  'train.warmup_steps': _count(0),
  'train.weight_decay': _NOT_NEGATIVE,
  'train.clip_norm': _POSITIVE,
  'train.boundary_noise_end': _FRACTION,
  'train.boundary_noise_part': Field(float, low=0, high=1, open_low=True),
  'train.on_nonfinite': _choice('stop', 'skip'),
  'train.max_skipped': _count(0),
  'train.accumulate_steps': _count(high=_BATCH),
  'train.model_devices': _count(),
  'train.quick_compile': Field(bool),
  'train.ema_decay': _RATE,
  'train.eval_every': _count(),
  'train.log_every': _count(),
  'train.log_seconds': _NOT_NEGATIVE,
  'eval.batch_size': _count(high=_BATCH),
  'eval.boundary_mode': _choice('deterministic', 'sample'),
  'eval.num_samples': _count(high=_DRAWS),
  'eval.boundary_tolerance': _count(0),
  'checkpoint.every': _count(),
  'checkpoint.keep': _count(),
}

# Fields that came after 0.1.0 was first used, and what runs without them did.
ADDED = {
  'data.weights': '',
  'data.store_dtype': 'float16',
  'data.on_bad_video': 'error',
  'train.model_devices': 1,
  'train.quick_compile': False,
  'model.dtype': 'float32',
  'model.backward': 'deferred',
  'model.remat': False,
}

# Fields that may differ when a run is continued: they change no number of it,
# but for the last bits, by the order of summation.
RESUMABLE = (
  'checkpoint.every',
  'checkpoint.keep',
  'data.features_dir',
  'data.root',
  'data.weights',
  'eval.batch_size',
  'train.log_every',
  'train.log_seconds',
  'train.model_devices',
  'train.quick_compile',
)


_LAST_BITS = (
  'eval.batch_size',
  'train.model_devices',
  'train.quick_compile',
)


def flatten(tree: Mapping[str, Any], prefix: str = '') -> dict[str, Any]:
  """{'a': {'b': 1}} -> {'a.b': 1}; an empty section stays, as {}."""
  flat = {}
  for name, value in tree.items():
    if isinstance(value, Mapping) and value:
      flat |= flatten(value, f'{prefix}{name}.')
    else:
      flat[prefix + name] = value
  return flat


def check_flags(argv: Iterable[str]) -> None:
  """Refuses overrides that are unknown or given twice, before any is parsed.

  Args:
    argv: the command line without the program's name.

  Raises:
    ConfigError: naming the field, with the nearest known one.
  """
  seen: set[str] = set()
  for argument in argv:
    if argument == '--':
      return
    match = re.match(r'--?(?:no)?([a-zA-Z_][\w.]*)', argument)
    name = match[1] if match else ''
    if name == 'flagfile':
      raise ConfigError(
        '--flagfile: not read; write a config file and give it by --config.'
      )
    if name == 'undefok':
      raise ConfigError('--undefok: not taken; an unknown flag is a mistake.')
    if name.startswith('config.') and name[7:] not in FIELDS:
      raise ConfigError(_unknown(name[7:], f'flag {argument!r}'))
    if name and name in seen:
      raise ConfigError(f'--{name}: given twice; leave one of them out.')
    seen.add(name)


def changeable(names: Iterable[str]) -> list[str]:
  """The fields named by --allow_config_change.

  Args:
    names: as `train.learning_rate` or `config.train.learning_rate`.

  Returns:
    Full names, without `config.`.

  Raises:
    ConfigError: naming what is no field, with the nearest one.
  """
  names = [name.strip().removeprefix('config.') for name in names]
  for name in names:
    if name not in FIELDS:
      raise ConfigError(_unknown(name, '--allow_config_change'))
  return names


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks names, types, ranges and combinations.

  Args:
    config: what a config file returned, with overrides.

  Raises:
    ConfigError: naming every wrong field, what was expected and what came.
  """
  try:
    flat = flatten(config.to_dict())
  except RecursionError as e:
    raise ConfigError('config: a section holds itself.') from e
  problems = [
    _unknown(name, 'config file') for name in flat if name not in FIELDS
  ]
  problems += [
    f'config.{name}: missing; expected {field.expected()}.'
    for name, field in FIELDS.items()
    if name not in flat
  ]
  for name, value in flat.items():
    field = FIELDS.get(name)
    if field and not field.accepts(value):
      shown = _short(value)
      near = difflib.get_close_matches(shown, field.choices or (), n=1)
      hint = f' Did you mean {near[0]!r}?' if near else ''
      problems.append(
        f'config.{name}: expected {field.expected()}, got {shown}.{hint}'
      )
  if problems:
    raise ConfigError('\n'.join(problems))


def _short(value: Any) -> str:
  """A value as one line of a message."""
  try:
    text = repr(value)
  except ValueError:  # an int of thousands of digits
    text = f'an {type(value).__name__} that is too long to show'
  return text if len(text) <= 80 else f'{text[:80]}...'


def resolve(config: ml_collections.ConfigDict) -> ml_collections.ConfigDict:
  """Validates, and fills in what `model.name` stands for.

  Args:
    config: what a config file returned, with overrides.

  Returns:
    A locked copy in which model.cell, model.attention and model.initial_state
    are never empty.

  Raises:
    ConfigError: if a field or a combination is wrong.
  """
  validate(config)
  config = config.copy_and_resolve_references()
  with config.unlocked():
    for part, value in PRESETS[config.model.name].items():
      config.model[part] = config.model[part] or value
  _check_combinations(config)
  return config.lock()


def migrated(tree: Mapping[str, Any]) -> ml_collections.ConfigDict:
  """The config of a run, with the fields that came later as they were then.

  Args:
    tree: what config.json holds.

  Returns:
    A config to `resolve`.
  """
  missing = ADDED.keys() - flatten(tree).keys()
  config = ml_collections.ConfigDict(tree)
  for name in missing:
    section, _, leaf = name.rpartition('.')
    if isinstance(config.get(section), ml_collections.ConfigDict):
      config[section][leaf] = ADDED[name]
  return config


def _check_combinations(config: ml_collections.ConfigDict) -> None:
  model, data, train = config.model, config.data, config.train
  if model.cell == 'none' and model.attention != 'none':
    raise ConfigError(
      "config.model.attention: expected 'none' with config.model.cell='none' "
      f'(softmax regression has no state), got {model.attention!r}.'
    )
  if config.eval.boundary_mode == 'sample':
    for name, needed in (('cell', 'hm_lstm'), ('boundary', 'gumbel')):
      if model[name] != needed:
        raise ConfigError(
          "config.eval.boundary_mode: 'sample' needs boundaries that are drawn "
          f'(config.model.{name}={needed!r}), got {model[name]!r}.'
        )
  if train.batch_size % train.accumulate_steps:
    raise ConfigError(
      'config.train.batch_size: expected a multiple of '
      f'config.train.accumulate_steps={train.accumulate_steps}, got '
      f'{train.batch_size}.'
    )
  if train.warmup_steps >= train.num_steps:
    raise ConfigError(
      'config.train.warmup_steps: expected an integer < '
      f'config.train.num_steps={train.num_steps}, got {train.warmup_steps}.'
    )
  for name in ('train_list', 'validation_list', 'test_list', 'label_map'):
    if data[name] and data.name != 'video_folder':
      raise ConfigError(
        f"config.data.{name}: read with config.data.name='video_folder' only, "
        f'got {data[name]!r} with {data.name!r}.'
      )


def to_json(config: ml_collections.ConfigDict) -> str:
  """The config as JSON text, for the working directory."""
  return json.dumps(config.to_dict(), indent=2, sort_keys=True) + '\n'


def differences(
  old: Mapping, new: Mapping, allowed: Collection[str] = ()
) -> tuple[list[str], list[str]]:
  """Fields in which two resolved configs differ.

  Args:
    old: the run's config, a nested dict.
    new: this command's config, a nested dict.
    allowed: fields that may differ, besides those that change no number.

  Returns:
    (forbidden, harmless): one line a field; a run goes on without the former.
  """
  old, new = {**ADDED, **flatten(old)}, flatten(new)
  forbidden, harmless = [], []
  for name in sorted(old.keys() | new.keys()):
    if old.get(name) != new.get(name):
      may = name in RESUMABLE or name in allowed
      bits = ' (last bits may differ)' if name in _LAST_BITS else ''
      (harmless if may else forbidden).append(
        f'{name}: was {old.get(name)!r}, is {new.get(name)!r}{bits}'
      )
  return forbidden, harmless


def _unknown(name: str, where: str) -> str:
  guess = max(FIELDS, key=lambda field: _likeness(name, field))
  near = _likeness(name, guess) >= 0.5
  hint = f' Did you mean config.{guess}?' if near else ''
  return (
    f'config.{name}: no such field ({where}).{hint} '
    'All fields are in configs/default.py.'
  )


def _likeness(typo: str, field: str) -> float:
  """How near two names are, 1 for equal: mostly by their last parts."""
  total = 0.0
  for weight, a, b in zip(
    (0.25, 0.75), typo.lower().rpartition('.')[::2], field.rpartition('.')[::2]
  ):
    # The matcher is not symmetric: the better of both ways counts.
    pairs = ((a[:100], b), (b, a[:100]))
    total += weight * max(
      difflib.SequenceMatcher(None, *pair, autojunk=False).ratio()
      for pair in pairs
    )
  return total
