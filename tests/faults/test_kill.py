"""kill -9 at any moment: the run that goes on ends in the same bits.

HMAN_KILLS sets how often (default 20).
"""

import os
import time

import child_runs
import numpy as np
import pytest

KILLS = int(os.environ.get('HMAN_KILLS', '20'))


@pytest.mark.slow
def test_killed_runs_end_as_the_undisturbed_one(
  server, undisturbed, tmp_path, capsys
):
  rng = np.random.default_rng(0)
  kills, rows = 0, []
  while kills < KILLS:
    workdir = tmp_path / f'run_{len(rows)}'
    lives, done = 0, 0
    while True:
      run = server.start(workdir)
      lives += 1
      # On what it says, not on time: a slow machine must get on as well.
      at = int(rng.integers(1, 7))
      told = lambda run, at=at: len(run.steps()) >= at
      alive = kills < KILLS and run.wait_for(told)
      if alive:
        time.sleep(rng.uniform(0, 0.25))
        run.kill()
        kills += 1
      else:
        run.wait()
      done += len(run.steps())
      if (workdir / 'table.txt').exists():
        break
      assert alive, run.output()
    assert child_runs.result(workdir) == undisturbed
    redone = done - child_runs.NUM_STEPS
    assert redone <= (lives - 1) * child_runs.SAVE_EVERY
    rows.append((lives, redone))
  with capsys.disabled():
    lives, redone = np.sum(rows, axis=0)
    print(
      f'\n{len(rows)} runs of {child_runs.NUM_STEPS} steps, {kills} kills: all '
      f'bit-identical to the undisturbed run; {redone} steps redone, '
      f'{redone / max(kills, 1):.2f} a kill (saved every '
      f'{child_runs.SAVE_EVERY})'
    )
