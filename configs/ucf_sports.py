"""UCF Sports, 150 clips of 10 classes: `--config.data.root=FOLDER`.

Below FOLDER: `ucf action/Diving-Side/001/` and so on, each with an .avi or .jpg
frames. The split is random and stratified; its seed is `data.split`.
"""

import ml_collections

from configs import hmdb51


def get_config() -> ml_collections.ConfigDict:
  """HM-AN with adaptive Gumbel-softmax attention on UCF Sports."""
  config = hmdb51.get_config()
  config.data.name = 'ucf_sports'
  config.data.num_frames = 60
  return config
