"""The report: its numbers, its page, its figures; see test_report_browser."""

import base64
import dataclasses
import html.parser
import io
import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from sklearn import metrics as sk

from configs import hmdb51
from data import features
from data.composite_actions import CompositeActions
from data.features import VideoFeatures
from data.videos import decode
from experiments import clips, curves, evaluate, figures, report, trained
from experiments.errors import HmanError, WorkdirError
from experiments.predictions import Predictions

import data_trees
import records
import untrained_runs
import video_files
from quarters import Quarters

HOSTILE = (
  '</script><b>',
  '<!--<script>',
  '&lt;i&gt;',
  '$x_{$',
  '"quoted\'\u2028',
  '@@script@@',
  '\\u003c',
  '日本語',
)


@pytest.fixture(scope='module')
def workdir(tmp_path_factory):
  return untrained_runs.make(tmp_path_factory.mktemp('report') / 'run')


@pytest.fixture(scope='module')
def material(workdir):
  return report.collect(workdir, num_clips=6)


@pytest.fixture(scope='module')
def predictions(workdir):
  return evaluate.evaluate(workdir)[0]


@pytest.fixture(scope='module')
def page(material):
  return report.render(material)


def _data(page):
  pattern = r'<script type="application/json" id="data">(.*?)</script>'
  return json.loads(re.search(pattern, page, re.DOTALL)[1])


class _Reader(html.parser.HTMLParser):
  """Checks nesting; collects tags, and the attributes that load something."""

  VOID = ('meta', 'input', 'br')
  LOADING = (
    'src', 'href', 'xlink:href', 'srcset', 'action', 'style', 'poster', 'data',
  )  # fmt: skip

  def __init__(self, page):
    super().__init__(convert_charrefs=True)
    self.open, self.tags, self.ids, self.loads, self.texts = [], [], [], [], {}
    self.events = []
    self.feed(page)
    self.close()

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    names = [name for name, _ in attrs]
    assert len(set(names)) == len(names), attrs
    for name, value in attrs:
      if name == 'id':
        self.ids.append(value)
      if name in self.LOADING:
        self.loads.append(value)
      if name.startswith('on'):
        self.events.append(name)
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open and self.open.pop() == tag, (tag, self.getpos())

  def handle_data(self, data):
    if self.open:
      self.texts.setdefault(self.open[-1], []).append(data)


# --- the page ---------------------------------------------------------------


def test_page_is_well_formed_and_self_contained(page):
  reader = _Reader(page)
  assert not reader.open, 'tags left open'
  assert len(set(reader.ids)) == len(reader.ids)
  assert all(value.startswith('#') for value in reader.loads), reader.loads
  assert {value[1:] for value in reader.loads} <= set(reader.ids)
  assert not reader.events, 'handlers would be refused by the policy'
  assert not re.search(r'https?:|//\w+\.|@import|url\(', page)
  assert not re.search(r'\b(fetch|XMLHttpRequest|WebSocket|eval)\(', page)
  assert {'html', 'canvas', 'noscript'} <= set(reader.tags)


def test_policy_names_the_style_and_the_program(page):
  policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
  rules = dict(rule.split(' ', 1) for rule in policy.split('; '))
  assert rules['default-src'] == "'none'"
  assert rules['img-src'] == 'data:'
  for rule, text in (
    ('style-src', re.search(r'<style>(.*?)</style>', page, re.DOTALL)[1]),
    ('script-src', re.search(r'<script>(.*?)</script>', page, re.DOTALL)[1]),
  ):
    assert rules[rule] == f"'{report._digest(text)}'"


def test_hostile_names_stay_names(material, page):
  views = [
    view._replace(name=f'{name}\udcff') for view, name in zip(
      material.views, HOSTILE
    )
  ]  # fmt: skip
  run = dataclasses.replace(material.run, class_names=HOSTILE)
  hostile = report.render(material._replace(run=run, views=views))
  # Only the data differ, and say what was meant.
  assert _Reader(hostile).tags == _Reader(page).tags
  data = _data(hostile)
  assert data['classes'] == list(HOSTILE)
  assert [c['name'] for c in data['clips']] == [v.name for v in views]
  split = '<script type="application/json" id="data">'
  before, after = page.split(split), hostile.split(split)
  assert before[0] == after[0]
  ending = '</script>'
  assert before[1].partition(ending)[2] == after[1].partition(ending)[2]


def test_same_run_gives_the_same_page(material, page):
  assert report.render(material) == page


def test_numbers_equal_scikit_learn(predictions, page):
  labels, p = predictions.labels, predictions.scores[0]
  predicted = p.argmax(axis=1)
  data = _data(page)
  shown = {name: value for name, value, _ in data['scores']}
  classes = range(len(data['classes']))
  np.testing.assert_array_equal(
    data['confusion'], sk.confusion_matrix(labels, predicted, labels=classes)
  )
  assert shown['top-1 accuracy'] == sk.accuracy_score(labels, predicted)
  aps = [sk.average_precision_score(labels == c, p[:, c]) for c in classes]
  assert math.isclose(shown['mean average precision'], np.mean(aps))
  recall = sk.recall_score(labels, predicted, average=None, zero_division=0)
  precision = sk.precision_score(
    labels, predicted, labels=classes, average=None, zero_division=0
  )
  for c, row in enumerate(data['per_class']):
    assert math.isclose(row['average_precision'], aps[c])
    assert math.isclose(row['accuracy'], recall[c])
    if row['precision'] is None:
      assert c not in predicted
    else:
      assert math.isclose(row['precision'], precision[c])
    assert row['right'] == ((labels == c) & (predicted == c)).sum()


def test_absent_classes_have_no_numbers(material):
  rng = np.random.default_rng(0)
  scores = np.round(rng.random((1, 40, 8)), 1) + 0.05  # with ties
  labels = rng.integers(0, 6, 40).astype(np.int32)
  given = Predictions(
    tuple(map(str, range(40))), labels, scores, material.run.class_names, {}
  )
  data = report._summary(material._replace(scores=evaluate.score(given)))
  for row in data['per_class'][6:]:
    assert row['clips'] == 0
    assert row['accuracy'] is None and row['average_precision'] is None
  assert data['per_class'][0]['average_precision'] == pytest.approx(
    sk.average_precision_score(labels == 0, scores[0, :, 0])
  )
  json.dumps(data, allow_nan=False)


# --- its size ---------------------------------------------------------------


class _Noise:
  """A source whose pictures do not compress."""

  def __init__(self, source, shape):
    self._source, self._shape = source, shape

  def __getattr__(self, name):
    return getattr(self._source, name)

  def __len__(self):
    return len(self._source)

  def frames(self, index):
    rng = np.random.default_rng(index)
    size = (self._source.lengths[index], *self._shape)
    return rng.integers(0, 256, size, np.uint8)


def _sizes(data):
  pictures = []
  for clip in data['clips']:
    kind, text = clip['sprite']['uri'].split(';base64,')
    picture = Image.open(io.BytesIO(base64.b64decode(text)))
    assert kind == f'data:image/{picture.format.lower()}'
    pictures.append((picture, clip))
  return pictures


@pytest.mark.parametrize('shape', [(60, 80, 3), (56, 56)])
@pytest.mark.parametrize('limit', [1_500_000, 600_000, 200_000])
def test_pictures_shrink_until_the_page_fits(
  material, monkeypatch, shape, limit
):
  monkeypatch.setattr(report, 'MAX_BYTES', limit)
  source = _Noise(material.source, shape)
  page = report.render(material._replace(source=source))
  assert len(page.encode()) <= limit
  for picture, clip in _sizes(_data(page)):
    sprite = clip['sprite']
    shown = -(-clip['steps'] // sprite['every'])
    rows = -(-shown // sprite['columns'])
    assert picture.size == (
      sprite['width'] * sprite['columns'], sprite['height'] * rows
    )  # fmt: skip


def test_too_many_clips_are_refused(material, monkeypatch):
  monkeypatch.setattr(report, 'MAX_BYTES', 60_000)
  with pytest.raises(HmanError, match='--clips: 6 clips make a page of'):
    report.render(material)


def test_composite_pictures_are_exact(material, page):
  clip, view = _data(page)['clips'][0], material.views[0]
  text = clip['sprite']['uri'].partition(',')[2]
  sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))
  t = 9  # second row, second column
  np.testing.assert_array_equal(
    sheet[56:112, 56:112], material.source.frames(view.index)[t]
  )


# --- the clips --------------------------------------------------------------


def test_view_is_what_the_model_does(material):
  run, source = material.run, material.source
  view = material.views[0]
  block = run.config.data.num_frames
  features = np.asarray(source[view.index]['features'], np.float32)
  assert view.starts == list(range(0, len(features), block))
  joined = []
  for start in view.starts:
    part = features[None, start : start + block]
    joined.append(run.model.apply(run.params, part, deterministic=True))
  logits = np.concatenate([out.logits[0] for out in joined])
  p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  np.testing.assert_allclose(view.probabilities, p, atol=1e-5)
  for name, got in (
    ('operation', view.operation),
    ('z', view.z),
  ):
    want = np.concatenate([getattr(out.cell, name)[0] for out in joined])
    np.testing.assert_array_equal(got, want)
  weights = np.concatenate([out.attention.weights[0] for out in joined])
  np.testing.assert_allclose(view.weights, weights, atol=1e-5)
  np.testing.assert_array_equal(view.target, source[view.index]['target'])
  np.testing.assert_array_equal(
    view.boundaries, source[view.index]['boundaries']
  )


def test_clips_agree_with_the_evaluation(material, predictions):
  for view in material.views:
    np.testing.assert_allclose(view.scores, predictions.scores[0, view.index])
    assert view.predicted == view.scores.argmax()


@pytest.mark.slow
def test_draws_of_boundaries_are_averaged(workdir):
  changes = {'eval.boundary_mode': 'sample', 'eval.num_samples': 2}
  material = report.collect(workdir, 99, changes)
  drawn = evaluate.evaluate(workdir, num_samples=2)[0]
  assert len(material.views) == len(drawn.labels)
  for view in material.views:
    np.testing.assert_allclose(
      view.scores, drawn.scores[:, view.index].mean(axis=0)
    )


def test_one_clip_alone_is_the_same(workdir, material):
  run = trained.read(workdir)
  index = material.views[-1].index
  draws = clips.run(run, material.source, [index])
  alone = clips.view(draws, material.source, index)
  np.testing.assert_allclose(alone.scores, material.views[-1].scores, atol=1e-6)
  assert alone.predicted == material.views[-1].predicted


def test_page_tells_the_clips(material, page):
  for clip, view in zip(_data(page)['clips'], material.views):
    assert clip['pick'] == view.weights.argmax(axis=1).tolist()
    assert [list(map(int, row)) for row in clip['operation']] == (
      view.operation.T.tolist()
    )
    assert [[c == '1' for c in row] for row in clip['z']] == view.z.T.tolist()
    assert clip['boundaries'] == np.flatnonzero(view.boundaries).tolist()
    assert clip['target'] == view.target.tolist()
    assert '-'.join(clip['parts']) == material.run.class_names[view.label]
    assert view.label in [row['class'] for row in clip['likely']]
    for row in clip['likely']:
      np.testing.assert_allclose(
        np.array(row['steps']) / 1000,
        view.probabilities[:, row['class']],
        atol=0.00051,
      )


def test_spread_attention_is_told_by_bytes(material):
  rng = np.random.default_rng(0)
  weights = rng.dirichlet(np.ones(49), 5)
  told = report._attention(weights)
  heat = np.frombuffer(base64.b64decode(told['heat']), np.uint8).reshape(5, 49)
  again = heat / 255 * np.array(told['heaviest'])[:, None]
  np.testing.assert_allclose(again, weights, atol=0.002)
  assert report._attention(np.eye(49)[:5])['heat'] is None
  assert report._attention(None)['pick'] is None


@pytest.mark.parametrize('count', [1, 2, 5, 10, 39, 40, 99])
def test_chosen_clips_are_half_mistaken_and_of_all_classes(count):
  rng = np.random.default_rng(count)
  labels = np.arange(40) % 4
  predicted = np.where(rng.random(40) < 0.7, labels, 3 - labels)
  chosen = clips.choose(labels, predicted, count)
  assert chosen == sorted(set(chosen)) and len(chosen) == min(count, 40)
  wrong = labels != predicted
  expected = min(wrong.sum(), max(count - (~wrong).sum(), (count + 1) // 2))
  if count <= 40:
    assert wrong[chosen].sum() == expected
  if count == 10:
    assert set(labels[chosen]) == {0, 1, 2, 3}


def test_pictures_of_videos(tmp_path):
  path = video_files.write(tmp_path / 'a.avi', video_files.shades(7))
  store = tmp_path / 'a.npy'
  records.write(store, np.zeros((7, 49, 4)))

  def source(**more):
    return VideoFeatures(
      ['a'], [store], [0], class_names=['c'], identity={}, **more
    )

  class View:
    index, stride, probabilities = 0, 2, np.zeros((4, 1))

  def pictures(**more):
    (found,) = clips.frames(source(**more), [View])
    return found

  shown = pictures(videos=[path])
  assert shown.shape == (4, 48, 64, 3)
  assert abs(int(shown[1].mean()) - (20 + 2 * 12)) < 4
  assert pictures() is None
  assert pictures(videos=[tmp_path / 'gone.avi']) is None
  View.probabilities = np.zeros((5, 1))  # another video by now
  assert pictures(videos=[path]) is None


def test_without_pictures_there_is_a_page(material):
  class Bare(_Noise):
    def frames(self, index):
      return np.zeros((1, 8, 8), np.uint8)

  page = report.render(material._replace(source=Bare(material.source, ())))
  assert all(clip['sprite'] is None for clip in _data(page)['clips'])


# --- curves and figures -----------------------------------------------------


def _write_records(folder, *lines):
  folder.mkdir(exist_ok=True)
  (folder / 'metrics.jsonl').write_text('\n'.join(lines))
  return folder


def test_records_torn_at_the_end_are_read(tmp_path):
  good = '{"mode": "train", "step": 1, "loss": 2.0}'
  assert len(curves.read(_write_records(tmp_path, good, '{"mode": "tr'))) == 1
  with pytest.raises(WorkdirError, match=r'metrics.jsonl:1: damaged record'):
    curves.read(_write_records(tmp_path, '{"step": 3}', good))
  with pytest.raises(WorkdirError, match='cannot read the records'):
    curves.read(tmp_path / 'nowhere')


def test_charts_hold_the_records(material):
  charts = {
    c.title: {s.name: s for s in c.series}
    for c in curves.charts(material.records, 'gumbel_adaptive')
  }
  train = [r for r in material.records if r['mode'] == 'train']
  for title, name, key in (
    ('Loss', 'training', 'loss'),
    ('Accuracy', 'training', 'acc/step'),
    ('Gradient norm before clipping', 'training', 'grad_norm'),
    ('Temperature of the attention', 'training', 'attention/temperature'),
    ('Boundary rate', 'z2 training', 'boundary/rate_2'),
  ):
    series = charts[title][name]
    assert series.x == [r['step'] for r in train]
    assert series.y == [r[key] for r in train]
  assert 'z3 chance' in charts['Boundary F1']
  soft = curves.charts(material.records, 'soft')
  assert 'Temperature of the attention' not in [c.title for c in soft]


def test_long_and_broken_series_can_be_drawn():
  records = [
    {'mode': 'train', 'step': s, 'loss': float(s), 'grad_norm': 0.0}
    for s in range(1, 5002)
  ]
  records[10]['loss'] = math.nan
  (chart,) = curves.charts(records, 'none')
  (series,) = chart.series
  assert len(series.x) <= curves.MAX_POINTS
  assert series.x[-1] == 5001 and math.nan not in series.y
  assert curves.charts([], 'none') == []


def test_figures_are_drawn(material, tmp_path):
  run = dataclasses.replace(material.run, class_names=HOSTILE[:-1] + ('x',))
  view = material.views[0]._replace(name='$a_{$\udcff')
  report.write_figures(material._replace(run=run, views=[view]), tmp_path)
  names = sorted(f.name for f in tmp_path.iterdir())
  stems = sorted([f'clip_{view.index:05d}', 'confusion', 'curves'])
  assert names == [f'{s}.{e}' for s in stems for e in ('pdf', 'png')]
  for name in names:
    content = (tmp_path / name).read_bytes()
    start = b'%PDF' if name.endswith('pdf') else b'\x89PNG'
    assert content.startswith(start) and len(content) > 5000


def test_same_numbers_give_the_same_figure(tmp_path):
  for name in ('one', 'two'):
    figures.save_confusion(np.eye(2, dtype=int), 'ab', tmp_path / name)
  for end in ('.pdf', '.png'):
    one, two = ((tmp_path / n).with_suffix(end) for n in ('one', 'two'))
    assert one.read_bytes() == two.read_bytes()


def test_clips_of_other_networks_are_drawn(material, tmp_path):
  view = material.views[0]
  names = material.run.class_names
  bare = view._replace(operation=None, z=None, boundaries=None, target=None)
  soft = bare._replace(
    weights=np.random.default_rng(0).dirichlet(np.ones(49), len(view.z))
  )
  shape = (len(view.z), 30, 40, 3)
  for name, clip, pictures in (
    ('soft', soft, np.zeros(shape, np.uint8)),
    ('none', bare._replace(weights=None), None),
    ('one', view._replace(
      **{k: getattr(view, k)[:1] for k in (
        'probabilities', 'weights', 'operation', 'z', 'boundaries', 'target',
      )}), None),
  ):  # fmt: skip
    figures.save_clip(clip, pictures, names, tmp_path / f'{name}.png')
    with Image.open(tmp_path / f'{name}.png') as picture:
      assert picture.size[0] > 1000
    # The page tells it as well.
    told = report._describe(clip, material.source)
    assert json.dumps(told, allow_nan=False)


def test_a_grid_that_is_no_square_is_refused(material):
  class Odd:
    feature_shape = (48, 64)

  with pytest.raises(HmanError, match='square grid'):
    clips.view([], Odd, 0)


# --- the program ------------------------------------------------------------


def test_program_writes_page_and_figures(
  workdir, tmp_path, monkeypatch, capsys
):
  out = tmp_path / 'deep' / 'page.html'
  folder = tmp_path / 'figures'
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  report.FLAGS(
    ['report', f'--workdir={workdir}', f'--out={out}', '--clips=1',
     f'--figures={folder}']
  )  # fmt: skip
  report.main([])
  assert len(_data(out.read_text())['clips']) == 1
  assert (folder / 'curves.pdf').exists()
  assert f'wrote {out}: 1 clips' in capsys.readouterr().out


def test_mistakes_end_in_one_message(tmp_path):
  done = subprocess.run(
    [sys.executable, '-m', 'experiments.report', f'--workdir={tmp_path}'],
    capture_output=True, text=True, timeout=120,
  )  # fmt: skip
  assert done.returncode == 2
  assert 'holds no run' in done.stderr and 'Traceback' not in done.stderr


def test_composite_clips_know_their_parts():
  source = CompositeActions('test', num_clips=1)
  assert set(source.sub_actions) == set(source.class_names[0].split('-'))


# --- videos -----------------------------------------------------------------


def test_videos_are_shown_with_what_was_seen(tmp_path, monkeypatch):
  monkeypatch.setitem(features.EXTRACTORS, 'efficientnet_lite0', Quarters)
  workdir = untrained_runs.make(
    tmp_path / 'run',
    recipe=hmdb51,
    **{
      'data.root': str(data_trees.hmdb51(tmp_path / 'data')),
      'data.features_dir': str(tmp_path / 'store'),
      'data.frame_stride': 2,
      'model.name': 'lstm_soft',
    },
  )
  material = report.collect(workdir, 4)
  data = _data(report.render(material))
  assert data['side'] == 2
  for (picture, clip), view in zip(_sizes(data), material.views):
    video = decode(tmp_path / 'data' / clip['name'])[::2]
    assert clip['steps'] == len(video) == len(view.probabilities)
    assert (clip['sprite']['width'], clip['sprite']['height']) == (32, 32)
    last = len(video) - 1
    box = (32 * last, 0, 32 * last + 32, 32)
    difference = np.asarray(picture.crop(box), int) - video[last]
    assert abs(difference.mean()) < 5  # JPEG
    assert clip['operation'] is None and clip['heat'] is not None
    assert clip['boundaries'] is None and clip['target'] is None
