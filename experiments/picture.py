"""A test clip with its attention and boundaries, as a picture.

python -m experiments.picture --workdir=W --out=clip.png [--clip=0]
    [--data_root=DIR]
"""

import pathlib

from absl import flags

from experiments import program
from experiments.errors import HmanError

FLAGS = program.new_flags()
_WORKDIR = flags.DEFINE_string(
  'workdir', None, 'Directory of a trained run.', flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
  'out', None, 'Picture to write, .png or .pdf.', flag_values=FLAGS
)
_CLIP = flags.DEFINE_integer(
  'clip', 0, 'Which test clip.', lower_bound=0, flag_values=FLAGS
)
program.define_moved_data(FLAGS)


def main(positional: list[str]) -> None:
  """Loads the best model of a run and draws one test clip."""
  if positional:
    raise HmanError(f'{positional[0]!r}: write flags as --name=value.')
  workdir = pathlib.Path(program.required(FLAGS, 'workdir'))
  out = pathlib.Path(program.required(FLAGS, 'out'))
  if out.suffix not in ('.png', '.pdf'):
    raise HmanError(f'--out: expected a .png or .pdf, got {str(out)!r}.')

  # Imported late: a mistake in a flag is told before JAX starts.
  from experiments import clips, evaluate, figures, trained

  run = trained.read(
    workdir, changes=evaluate.data_changes(FLAGS.data_root, FLAGS.features_dir)
  )
  source = run.open_data().test
  if FLAGS.clip >= len(source):
    raise HmanError(f'--clip: expected 0..{len(source) - 1}, got {FLAGS.clip}.')
  draws = clips.run(run, source, [FLAGS.clip])
  stride = run.config.data.frame_stride
  clip = clips.view(draws, source, FLAGS.clip, stride=stride)
  (pictures,) = clips.frames(source, [clip])
  figures.save_clip(clip, pictures, run.class_names, out)
  print(f'wrote {out}')


if __name__ == '__main__':
  program.run(main, FLAGS, __doc__)
