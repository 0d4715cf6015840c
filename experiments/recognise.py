"""Recognises actions in videos with a trained run: the Python interface.

    from experiments.recognise import VideoRecogniser

    recogniser = VideoRecogniser.load('work_dirs/hmdb51/run')
    recogniser.predict('clip.avi')  # [{'label': 'catch', 'score': 0.93}, ...]

Videos are streamed: a few frames at a time are decoded, turned into features
and run through the model, whose state is carried on; memory does not grow with
the length of a video.
"""

import collections
import itertools
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from data import features as features_lib
from data import videos
from data.features import Extractor
from experiments import train, trained
from experiments.errors import HmanError, WorkdirError
from experiments.trained import TrainedRun
from hman_jax import metrics, streaming
from hman_jax.models import RecogniserOutput

_PIECE = 16  # frames a call of the extractor

Video = str | pathlib.Path | np.ndarray


class FrameOutput(NamedTuple):
  """What the model makes of one frame.

  Attributes:
    index: of the frame in the video, from 0.
    probabilities: float64 `[C]`, of this frame by itself.
    running: float64 `[C]`, averaged from the start of the video to here.
    weights: float32 `[N]`, of the locations; None without attention.
    z: bool `[L]`, whether a segment of a layer ends with this frame; None
      without boundaries.
    operation: int32 `[L]`: 0 COPY, 1 UPDATE, 2 FLUSH; None without boundaries.
  """

  index: int
  probabilities: np.ndarray
  running: np.ndarray
  weights: np.ndarray | None
  z: np.ndarray | None
  operation: np.ndarray | None


class VideoRecogniser:
  """A trained model with what turns a video into its input.

  With `carry_state` a video is one stream, and its score is the mean over its
  frames. Without, it is cut into the T-frame blocks of the test protocol, the
  state begins anew in each, and the score is the mean over blocks, as in
  `experiments.evaluate`. For videos of up to T frames both are the same.
  Evaluation is deterministic. A model whose first state is made of the mean
  features ('mean_features') makes it of the first T frames.

  Attributes:
    run: the trained run.
    extractor: turns frames into features.
    carry_state: see above.

  Args:
    run: from `trained.read`.
    extractor: of the run's features; None: made by its name.
    carry_state: see above.

  Raises:
    WorkdirError: if the run's features are not those of the extractor, or were
      not made of videos.
  """

  def __init__(
    self,
    run: TrainedRun,
    extractor: Extractor | None = None,
    *,
    carry_state: bool = True,
  ):
    if run.config.data.name == 'composite_actions':
      raise WorkdirError(
        f'{run.workdir}: a run on generated clips ({run.config.data.name}): '
        'its model has never seen the features of a video. Give the workdir of '
        'a run on videos.'
      )
    if extractor is None:
      extractor = features_lib.create(
        run.config.data.features, run.config.data.weights
      )
    run.check_preprocessing(extractor.identity)
    self.run = run
    self.extractor = extractor
    self.carry_state = carry_state
    # A first state made of the mean features needs the whole block at once.
    block = run.config.data.num_frames
    whole = run.config.model.initial_state == 'mean_features'
    self._piece = block if whole else min(_PIECE, block)
    self._next_frame = streaming.compiled_step(
      run.model, deterministic=True, boundary_slope=train.MAX_SLOPE
    )

  @classmethod
  def load(
    cls,
    workdir: str | pathlib.Path,
    *,
    checkpoint: str = 'best',
    carry_state: bool = True,
  ) -> 'VideoRecogniser':
    """Reads a run back from its working directory; see the class.

    Raises:
      WorkdirError: see `trained.read` and the class.
    """
    run = trained.read(workdir, checkpoint=checkpoint)
    return cls(run, carry_state=carry_state)

  @property
  def class_names(self) -> tuple[str, ...]:
    """Names of the classes, by index."""
    return self.run.class_names

  @property
  def num_layers(self) -> int:
    """Layers that find boundaries; 0 if the model has none."""
    model = self.run.config.model
    return model.num_layers if model.cell == 'hm_lstm' else 0

  @property
  def frame_stride(self) -> int:
    """Every which frame the model reads."""
    return self.run.config.data.frame_stride

  @property
  def fps(self) -> float | None:
    """Frames a second that are taken of a video; None: every frame."""
    return self.run.config.data.fps or None

  def predict(self, video: Video, top_k: int = 5) -> list[dict[str, Any]]:
    """The likeliest classes of a video.

    Args:
      video: a video file, a folder of frames, or uint8 `[T, H, W, 3]`, RGB.
      top_k: how many classes, at least 1; C at most are given.

    Returns:
      `[{'label': name, 'score': probability}, ...]`, highest score first.

    Raises:
      VideoError: if the video cannot be read or decoded.
    """
    return self.ranked(self.predict_proba(video), top_k)

  def predict_proba(self, video: Video) -> np.ndarray:
    """The probability of each class: float64 `[C]`; see `predict`."""
    if isinstance(video, np.ndarray):
      size = self.extractor.image_size
      frames = (videos.resize(frame, size) for frame in video)
    else:
      size = self.extractor.image_size
      frames = (f for (f,) in videos.stream(video, [size], fps=self.fps))
    last = collections.deque(self.stream(frames), maxlen=1)
    if not last:
      raise HmanError('video: expected at least one frame, got none.')
    return last[0].running

  def ranked(self, probabilities: np.ndarray, top_k: int = 5) -> list[dict]:
    """Probabilities `[C]` as `[{'label', 'score'}]`, highest first."""
    if top_k < 1:
      raise HmanError(f'top_k: expected at least 1, got {top_k}.')
    order = np.argsort(-probabilities, kind='stable')[:top_k]
    return [
      {'label': self.class_names[c], 'score': float(probabilities[c])}
      for c in order
    ]

  def stream(self, frames: Iterable[np.ndarray]) -> Iterator[FrameOutput]:
    """Runs the model over frames as they come.

    Args:
      frames: uint8 `[height, width, 3]` each, of `extractor.image_size`; a
        handful (at most T) is taken before their outputs come.

    Yields:
      `FrameOutput` of every `frame_stride`-th frame.
    """
    kept = itertools.islice(frames, 0, None, self.frame_stride)
    pieces = (self.extractor.extract(np.stack(p)) for p in self._pieces(kept))
    return self._stream_features(pieces)

  def stream_features(
    self, features: Iterable[np.ndarray]
  ) -> Iterator[FrameOutput]:
    """Runs the model over features as they come; see `stream`.

    Args:
      features: floating `[N, D]` each, of every `frame_stride`-th frame.

    Yields:
      `FrameOutput` of each.
    """
    pieces = (np.stack(p) for p in self._pieces(features))
    return self._stream_features(pieces)

  def _pieces(self, items: Iterable[np.ndarray]) -> Iterator[list[np.ndarray]]:
    """Lists of items for one call of the extractor, never across two blocks."""
    items, done = iter(items), 0
    block = self.run.config.data.num_frames
    while piece := list(
      itertools.islice(items, min(self._piece, block - done))
    ):
      yield piece
      done = (done + len(piece)) % block

  def _stream_features(self, pieces: Iterable[np.ndarray]):
    block = self.run.config.data.num_frames
    stream, done, average = None, 0, _Average(len(self.class_names))
    for piece in pieces:
      if stream is None or (not self.carry_state and done % block == 0):
        stream = streaming.start(self.run.model, self.run.params, piece[None])
        average.begin()
      for features in piece:
        stream, output = self._next_frame(
          self.run.params, stream, features[None]
        )
        shown = self._shown(output, done * self.frame_stride)
        average.add(shown.probabilities)
        yield shown._replace(running=average.value())
        done += 1

  def _shown(self, output: RecogniserOutput, index: int) -> FrameOutput:
    """What is shown of a frame, but the running average."""
    logits, attention, cell, _ = jax.device_get(output)
    has_boundaries = cell is not None and cell.z is not None
    (probabilities,) = metrics.block_probabilities(
      logits[:, None], np.ones((1, 1), bool)
    )
    return FrameOutput(
      index=index,
      probabilities=probabilities,
      running=probabilities,
      weights=None if attention is None else attention.weights[0],
      z=cell.z[0] > 0.5 if has_boundaries else None,
      operation=cell.operation[0] if has_boundaries else None,
    )


class _Average:
  """The mean over blocks of the mean over a block's frames, as they come."""

  def __init__(self, num_classes: int):
    self._done = np.zeros(num_classes)  # sum of the means of finished blocks
    self._num_done = 0
    self._sum = np.zeros(num_classes)  # of the block that is going on
    self._count = 0

  def begin(self) -> None:
    """A new block begins."""
    if self._count:
      self._done = self._done + self._sum / self._count
      self._num_done += 1
    self._sum, self._count = np.zeros_like(self._sum), 0

  def add(self, probabilities: np.ndarray) -> None:
    self._sum = self._sum + probabilities
    self._count += 1

  def value(self) -> np.ndarray:
    return (self._done + self._sum / self._count) / (self._num_done + 1)


class Segments:
  """Cuts a stream at the boundaries of each layer.

  A boundary z_t = 1 is the last frame of a segment; the end of the video ends
  the last one.

  Args:
    recogniser: whose outputs come.
    fps: frames a second.
  """

  def __init__(self, recogniser: VideoRecogniser, fps: float):
    self._recogniser = recogniser
    self._fps = fps
    layers = range(recogniser.num_layers)
    self._first = [0 for _ in layers]
    self._sums = [np.zeros(len(recogniser.class_names)) for _ in layers]
    self._counts = [0 for _ in layers]
    self._done: list[dict[str, Any]] = []

  def add(self, output: FrameOutput) -> None:
    """Takes the next frame."""
    for layer in range(self._recogniser.num_layers):
      self._sums[layer] += output.probabilities
      self._counts[layer] += 1
      if output.z is not None and output.z[layer]:
        self._close(layer, output.index + self._recogniser.frame_stride)

  def finish(self, num_frames: int) -> list[dict[str, Any]]:
    """Ends the video.

    Args:
      num_frames: of the whole video.

    Returns:
      Segments in order of layer and time: `label` and `score` (the likeliest
      class on average over it), `segment` ([start, end] in seconds), `support`
      ([first, last] frame, from 1), `layer` (from 1).
    """
    for layer, count in enumerate(self._counts):
      if count:
        self._close(layer, num_frames)
    last = [s['support'][1] for s in self._done]
    for segment, frame in zip(self._done, last):  # a stride may reach beyond
      segment['support'][1] = min(frame, num_frames)
      segment['segment'][1] = min(frame, num_frames) / self._fps
    return sorted(self._done, key=lambda s: (s['layer'], s['support']))

  def _close(self, layer: int, end: int) -> None:
    mean = self._sums[layer] / self._counts[layer]
    first = self._first[layer]
    self._done.append(
      {
        **self._recogniser.ranked(mean, 1)[0],
        'segment': [first / self._fps, end / self._fps],
        'support': [first + 1, end],
        'layer': layer + 1,
      }
    )
    self._first[layer], self._counts[layer] = end, 0
    self._sums[layer] = np.zeros_like(mean)
