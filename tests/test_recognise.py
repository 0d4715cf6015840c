"""Videos and streams through a trained model: numbers, segments, refusals."""

import itertools

import jax
import numpy as np
import pytest

import hman_jax
from data import videos
from data.errors import VideoError
from experiments import evaluate
from experiments.errors import HmanError, WorkdirError
from experiments.recognise import Segments, VideoRecogniser

from video_runs import CLASSES, Stub, T, features_of, untrained


def _softmax(logits):
  p = np.exp(logits - logits.max(axis=-1, keepdims=True))
  return p / p.sum(axis=-1, keepdims=True)


@pytest.mark.parametrize('num_frames', [1, 40])
@pytest.mark.parametrize('name', ['hm_gumbel_adaptive', 'softmax_regression'])
def test_a_stream_is_the_whole_video_at_once(name, num_frames):
  run = untrained(**{'model.name': name, 'model.initial_state': 'zeros'})
  recogniser = VideoRecogniser(run, Stub())
  x = features_of(num_frames)
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
  run = untrained(**{'model.name': 'lstm_soft'})
  recogniser = VideoRecogniser(run, Stub())
  x = features_of(30)[None]
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
  run = untrained(**{'model.name': name})
  recogniser = VideoRecogniser(run, Stub(), carry_state=False)
  x = features_of(2 * T + 5)
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
  run = untrained(**{'data.frame_stride': stride})
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
  run = untrained(**{'model.initial_state': 'zeros'})
  x = features_of(num_frames)
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
  sampled = untrained(**{'eval.boundary_mode': 'sample'})
  assert VideoRecogniser(sampled, Stub()).num_samples == 8
  assert VideoRecogniser(sampled, Stub(), num_samples=0).num_samples == 0
  assert VideoRecogniser(untrained(), Stub()).num_samples == 0
  for name in ('lstm_soft', 'softmax_regression'):
    run = untrained(**{'model.name': name})
    assert VideoRecogniser(run, Stub()).num_samples == 0
    with pytest.raises(HmanError, match=r'num_samples: .*draws no boundaries'):
      VideoRecogniser(run, Stub(), num_samples=2)


def test_recognising_from_features_needs_no_files():
  run = untrained(**{'model.initial_state': 'zeros'})
  x = features_of(20)
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


def test_scores_of_blocks_are_those_of_evaluate(video_workdir, video_root):
  scored, _ = evaluate.evaluate(video_workdir)
  recogniser = VideoRecogniser.load(video_workdir, carry_state=False)
  assert recogniser.class_names == CLASSES
  lengths = set()
  for name, scores in zip(scored.clip_names, scored.scores[0]):
    lengths.add(len(videos.decode(video_root / name)))
    p = recogniser.predict_proba(video_root / name)
    np.testing.assert_allclose(p, scores, atol=1e-5)
  assert max(lengths) > 2 * T


def test_labels_are_sorted(video_workdir, video_root):
  recogniser = VideoRecogniser.load(video_workdir)
  video = video_root / 'dark' / 'source4_dark_4.avi'
  found = recogniser.predict(video)
  assert {f['label'] for f in found} == set(CLASSES)
  assert found[0]['score'] >= found[1]['score']
  assert sum(f['score'] for f in found) == pytest.approx(1)
  assert recogniser.predict(video, top_k=1) == found[:1]
  with pytest.raises(HmanError, match='top_k: expected at least 1, got 0'):
    recogniser.predict(video, top_k=0)


def test_frames_in_memory_and_folders_are_videos(
  video_workdir, video_root, tmp_path
):
  recogniser = VideoRecogniser.load(video_workdir)
  path = video_root / 'bright' / 'source5_bright_5.avi'
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


def test_streamed_frames_are_those_of_decode(video_root):
  path = video_root / 'dark' / 'source4_dark_4.avi'
  pairs = list(videos.stream(path, [(14, 14), None]))
  for k, size in enumerate([(14, 14), None]):
    np.testing.assert_array_equal(
      [pair[k] for pair in pairs], videos.decode(path, size)
    )
  frame = pairs[0][1]
  np.testing.assert_array_equal(videos.resize(frame, frame.shape[:2]), frame)


def test_other_features_and_generated_clips_are_refused():
  run = untrained()

  class Other(Stub):
    identity = {'extractor': 'stub', 'size': [28, 28]}  # noqa: RUF012

  with pytest.raises(WorkdirError, match=r'size: was \[14, 14\], is \[28, 28'):
    VideoRecogniser(run, Other())
  with pytest.raises(WorkdirError, match='a run on generated clips'):
    VideoRecogniser(untrained(**{'data.name': 'composite_actions'}), Stub())


def test_predictions_are_those_of_frames_decoded_here(
  video_workdir, video_root
):
  """The decoder's process changes no number."""
  recogniser = VideoRecogniser.load(video_workdir)
  video = video_root / 'bright' / 'source5_bright_5.avi'
  size = recogniser.extractor.image_size
  here = (frame for (frame,) in videos.stream(video, [size]))
  expected = list(recogniser.stream(here))[-1].running
  np.testing.assert_array_equal(recogniser.predict_proba(video), expected)


def test_segments_end_with_boundaries_and_cover_the_video():
  recogniser = VideoRecogniser(untrained(), Stub())
  found = list(recogniser.stream_features(features_of(40)))
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
  recogniser = VideoRecogniser(untrained(**{'data.frame_stride': 4}), Stub())
  segments = Segments(recogniser, fps=1.0)
  for output in recogniser.stream_features(features_of(3)):
    segments.add(output._replace(z=np.ones(2, bool)))
  done = [s['support'] for s in segments.finish(10) if s['layer'] == 1]
  assert done == [[1, 4], [5, 8], [9, 10]]
