"""Lists, label maps and csv files of nonsense raise our error, or are read."""

import collections
import pathlib
import random

import pytest

from data import clips, hmdb51, label_maps, olympic_sports, video_folder
from data.errors import DataError

import data_trees

NUM_FEW, NUM_MANY = 300, 10_000

_PIECES = [
  '\n', '\r\n', '\r', ' ', '\t', '  ', ',', '"', '""', '\0', '\ufeff', '\u2028',
  '\x1c', '\x85', '.', '..', '/', '\\', '-', '+', '#', '[', ']', '{', '}', ':',
  '0', '1', '2', '3', '-1', '1e9', '9' * 5000, '٣', '²', 'é', '\U0001f600',
  'x.avi', 'x_vault_0.avi', 'run', 'run/a.mp4', 'sit/clip 1', '../../etc/hosts',
  '/', 'null', 'true', 'NaN', '"run": 0', '\\ud800', 'label', 'youtube_id',
  'time_start', 'time_end', 'split', 'path', 'video_path', 'start', 'end',
  'a' * 300, 'x_00000_00090', 'vault/x_00000_00090.seq',
]  # fmt: skip


def _mutate(rng: random.Random, text: str) -> bytes:
  """A valid text with pieces put in, parts taken out, doubled or exchanged."""
  if rng.random() < 0.1:
    return rng.randbytes(rng.randrange(200))
  for _ in range(rng.choice((1, 1, 1, 2, 4, 8))):
    a, b = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    b = min(b, a + 20)
    kind = rng.randrange(4)
    if kind == 0:
      text = text[:a] + rng.choice(_PIECES) + text[a:]
    elif kind == 1:
      text = text[:a] + text[b:]
    elif kind == 2:
      text = text[:b] + text[a:]
    else:
      text = text[:a] + rng.choice(_PIECES) + text[b:]
  raw = bytearray(text.encode('utf-8', 'surrogatepass'))
  if raw and rng.random() < 0.1:
    raw[rng.randrange(len(raw))] = rng.randrange(256)
  return bytes(raw)


def _fuzz(path: pathlib.Path, text: str, read, number: int) -> None:
  """Feeds `number` mutations of a text to a reader."""
  rng = random.Random(0)
  outcomes = collections.Counter()
  for _ in range(number):
    content = _mutate(rng, text)
    path.unlink(missing_ok=True)  # overwriting is slow on some disks
    path.write_bytes(content)
    try:
      read(path)
      outcomes['read'] += 1
    except DataError as e:
      assert str(e)
      outcomes['refused'] += 1
    except Exception as e:
      raise AssertionError(f'{content!r} raises {e!r}') from e
  assert outcomes['read'] > 0 and outcomes['refused'] > number // 10


def _hmdb51_list(folder):
  path = folder / 'wave_test_split1.txt'
  text = ''.join(f'{s}_wave_{k}.avi {k % 3} \n' for s in 'ab' for k in range(6))
  (folder / 'wave').mkdir()
  for line in text.splitlines():
    (folder / 'wave' / line.split()[0]).touch()
  return path, text, lambda _: hmdb51.read(folder, 1)


def _olympic_list(folder):
  data_trees.olympic_sports(folder, per_class=False, empty=True)
  path = folder / 'train_test_split' / 'train.txt'
  return path, path.read_text(), lambda _: olympic_sports.read(folder)


def _folder_list(folder, name, form, header=''):
  data_trees.video_folder(folder, empty=True)
  rows = [
    (f'{c}/{p.name}', k)
    for k, c in enumerate(('jump up', 'run', 'sit'))
    for p in sorted((folder / c).iterdir())
  ]
  text = header + ''.join(form.format(*row) for row in rows)
  lists = folder / 'lists'
  lists.mkdir()
  path = lists / name
  return path, text, lambda p: video_folder.read(folder, train_list=str(p))


def _kinetics_list(folder):
  text = 'label,youtube_id,time_start,time_end,split\n'
  for class_name in ('run', 'sit'):
    for k in range(6):
      path = folder / class_name / f'abc_{k}_{k:06}_{k + 9:06}.mp4'
      path.parent.mkdir(exist_ok=True)
      path.touch()
      text += f'{class_name},abc_{k},{k},{k + 9},train\n'
  (folder / 'lists').mkdir()
  return (
    folder / 'lists' / 'a.csv',
    text,
    lambda p: video_folder.read(folder, train_list=str(p)),
  )


TARGETS = {
  'hmdb51 list': _hmdb51_list,
  'olympic list': _olympic_list,
  'list': lambda f: _folder_list(f, 'a.txt', '{} {}\n'),
  'csv': lambda f: _folder_list(f, 'a.csv', '{},{}\n'),
  'csv with a header': lambda f: _folder_list(
    f, 'a.csv', '0,"{}",{}\n', 'id,path,label\n'
  ),
  'kinetics': _kinetics_list,
  'label map': lambda f: (
    f / 'm.txt', 'run\njump up\nsit\nfly\n', label_maps.read
  ),
  'classInd': lambda f: (
    f / 'c.txt', '1 run\n2 jump up\n3 sit\n', label_maps.read
  ),
  'json': lambda f: (
    f / 'm.json', '{"run": 0, "jump up": 1, "sit": 2}',
    label_maps.read,
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', TARGETS)
def test_a_few(tmp_path, name):
  _fuzz(*TARGETS[name](tmp_path), NUM_FEW)


@pytest.mark.slow
@pytest.mark.parametrize('name', TARGETS)
def test_many(tmp_path, name):
  _fuzz(*TARGETS[name](tmp_path), NUM_MANY)


def test_what_is_read_can_be_written(tmp_path):
  """Names of classes end up one a line in label_map.txt of a run."""
  rng = random.Random(1)
  path = tmp_path / 'm.json'
  for _ in range(NUM_FEW):
    path.write_bytes(_mutate(rng, '["run", "jump up", "sit"]'))
    try:
      names = label_maps.read(path).names
    except DataError:
      continue
    text = ''.join(f'{name}\n' for name in names)
    assert text.encode() and text.splitlines() == list(names)


def test_many_findings_are_ten_and_a_number(tmp_path):
  data_trees.video_folder(tmp_path, empty=True)
  (tmp_path / 'l.txt').write_text('run/x.avi nonsense\n' * 5000)
  with pytest.raises(DataError, match='and 4990 more') as error:
    video_folder.read(tmp_path, train_list='l.txt')
  assert len(str(error.value).splitlines()) < clips.MAX_LISTED + 5
