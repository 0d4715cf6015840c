"""Olympic Sports, 783 clips of 16 classes: `--config.data.root=FOLDER`.

Below FOLDER: `<class>/<clip>.seq`, and the official lists in
`train_test_split/`. The measure of the field is average precision.
"""

import ml_collections

from configs import hmdb51


def get_config() -> ml_collections.ConfigDict:
  """HM-AN with adaptive Gumbel-softmax attention on Olympic Sports."""
  config = hmdb51.get_config()
  config.data.name = 'olympic_sports'
  config.data.num_frames = 60
  return config
