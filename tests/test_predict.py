"""Predict: streams, segments, files and the program, on little videos."""

import io
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import av
import jax
import numpy as np
import pytest

import hman_jax
from configs import hmdb51
from data import decoding, features, live, videos
from data.errors import VideoError
from experiments import evaluate, overlay, predict, recognise, train
from experiments.errors import HmanError, WorkdirError
from experiments.recognise import Segments, VideoRecogniser
from experiments.trained import TrainedRun

import video_files
from tiny_runs import tiny_config, untrained_in

CLASSES = ('bright', 'dark')
SHAPE = (49, 6)
T = 12


class Stub:
  """Mean and corner of each of 7 x 7 cells: an extractor without a network."""

  image_size = (14, 14)
  feature_shape = SHAPE
  batch_size = 8
  identity = {'extractor': 'stub', 'size': [14, 14]}  # noqa: RUF012

  def extract(self, frames: np.ndarray) -> np.ndarray:
    cells = frames.reshape(-1, 7, 2, 7, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    cells = cells.reshape(len(frames), 49, 4, 3) / 255.0
    parts = [cells.mean(axis=2), cells[:, :, 0]]
    return np.concatenate(parts, axis=-1).astype(np.float16)


@pytest.fixture(scope='module')
def extractors():
  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(features.EXTRACTORS, 'efficientnet_lite0', Stub)
    yield


def _clip(rng, label, num_frames):
  """A square that walks over noise, on a bright or a dark ground."""
  ground = rng.integers(0, 60, (num_frames, 28, 42, 3)) + (120 - 100 * label)
  for t, frame in enumerate(ground):
    frame[10:18, t % 34 : t % 34 + 8] = (230, 40, 40)
  return ground.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
  """HMDB51's layout: 2 classes, 4 training and 2 test clips each."""
  folder = tmp_path_factory.mktemp('data')
  rng = np.random.default_rng(0)
  (folder / 'splits').mkdir()
  for label, name in enumerate(CLASSES):
    lines = []
    for k in range(6):
      file = f'source{k}_{name}_{k}.avi'
      frames = _clip(rng, label, 10 + 5 * k)
      video_files.write(folder / name / file, frames)
      lines.append(f'{file} {1 if k < 4 else 2} \n')
    (folder / 'splits' / f'{name}_test_split1.txt').write_text(''.join(lines))
  return folder


@pytest.fixture(scope='module')
def workdir(extractors, root, tmp_path_factory):
  folder = tmp_path_factory.mktemp('video_run')
  config = tiny_config(
    hmdb51,
    **{
      'data.root': str(root),
      'data.features_dir': str(folder / 'features'),
      'data.num_frames': T,
      'data.validation_fraction': 0.3,
      'model.boundary_rate': 0.5,
    },
  )
  return untrained_in(folder / 'run', config)


def _untrained(seed=0, num_classes=3, **changes):
  """A run with random parameters: boundaries and attention are lively."""
  config = tiny_config(
    hmdb51,
    **{
      'data.num_frames': T,
      'model.boundary_rate': 0.4,
      'model.position_code': 'none',
      **changes,
    },
  )
  model = train.make_model(config, num_classes, SHAPE)
  params = model.init(jax.random.key(seed), np.zeros((1, 1, *SHAPE)))
  return TrainedRun(
    workdir=pathlib.Path('run'),
    config=config,
    class_names=tuple(f'class {c}' for c in range(num_classes)),
    data={'preprocessing': Stub.identity, 'feature_shape': SHAPE},
    model=model,
    params=params,
    step=0,
  )


def _features(num_frames, seed=0):
  rng = np.random.default_rng(seed)
  return rng.normal(0, 3, (num_frames, *SHAPE)).astype(np.float16)


def _softmax(logits):
  p = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return p / p.sum(axis=-1, keepdims=True)


# --- streams ----------------------------------------------------------------


@pytest.mark.parametrize('num_frames', [1, 40])
@pytest.mark.parametrize('name', ['hm_gumbel_adaptive', 'softmax_regression'])
def test_a_stream_is_the_whole_video_at_once(name, num_frames):
  run = _untrained(**{'model.name': name, 'model.initial_state': 'zeros'})
  recogniser = VideoRecogniser(run, Stub())
  x = _features(num_frames)
  whole = jax.device_get(
    run.model.apply(run.params, x[None], deterministic=True, boundary_slope=5.0)
  )
  p = _softmax(whole.logits[0])
  found = list(recogniser.stream_features(x))
  assert [f.index for f in found] == list(range(num_frames))
  np.testing.assert_allclose([f.probabilities for f in found], p, atol=1e-5)
  running = np.cumsum(p, axis=0) / np.arange(1, num_frames + 1)[:, None]
  np.testing.assert_allclose([f.running for f in found], running, atol=1e-5)
  if name == 'softmax_regression':
    assert found[0].weights is None and found[0].z is None
    return
  np.testing.assert_array_equal(
    [f.operation for f in found], whole.cell.operation[0]
  )
  np.testing.assert_array_equal([f.z for f in found], whole.cell.z[0] > 0.5)
  np.testing.assert_allclose(
    [f.weights for f in found], whole.attention.weights[0], atol=1e-6
  )
  if num_frames == 40:
    assert 0 < np.mean([f.z for f in found]) < 1


def test_a_first_state_of_mean_features_is_that_of_the_first_block():
  run = _untrained(**{'model.name': 'lstm_soft'})
  recogniser = VideoRecogniser(run, Stub())
  x = _features(30)[None]
  first = run.model.apply(run.params, x[:, :T], deterministic=True)
  rest = run.model.apply(
    run.params, x[:, T:], deterministic=True, state=first.state, start=T
  )
  logits = np.concatenate([first.logits[0], rest.logits[0]])
  found = [f.probabilities for f in recogniser.stream_features(x[0])]
  np.testing.assert_allclose(found, _softmax(logits), atol=1e-5)
  assert recogniser.num_layers == 0


@pytest.mark.parametrize('name', ['hm_soft', 'lstm_soft'])
def test_without_carrying_every_block_begins_anew(name):
  run = _untrained(**{'model.name': name})
  recogniser = VideoRecogniser(run, Stub(), carry_state=False)
  x = _features(2 * T + 5)
  blocks = [x[:T], x[T : 2 * T], x[2 * T :]]
  p = [
    _softmax(
      np.asarray(
        run.model.apply(
          run.params, b[None], deterministic=True, boundary_slope=5.0
        ).logits[0]
      )
    )
    for b in blocks
  ]
  found = list(recogniser.stream_features(x))
  np.testing.assert_allclose(
    [f.probabilities for f in found], np.concatenate(p), atol=1e-5
  )
  mean = np.mean([b.mean(axis=0) for b in p], axis=0)
  np.testing.assert_allclose(found[-1].running, mean, atol=1e-5)
  early = np.mean([p[0].mean(axis=0), p[1][:2].mean(axis=0)], axis=0)
  np.testing.assert_allclose(found[T + 1].running, early, atol=1e-5)


@pytest.mark.parametrize('stride', [1, 3])
def test_an_endless_stream_is_read_as_it_goes(stride):
  run = _untrained(**{'data.frame_stride': stride})
  recogniser = VideoRecogniser(run, Stub())
  read = 0

  def camera():
    nonlocal read
    for t in itertools.count():
      read += 1
      yield np.full((14, 14, 3), t % 256, np.uint8)

  found = list(itertools.islice(recogniser.stream(camera()), 100))
  assert [f.index for f in found] == list(range(0, 100 * stride, stride))
  assert read <= (100 + T) * stride


@pytest.mark.slow
@pytest.mark.parametrize('num_frames', [1, 40])
def test_drawn_boundaries_are_averaged_as_in_a_batch(num_frames):
  run = _untrained(**{'model.initial_state': 'zeros'})
  x = _features(num_frames)
  keys = jax.random.split(jax.random.key(7), 3)
  whole = jax.device_get(
    run.model.apply(
      run.params,
      np.broadcast_to(x, (3, *x.shape)),
      key=keys,
      deterministic=True,
      sample_boundaries=True,
      boundary_slope=5.0,
    )
  )
  recogniser = VideoRecogniser(run, Stub(), num_samples=3, seed=7)
  found = list(recogniser.stream_features(x))
  p = _softmax(whole.logits).mean(axis=0)
  np.testing.assert_allclose([f.probabilities for f in found], p, atol=1e-5)
  np.testing.assert_array_equal([f.z for f in found], whole.cell.z[0] > 0.5)
  if num_frames == 1:
    return
  assert (whole.cell.z[0] != whole.cell.z[1]).any()
  other = VideoRecogniser(run, Stub(), num_samples=3, seed=8)
  last = list(other.stream_features(x))[-1]
  assert not np.allclose(last.running, found[-1].running, atol=1e-5)


@pytest.mark.slow
def test_draws_are_as_the_config_says_or_refused():
  sampled = _untrained(**{'eval.boundary_mode': 'sample'})
  assert VideoRecogniser(sampled, Stub()).num_samples == 8
  assert VideoRecogniser(sampled, Stub(), num_samples=0).num_samples == 0
  assert VideoRecogniser(_untrained(), Stub()).num_samples == 0
  for name in ('lstm_soft', 'softmax_regression'):
    run = _untrained(**{'model.name': name})
    assert VideoRecogniser(run, Stub()).num_samples == 0
    with pytest.raises(HmanError, match=r'num_samples: .*draws no boundaries'):
      VideoRecogniser(run, Stub(), num_samples=2)


def test_recognising_from_features_needs_no_files():
  run = _untrained(**{'model.initial_state': 'zeros'})
  x = _features(20)
  recogniser = hman_jax.FeatureRecogniser(
    run.model, run.params, run.class_names, boundary_slope=5.0
  )
  expected = list(VideoRecogniser(run, Stub()).stream_features(x))[-1].running
  np.testing.assert_allclose(recogniser.predict_proba(x), expected, atol=1e-6)
  found = recogniser.predict(x, top_k=2)
  assert [set(f) for f in found] == [{'label', 'score'}] * 2
  assert found[0]['score'] >= found[1]['score']
  with pytest.raises(ValueError, match='at least one frame'):
    recogniser.predict(x[:0])
  with pytest.raises(ValueError, match='class_names: expected 3, got 1'):
    hman_jax.FeatureRecogniser(run.model, run.params, ('a',))
  with pytest.raises(ValueError, match='at_once: expected at least 1, got 0'):
    hman_jax.FeatureRecogniser(
      run.model, run.params, run.class_names, at_once=0
    )


# --- videos -----------------------------------------------------------------


def test_scores_of_blocks_are_those_of_evaluate(workdir, root):
  scored, _ = evaluate.evaluate(workdir)
  recogniser = VideoRecogniser.load(workdir, carry_state=False)
  assert recogniser.class_names == CLASSES
  lengths = set()
  for name, scores in zip(scored.clip_names, scored.scores[0]):
    lengths.add(len(videos.decode(root / name)))
    p = recogniser.predict_proba(root / name)
    np.testing.assert_allclose(p, scores, atol=1e-5)
  assert max(lengths) > 2 * T


def test_labels_are_sorted(workdir, root):
  recogniser = VideoRecogniser.load(workdir)
  video = root / 'dark' / 'source4_dark_4.avi'
  found = recogniser.predict(video)
  assert {f['label'] for f in found} == set(CLASSES)
  assert found[0]['score'] >= found[1]['score']
  assert sum(f['score'] for f in found) == pytest.approx(1)
  assert recogniser.predict(video, top_k=1) == found[:1]
  with pytest.raises(HmanError, match='top_k: expected at least 1, got 0'):
    recogniser.predict(video, top_k=0)


def test_frames_in_memory_and_folders_are_videos(workdir, root, tmp_path):
  recogniser = VideoRecogniser.load(workdir)
  path = root / 'bright' / 'source5_bright_5.avi'
  frames = videos.decode(path)
  from_file = recogniser.predict_proba(path)
  # Read from YUV or from RGB: rounding differs.
  np.testing.assert_allclose(
    recogniser.predict_proba(frames), from_file, atol=0.02
  )
  folder = tmp_path / 'frames'
  folder.mkdir()
  for t, frame in enumerate(frames, start=1):
    _write_jpeg(folder / f'img_{t:05}.jpg', frame)
  np.testing.assert_allclose(
    recogniser.predict_proba(folder), from_file, atol=0.02
  )
  for bad in (frames[:0], frames[..., 0], frames.astype(float)):
    with pytest.raises((HmanError, VideoError), match='expected'):
      recogniser.predict_proba(bad)


def _write_jpeg(path, frame):
  from PIL import Image

  Image.fromarray(frame).save(path, quality=95)


def test_streamed_frames_are_those_of_decode(root):
  path = root / 'dark' / 'source4_dark_4.avi'
  pairs = list(videos.stream(path, [(14, 14), None]))
  for k, size in enumerate([(14, 14), None]):
    np.testing.assert_array_equal(
      [pair[k] for pair in pairs], videos.decode(path, size)
    )
  frame = pairs[0][1]
  np.testing.assert_array_equal(videos.resize(frame, frame.shape[:2]), frame)


def test_other_features_and_generated_clips_are_refused():
  run = _untrained()

  class Other(Stub):
    identity = {'extractor': 'stub', 'size': [28, 28]}  # noqa: RUF012

  with pytest.raises(WorkdirError, match=r'size: was \[14, 14\], is \[28, 28'):
    VideoRecogniser(run, Other())
  with pytest.raises(WorkdirError, match='a run on generated clips'):
    VideoRecogniser(_untrained(**{'data.name': 'composite_actions'}), Stub())


# --- live sources ---------------------------------------------------------


@pytest.fixture(params=['mjpeg', 'yuv4mpegpipe', 'matroska', 'mpegts'])
def piped(request, tmp_path):
  """A little video in a form that pipes carry."""
  codec, pixels = {
    'mjpeg': ('mjpeg', 'yuvj420p'),
    'yuv4mpegpipe': ('wrapped_avframe', 'yuv420p'),
    'matroska': ('mpeg4', 'yuv420p'),
    'mpegts': ('mpeg2video', 'yuv420p'),
  }[request.param]
  path = tmp_path / request.param
  with av.open(str(path), 'w', format=request.param) as container:
    stream = container.add_stream(codec, rate=25)
    stream.height, stream.width, stream.pix_fmt = 32, 48, pixels
    for frame in video_files.shades(7, (32, 48)):
      picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
      container.mux(stream.encode(picture.reformat(format=pixels)))
    container.mux(stream.encode())
  return path


def test_frames_of_a_pipe(piped, tmp_path):
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  writer = threading.Thread(target=lambda: pipe.write_bytes(piped.read_bytes()))
  writer.start()
  found = [f for (f,) in live.stream(str(pipe), [(32, 48)])]
  writer.join()
  assert len(found) == 7
  for t, frame in enumerate(found):
    assert abs(float(frame.mean()) - (20 + 12 * t)) < 6


def test_a_pipe_gives_frames_before_it_ends(tmp_path):
  """A camera never ends: what has come is recognised at once."""
  pipe = tmp_path / 'pipe'
  os.mkfifo(pipe)
  seen = threading.Event()

  def write():
    with open(pipe, 'wb', buffering=0) as file:
      noise = np.random.default_rng(0).integers(0, 255, (12, 96, 96, 3))
      for number, frame in enumerate(noise.astype(np.uint8)):
        file.write(video_files.jpeg(frame))
        if number == 9:
          seen.wait(60)

  writer = threading.Thread(target=write)
  writer.start()
  frames = live.stream(str(pipe), [(8, 8)])
  started = time.monotonic()
  next(frames)
  assert time.monotonic() - started < 50  # the writer waits for 60 s
  seen.set()
  assert len(list(frames)) == 11
  writer.join()


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (b'', 'found nothing'),
    (b'RIFF....AVI ', "expected motion JPEG, .* b'RIFF"),
    (b'\xff\xd8\xff no picture', 'cannot|no frames|damaged|cut'),
  ],
)
def test_pipes_of_nothing_are_refused(tmp_path, content, message):
  path = tmp_path / 'pipe'
  path.write_bytes(content)
  with pytest.raises(VideoError, match=message):
    if not list(live.stream(str(path), [None])):
      raise VideoError('no frames')
  with pytest.raises(VideoError, match='none: cannot read: No such file'):
    list(live.stream(str(tmp_path / 'none'), [None]))


@pytest.mark.parametrize(
  ('codec', 'limit', 'message'),
  [
    ('mpeg4', 32 * 48 - 1, 'frames of 32 x 48: more than 1535 pixels'),
    ('snow', 32 * 48, 'coded by snow, which is not on the list'),
  ],
)
def test_pipes_have_the_limits_of_files(
  tmp_path, monkeypatch, codec, limit, message
):
  monkeypatch.setattr(videos, 'MAX_PIXELS', limit)
  path = tmp_path / 'pipe.mkv'
  video_files.write(path, video_files.shades(3, (32, 48)), codec)
  with pytest.raises(VideoError, match=message):
    next(live.stream(str(path), [(8, 8)]))


def test_a_live_source_is_recognised_line_by_line(
  workdir, root, tmp_path, monkeypatch, capsys
):
  path = tmp_path / 'piped.mkv'
  frames = videos.decode(root / 'dark' / 'source4_dark_4.avi')
  video_files.write(path, frames, 'ffv1', 'bgr0')
  monkeypatch.setattr(signal, 'signal', lambda *unused: None)
  with io.TextIOWrapper(path.open('rb')) as piped:
    monkeypatch.setattr(sys, 'stdin', piped)
    code, said, error = _call(
      monkeypatch, capsys, f'--workdir={workdir}', '--stream=-', '--topk=1',
      '--fps=30',
    )  # fmt: skip
  assert code == 0, error
  *lines, last = [json.loads(line) for line in said.splitlines()]
  assert [line['frame'] for line in lines] == list(range(30))
  recogniser = VideoRecogniser.load(workdir)
  expected = recogniser.predict(path)
  assert last['num_frames'] == 30 and len(last['predictions']) == 1
  assert last['predictions'][0]['label'] == expected[0]['label']
  score = pytest.approx(expected[0]['score'], abs=1e-5)
  assert last['predictions'][0]['score'] == score == lines[-1]['score']
  result = predict.recognise(recogniser, path, None)
  told = [s for line in (*lines, last) for s in line['segments']]
  order = lambda s: (s['layer'], s['support'])
  assert [
    {**s, 'score': pytest.approx(s['score'], abs=1e-5)}
    for s in sorted(told, key=order)
  ] == result['segments']


# --- segments ---------------------------------------------------------------


def test_segments_end_with_boundaries_and_cover_the_video():
  recogniser = VideoRecogniser(_untrained(), Stub())
  found = list(recogniser.stream_features(_features(40)))
  segments = Segments(recogniser, fps=10.0)
  for output in found:
    segments.add(output)
  done = segments.finish(40)
  for layer in (1, 2):
    of_layer = [s for s in done if s['layer'] == layer]
    ends = np.flatnonzero([f.z[layer - 1] for f in found]) + 1
    expected = sorted({*ends.tolist(), 40})
    assert [s['support'][1] for s in of_layer] == expected
    assert [s['support'][0] for s in of_layer] == [
      1, *(end + 1 for end in expected[:-1]),
    ]  # fmt: skip
    for s in of_layer:
      first, last = s['support']
      assert s['segment'] == pytest.approx([(first - 1) / 10, last / 10])
      mean = np.mean([f.probabilities for f in found[first - 1 : last]], axis=0)
      assert s['label'] == recogniser.class_names[mean.argmax()]
      assert s['score'] == pytest.approx(mean.max())


def test_segments_of_a_stride_stay_in_the_video():
  recogniser = VideoRecogniser(_untrained(**{'data.frame_stride': 4}), Stub())
  segments = Segments(recogniser, fps=1.0)
  for output in recogniser.stream_features(_features(3)):
    segments.add(output._replace(z=np.ones(2, bool)))
  done = [s['support'] for s in segments.finish(10) if s['layer'] == 1]
  assert done == [[1, 4], [5, 8], [9, 10]]


# --- the overlay ------------------------------------------------------------


def test_the_overlay_shows_where_and_what(tmp_path):
  recogniser = VideoRecogniser(_untrained(), Stub())
  output = next(recogniser.stream_features(_features(1)))
  weights = np.zeros(49, np.float32)
  weights[0] = 1.0  # top left
  path = tmp_path / 'overlay.mp4'
  size = overlay.FIT.size(28, 42)
  assert size == (214, 320)
  with overlay.Overlay(path, size, 12.5, 2, recogniser.class_names) as writer:
    for t in range(10):
      z, operation = np.array([t % 2, 0], bool), np.array([2, 0])
      writer.add(
        np.zeros((*size, 3), np.uint8),
        output._replace(weights=weights, z=z, operation=operation),
      )
  frames = videos.decode(path).astype(int)
  assert frames.shape[0] == 10 and frames.shape[2] == 320
  assert videos.read_header(path).fps == 12.5
  last = frames[-1]
  assert last[4, 4].sum() > 250 and last[200, 300].sum() < 30  # heat, no heat
  assert last[214:238, :160].min() < 120  # text
  first_band, second_band = last[240:248], last[254:262]
  red, grey = first_band[:, -38:-34].mean((0, 1)), second_band[:, -30].mean(0)
  assert red[0] > 150 > red[2] and np.ptp(grey) < 25 and grey[0] > 180
  assert first_band[:, :200].min() > 230  # no past yet
  ticks = first_band[:, -40:].sum(axis=-1).mean(axis=0)
  assert ticks.min() < 0.75 * np.median(ticks)


@pytest.mark.parametrize(
  'size', [(1, 1), (3, 5000), (9000, 2), (480, 640), (721, 405)]
)
def test_sizes_of_overlays_can_be_encoded(tmp_path, size):
  shown = overlay.FIT.size(*size)
  assert shown[0] % 2 == shown[1] % 2 == 0
  recogniser = VideoRecogniser(_untrained(), Stub())
  output = next(recogniser.stream_features(_features(1)))
  path = tmp_path / 'overlay.mp4'
  with overlay.Overlay(path, shown, 30.0, 3, ('é', 'b', 'c')) as writer:
    frame = np.zeros((*shown, 3), np.uint8)
    writer.add(frame, output._replace(z=None, operation=None))
  assert len(videos.decode(path)) == 1


# --- the program ------------------------------------------------------------


def _call(monkeypatch, capsys, *arguments):
  for name in predict.FLAGS.flag_values_dict():
    predict.FLAGS[name].unparse()
  monkeypatch.setattr(sys, 'argv', ['predict', *map(str, arguments)])
  with pytest.raises(SystemExit) as stop:
    predict.program.run(predict.main, predict.FLAGS, predict.__doc__)
  said = capsys.readouterr()
  return stop.value.code, said.out, said.err


def test_the_program(workdir, root, tmp_path, monkeypatch, capsys):
  long = root / 'dark' / 'source5_dark_5.avi'
  frame = _clip(np.random.default_rng(1), 0, 1)
  one = video_files.write(tmp_path / 'one.avi', frame)
  bad = tmp_path / 'bad.avi'
  bad.write_bytes(b'RIFF of nothing')
  out = tmp_path / 'out'
  code, said, errors = _call(
    monkeypatch, capsys, f'--workdir={workdir}', bad, long, one, long,
    '--json', f'--out={out}', '--topk=1',
  )  # fmt: skip
  assert code == 2 and 'bad.avi' in errors and 'Traceback' not in errors
  results = json.loads(said)
  assert [set(r) >= {'error'} for r in results] == [True, False, False, False]
  assert results[2]['num_frames'] == 1
  assert len(results[1]['predictions']) == 1
  again = {**results[3], 'video': str(long)}
  assert again == results[1]
  assert sorted(p.name for p in out.iterdir()) == [
    'one', 'source5_dark_5', 'source5_dark_5_2',
  ]  # fmt: skip
  for result, name in ((results[1], 'source5_dark_5'), (results[2], 'one')):
    folder = out / name
    assert sorted(p.name for p in folder.iterdir()) == [
      'frames.jsonl', 'overlay.mp4', 'prediction.json', 'segments.json',
    ]  # fmt: skip
    count = result['num_frames']
    assert len(videos.decode(folder / 'overlay.mp4')) == count
    text = (folder / 'frames.jsonl').read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line['frame'] for line in lines] == list(range(count))
    mean = np.mean([line['scores'] for line in lines], axis=0)
    best = result['predictions'][0]
    assert best['score'] == pytest.approx(mean.max(), abs=1e-5)
    assert best['label'] == lines[-1]['label'] == CLASSES[mean.argmax()]
    assert len(lines[0]['attention']) == 49
    assert len(lines[0]['boundaries']) == len(lines[0]['operations']) == 2
    written = json.loads((folder / 'prediction.json').read_text())
    assert written['predictions'] == result['predictions']
    (segments,) = json.loads((folder / 'segments.json').read_text())[
      'results'
    ].values()
    assert segments == result['segments']
    assert segments[-1]['support'][1] == count


def test_what_is_printed_without_json(workdir, root, monkeypatch, capsys):
  video = root / 'dark' / 'source4_dark_4.avi'
  code, said, _ = _call(
    monkeypatch, capsys, video, f'--workdir={workdir}', '--state=blocks'
  )
  assert code == 0
  assert '30 frames' in said and ' %  dark' in said and 'layer 2: ' in said


def test_a_stride_shows_every_frame(workdir, root, tmp_path):
  run = _untrained(num_classes=2, **{'data.frame_stride': 4})
  recogniser = VideoRecogniser(run, Stub())
  video = root / 'dark' / 'source4_dark_4.avi'
  result = predict.recognise(recogniser, video, tmp_path / 'out')
  assert result['num_frames'] == 30
  assert len(videos.decode(tmp_path / 'out' / 'overlay.mp4')) == 30
  lines = (tmp_path / 'out' / 'frames.jsonl').read_text().splitlines()
  assert [json.loads(x)['frame'] for x in lines] == list(range(0, 30, 4))


def test_a_video_that_breaks_leaves_nothing(tmp_path, bad_worker):
  recogniser = VideoRecogniser(_untrained(num_classes=2), Stub())
  video = video_files.write(tmp_path / 'breaks.avi', video_files.shades(30))
  with pytest.raises(VideoError, match='cut after 20'):
    predict.recognise(recogniser, video, tmp_path / 'out' / 'clip')
  assert not list((tmp_path / 'out').iterdir())


def test_a_video_that_ends_its_decoder_is_one_line(
  workdir, root, tmp_path, bad_worker, monkeypatch, capsys
):
  """And the others are recognised as if it were not there."""
  good = root / 'dark' / 'source4_dark_4.avi'
  expected = {
    'crash': 'it ended the decoder (SIGSEGV)',
    'hang': 'no frame in 3 s',
    'memory': 'needs more than 4096 MiB of memory',
    'long': 'more than 40 frames',
    'large': 'frames of 64 x 80: more than 4096 pixels',
  }
  made = []
  for name in expected:
    size = (64, 80) if name == 'large' else (48, 64)
    frames = video_files.shades(50 if name == 'long' else 5, size)
    made += [video_files.write(tmp_path / f'{name}.avi', frames), good]
  limits = decoding.Limits(stall_seconds=3, frames=40)
  monkeypatch.setattr(recognise, 'LIMITS', limits)
  monkeypatch.setenv('BAD_WORKER_MAX_PIXELS', '4096')
  code, said, errors = _call(
    monkeypatch, capsys, f'--workdir={workdir}', '--json', *made
  )
  assert code == 2 and 'Traceback' not in errors
  results = json.loads(said)
  for result, again in zip(results[::2], expected):
    assert f'{again}.avi' in result['error'] and '\n' not in result['error']
    assert expected[again] in result['error']
    assert f'error: {result["error"]}\n' in errors
  alone = VideoRecogniser.load(workdir).predict(good)
  for result in results[1::2]:
    assert result['num_frames'] == 30
    assert result['predictions'] == alone


def test_predictions_are_those_of_frames_decoded_here(workdir, root):
  """The decoder's process changes no number."""
  recogniser = VideoRecogniser.load(workdir)
  video = root / 'bright' / 'source5_bright_5.avi'
  size = recogniser.extractor.image_size
  here = (frame for (frame,) in videos.stream(video, [size]))
  expected = list(recogniser.stream(here))[-1].running
  np.testing.assert_array_equal(recogniser.predict_proba(video), expected)


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (('a.avi',), '--workdir: missing'),
    (('--workdir=none',), 'VIDEO: missing'),
    (('--workdir=none', 'a.avi'), 'holds no run'),
    (('--workdir=none', 'a.avi', '--topk=0'), 'topk'),
    (('--workdir=none', 'a.avi', '--stream=-'), '--stream: one source'),
    (('--workdir=none', '--out=x', '--stream=-'), '--out: not with --stream'),
    (('--workdir=none', 'a.avi', '--top=1'), "Unknown command line flag 'top'"),
  ],
)
def test_mistakes_end_in_one_message(monkeypatch, capsys, arguments, message):
  code, _, error = _call(monkeypatch, capsys, *arguments)
  assert code == 2 and message in error


def test_the_codec_is_there():
  assert overlay.CODEC in av.codecs_available


_MEMORY = """
import pathlib, resource, sys
sys.path[:0] = {paths!r}
import test_predict
from experiments import predict
from experiments.recognise import VideoRecogniser
recogniser = VideoRecogniser(test_predict._untrained(), test_predict.Stub())
result = predict.recognise(recogniser, {video!r}, pathlib.Path({out!r}))
status = pathlib.Path('/proc/self/status').read_text()
(peak,) = [x for x in status.splitlines() if x.startswith('VmHWM')]
print(result['num_frames'], peak.split()[1])
"""


@pytest.mark.slow
def test_ten_minutes_take_the_memory_of_one(tmp_path):
  peaks = {}
  for minutes in (1, 10):
    path = tmp_path / f'{minutes}.mp4'
    with av.open(str(path), 'w') as container:
      stream = container.add_stream('libx264', rate=25)
      stream.height, stream.width, stream.pix_fmt = 36, 48, 'yuv420p'
      stream.options = {'preset': 'ultrafast'}
      for t in range(60 * 25 * minutes):
        frame = np.full((36, 48, 3), 40 + t % 150, np.uint8)
        frame[10:20, t % 40 : t % 40 + 8] = 250
        picture = av.VideoFrame.from_ndarray(frame, format='rgb24')
        container.mux(stream.encode(picture))
      container.mux(stream.encode())
    out = tmp_path / f'out_{minutes}'
    tests = pathlib.Path(__file__).parent
    program = _MEMORY.format(
      paths=[str(tests), str(tests.parent)], video=str(path), out=str(out)
    )
    done = subprocess.run(
      [sys.executable, '-c', program], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    count, peak = map(int, done.stdout.split()[-2:])
    assert count == 60 * 25 * minutes
    assert len(list(videos.stream(out / 'overlay.mp4', []))) == count
    peaks[minutes] = peak / 1024
  print(f'peak MiB by minutes: {peaks}')
  assert peaks[10] < peaks[1] + 64
