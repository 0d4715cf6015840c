"""Any videos: `--config.data.root=FOLDER`.

Below FOLDER: `<class>/<video>`, also below `train/` and `test/`; or lists of
lines `path label`, given by `--config.data.train_list=` and `test_list=`. A
video is a file or a folder of .jpg frames.
"""

import ml_collections

from configs import hmdb51


def get_config() -> ml_collections.ConfigDict:
  """HM-AN with adaptive Gumbel-softmax attention on a folder of videos."""
  config = hmdb51.get_config()
  config.data.name = 'video_folder'
  return config
