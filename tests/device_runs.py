"""python -m device_runs FOLDER: 20 steps on meshes of this process's devices.

Writes NAME.json (clips of each step's batch, in the order of rows) and NAME.npz
(the last parameters) for each mesh, NAME being DATAxMODEL.
"""

import json
import pathlib
import sys
import tempfile

import jax
import numpy as np

from experiments import datasets, sharding, train
from experiments.checkpoint import Checkpoints
from experiments.reporting import RunLog
from experiments.stopping import Stop

from tiny_runs import tiny_config

MESHES = ((1, 1), (2, 1), (4, 1), (8, 1), (2, 2), (1, 4))
TWICE = ((1, 1), (8, 1), (2, 2))
CHANGES = {
  'data.num_frames': 8,
  'data.num_train': 97,
  'model.dropout': 0.1,
  'train.eval_every': 20,
  'train.num_steps': 20,
  'checkpoint.every': 20,
}


def arrays(params) -> dict[str, np.ndarray]:
  """By path."""
  leaves = jax.tree.flatten_with_path(params)[0]
  return {jax.tree_util.keystr(p): np.asarray(x) for p, x in leaves}


def main(folder: pathlib.Path) -> None:
  """Runs all; see the module's docstring."""
  put_rows = sharding.put_rows
  for data, model in MESHES:
    config = tiny_config(**CHANGES, **{'train.model_devices': model})
    splits = datasets.load(config)
    mesh = sharding.make_mesh(config.train, jax.devices()[: data * model])
    for suffix in ('', '_again') if (data, model) in TWICE else ('',):
      clips = []

      def recorded(batch, mesh, clips=clips):
        placed = put_rows(batch, mesh)
        clips.append(np.asarray(placed['clip']).tolist())
        return placed

      with tempfile.TemporaryDirectory() as name:
        workdir = pathlib.Path(name)
        checkpoints = Checkpoints(workdir, 2)
        log = RunLog(workdir, 20, 60.0)
        sharding.put_rows = recorded
        state = train.run(config, splits, mesh, checkpoints, log, Stop())
        sharding.put_rows = put_rows
        log.close()
        checkpoints.close()
      out = folder / f'{data}x{model}{suffix}'
      steps = clips[: config.train.num_steps]
      out.with_suffix('.json').write_text(json.dumps({'clips': steps}))
      np.savez(out.with_suffix('.npz'), **arrays(state.params))
    shape = splits.train.feature_shape
    first = train.make_model(config, 8, shape).init(
      jax.random.key(config.seed), np.zeros((1, 1, *shape), np.float32)
    )
    np.savez(folder / f'{data}x{model}_start.npz', **arrays(first))


if __name__ == '__main__':
  main(pathlib.Path(sys.argv[1]))
