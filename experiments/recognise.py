"""Recognises actions in videos with a trained run: the Python interface.

    from experiments.recognise import VideoRecogniser

    recogniser = VideoRecogniser.load('work_dirs/hmdb51/run')
    recogniser.predict('clip.avi')  # [{'label': 'catch', 'score': 0.93}, ...]

Videos are streamed: a few frames at a time are decoded, turned into features
and run through the model, whose state is carried on; memory does not grow with
the length of a video. They are decoded in a process that has limits and is
begun for each video; for many of them, keep it:

    with data.decoding.Decoders(1) as decoders:
      recogniser = VideoRecogniser.load(workdir, decoders=decoders)

`hman_jax.FeatureRecogniser` does the same from features, without files.
"""

import collections
import contextlib
import itertools
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from data import decoding, videos
from data import features as features_lib
from data.features import Extractor
from experiments import train, trained
from experiments.errors import HmanError, WorkdirError
from experiments.trained import TrainedRun
from hman_jax import FeatureRecogniser, FrameOutput

_AT_ONCE = 16  # frames a call of the extractor
# A video is streamed, and may be of ten hours.
LIMITS = decoding.Limits(seconds=24 * 3600, frames=1_000_000)

Video = str | pathlib.Path | np.ndarray


class VideoRecogniser:
  """A trained model with what turns a video into its input.

  With `carry_state` a video is one stream, and its score is the mean over its
  frames. Without, it is cut into the T-frame blocks of the test protocol, the
  state begins anew in each, and the score is the mean over blocks, as in
  `experiments.evaluate`. For videos of up to T frames both are the same.
  A model whose first state is made of the mean features ('mean_features') makes
  it of the first T frames.

  With `num_samples` the boundaries are drawn that many times and probabilities
  averaged; attention and boundaries shown are those of the first draw.

  Attributes:
    run: the trained run.
    extractor: turns frames into features.
    carry_state: see above.

  Args:
    run: from `trained.read`.
    extractor: of the run's features; None: made by its name.
    carry_state: see above.
    num_samples: draws of the boundaries; 0: deterministic; None: as the config
      of the run says.
    seed: of the draws; None: that of the run.
    at_once: frames of a call of the model, T at most; 1 has the least delay.
    decoders: to decode with, running; None: begun and ended for each video,
      with `LIMITS`.

  Raises:
    WorkdirError: if the run's features are not those of the extractor, or were
      not made of videos.
    HmanError: if draws are asked for of a model that has none.
  """

  def __init__(
    self,
    run: TrainedRun,
    extractor: Extractor | None = None,
    *,
    carry_state: bool = True,
    num_samples: int | None = None,
    seed: int | None = None,
    at_once: int = _AT_ONCE,
    decoders: decoding.Decoders | None = None,
  ):
    config = run.config
    if config.data.name == 'composite_actions':
      raise WorkdirError(
        f'{run.workdir}: a run on generated clips ({config.data.name}): '
        'its model has never seen the features of a video. Give the workdir of '
        'a run on videos.'
      )
    if extractor is None:
      extractor = features_lib.create(config.data.features, config.data.weights)
    run.check_preprocessing(extractor.identity)
    self.run = run
    self.extractor = extractor
    self.carry_state = carry_state
    self.num_samples = trained.num_draws(config, num_samples)
    self._decoders = decoders
    # A first state made of the mean features needs the whole block at once.
    block = config.data.num_frames
    whole = config.model.initial_state == 'mean_features'
    self._recogniser = FeatureRecogniser(
      run.model,
      run.params,
      run.class_names,
      block=None if carry_state else block,
      at_once=block if whole else min(at_once, block),
      num_samples=self.num_samples,
      seed=config.seed if seed is None else seed,
      boundary_slope=train.MAX_SLOPE,
    )

  @classmethod
  def load(
    cls,
    workdir: str | pathlib.Path,
    *,
    checkpoint: str = 'best',
    **options: Any,
  ) -> 'VideoRecogniser':
    """Reads a run back from its working directory; options as of the class.

    Raises:
      WorkdirError: see `trained.read` and the class.
    """
    run = trained.read(workdir, checkpoint=checkpoint)
    return cls(run, **options)

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
    size = self.extractor.image_size
    if isinstance(video, np.ndarray):
      return self._last(videos.resize(frame, size) for frame in video)
    with self.decoded(video, [size]) as (_, frames):
      return self._last(frame for (frame,) in frames)

  def _last(self, frames: Iterable[np.ndarray]) -> np.ndarray:
    last = collections.deque(self.stream(frames), maxlen=1)
    if not last:
      raise HmanError('video: expected at least one frame, got none.')
    return last[0].running

  @contextlib.contextmanager
  def decoded(
    self, video: str | pathlib.Path, sizes: Sequence[videos.Size]
  ) -> Iterator[tuple[videos.Header, Iterator[tuple[np.ndarray, ...]]]]:
    """A video at the run's rate; see `data.decoding.Decoders.opened`."""
    with contextlib.ExitStack() as stack:
      decoders = self._decoders or stack.enter_context(
        decoding.Decoders(1, LIMITS)
      )
      yield stack.enter_context(decoders.opened(video, sizes, fps=self.fps))

  def ranked(self, probabilities: np.ndarray, top_k: int = 5) -> list[dict]:
    """Probabilities `[C]` as `[{'label', 'score'}]`, highest first."""
    try:
      return self._recogniser.ranked(probabilities, top_k)
    except ValueError as e:
      raise HmanError(str(e)) from e

  def stream(self, frames: Iterable[np.ndarray]) -> Iterator[FrameOutput]:
    """Runs the model over frames as they come.

    Args:
      frames: uint8 `[height, width, 3]` each, of `extractor.image_size`; a
        handful (at most T) is taken before their outputs come.

    Yields:
      `FrameOutput` of every `frame_stride`-th frame.
    """
    kept = itertools.islice(frames, 0, None, self.frame_stride)
    pieces = self._recogniser.pieces(kept)
    features = (self.extractor.extract(np.stack(p)) for p in pieces)
    return map(self._strided, self._recogniser.stream_pieces(features))

  def stream_features(
    self, features: Iterable[np.ndarray]
  ) -> Iterator[FrameOutput]:
    """Runs the model over features as they come; see `stream`.

    Args:
      features: floating `[N, D]` each, of every `frame_stride`-th frame.

    Yields:
      `FrameOutput` of each.
    """
    return map(self._strided, self._recogniser.stream(features))

  def _strided(self, output: FrameOutput) -> FrameOutput:
    return output._replace(index=output.index * self.frame_stride)


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

  def take(self) -> list[dict[str, Any]]:
    """The segments that ended since the last call, which are kept no longer."""
    done, self._done = self._done, []
    return done

  def finish(self, num_frames: int) -> list[dict[str, Any]]:
    """Ends the video.

    Args:
      num_frames: of the whole video.

    Returns:
      Segments that were not taken, in order of layer and time: `label` and
      `score` (the likeliest class on average over it), `segment` ([start, end]
      in seconds), `support` ([first, last] frame, from 1), `layer` (from 1).
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
