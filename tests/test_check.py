"""`python -m data.check` and `python -m data.describe`."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from data import check, clips, command, describe
from data.errors import VideoError

import data_trees
import video_files
from quarters import Quarters

ROOT = pathlib.Path(__file__).parents[1]


def _run(program, *arguments, **fields):
  return subprocess.run(
    [
      sys.executable, '-m', f'data.{program}', *arguments,
      *(f'--config.{k}={v}' for k, v in fields.items()),
    ],
    cwd=ROOT, capture_output=True, text=True, timeout=300,
  )  # fmt: skip


FOLDER = '--config=configs/video_folder.py'


def _clip(name, label=0, source=None, path=None):
  path = path or pathlib.Path('root') / name
  return clips.Clip(name, path, label, source or name)


def _kinds(findings):
  return sorted((f.kind, f.fatal) for f in findings)


# --- findings ---------------------------------------------------------------


def test_media_of_clips(tmp_path):
  good = video_files.write(tmp_path / 'a.avi', video_files.shades(5))
  cut = tmp_path / 'b.avi'
  cut.write_bytes(good.read_bytes()[:-100])
  parts = clips.Partition(
    [_clip('a', path=good)], [_clip('b', path=cut)],
    [_clip('c', path=tmp_path / 'none.avi')],
  )  # fmt: skip
  found = check.examine(parts)
  assert found['a'][1:] == (5, 5)
  assert len(found['a'].digest) == 64
  assert isinstance(found['b'], VideoError)
  findings = check.judge(parts, found)
  assert _kinds(findings) == [('unreadable', True)] * 2
  assert findings[0].path == cut and findings[0].message.startswith('cut: ')
  assert str(findings[1]).startswith(f'{tmp_path / "none.avi"}: cannot read')


MEDIA = {
  'a': check.Media('1', 9, 9),
  'b': check.Media('2', 9, None),
  'c': check.Media('3', 9, 12),
  'd': check.Media('4', 1, 1),
  'e': check.Media('1', 9, 9),  # the same file as a
}


@pytest.mark.parametrize(
  ('train', 'validation', 'test', 'expected'),
  [
    ('a', 'b', '', []),
    ('a', 'c', '', [('header', False)]),
    ('a', 'd', '', [('short', False)]),
    ('ae', 'b', '', [('duplicate', False)]),
    ('aE', 'b', '', [('duplicate', True)]),
    ('a', 'b', 'e', [('leakage', True)]),
    ('a', 'e', 'b', [('leakage', True)]),
    ('ab', '', 'ec', [('header', False), ('leakage', True)]),
  ],
)
def test_findings_about_clips(train, validation, test, expected):
  parts = clips.Partition(
    *(
      [_clip(n.lower(), label=int(n.isupper())) for n in names]
      for names in (train, validation, test)
    )
  )
  findings = check.judge(parts, MEDIA)
  assert _kinds(findings) == expected
  for finding in findings:
    assert finding.path.parent == pathlib.Path('root')


def test_a_source_video_on_two_sides():
  parts = clips.Partition(
    [_clip('a', source='s'), _clip('b', source='t')],
    [_clip('c', source='s', label=1)],  # another class: another video
    [_clip('d', source='s'), _clip('e', source='s')],
  )
  found = {k: check.Media(k, 9, 9) for k in 'abcde'}
  findings = check.judge(parts, found)
  assert _kinds(findings) == [('leakage', False)]
  assert str(findings[0]) == (
    'root/d: cut from the same video as root/a: test and train.'
  )


@pytest.mark.parametrize('lengths', [[1], [5, 5], [3, 40], range(1, 12),
                                     [7, 1000, 100_000]])  # fmt: skip
def test_histograms(lengths):
  counts = command.frame_counts(list(lengths))
  bins = counts['histogram']
  assert sum(n for _, _, n in bins) == len(lengths)
  assert len(bins) <= 10
  for first, last, count in bins:
    assert count == sum(first <= n <= last for n in lengths)
  assert counts['min'] == min(lengths) and counts['max'] == max(lengths)
  text = command.histogram(counts)
  assert len(text.splitlines()) == len(bins) + 1


# --- the programs -----------------------------------------------------------


def test_check_of_a_good_and_a_bad_tree(tmp_path):
  root = data_trees.video_folder(tmp_path / 'data')
  good = _run('check', FOLDER, '--json', **{'data.root': root})
  assert good.returncode == 0, good.stderr
  tree = json.loads(good.stdout)
  assert tree['errors'] == tree['warnings'] == 0
  assert tree['classes']['sit'] == {'train': 3, 'validation': 1, 'test': 2}
  assert (tree['frames']['min'], tree['frames']['max']) == (8, 11)
  assert tree['shorter_than_window'] == 18  # of 40 frames

  victims = sorted((root / 'run').iterdir())
  raw = victims[0].read_bytes()
  victims[0].write_bytes(raw[: len(raw) // 2])
  shutil.copyfile(victims[1], root / 'jump up' / 'copy.mp4')
  (root / 'sit' / 'clip 3' / 'img_00004.jpg').unlink()
  (root / 'sit' / 'notes.txt').touch()
  (root / 'empty').mkdir()
  noise = np.zeros((1, 32, 32, 3), np.uint8)
  video_files.write(root / 'jump up' / 'still.avi', noise)
  bad = _run('check', FOLDER, **{'data.root': root})
  assert bad.returncode == 2 and 'Traceback' not in bad.stderr
  lines = bad.stdout.splitlines()
  assert lines[-1].startswith('3 errors, ')
  errors = [line for line in lines if line.startswith('error: ')]
  assert any(str(victims[0]) in e and 'cut' in e for e in errors)
  assert any('clip 3: frame 4 is missing' in e for e in errors)
  assert any('the same video as' in e for e in errors)
  warnings = '\n'.join(line for line in lines if line.startswith('warning: '))
  for text in ("'notes.txt'", "'empty'", 'still.avi: 1 frame: too short'):
    assert text in warnings


def test_check_of_lists(tmp_path):
  root = data_trees.hmdb51(tmp_path / 'data')
  path = root / 'testTrainMulti_7030_splits' / 'sit_test_split1.txt'
  lines = path.read_text().splitlines()
  path.write_text('\n'.join([*lines, lines[0], 'none.avi 1', 'x 5']))
  done = _run('check', '--config=configs/hmdb51.py', **{'data.root': root})
  assert done.returncode == 2 and 'Traceback' not in done.stderr
  number = len(lines)
  assert f'{path}:{number + 1}: {lines[0].rstrip(" 12")!r} is listed twice' in (
    done.stdout
  )
  assert f'{path}:{number + 2}: ' in done.stdout
  assert f'{path}:{number + 3}: expected' in done.stdout
  assert '3 errors, 0 warnings' in done.stdout


@pytest.mark.real_data
@pytest.mark.skipif(
  'HMAN_REAL_DATA' not in os.environ,
  reason='set HMAN_REAL_DATA to the folder that holds jhmdb/',
)
def test_check_of_real_clips():
  root = pathlib.Path(os.environ['HMAN_REAL_DATA'], 'jhmdb')
  done = _run(
    'check', '--config=configs/hmdb51.py', '--json', **{'data.root': root}
  )
  assert done.returncode == 0, done.stderr
  tree = json.loads(done.stdout)
  assert tree['errors'] == 0
  assert [f['kind'] for f in tree['findings']] == ['header']
  assert tree['findings'][0]['message'].startswith('551 headers declare')
  assert tree['frames']['min'] == 15 and tree['frames']['max'] == 40


def test_describe(tmp_path):
  root = data_trees.video_folder(tmp_path / 'data')
  done = _run('describe', FOLDER, '--noestimate', **{'data.root': root})
  assert done.returncode == 0, done.stderr
  for text in (
    'video_folder, split 1: 3 classes, 18 clips',
    '6 x frames mjpeg 32x32',
    '4 clips do not tell their frames',
    'videos: ',
  ):
    assert text in done.stdout
  assert 'features of' not in done.stdout


def test_the_estimate(tmp_path):
  paths = [
    video_files.write(tmp_path / f'{k}.mkv', video_files.shades(5))
    for k in range(3)
  ]
  every = [_clip(p.name, path=p) for p in paths]
  cost = describe.estimate(Quarters(), every, 1000)
  assert cost['bytes'] == 1000 * 2 * 4 * 3
  slower = min(cost['decode_fps'], cost['extract_fps'])
  assert cost['seconds'] == pytest.approx(1000 / slower, rel=0.2, abs=0.1)
  for path in paths:
    path.write_bytes(b'')
  assert describe.estimate(Quarters(), every, 9)['seconds'] is None


@pytest.mark.parametrize('program', ['check', 'describe'])
def test_help(program):
  done = _run(program, '--help')
  assert done.returncode == 0, done.stderr
  assert f'python -m data.{program} --config=FILE' in done.stdout
  assert '--[no]json' in done.stdout


@pytest.mark.parametrize('program', ['check', 'describe'])
@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((), '--config: missing'),
    (('--config=configs/quickstart.py',), 'generated'),
    ((FOLDER, '--config.data.rot=x'), 'command line: '),
    ((FOLDER, '--config.data.name=hmdb'), "Did you mean 'hmdb51'?"),
    ((FOLDER, '--config.data.root=/none'), 'no videos to be found'),
    ((FOLDER, 'stray'), 'no positional arguments'),
  ],
)
def test_mistakes_end_in_one_message(program, arguments, message):
  done = _run(program, *arguments)
  assert done.returncode == 2
  assert message in done.stderr and done.stderr.startswith('error: ')
  assert 'Traceback' not in done.stderr and not done.stdout
