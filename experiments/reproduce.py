"""Makes a table of the paper, or of this repository, from scratch.

python -m experiments.reproduce --table=quickstart [--seeds=3] [--only=hm_soft]
    [--out=DIR] [--dry_run] [-- --config.data.root=ROOT --config.x=y ...]

Runs what is missing, one working directory a cell, each in a process of its
own; a second call continues where a stop came, and runs nothing that is done.
Then prints the table, and writes table.md, table.csv, table.tex and cells.csv;
and, where the table has both, the training curves of REINFORCE and of the
adaptive Gumbel-softmax (the paper's fig. 5-7), convergence.png and .pdf.
Numbers are mean and sample standard deviation over n runs.
"""

import pathlib

from absl import flags

from experiments import program, tables
from experiments.reproduce_cells import (
  check_data,
  choose,
  evaluations,
  plan,
  run_cells,
)
from experiments.reproduce_specs import SPECS
from experiments.reproduce_tables import (
  cells_csv,
  convergence_runs,
  make_tables,
  write,
  write_convergence,
)

FLAGS = program.new_flags()
_TABLE = flags.DEFINE_enum(
  'table', None, sorted(SPECS), 'Which table.', flag_values=FLAGS
)
_SEEDS = flags.DEFINE_integer(
  'seeds',
  3,
  'Runs of each row, with seeds 0, 1, ...; of splits 2 and 3 there is one.',
  lower_bound=1,
  flag_values=FLAGS,
)
_ONLY = flags.DEFINE_list(
  'only', [], 'Rows to run; default: all.', flag_values=FLAGS
)
_OUT = flags.DEFINE_string(
  'out',
  None,
  'Folder of runs and tables. Default: work_dirs/reproduce/<table>.',
  flag_values=FLAGS,
)
_DRY_RUN = flags.DEFINE_bool(
  'dry_run', False, 'List the cells and stop.', flag_values=FLAGS
)


def main(positional: list[str]) -> int:
  """Runs what is missing, then makes the table."""
  table = program.required(FLAGS, 'table')
  spec = SPECS[table]
  variants = choose(spec, FLAGS.only)
  out = pathlib.Path(FLAGS.out or f'work_dirs/reproduce/{table}')
  cells = plan(spec, variants, FLAGS.seeds, out, positional)
  if FLAGS.dry_run:
    for cell in cells:
      print(f'{cell.state():8}  {cell.name}  {" ".join(cell.arguments)}')
    return 0
  check_data(cells)
  failed = run_cells(cells, out, evaluations(spec, variants))
  done = [c for c in cells if c.name not in failed]
  made = make_tables(spec, variants, done, failed)
  write(out, made, cells_csv(done))
  curves = convergence_runs(spec, done)
  write_convergence(out, curves)
  print('\n' + '\n'.join(map(tables.markdown, made)))
  print(f'wrote {out}/table.md, table.csv, table.tex, cells.csv')
  for name in curves:
    print(f'wrote {out}/{name}.png, {name}.pdf')
  return 1 if failed else 0


if __name__ == '__main__':
  program.run(main, FLAGS, __doc__)
