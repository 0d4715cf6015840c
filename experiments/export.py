"""Writes a trained run as programs that need nothing but JAX.

python -m experiments.export --workdir=W --out=DIR [--checkpoint=best]
    [--platform=cpu --platform=cuda]

Below --out: parameters.npz; blocks.jax (a batch of clips, of any number and
length), stream_start.jax and stream_step.jax (one frame at a time), for
jax.export.deserialize; export.json (classes, features, files). Then:

    blocks = jax.export.deserialize(pathlib.Path('blocks.jax').read_bytes())
    parameters = dict(numpy.load('parameters.npz'))
    blocks.call(parameters, features, mask)['probabilities']

`hman_jax.export` tells what each program takes and returns.
"""

import json
import pathlib

import numpy as np
from absl import flags

from experiments import program
from experiments.errors import HmanError

FLAGS = program.new_flags()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of a trained run.', flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
  'out', None, 'Folder for the files.', flag_values=FLAGS
)
_PLATFORMS = flags.DEFINE_multi_enum(
  'platform',
  ['cpu', 'cuda', 'tpu'],
  ['cpu', 'cuda', 'rocm', 'tpu'],
  'Where the programs shall run; may be repeated.',
  flag_values=FLAGS,
)
program.define_checkpoint(FLAGS)


def main(positional: list[str]) -> None:
  """Exports a run, and tells what was written."""
  if positional:
    raise HmanError(f'{positional[0]!r}: write flags as --name=value.')
  workdir = program.required(FLAGS, 'workdir')
  out = pathlib.Path(program.required(FLAGS, 'out'))
  export(workdir, out, FLAGS.checkpoint, tuple(FLAGS.platform))
  for file in sorted(out.iterdir()):
    print(f'{file.stat().st_size / 1e6:9.2f} MB  {file}')


def export(
  workdir: str | pathlib.Path,
  out: pathlib.Path,
  checkpoint: str = 'best',
  platforms: tuple[str, ...] = ('cpu', 'cuda', 'tpu'),
) -> None:
  """Writes a run's programs and parameters; see the module.

  Args:
    workdir: working directory of the run.
    out: folder, made if missing.
    checkpoint: 'best' on validation, or the 'latest'.
    platforms: where the programs shall run.

  Raises:
    HmanError: if there is no run, or the files cannot be written.
  """
  from experiments import train, trained  # JAX is slow to start
  from hman_jax import export as programs_lib

  run = trained.read(workdir, checkpoint=checkpoint)
  programs = programs_lib.programs(
    run.model,
    run.params,
    run.feature_shape,
    platforms=platforms,
    boundary_slope=train.MAX_SLOPE,
  )
  about = {
    'classes': list(run.class_names),
    'features': {
      'dtype': 'float16',
      'shape': list(run.feature_shape),
      'of': run.data['preprocessing'],
    },
    'num_frames': run.config.data.num_frames,
    'model': run.config.model.name,
    'step': run.step,
    'platforms': list(platforms),
  }
  try:
    with program.staged(out) as stage:
      np.savez(stage / 'parameters.npz', **programs.parameters)
      for name in ('blocks', 'stream_start', 'stream_step'):
        data = getattr(programs, name).serialize()
        (stage / f'{name}.jax').write_bytes(data)
      text = json.dumps(about, indent=2)
      (stage / 'export.json').write_text(text + '\n')
  except OSError as e:
    raise HmanError(f'{out}: cannot write: {e.strerror or e}.') from e


if __name__ == '__main__':
  program.run(main, FLAGS, __doc__)
