"""Decodes videos to RGB frames, in order: the one way from a path to pixels.

A video is a file that PyAV decodes (avi, mp4, mov, mkv, webm, mpg), a `.seq`
file, or a folder of JPEG frames. What is cut or damaged is an error: the frames
before the break would pass for the whole.
"""

import collections
import hashlib
import os
import pathlib
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import av
import numpy as np

from data import containers, frame_folder, jpeg, seq
from data.errors import VideoError

SUFFIXES = (
  '.avi', '.mp4', '.m4v', '.mov', '.3gp', '.mkv', '.webm', '.mpg', '.mpeg',
  '.seq',
)  # fmt: skip
MAX_PIXELS = 2**25  # of a frame as it is stored; 7680 x 4320 is below
MAX_BYTES = 2**32  # of the frames of one video, after resizing

_TIME_ERROR = 1e-3  # seconds; Matroska rounds times to milliseconds
_MAX_GAP = 60.0  # seconds between frames; more is no video but damage
_MAX_STEPS = 1_000_000  # between frames, of which the median is taken

# Names of FFmpeg's, of what data sets come in; other decoders stay closed.
CODECS = frozenset({
  'av1', 'cinepak', 'dvvideo', 'ffv1', 'ffvhuff', 'flv1', 'h263', 'h264',
  'hevc', 'huffyuv', 'indeo3', 'indeo5', 'mjpeg', 'mpeg1video', 'mpeg2video',
  'mpeg4', 'msmpeg4v1', 'msmpeg4v2', 'msmpeg4v3', 'msvideo1', 'png', 'prores',
  'rawvideo', 'svq1', 'svq3', 'theora', 'vc1', 'vp8', 'vp9', 'wmv1', 'wmv2',
  'wmv3',
})  # fmt: skip


class Header(NamedTuple):
  """What a video says of itself; nothing of it is relied upon.

  Attributes:
    kind: 'avi', 'mov', 'matroska', 'mpeg', 'seq' or 'frames'.
    codec: FFmpeg's name of the coding.
    height, width: of a frame as it is stored, before any rotation.
    num_frames: as declared; None if it does not tell.
    fps: frames a second on average; None if it does not tell.
  """

  kind: str
  codec: str
  height: int
  width: int
  num_frames: int | None
  fps: float | None


class Fit(NamedTuple):
  """A size of the video's own shape: even, and neither too small nor too large.

  Attributes:
    min_width, max_width: of a frame.
    max_height: of a frame; the shape of one that would be higher is changed.
  """

  min_width: int
  max_width: int
  max_height: int

  def size(self, height: int, width: int) -> tuple[int, int]:
    """(height, width) for a frame, each at least 2.

    Example:
      >>> fit = Fit(320, 1280, 2880)
      >>> fit.size(240, 320), fit.size(48, 65), fit.size(1080, 1920)
      ((240, 320), (236, 320), (720, 1280))
    """
    shown = min(max(width, self.min_width), self.max_width)
    even = lambda x: max(2 * round(x / 2), 2)
    return even(min(height * shown / width, self.max_height)), even(shown)


Size = tuple[int, int] | Fit | None  # (height, width); None: the video's own


class _Frame(NamedTuple):
  """A decoded picture, its time in seconds, and how to turn it."""

  picture: av.VideoFrame
  time: float | None
  turn: tuple[bool, bool, bool]


def decode(
  path: str | pathlib.Path,
  size: tuple[int, int] | None = None,
  *,
  fps: float | None = None,
) -> np.ndarray:
  """All frames of a video, turned upright.

  Frames are counted by decoding them: what the header says of their number is
  not looked at. The whole frame is resized to `size`, whatever its shape. Grey
  becomes equal red, green and blue, 10 bits become 8, alpha is left out.

  Args:
    path: a video file, or a folder of frames.
    size: (height, width) to resize to, or None for the video's own.
    fps: take the frame that is shown at 0, 1/fps, 2/fps, ... seconds, by the
      times of the frames; None: every frame once, whatever its time.

  Returns:
    uint8 `[T, height, width, 3]`, RGB, T >= 1.

  Raises:
    VideoError: naming the file, if it cannot be opened, is no plain file here,
      has no video stream, is coded by what is not in `CODECS`, breaks off, is
      damaged, is turned by other than 90 degrees, has no frames, or more than
      `MAX_PIXELS` or `MAX_BYTES`; with `fps`, if its frames have no times.
  """
  return stack(path, (frame for (frame,) in stream(path, [size], fps=fps)))


def stack(path: str | pathlib.Path, frames: Iterable[np.ndarray]) -> np.ndarray:
  """The frames of a video as one array.

  Args:
    path: of the video, for messages.
    frames: at least one of uint8 `[height, width, 3]`.

  Returns:
    uint8 `[T, height, width, 3]`.

  Raises:
    VideoError: if frames change their size, or there are more than `MAX_BYTES`.
  """
  arrays: list[np.ndarray] = []
  for array in frames:
    if arrays and array.shape != arrays[0].shape:
      raise VideoError(
        f'{path}: frames change from {_shape(arrays[0])} to {_shape(array)} '
        f'after {len(arrays)}; give a size.'
      )
    arrays.append(array)
    if len(arrays) * array.nbytes > MAX_BYTES:
      raise VideoError(
        f'{path}: more than {len(arrays) - 1} frames of {_shape(array)} do not '
        f'fit into {MAX_BYTES >> 30} GiB. Cut it into clips.'
      )
  return np.stack(arrays)


def read_header(path: str | pathlib.Path) -> Header:
  """What a video says of itself, without decoding it.

  Args:
    path: a video file, or a folder of frames, of which the first is decoded.

  Returns:
    `Header`.

  Raises:
    VideoError: as `decode`, as far as it shows without decoding.
  """
  path = pathlib.Path(path)
  if os.path.isdir(path):
    files = frame_folder.files(path)
    picture = _picture(files[0], _read_bytes(files[0])).picture
    size = (picture.height, picture.width)
    return Header('frames', 'mjpeg', *size, len(files), None)
  kind = containers.check(path)
  if kind == containers.SEQ:
    content = seq.read(path)
    size = (content.height, content.width)
    count = content.num_declared or None
    return Header(kind, 'mjpeg', *size, count, content.fps)
  try:
    with _open(path, kind) as container:
      stream = _video_stream(path, container)
      context, rate = stream.codec_context, stream.average_rate
      return Header(
        kind,
        context.codec.canonical_name,
        context.height,
        context.width,
        stream.frames or None,
        float(rate) if rate else None,
      )
  except (av.error.FFmpegError, OSError, ValueError, EOFError) as e:
    raise _cannot_decode(path, e, 0) from e


def sha256(path: str | pathlib.Path) -> str:
  """SHA-256 of a video's bytes.

  Args:
    path: a file; or a folder of frames, whose digest is that of the digests of
      its pictures in order, whatever their names.

  Returns:
    64 hexadecimal digits.

  Raises:
    VideoError: if it cannot be read.
  """
  path = pathlib.Path(path)
  if not os.path.isdir(path):
    return _digest(path).hexdigest()
  total = hashlib.sha256()
  for file in frame_folder.files(path):
    total.update(_digest(file).digest())
  return total.hexdigest()


def _digest(path: pathlib.Path):
  try:
    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would wait for ever
      raise VideoError(f'{path}: cannot read: it is no plain file.')
    with open(path, 'rb') as file:
      return hashlib.file_digest(file, 'sha256')
  except VideoError:
    raise
  except (OSError, ValueError) as e:
    reason = getattr(e, 'strerror', None) or e
    raise VideoError(f'{path}: cannot read: {reason}.') from e


def _frames(path: pathlib.Path) -> Iterator[_Frame]:
  """The frames of any kind of video; at least one."""
  if os.path.isdir(path):
    for file in frame_folder.files(path):
      yield _picture(file, _read_bytes(file))
    return
  kind = containers.check(path)
  if kind == containers.SEQ:
    yield from _seq_frames(path)
    return
  count = 0
  try:
    with _open(path, kind) as container:
      for frame in _container_frames(path, container):
        yield frame
        count += 1
  except (av.error.FFmpegError, OSError, ValueError, EOFError) as e:
    raise _cannot_decode(path, e, count) from e
  if not count:
    raise VideoError(f'{path}: no frames in it.')


def _open(path: pathlib.Path, kind: str) -> av.container.InputContainer:
  """Opens a plain local file as the format it was found to be, and no other."""
  return av.open(
    f'file:{path}',
    format=kind,
    metadata_errors='replace',
    container_options={'protocol_whitelist': 'file'},
  )


def _cannot_decode(path: pathlib.Path, e: Exception, count: int) -> VideoError:
  if isinstance(e, VideoError):
    return e
  where = f' after {count} frames' if count else ''
  reason = getattr(e, 'strerror', None) or e
  return VideoError(f'{path}: cannot decode{where}: {reason}.')


def _video_stream(
  path: pathlib.Path, container: av.container.InputContainer
) -> av.VideoStream:
  """The first video stream that is no cover picture, checked."""
  pictures = av.stream.Disposition.attached_pic
  streams = [s for s in container.streams.video if not s.disposition & pictures]
  if not streams:
    raise VideoError(f'{path}: no video stream in it.')
  context = streams[0].codec_context
  if context is None:
    raise VideoError(f'{path}: coded by what PyAV has no decoder for.')
  # Several videos are decoded at once; one thread a core for each is too many.
  context.thread_count = 1
  name = context.codec.canonical_name
  if name not in CODECS:
    raise VideoError(
      f'{path}: coded by {name}, which is not on the list of data/videos.py. '
      'Convert it: ffmpeg -i IN -c:v ffv1 OUT.mkv.'
    )
  _check_pixels(path, context.height, context.width)
  return streams[0]


def _check_pixels(path: pathlib.Path, height: int, width: int) -> None:
  if height * width > MAX_PIXELS:
    raise VideoError(
      f'{path}: frames of {height} x {width}: more than {MAX_PIXELS} pixels. '
      'Make them smaller: ffmpeg -i IN -vf scale=640:-2 OUT.mp4.'
    )


def _container_frames(
  path: pathlib.Path, container: av.container.InputContainer
) -> Iterator[_Frame]:
  stream = _video_stream(path, container)
  if container.format.name.startswith('mov'):
    _check_samples(path, stream)
  count = 0
  for packet in container.demux(stream):
    if packet.is_corrupt:
      raise VideoError(f'{path}: cut after {count} frames. Get it again.')
    for picture in packet.decode():
      if picture.is_corrupt:
        raise VideoError(f'{path}: damaged after {count} frames. Get it again.')
      _check_pixels(path, picture.height, picture.width)
      yield _Frame(picture, picture.time, _turn(path, picture))
      count += 1


def _check_samples(path: pathlib.Path, stream: av.VideoStream) -> None:
  """The index of an mp4 names the bytes of every frame."""
  entries = stream.index_entries
  end = max((e.pos + e.size for e in entries), default=0)
  size = path.stat().st_size
  if end > size:
    raise VideoError(
      f'{path}: cut: its index promises {end} bytes and it has {size}. Get it '
      'again.'
    )


def _turn(
  path: pathlib.Path, picture: av.VideoFrame
) -> tuple[bool, bool, bool]:
  """How to turn a picture, from its display matrix (a b u; c d v; x y w).

  A pixel of column p and row q is shown at column a p + c q, row b p + d q.
  """
  try:
    matrices = [
      bytes(s)
      for s in picture.side_data
      if s.type == av.sidedata.sidedata.Type.DISPLAYMATRIX
    ]
  except ValueError as e:  # some other side data that PyAV has no name for
    if picture.rotation:
      raise VideoError(f'{path}: cannot read how it is rotated.') from e
    matrices = []
  if not matrices:
    return False, False, False
  a, b, _, c, d = struct.unpack('<5i', matrices[0][:20])
  if abs(a) == abs(d) and a and not b and not c:
    return False, d < 0, a < 0
  if abs(b) == abs(c) and b and not a and not d:
    return True, b < 0, c < 0
  raise VideoError(
    f'{path}: rotated by other than 90, 180 or 270 degrees (display matrix '
    f'{a}, {b}; {c}, {d}). Turn it: ffmpeg -i IN OUT.mp4.'
  )


def _seq_frames(path: pathlib.Path) -> Iterator[_Frame]:
  content = seq.read(path)
  try:
    with open(path, 'rb') as file:
      for k, (start, length) in enumerate(content.frames):
        file.seek(start)
        frame = _picture(f'{path}: frame {k + 1}', file.read(length))
        picture = frame.picture
        if (picture.width, picture.height) != (content.width, content.height):
          raise VideoError(
            f'{path}: damaged: its header declares frames of {content.height} '
            f'x {content.width}, frame {k + 1} has {picture.height} x '
            f'{picture.width}. Get it again.'
          )
        time = k / content.fps if content.fps else None
        yield frame._replace(time=time)
  except OSError as e:
    raise VideoError(f'{path}: cannot read: {e.strerror}.') from e


def _picture(name: str | pathlib.Path, data: bytes) -> _Frame:
  try:
    picture, turn = jpeg.decode(data)
  except VideoError as e:
    raise VideoError(f'{name}: {e}. Get it again.') from e
  _check_pixels(pathlib.Path(name), picture.height, picture.width)
  return _Frame(picture, None, turn)


def _read_bytes(path: pathlib.Path) -> bytes:
  try:
    return path.read_bytes()
  except OSError as e:
    raise VideoError(f'{path}: cannot read: {e.strerror}.') from e


def _to_array(frame: _Frame, size: Size) -> np.ndarray:
  exchange, reverse_rows, reverse_columns = frame.turn
  if isinstance(size, Fit):
    stored = frame.picture.height, frame.picture.width
    size = size.size(*reversed(stored) if exchange else stored)
  height, width = size or (None, None)
  if exchange:
    height, width = width, height
  array = frame.picture.reformat(
    width=width,
    height=height,
    format='rgb24',
    interpolation='BILINEAR',
    threads=1,  # others are started anew for each frame, and pile up
  ).to_ndarray()
  if exchange:
    array = array.swapaxes(0, 1)
  if reverse_rows:
    array = array[::-1]
  if reverse_columns:
    array = array[:, ::-1]
  return array


def _shape(array: np.ndarray) -> str:
  return f'{array.shape[0]} x {array.shape[1]}'


def _sampled(
  path: pathlib.Path, frames: Iterator[_Frame], fps: float | None
) -> Iterator[_Frame]:
  """All frames; or those shown at each multiple of 1/fps after the first."""
  if fps is None:
    yield from frames
    return
  if not 0 < fps < float('inf'):
    raise VideoError(f'{path}: fps: expected a number > 0, got {fps}.')
  shown: _Frame | None = None
  start = time = 0.0
  steps: collections.deque[float] = collections.deque(maxlen=_MAX_STEPS)
  count = 0
  for number, frame in enumerate(frames, start=1):
    if frame.time is None:
      raise VideoError(
        f'{path}: its frames have no times, so that it cannot be sampled at '
        f'{fps:g} frames a second.'
      )
    if shown is None:
      start = frame.time
    else:
      steps.append(frame.time - start - time)
      if steps[-1] <= 0:
        raise VideoError(
          f'{path}: frame {number} is not later than the one before it, so '
          f'that it cannot be sampled at {fps:g} frames a second.'
        )
      if steps[-1] > _MAX_GAP:
        raise VideoError(
          f'{path}: frame {number} comes {steps[-1]:.0f} s after the one '
          f'before, so that it cannot be sampled at {fps:g} frames a second.'
        )
      while count / fps + _TIME_ERROR < frame.time - start:
        yield shown
        count += 1
    shown, time = frame, frame.time - start
  if shown is None:
    return
  last = float(np.median(steps)) if steps else 0.0  # how long it is shown
  for _ in range(count, max(round((time + last) * fps), 1)):
    yield shown


def stream(
  path: str | pathlib.Path,
  sizes: Sequence[Size],
  *,
  fps: float | None = None,
) -> Iterator[tuple[np.ndarray, ...]]:
  """The frames of a video one at a time, as `decode` gives them.

  However long the video, one frame is in memory.

  Args:
    path: a video file, or a folder of frames.
    sizes: (height, width) to resize to, a `Fit`, or None for the video's own;
      each frame is given in all of them.
    fps: see `decode`.

  Yields:
    uint8 arrays `[height, width, 3]`, RGB, one a size.

  Raises:
    VideoError: as `decode`, when the frame is reached that is wrong.
  """
  path = pathlib.Path(path)
  for frame in _sampled(path, _frames(path), fps):
    yield tuple(_to_array(frame, size) for size in sizes)


def stream_opened(
  name: str,
  container: av.container.InputContainer,
  sizes: Sequence[Size],
  *,
  fps: float | None = None,
) -> Iterator[tuple[np.ndarray, ...]]:
  """As `stream`, of what is open already and may never end.

  Args:
    name: of the source, for messages.
    container: opened by PyAV.
    sizes: see `stream`.
    fps: see `decode`.

  Yields:
    uint8 arrays `[height, width, 3]`, RGB, one a size.

  Raises:
    VideoError: as `decode`, when the frame is reached that is wrong.
  """
  path, count = pathlib.Path(name), 0
  try:
    for frame in _sampled(path, _container_frames(path, container), fps):
      yield tuple(_to_array(frame, size) for size in sizes)
      count += 1
  except (av.error.FFmpegError, OSError, ValueError, EOFError) as e:
    raise _cannot_decode(path, e, count) from e


def resize(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
  """Resizes a frame as `decode` does.

  Args:
    frame: uint8 `[H, W, 3]`, RGB.
    size: (height, width).

  Returns:
    uint8 `[height, width, 3]`.

  Raises:
    VideoError: if the frame is no such array.
  """
  if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
    raise VideoError(
      f'frame: expected uint8 [H, W, 3], got {frame.dtype} {list(frame.shape)}.'
    )
  picture = av.VideoFrame.from_ndarray(
    np.ascontiguousarray(frame), format='rgb24'
  )
  return _to_array(_Frame(picture, None, (False, False, False)), size)
