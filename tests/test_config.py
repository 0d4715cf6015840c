"""The schema of configs: typos, types, ranges, presets."""

import math

import pytest

from configs import (
  default,
  hmdb51,
  olympic_sports,
  quickstart,
  ucf_sports,
  video_folder,
)
from experiments import config as config_lib
from experiments.errors import ConfigError

RECIPES = (
  default,
  quickstart,
  hmdb51,
  ucf_sports,
  olympic_sports,
  video_folder,
)


@pytest.mark.parametrize('recipe', RECIPES)
def test_recipes_are_valid_and_complete(recipe):
  config = config_lib.resolve(recipe.get_config())
  assert set(config_lib.flatten(config.to_dict())) == set(config_lib.FIELDS)
  assert config.model.cell and config.model.attention
  assert config.is_locked


@pytest.mark.parametrize('recipe', RECIPES)
@pytest.mark.parametrize('name', config_lib.PRESETS)
def test_presets(name, recipe):
  config = recipe.get_config()
  config.model.name = name
  model = config_lib.resolve(config).model
  for part in ('cell', 'attention'):
    assert model[part] == config_lib.PRESETS[name][part]


def test_a_part_overrides_the_preset():
  config = quickstart.get_config()
  config.model.name = 'lstm_soft'
  config.model.attention = 'reinforce'
  model = config_lib.resolve(config).model
  assert (model.cell, model.attention) == ('lstm', 'reinforce')


BAD = [
  ('seed', -1), ('seed', 1.5), ('seed', True), ('data.split', 4),
  ('data.num_frames', 0), ('data.validation_fraction', 1.0),
  ('model.name', 'hm_sofft'), ('model.attention', 'gumble'),
  ('model.dropout', 1.0), ('model.dropout', math.nan), ('model.hidden_size', 0),
  ('model.boundary_temperature', 0.0), ('model.top_detector', 1),
  ('train.learning_rate', math.nan), ('train.learning_rate', math.inf),
  ('train.learning_rate', -1.0), ('train.learning_rate', 0.0),
  ('train.batch_size', 0), ('train.num_steps', -1), ('train.clip_norm', 'one'),
  ('loss.baseline_decay', 1.5), ('eval.boundary_mode', 'both'),
  ('checkpoint.every', 0), ('checkpoint.keep', 0),
  # What float32 takes for zero, one or infinity; what int32 cannot hold.
  ('train.learning_rate', 1e-45), ('train.clip_norm', 1e39),
  ('model.dropout', 1 - 1e-12), ('train.ema_decay', 1 - 1e-12),
  ('train.num_steps', 2**31), ('data.num_frames', 10**30),
  ('model.num_layers', 10_000), ('model.boundary_temperature', 1e-6),
  ('data.root', 'a\0'), ('data.root', 'a/' * 600), ('data.root', 'a' * 256),
  ('data.root', '\ud800'),
  ('data.root', None), ('model.hidden_size', [3]), ('train.warmup_steps', 1.0),
  ('model.dtype', 'bf16'), ('model.backward', 'slow'), ('model.remat', 1),
]  # fmt: skip


@pytest.mark.parametrize(('name', 'value'), BAD)
def test_bad_values_are_named(name, value):
  config = quickstart.get_config()
  section, _, leaf = name.rpartition('.')
  target = config[section] if section else config
  with target.ignore_type():
    target[leaf] = value
  with pytest.raises(ConfigError, match=rf'config\.{name}: expected .*got'):
    config_lib.resolve(config)


def test_all_problems_are_told_at_once():
  config = quickstart.get_config()
  config.model.hiden_size = 3
  config.seed = -1
  del config.train.optimizer
  with pytest.raises(ConfigError) as error:
    config_lib.resolve(config)
  text = str(error.value)
  assert 'config.model.hiden_size: no such field' in text
  assert 'Did you mean config.model.hidden_size?' in text
  assert 'config.seed: expected' in text
  assert 'config.train.optimizer: missing' in text


@pytest.mark.parametrize(
  ('typo', 'meant'),
  [
    ('modle.name', 'model.name'),
    ('model.atention', 'model.attention'),
    ('train.learning_rte', 'train.learning_rate'),
    ('hidden_size', 'model.hidden_size'),
    ('train.batchsize', 'train.batch_size'),
    ('checkpoint.evry', 'checkpoint.every'),
  ],
)
def test_typos_in_flags_are_refused_with_a_suggestion(typo, meant):
  with pytest.raises(ConfigError, match=rf'Did you mean config\.{meant}\?'):
    config_lib.check_flags(['--config=x.py', f'--config.{typo}=1'])
  config_lib.check_flags([f'--config.{meant}=1'])


@pytest.mark.parametrize(
  ('changes', 'named'),
  [
    (
      {'model.name': 'softmax_regression', 'model.attention': 'soft'},
      r"model\.attention: expected 'none' .*got 'soft'",
    ),
    (
      {'model.boundary': 'soft', 'eval.boundary_mode': 'sample'},
      r"eval\.boundary_mode: .*boundary='gumbel'.*got 'soft'",
    ),
    (
      {'model.name': 'lstm_soft', 'eval.boundary_mode': 'sample'},
      r"eval\.boundary_mode: .*cell='hm_lstm'.*got 'lstm'",
    ),
    (
      {'train.batch_size': 32, 'train.accumulate_steps': 5},
      r'train\.batch_size: expected a multiple of .*=5, got 32',
    ),
    (
      {'train.num_steps': 50, 'train.warmup_steps': 50},
      r'train\.warmup_steps: expected .* < config\.train\.num_steps=50, got 50',
    ),
    (
      {'data.name': 'hmdb51', 'data.train_list': 'a.txt'},
      r"data\.train_list: .*got 'a\.txt' with 'hmdb51'",
    ),
  ],
)
def test_impossible_combinations_are_named(changes, named):
  config = quickstart.get_config()
  config.update_from_flattened_dict(changes)
  with pytest.raises(ConfigError, match=f'config.{named}'):
    config_lib.resolve(config)


def test_an_empty_unknown_section_is_refused():
  config = quickstart.get_config()
  config.modle = type(config)()
  with pytest.raises(ConfigError, match=r'config\.modle: no such field'):
    config_lib.resolve(config)


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    (['--config.seed=1', '--config.seed=2'], r'--config\.seed: given twice'),
    (['--flagfile=x'], '--flagfile: not read'),
    (['--undefok=wordkir', '--wordkir=x'], '--undefok: not taken'),
    (['-config.sed=1'], r'Did you mean config\.seed\?'),
  ],
)
def test_flags_that_hide_a_mistake_are_refused(flags, message):
  with pytest.raises(ConfigError, match=message):
    config_lib.check_flags(flags)


def test_values_are_no_flags():
  config_lib.check_flags(['--config.seed', '-1', '--config.data.fps', '-1'])


def test_only_fields_may_be_allowed_to_change():
  names = ['config.train.batch_size', ' seed']
  assert config_lib.changeable(names) == ['train.batch_size', 'seed']
  with pytest.raises(ConfigError, match=r'mean config\.train\.batch_size\?'):
    config_lib.changeable(['train.batchsize'])


def test_a_run_without_newer_fields_has_them_as_they_were():
  config = config_lib.resolve(quickstart.get_config())
  config.train.quick_compile = False  # see the test below
  old = config_lib.flatten(config.to_dict())
  tree = config.to_dict()
  for name, value in config_lib.ADDED.items():
    section, _, leaf = name.rpartition('.')
    assert config_lib.FIELDS[name].accepts(value)
    assert old[name] == value  # the recipes' too: nothing changes unasked
    del tree[section][leaf]
  migrated = config_lib.resolve(config_lib.migrated(tree))
  assert migrated.to_dict() == config.to_dict()
  assert config_lib.differences(tree, migrated.to_dict()) == ([], [])


def test_a_run_of_the_quickstart_may_be_continued_with_quick_compilation():
  new = config_lib.resolve(quickstart.get_config()).to_dict()
  old = {**new, 'train': {**new['train']}}
  del old['train']['quick_compile']
  assert config_lib.differences(old, new) == (
    [], ['train.quick_compile: was False, is True (last bits may differ)'],
  )  # fmt: skip


def test_differences_leave_out_what_does_not_matter():
  old = config_lib.resolve(quickstart.get_config()).to_dict()
  config = quickstart.get_config()
  config.checkpoint.keep = 9
  config.eval.batch_size = 7
  config.train.batch_size = 8
  new = config_lib.resolve(config).to_dict()
  forbidden, harmless = config_lib.differences(old, new)
  assert forbidden == ['train.batch_size: was 32, is 8']
  size = quickstart.get_config().eval.batch_size
  assert harmless == [
    'checkpoint.keep: was 3, is 9',
    f'eval.batch_size: was {size}, is 7 (last bits may differ)',
  ]
  allowed = config_lib.differences(old, new, ['train.batch_size'])
  assert allowed == ([], harmless + forbidden)
