"""Writes little videos, for tests."""

import fractions
import io
import pathlib
import struct
from collections.abc import Sequence

import av
import numpy as np


def write(
  path: pathlib.Path,
  frames: np.ndarray,
  codec: str = 'mpeg4',
  pix_fmt: str = 'yuv420p',
  *,
  source: str = 'rgb24',
  times: Sequence[int] | None = None,
  options: dict[str, str] | None = None,
) -> pathlib.Path:
  """uint8 `[T, H, W, 3]` as a video file; folders are made.

  `source` is PyAV's name of what the array holds, `times` are in 1/30 s.
  """
  path.parent.mkdir(parents=True, exist_ok=True)
  with av.open(str(path), 'w', options=options or {}) as container:
    stream = container.add_stream(codec, rate=fractions.Fraction(30))
    stream.height, stream.width = frames.shape[1:3]
    stream.pix_fmt = pix_fmt
    stream.bit_rate = 4_000_000
    for k, frame in enumerate(frames):
      picture = av.VideoFrame.from_ndarray(frame, format=source)
      if times is not None:
        picture.pts, picture.time_base = times[k], fractions.Fraction(1, 30)
      container.mux(stream.encode(picture))
    container.mux(stream.encode())
  return path


def rotate(path: pathlib.Path, a: int, b: int, c: int, d: int) -> None:
  """Writes the display matrix (a b; c d), times 65536, into an .mp4 file."""
  raw = bytearray(path.read_bytes())
  at = raw.index(b'tkhd') + 4 + 40
  assert struct.unpack_from('>5i', raw, at) == (65536, 0, 0, 0, 65536)
  struct.pack_into('>5i', raw, at, a, b, 0, c, d)
  path.write_bytes(raw)


def jpeg(frame: np.ndarray, **options) -> bytes:
  """uint8 `[H, W, 3]` or `[H, W]` as a JPEG file."""
  from PIL import Image  # comes with Matplotlib

  file = io.BytesIO()
  Image.fromarray(frame).save(file, 'JPEG', quality=95, **options)
  return file.getvalue()


def write_folder(
  folder: pathlib.Path, frames: np.ndarray, name: str = 'img_{:05}.jpg'
) -> pathlib.Path:
  """Frames as pictures in a folder, numbered from 1."""
  folder.mkdir(parents=True, exist_ok=True)
  for number, frame in enumerate(frames, start=1):
    (folder / name.format(number)).write_bytes(jpeg(frame))
  return folder


def seq_bytes(
  frames: np.ndarray, *, gap: int = 8, declared: int | None = None, **header
) -> bytes:
  """Frames as a .seq file of Piotr Dollar's."""
  height, width = frames.shape[1:3]
  fields = {
    'magic': 0xFEED, 'width': width, 'height': height, 'format': 102,
    'num_frames': len(frames) if declared is None else declared, 'fps': 25.0,
  } | header  # fmt: skip
  raw = bytearray(1024)
  struct.pack_into('<I20s4xiI', raw, 0, fields['magic'],
                   'Norpix seq'.encode('utf-16-le'), 3, 1024)  # fmt: skip
  struct.pack_into(
    '<9Id', raw, 548, fields['width'], fields['height'], 24, 8,
    width * height * 3, fields['format'], fields['num_frames'], 0,
    width * height * 3, fields['fps'],
  )  # fmt: skip
  for k, frame in enumerate(frames):
    picture = jpeg(frame)
    raw += struct.pack('<I', len(picture) + 4) + picture
    raw += struct.pack('<Ihh', 1_000_000_000 + k, 40 * k, 0).ljust(gap, b'\0')
  return bytes(raw)


def write_seq(path: pathlib.Path, frames: np.ndarray, **options):
  """As `seq_bytes`, into a file; folders are made."""
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(seq_bytes(frames, **options))
  return path


def shades(num_frames: int, size: tuple[int, int] = (48, 64), first: int = 20):
  """Frames of one grey each, 12 brighter every frame."""
  grey = first + 12 * np.arange(num_frames)
  return np.broadcast_to(
    grey[:, None, None, None], (num_frames, *size, 3)
  ).astype(np.uint8)


def numbered(folder: pathlib.Path) -> list[pathlib.Path]:
  """Four videos of 3 to 6 frames, no two alike."""
  return [
    write(folder / f'#{k} (a)_wave_.avi', shades(3 + k, first=10 * k))
    for k in range(4)
  ]
