"""Features on a cluster: `data.extract` as an Apache Beam pipeline.

One video is one element, and `data.extract.extract_clip` makes its record, so
that the store is the same, byte by byte, whichever runner filled it. Workers
need this code, the videos and the store under the same paths as here.
"""

import json
import pathlib
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from data import extract, features
from data.decoding import Decoders
from data.errors import DataError, VideoError

try:
  import apache_beam as beam
  from apache_beam.io import WriteToText
  from apache_beam.options.pipeline_options import PipelineOptions
except ImportError as e:
  raise DataError(
    f"needs Apache Beam ({e}). Run: pip install -e '.[experiments,beam]'"
  ) from e


class ExtractClip(beam.DoFn):
  """Turns the path of a video into what became of it, as JSON.

  Args:
    name: of the extractor.
    weights: file of its weights, or ''.
    features_dir: the store.
    identity: what the numbers shall depend on, by `extract.store_identity`.
  """

  def __init__(
    self, name: str, weights: str, features_dir: str, identity: dict
  ):
    super().__init__()
    self._name, self._weights = name, weights
    self._features_dir, self._identity = features_dir, identity

  def setup(self) -> None:
    """Begins a worker."""
    self._extractor = features.create(self._name, self._weights)
    options = {
      'fps': self._identity['fps'],
      'dtype': self._identity['store']['dtype'],
    }
    found = extract.store_identity(self._extractor, **options)
    if found != self._identity:
      raise DataError(
        f'this worker would make other features: {found}, where '
        f'{self._identity} are asked for. Install the same versions.'
      )
    self._options, self._decoders = options, Decoders(1)

  def process(self, element: str) -> Iterator[str]:
    """Makes the record of a video, or says why not."""
    told = {'video': element}
    try:
      record = extract.extract_clip(
        pathlib.Path(element),
        self._extractor,
        pathlib.Path(self._features_dir),
        decoders=self._decoders,
        **self._options,
      )
      told['record'] = str(record.path)
    except VideoError as e:
      told['error'] = str(e)
    yield json.dumps(told)

  def teardown(self) -> None:
    """Ends a worker."""
    if hasattr(self, '_decoders'):
      self._decoders.__exit__(None, None, None)


def prepare(
  paths: Iterable[pathlib.Path],
  name: str,
  features_dir: pathlib.Path,
  *,
  weights: str = '',
  fps: float | None = None,
  dtype: str = 'float16',
  on_bad: str = 'error',
  options: Sequence[str] = (),
) -> extract.Prepared:
  """As `data.extract.prepare`, by a Beam pipeline.

  Args:
    paths: whatever `data.videos` decodes.
    name: of the extractor, of `data.features.EXTRACTORS`.
    features_dir: the store; made if missing.
    weights: file of the extractor's weights, or ''.
    fps: see `data.extract.prepare`.
    dtype: see `data.extract.prepare`.
    on_bad: see `data.extract.prepare`.
    options: Beam's, such as '--runner=FlinkRunner'; none: run here.

  Returns:
    `Prepared`, without the speed.

  Raises:
    DataError: as `data.extract.prepare`, or if the pipeline fails.
  """
  paths = list(dict.fromkeys(pathlib.Path(p).absolute() for p in paths))
  folder = pathlib.Path(features_dir).expanduser().absolute()
  identity = extract.store_identity(features.create(name, weights), fps, dtype)
  told = folder / f'beam-{uuid.uuid4().hex}'
  try:
    told.mkdir(parents=True)
    with beam.Pipeline(options=PipelineOptions(list(options))) as pipeline:
      _ = (
        pipeline
        | beam.Create([str(p) for p in paths])
        | beam.Reshuffle()  # or one worker would have them all
        | beam.ParDo(ExtractClip(name, weights, str(folder), identity))
        | WriteToText(str(told / 'told'))
      )
    results = _read(told)
  except (OSError, RuntimeError, ValueError) as e:
    if isinstance(e, DataError):
      raise
    raise DataError(f'the Beam pipeline failed: {e}') from e
  finally:
    shutil.rmtree(told, ignore_errors=True)
  if set(results) != set(paths):
    raise DataError(
      f'the Beam pipeline told of {len(results)} videos, not of {len(paths)}. '
      f'Do its workers see {folder}? The same command goes on from here.'
    )
  bad = {v: VideoError(r['error']) for v, r in results.items() if 'error' in r}
  extract.judge_bad(paths, bad, on_bad)
  good = {v: pathlib.Path(results[v]['record']) for v in paths if v not in bad}
  return extract.Prepared(good, bad, None)


def _read(folder: pathlib.Path) -> dict[pathlib.Path, dict[str, Any]]:
  results = {}
  for part in sorted(folder.iterdir()):
    for line in part.read_text().splitlines():
      told = json.loads(line)
      results[pathlib.Path(told['video'])] = told
  return results
