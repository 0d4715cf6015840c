"""TFDS builders, without TensorFlow."""

import pathlib
import subprocess
import sys

import pytest

from data import clips, hmdb51, olympic_sports, ucf_sports, video_folder
from data.errors import DataError

import data_trees

tfds = pytest.importorskip(
  'tensorflow_datasets', reason='install tensorflow-datasets'
)
pytest.importorskip('array_record', reason='install array_record')
pytest.importorskip('importlib_resources', reason='install importlib_resources')

from data import tfds_builders  # noqa: E402

# Of protobuf 6 about tensorflow-datasets 4.9.
pytestmark = pytest.mark.filterwarnings(
  r'ignore:label\(\) is deprecated:DeprecationWarning'
)
ROOT = pathlib.Path(__file__).parents[1]

BUILDERS = {
  'hmdb51': (
    tfds_builders.Hmdb51, data_trees.hmdb51, lambda r: hmdb51.read(r, 1), {}
  ),
  'ucf_sports': (
    tfds_builders.UcfSports, data_trees.ucf_sports_tree,
    lambda r: ucf_sports.read(r, 1), {'empty': True},
  ),
  'olympic_sports': (
    tfds_builders.OlympicSports, data_trees.olympic_sports,
    olympic_sports.read, {'empty': True},
  ),
  'video_folder': (
    tfds_builders.VideoFolder, data_trees.video_folder,
    lambda r: video_folder.read(r, split=1), {'empty': True},
  ),
}  # fmt: skip


@pytest.mark.parametrize('name', BUILDERS)
def test_builders_describe_what_readers_find(tmp_path, name):
  builder_class, make, read, options = BUILDERS[name]
  root = make(tmp_path / 'data', **options)
  builder = builder_class(manual_dir=root, data_dir=tmp_path / 'tfds')
  builder.download_and_prepare()
  dataset = read(root)
  parts = clips.partition(dataset, 0.1, 0)
  again = tfds.builder_from_directory(builder.data_dir)
  assert tuple(again.info.features['label'].names) == dataset.class_names
  for side, part in parts._asdict().items():
    source = again.as_data_source(split=side)
    found = {}
    for k in range(len(source)):
      row = source[k]
      path, source_name = row['path'].decode(), row['source'].decode()
      found[row['name'].decode()] = (root / path, row['label'], source_name)
    assert found == {c.name: (c.path, c.label, c.source) for c in part}


def test_other_sides_are_another_folder(tmp_path):
  root = data_trees.video_folder(tmp_path / 'data', empty=True)
  folders = {
    tfds_builders.VideoFolder(
      manual_dir=root, data_dir=tmp_path, split=split, seed=seed
    ).data_dir
    for split, seed in ((1, 0), (1, 1), (2, 0), (1, 0))
  }
  assert len(folders) == 3
  (root / 'run' / 'new.avi').touch()
  builder = tfds_builders.VideoFolder(manual_dir=root, data_dir=tmp_path)
  assert builder.data_dir not in folders


def test_no_data_set(tmp_path):
  with pytest.raises(DataError, match='HMDB51 is not at'):
    tfds_builders.Hmdb51(manual_dir=tmp_path)


def test_tensorflow_is_not_needed():
  code = 'import sys, data.tfds_builders; print("tensorflow" in sys.modules)'
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True
  )
  assert done.stdout == 'False\n', done.stderr
