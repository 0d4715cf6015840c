"""The overlay: what it shows, and in which sizes."""

import av
import numpy as np
import pytest

from data import videos
from experiments import overlay
from experiments.recognise import VideoRecogniser

from video_runs import Stub, features_of, untrained


def test_the_overlay_shows_where_and_what(tmp_path):
  recogniser = VideoRecogniser(untrained(), Stub())
  output = next(recogniser.stream_features(features_of(1)))
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
  recogniser = VideoRecogniser(untrained(), Stub())
  output = next(recogniser.stream_features(features_of(1)))
  path = tmp_path / 'overlay.mp4'
  with overlay.Overlay(path, shown, 30.0, 3, ('é', 'b', 'c')) as writer:
    frame = np.zeros((*shown, 3), np.uint8)
    writer.add(frame, output._replace(z=None, operation=None))
  assert len(videos.decode(path)) == 1


def test_the_codec_is_there():
  assert overlay.CODEC in av.codecs_available
