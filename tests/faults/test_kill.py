"""kill -9 at any moment: the run that goes on ends in the same bits.

HMAN_KILLS sets how often (default 12).
"""

import os
import re
import shutil
import time

import numpy as np
import pytest

import child_hooks
import child_runs

KILLS = int(os.environ.get('HMAN_KILLS', '12'))


@pytest.mark.slow
@pytest.mark.parametrize('name', ['softmax_regression', 'hm_reinforce'])
def test_killed_runs_end_as_the_undisturbed_one(server, name, tmp_path, capsys):
  rng = np.random.default_rng(0)
  model = {'model.name': name}
  expected = server.undisturbed(**model)
  kills, redone = 0, []  # steps redone, after each kill
  runs = 0
  while kills < KILLS // 2:
    workdir = tmp_path / f'run_{runs}'
    last = 0
    while True:
      run = server.start(workdir, **model)
      # On what it says, not on time: a slow machine must get on as well.
      at = int(rng.integers(0, 7))
      started = lambda run, at=at: (
        len(run.steps()) >= at and 'test clips' in run.output()
      )
      killed = kills < KILLS // 2 and run.wait_for(started)
      if killed:
        time.sleep(rng.uniform(0, 0.25))
        run.kill()
        kills += 1
      else:
        assert run.wait() == 0, run.output()
      steps = run.steps()
      if steps:
        if last:
          redone.append(last - steps[0] + 1)
          assert 0 <= redone[-1] <= child_runs.SAVE_EVERY
        assert steps == list(range(steps[0], steps[-1] + 1))
        last = steps[-1]
      if (workdir / 'table.txt').exists():
        break
    assert child_runs.result(workdir) == expected
    shutil.rmtree(workdir)
    runs += 1
  counts = np.bincount(redone, minlength=child_runs.SAVE_EVERY + 1)
  with capsys.disabled():
    print(
      f'\n{name}: {runs} runs of {child_runs.NUM_STEPS} steps, saved every '
      f'{child_runs.SAVE_EVERY}; {kills} kills: all bit-identical to the '
      'undisturbed run\n  steps redone after a kill:  '
      + '  '.join(f'{n}: {count} times' for n, count in enumerate(counts))
      + f'; {sum(redone) / max(kills, 1):.2f} on average'
    )


@pytest.mark.slow
def test_kills_at_the_ends_of_epochs(server, tmp_path):
  """97 clips in batches of 8: an epoch ends within step 13, and within 25."""
  for at in (11, 12, 13, 24, 25):
    run = server.start(tmp_path / 'run', **child_runs.SIMPLE)
    assert run.wait_for_text(f'\nstep {at}/'), run.output()
    run.kill()
  assert server.finish(tmp_path / 'run', **child_runs.SIMPLE).wait() == 0
  expected = server.undisturbed(**child_runs.SIMPLE)
  assert child_runs.result(tmp_path / 'run') == expected


@pytest.mark.slow
def test_other_clocks_and_other_places(server, tmp_path):
  """Each life has another clock and zone, and a copy of the directory."""
  lives = [
    ((child_hooks.clock_one_hour_on,), 'Asia/Tokyo'),
    ((child_hooks.clock_one_month_back,), 'America/Lima'),
    ((), 'UTC'),
    ((child_hooks.clock_one_hour_on,), 'Pacific/Apia'),
  ]
  here = tmp_path / 'run'
  for number, (before, zone) in enumerate(lives):
    run = server.start(
      here, environment={'TZ': zone}, before=before, **child_runs.SIMPLE
    )
    assert run.wait_for(lambda run: len(run.steps()) >= 6), run.output()
    run.kill()
    moved = tmp_path / f'Läufe %20 #{number}' / 'a b'
    shutil.copytree(here, moved)  # with times of its own
    shutil.rmtree(here)
    here = moved
    for path in (here / 'checkpoints').iterdir():
      os.utime(path, (number % 2 * 1e9, 0))
  assert server.finish(here, **child_runs.SIMPLE).wait() == 0
  expected = server.undisturbed(**child_runs.SIMPLE)
  assert child_runs.result(here) == expected


@pytest.mark.slow
def test_a_torn_log_and_a_torn_cache(server, tmp_path):
  """What a kill leaves half written: the log's last line, compiled programs."""
  run = server.start(tmp_path / 'run', **child_runs.SIMPLE)
  assert run.wait_for(lambda run: len(run.steps()) >= 10), run.output()
  run.kill()
  log = tmp_path / 'run' / 'metrics.jsonl'
  lines = log.read_text().splitlines(keepends=True)
  saved = max(
    int(path.name) for path in (tmp_path / 'run' / 'checkpoints').iterdir()
    if (path / 'manifest.json').exists()
  )  # fmt: skip
  kept = [re.search(r'"step": (\d+)', line) for line in lines]
  first = next(i for i, m in enumerate(kept) if int(m[1]) > saved)
  log.write_text(''.join(lines[:first]) + lines[first][:17])
  cache = tmp_path / 'cache'
  environment = {'XDG_CACHE_HOME': cache}
  shutil.copytree(server.cache, cache)
  for number, path in enumerate(sorted(p for p in cache.rglob('*-cache'))):
    os.truncate(path, path.stat().st_size * (number % 3) // 3)
  run = server.finish(
    tmp_path / 'run', environment=environment, **child_runs.SIMPLE
  )
  assert run.wait() == 0, run.output()
  expected = server.undisturbed(**child_runs.SIMPLE)
  assert child_runs.result(tmp_path / 'run') == expected
