"""Evaluate: from a workdir alone, against scikit-learn, and from a dump."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as sk

from experiments import config as config_lib
from experiments import evaluate, predictions, trained
from experiments.errors import (
  CheckpointError,
  ConfigError,
  HmanError,
  WorkdirError,
)
from experiments.predictions import Predictions

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture
def workdir(tiny_workdir, tmp_path):
  """A copy that a test may change."""
  return shutil.copytree(tiny_workdir, tmp_path / 'run')


def _random(seed, draws=1, clips=40, classes=5, absent=False, ties=False):
  rng = np.random.default_rng(seed)
  scores = rng.random((draws, clips, classes))
  if ties:
    scores = np.round(scores, 1) + 0.1
  scores /= scores.sum(axis=-1, keepdims=True)
  labels = rng.integers(0, classes - absent, clips).astype(np.int32)
  return Predictions(
    clip_names=tuple(f'clip {i}' for i in range(clips)),
    labels=labels,
    scores=scores,
    class_names=tuple(f'class {c}' for c in range(classes)),
    about={'split': 'test', 'model': 'hm_soft', 'step': 1, 'mode': 'sample'},
  )


@pytest.mark.parametrize('seed', range(4))
@pytest.mark.parametrize('absent', [False, True])
@pytest.mark.parametrize('ties', [False, True])
def test_numbers_equal_scikit_learn(seed, absent, ties):
  given = _random(seed, absent=absent, ties=ties)
  report = evaluate.score(given)
  p, labels = given.scores[0], given.labels
  predicted = p.argmax(axis=1)
  np.testing.assert_array_equal(
    report['confusion'],
    sk.confusion_matrix(labels, predicted, labels=range(5)),
  )
  known = sorted(set(labels.tolist()))
  aps = {c: sk.average_precision_score(labels == c, p[:, c]) for c in known}
  recalls = sk.recall_score(labels, predicted, labels=known, average=None)
  for c, row in enumerate(report['per_class']):
    assert row['num_clips'] == (labels == c).sum()
    if c in known:
      assert row['average_precision'] == pytest.approx(aps[c])
      assert row['accuracy'] == pytest.approx(recalls[known.index(c)])
    else:
      assert row['average_precision'] is None and row['accuracy'] is None
  found = report['metrics']
  assert found['mAP'] == pytest.approx(np.mean(list(aps.values())))
  assert found['acc/mean1'] == pytest.approx(np.mean(recalls))
  assert found['acc/top1'] == pytest.approx(
    sk.accuracy_score(labels, predicted)
  )
  if not ties and not absent:
    assert found['acc/top5'] == 1.0
    for k in (1, 5):
      assert found[f'acc/top{k}'] == pytest.approx(
        sk.top_k_accuracy_score(labels, p, k=k, labels=range(5))
        if k < 5
        else 1.0
      )


def test_the_spread_is_that_of_single_draws():
  given = _random(0, draws=6)
  report = evaluate.score(given)
  single = [
    evaluate.score(given._replace(scores=s[None])) for s in given.scores
  ]
  values = [s['metrics']['acc/top1'] for s in single]
  spread = report['spread']['acc/top1']
  assert spread['mean'] == pytest.approx(np.mean(values))
  assert spread['std'] == pytest.approx(np.std(values, ddof=1))
  assert (spread['min'], spread['max']) == (min(values), max(values))
  assert spread['std'] > 0
  mean = given._replace(scores=given.scores.mean(axis=0, keepdims=True))
  assert report['metrics'] == pytest.approx(evaluate.score(mean)['metrics'])
  assert single[0]['spread'] == {}
  assert '6 draws averaged' in evaluate.describe(report)


@pytest.mark.parametrize('suffix', predictions.SUFFIXES)
def test_a_dump_says_the_same_again(tmp_path, suffix):
  given = _random(1, draws=3)
  path = tmp_path / f'scores{suffix}'
  predictions.write(path, given)
  again = predictions.read(path)
  np.testing.assert_array_equal(again.scores, given.scores)
  np.testing.assert_array_equal(again.labels, given.labels)
  assert again.clip_names == given.clip_names
  assert (again.class_names, again.about) == (given.class_names, given.about)
  assert evaluate.score(again) == evaluate.score(given)
  assert [p.name for p in tmp_path.iterdir()] == [path.name]


def _broken(path, change):
  predictions.write(path, _random(2, draws=2, clips=3))
  lines = path.read_text().splitlines()
  path.write_text('\n'.join(change(lines)))
  return path


def _row(line, **changes):
  return json.dumps({**json.loads(line), **changes})


@pytest.mark.parametrize(
  ('change', 'message'),
  [
    (lambda x: [], 'empty'),
    (lambda x: x[1:], 'no predictions of'),
    (lambda x: x[:1], 'no clips'),
    (lambda x: [*x[:3], x[3][:9], *x[4:]], ':4: damaged line'),
    (lambda x: x[:-1], 'draw 1 has other clips'),
    (lambda x: [*x, x[-1]], 'twice'),
    (lambda x: [x[0], _row(x[1], label=5), *x[2:]], r'expected 0\.\.4, got 5'),
    (lambda x: [x[0], _row(x[1], label=-1), *x[2:]], 'got -1'),
    (lambda x: [x[0], _row(x[1], scores=[1.0]), *x[2:]], '5 finite numbers'),
    (lambda x: [x[0], '{"clip": "a"}', *x[2:]], 'row 1: lacks'),
  ],
)
def test_a_damaged_dump_is_refused(tmp_path, change, message):
  path = _broken(tmp_path / 'scores.jsonl', change)
  with pytest.raises(HmanError, match=message):
    predictions.read(path)


def test_names_that_cannot_be_dumps(tmp_path):
  for path, message in (
    (tmp_path / 'scores.csv', r'\.parquet or \.jsonl'),
    (tmp_path / 'none' / 'scores.jsonl', 'there is no folder'),
  ):
    with pytest.raises(HmanError, match=message):
      predictions.write(path, _random(0))
  (tmp_path / 'text.parquet').write_text('not Parquet at all')
  with pytest.raises(HmanError, match='damaged, or not Parquet'):
    predictions.read(tmp_path / 'text.parquet')
  with pytest.raises(HmanError, match='cannot read'):
    predictions.read(tmp_path / 'missing.jsonl')


def test_the_numbers_are_those_of_the_run(workdir):
  found, report = evaluate.evaluate(workdir)
  final = json.loads((workdir / 'metrics.json').read_text())['test']
  for name, value in report['metrics'].items():
    assert value == pytest.approx(final[name], abs=1e-6), name
  assert {'boundary/f1', 'attention/hit_rate'} <= set(report['metrics'])
  assert report['num_clips'] == 8 and report['num_samples'] == 1
  np.testing.assert_allclose(found.scores.sum(axis=-1), 1.0)
  _, other = evaluate.evaluate(workdir, 'validation', checkpoint='latest')
  assert other['about']['split'] == 'validation'
  assert other['about']['step'] == 6


def test_draws_of_the_boundaries(workdir):
  found, report = evaluate.evaluate(workdir, num_samples=3)
  again, _ = evaluate.evaluate(workdir, num_samples=3)
  assert found.scores.shape[0] == report['num_samples'] == 3
  np.testing.assert_array_equal(found.scores, again.scores)
  assert np.abs(found.scores[0] - found.scores[1]).max() > 1e-6
  assert report['about']['mode'] == 'sample'
  still, _ = evaluate.evaluate(workdir, num_samples=0)
  assert still.scores.shape[0] == 1


@pytest.mark.parametrize(
  ('field', 'value'), [('cell', 'lstm'), ('boundary', 'soft')]
)
def test_a_model_that_draws_nothing_has_no_samples(workdir, field, value):
  _edit_json('config.json', lambda c: c['model'].update({field: value}))(
    workdir
  )
  message = rf'--num_samples: .*config\.model\.{field}={value!r}'
  with pytest.raises(HmanError, match=message):
    evaluate.evaluate(workdir, num_samples=2)


def _edit(name, change):
  def edit(workdir):
    path = workdir / name
    path.write_text(change(path.read_text()))
    (workdir / 'manifest.json').unlink()  # as one has to who means it

  return edit


def _edit_json(name, change):
  def edit_text(text):
    tree = json.loads(text)
    change(tree)
    return json.dumps(tree)

  return _edit(name, edit_text)


def _swap(text):
  first, second, *rest = text.splitlines(keepends=True)
  return ''.join([second, first, *rest])


@pytest.mark.parametrize(
  ('edit', 'message'),
  [
    (_edit('label_map.txt', _swap), 'class_names: was'),
    (_edit('label_map.txt', lambda t: 'x' + t), r"class_names: .* is \['xleft"),
    (_edit('label_map.txt', lambda t: t + t), 'all different'),
    (_edit('data.json', lambda t: t[:40]), 'damaged'),
    (
      _edit_json('data.json', lambda d: d['test'].update(seed=7)),
      'test clips are not those of the run: seed: was 7, is 0',
    ),
    (
      _edit_json('data.json', lambda d: d['preprocessing'].update(features=7)),
      "trained on other features: features: was 7, is 'none'",
    ),
    (_edit_json('config.json', lambda c: c.pop('eval')), 'another version'),
    (lambda w: (w / 'config.json').unlink(), r'holds no run \(no config'),
    (lambda w: (w / 'label_map.txt').unlink(), 'cannot read the class names'),
    (lambda w: (w / 'data.json').unlink(), r'data\.json: missing'),
    (lambda w: shutil.rmtree(w / 'best'), 'no best checkpoint yet'),
  ],
)  # fmt: skip
def test_a_run_that_does_not_fit_is_refused(workdir, edit, message):
  edit(workdir)
  with pytest.raises((CheckpointError, WorkdirError), match=message):
    trained.read(workdir).open_data()


def test_changes_are_checked(workdir):
  with pytest.raises(ConfigError, match=r'config\.eval\.batch_size: expected'):
    trained.read_config(workdir, {'eval.batch_size': 0})
  config = trained.read_config(workdir, {'eval.batch_size': 3})
  assert config.eval.batch_size == 3
  assert config.is_locked
  assert set(config_lib.flatten(config.to_dict())) == set(config_lib.FIELDS)


def _program(*arguments):
  return subprocess.run(
    [sys.executable, '-m', 'experiments.evaluate', *map(str, arguments)],
    cwd=ROOT,
    capture_output=True,
    text=True,
    timeout=120,
  )


def test_the_program(workdir, tmp_path):
  dump = tmp_path / 'scores.parquet'
  done = _program(f'--workdir={workdir}', f'--dump={dump}')
  assert done.returncode == 0, done.stderr
  assert 'top-1 accuracy' in done.stdout and 'AP %' in done.stdout
  report = json.loads((workdir / 'evaluation.json').read_text())
  assert len(report['per_class']) == len(report['confusion']) == 8
  out = tmp_path / 'again.json'
  again = _program(f'--from_dump={dump}', f'--out={out}')
  assert again.returncode == 0, again.stderr
  scored = json.loads(out.read_text())
  for name in ('per_class', 'confusion', 'num_clips', 'about'):
    assert scored[name] == report[name]
  for name, value in scored['metrics'].items():
    assert report['metrics'][name] == value


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('--wordkir=x',), 'Did you mean: workdir'),
    ((), '--workdir: missing'),
    (('--workdir=none',), 'holds no run'),
    (('stray', '--workdir=none'), "'stray': write flags as"),
    (('--workdir=none', '--dump=x.csv'), '.parquet or .jsonl'),
    (('--from_dump=x.jsonl', '--workdir=none'), 'no meaning with --from_dump'),
    (('--workdir=none', '--split=train'), 'test|validation'),
  ],
)
def test_mistakes_end_in_one_message(arguments, message, monkeypatch, capsys):
  monkeypatch.setattr(sys, 'argv', ['evaluate', *arguments])
  for flag in evaluate.FLAGS.flag_values_dict():
    evaluate.FLAGS[flag].unparse()
  with pytest.raises(SystemExit) as stop:
    evaluate.program.run(evaluate.main, evaluate.FLAGS, evaluate.__doc__)
  assert stop.value.code == 2
  assert message in capsys.readouterr().err
