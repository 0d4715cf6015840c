"""Nonsense in configs, names and features: our errors, or something that works.

Names of fields with typos, fields of wrong values, class names and features of
changed bytes.
"""

import collections
import contextlib
import json
import math
import random
import resource
import string
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import hmdb51, olympic_sports, quickstart, video_folder
from data import extract, store
from data.errors import DataError
from data.features import VideoFeatures
from experiments import config as config_lib
from experiments import train, trained
from experiments.config import FIELDS
from experiments.errors import ConfigError, WorkdirError

NUM_FEW, NUM_MANY = 300, 10_000
RECIPES = (quickstart, hmdb51, olympic_sports, video_folder)

# --- typos --------------------------------------------------------------------

_ROWS = ('1234567890', 'qwertyuiop', 'asdfghjkl', 'zxcvbnm_')
_SECTIONS = sorted({n.partition('.')[0] for n in FIELDS if '.' in n})


def _neighbour(letter: str, rng: random.Random) -> str:
  for row in _ROWS:
    at = row.find(letter)
    if at >= 0:
      return (
        row[at - 1] if rng.random() < 0.5 and at else row[at - len(row) + 1]
      )
  return 'x'


def _typo(name: str, kind: str, rng: random.Random) -> str:
  """A field's name, mistyped somewhere but at the dot."""
  if kind == 'section':
    section, _, leaf = name.rpartition('.')
    other = rng.choice([s for s in _SECTIONS if s != section] + [''])
    return f'{other}.{leaf}'.lstrip('.')
  at = rng.choice([i for i, x in enumerate(name) if x != '.'])
  before, letter, after = name[:at], name[at], name[at + 1 :]
  if kind == 'drop':
    return before + after
  if kind == 'double':
    return before + letter * 2 + after
  if kind == 'neighbour':
    return before + _neighbour(letter, rng) + after
  if kind == 'case':
    return before + letter.swapcase() + after
  if after and after[0] != '.':
    return before + after[0] + letter + after[1:]
  return before + letter + letter + after  # swap, at the end of a part


def _error_of_a_file_with(typo: str) -> str:
  config = quickstart.get_config()
  section, _, leaf = typo.rpartition('.')
  if section and section not in config:
    config[section] = type(config)()
  (config[section] if section else config)[leaf] = 1
  with pytest.raises(ConfigError) as error:
    config_lib.resolve(config)
  return str(error.value)


def test_typos_are_refused_with_the_right_suggestion():
  """200 typos by flag, every fourth of them inside a file too."""
  rng = random.Random(0)
  kinds = ('swap', 'drop', 'double', 'neighbour', 'case', 'section')
  leaves = collections.Counter(n.rpartition('.')[2] for n in FIELDS)
  right, total, wrong = 0, 0, []
  while total < 200:
    name, kind = rng.choice(sorted(FIELDS)), kinds[total % len(kinds)]
    if kind == 'section' and leaves[name.rpartition('.')[2]] > 1:
      continue  # nobody can know which one was meant
    typo = _typo(name, kind, rng)
    if typo in FIELDS or typo == name or not typo.isascii():
      continue
    total += 1
    with pytest.raises(ConfigError) as by_flag:
      config_lib.check_flags([f'--config.{typo}=1'])
    texts = [str(by_flag.value)]
    if total % 4 == 0:
      texts.append(_error_of_a_file_with(typo))
    assert all(f'config.{typo}: no such field' in text for text in texts)
    if all(f'Did you mean config.{name}?' in text for text in texts):
      right += 1
    else:
      wrong.append((typo, name, texts))
  assert right / total >= 0.95, wrong


# --- configs ------------------------------------------------------------------

_VALUES = (
  math.nan, math.inf, -math.inf, -1, 0, 1, 2, 3, 1.5, -0.0, 1e-320, 1e-45, 1e39,
  1e308, 2**31 - 1, 2**31, 2**63, 10**30, 10**5000, -(10**30), 0.5, 1 - 1e-12,
  True, False, None, '', 'x', 'hm_soft', 'lstm', 'none', 'fixed', 'soft', '\0',
  '\ud800', '\U0001f600', 'a' * 5000, '../..', '0', 'nan', [], [1], (), (1, 2),
  {}, {'a': 1}, b'x', 1j, object(), int, np.float32(0.5), np.int64(3),
  np.array([1.0]), 'bfloat16', 'autodiff', 'sample', 'reinforce', 'content',
)  # fmt: skip


def _in_range(name: str, rng: random.Random):
  """A value that the field may have, often at an end of its range."""
  field = FIELDS[name]
  if field.choices:
    return rng.choice(field.choices)
  if field.type is bool:
    return rng.random() < 0.5
  if field.type is str:
    return rng.choice(('', 'x', 'a/b'))
  low = 0 if field.low is None else field.low
  high = 1000 if field.high is None else field.high
  if field.type is int:
    return rng.choice(
      (low, high, rng.randint(int(low), int(high)), int(low) + 1)
    )
  return rng.choice((low, high, low + rng.random() * (high - low)))


def _fuzzed(rng: random.Random):
  config = rng.choice(RECIPES).get_config()
  for _ in range(rng.choice((1, 1, 2, 3, 5))):
    name = rng.choice(sorted(FIELDS))
    section, _, leaf = name.rpartition('.')
    kind = rng.random()
    value = rng.choice(_VALUES) if kind < 0.45 else _in_range(name, rng)
    with (
      config.ignore_type(),
      # A file that fails by itself is not for us to read.
      contextlib.suppress(TypeError, ValueError, OverflowError),
    ):
      if kind > 0.97:
        config[rng.choice(_SECTIONS)] = rng.choice(_VALUES)
        continue
      target = config[section] if section else config
      if not isinstance(target, type(config)):
        continue
      if kind > 0.94 and leaf in target:
        del target[leaf]
      elif kind > 0.92:
        letters = rng.choices(string.ascii_letters + 'é_', k=rng.randint(1, 9))
        target[''.join(letters)] = value
      else:
        target[leaf] = value
  return config


def _works(config) -> None:
  """The model, its state and a training step can be made: shapes only."""
  # All of a config but the numbers that only say how long tracing takes.
  with config.unlocked():
    config.model.num_layers = min(config.model.num_layers, 3)
    config.loss.num_samples = min(config.loss.num_samples, 2)
    if config.model.backward == 'pallas':  # for one device; there are four here
      config.model.backward = 'deferred'
  shape = (49, 64)
  model = train.make_model(config, 5, shape)
  optimizer = train.make_optimizer(config.train)
  state = jax.eval_shape(
    lambda: train.init_state(config, model, optimizer, shape)
  )
  step = train.make_train_step(config, model, optimizer, steps_per_epoch=3.0)
  rows, frames = config.train.batch_size, config.data.num_frames
  of = jax.ShapeDtypeStruct
  batch = {
    'features': of((rows, frames, *shape), jnp.float16),
    'mask': of((rows, frames), bool),
    'label': of((rows,), jnp.int32),
    'row': of((rows,), jnp.int32),
  }
  key = jax.eval_shape(lambda: jax.random.key(config.seed))
  after, metrics = jax.eval_shape(step, state, batch, key)
  same = lambda x: (x.shape, x.dtype)
  assert jax.tree.map(same, after) == jax.tree.map(same, state)
  assert metrics['loss'].shape == ()


def _fuzz_configs(number: int, num_checked: int) -> None:
  rng = random.Random(0)
  accepted = []
  for _ in range(number):
    config = _fuzzed(rng)
    try:
      resolved = config_lib.resolve(config)
    except ConfigError as e:
      assert 'config.' in str(e) and len(str(e)) < 20_000
      continue
    text = config_lib.to_json(resolved)
    again = config_lib.resolve(config_lib.migrated(json.loads(text)))
    assert again.to_dict() == resolved.to_dict()
    accepted.append(resolved)
  assert number // 10 < len(accepted) < number * 9 // 10
  for config in rng.sample(accepted, num_checked):
    try:
      _works(config)
    except Exception as e:
      raise AssertionError(f'accepted, and fails:\n{config}') from e


def test_a_few_configs():
  _fuzz_configs(NUM_FEW, 0)


@pytest.mark.slow
def test_many_configs():
  _fuzz_configs(NUM_MANY, 40)


# --- class names of a run -----------------------------------------------------


@pytest.mark.parametrize(
  'number', [NUM_FEW, pytest.param(NUM_MANY, marks=pytest.mark.slow)]
)
def test_class_names_of_a_run(tmp_path, number):
  rng = random.Random(0)
  path = tmp_path / 'label_map.txt'
  pieces = (b'\n', b'\r', b'\0', b'\xff', b' ', b'run', b'\xef\xbb\xbf', b'\t')
  outcomes = collections.Counter()
  for _ in range(number):
    content = bytearray(b'run\njump up\nsit\n')
    for _ in range(rng.randint(0, 4)):
      at = rng.randint(0, len(content))
      content[at : at + rng.randint(0, 3)] = rng.choice(pieces)
    path.write_bytes(content)
    try:
      names = trained._read_labels(tmp_path)
      assert len(set(names)) == len(names) > 0 and all(names)
      outcomes['read'] += 1
    except WorkdirError as e:
      assert 'label_map.txt' in str(e)
      outcomes['refused'] += 1
  assert min(outcomes['read'], outcomes['refused']) > number // 20


# --- features -----------------------------------------------------------------

_ODD = (
  None, True, -1, 0, 1, 2**31, 10**400, 1.5, 1e308, math.inf, math.nan, '',
  'int8', 'float16', 'object', '|O', [], [1], [3, 4, 5], [3, 4, 5.0],
  [-3, -4, 5], [10**12, 4, 5], [60, 1, 1], ['3', 4, 5], [[3], 4, 5], {},
  {'a': 1},
)  # fmt: skip


def _nested(depth: int):
  value: list = []
  for _ in range(depth):
    value = [value]
  return value


def _sealed(about, before: bytes) -> bytes:
  """A record whose checksums hold, whatever it says of itself."""
  raw = about if isinstance(about, bytes) else json.dumps(about).encode()
  return (
    before + raw + store._TRAILER.pack(len(raw), zlib.crc32(raw), b'hmanrec\n')
  )


def _record(rng: random.Random, whole: bytes, end: int) -> bytes:
  """A record with changed bytes, or one that says odd things of itself."""
  if rng.random() < 0.5:
    record = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 8))):
      record[rng.randrange(len(record))] = rng.randrange(256)
    return bytes(
      record[: rng.choice((len(record), rng.randrange(len(record))))]
    )
  size = store._TRAILER.size
  about = json.loads(whole[end:-size])
  before = whole[:end]
  for _ in range(rng.choice((1, 1, 2))):
    name = rng.choice(sorted(about))
    kind = rng.random()
    if kind < 0.1:
      del about[name]
    elif kind < 0.2:
      about['more'] = rng.choice(_ODD)
    else:
      about[name] = rng.choice(_ODD)
  if rng.random() < 0.1:
    return _sealed(
      rng.choice((b'', b'[]', b'1', b'"a"', b'{', b'\xff')), before
    )
  if rng.random() < 0.02:
    return _sealed(json.dumps(_nested(900)).encode() * 100, before)
  return _sealed(about, before)


@pytest.mark.parametrize('dtype', store.DTYPES)
@pytest.mark.parametrize(
  'number', [NUM_FEW // 2, pytest.param(NUM_MANY, marks=pytest.mark.slow)]
)
def test_records_of_features(tmp_path, number, dtype):
  rng = random.Random(0)
  path = tmp_path / f'{"0" * 64}.npy'
  writer = store.Writer(path, (4, 5), dtype)
  writer.append(np.random.default_rng(0).random((3, 4, 5)).astype(np.float16))
  end = writer.commit({'extractor': 'x'}, 3, 3).end
  whole = path.read_bytes()

  def read():
    source = VideoFeatures(['a'], [path], [0], class_names=['x'], identity={})
    item = source[0]
    return np.array(item['features']), item.get('scale')

  expected = read()
  outcomes = collections.Counter()
  peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  before = peak()
  for turn in range(number):
    content = _record(rng, whole, end) if turn else whole
    path.unlink()
    path.write_bytes(content)
    try:
      features, scale = read()
    except DataError as e:
      assert path.name in str(e)
      outcomes['refused'] += 1
      continue
    except Exception as e:
      raise AssertionError(f'{content[-400:]!r} raises {e!r}') from e
    outcomes['read'] += 1
    record = store.read(path)
    extract.summary([record._replace(identity={'fps': None})])
    assert type(record.num_decoded) is int
    assert str(features.dtype) in store.DTYPES and features.ndim == 3
    same = features.shape == (3, 4, 5) and features.dtype == dtype
    if content[:end] == whole[:end] and same:
      np.testing.assert_array_equal(features, expected[0])
      np.testing.assert_array_equal(scale, expected[1])
  assert outcomes['read'] > 0 and outcomes['refused'] > number // 2
  assert peak() - before < 200_000  # kB
  assert list(tmp_path.iterdir()) == [path]
