"""Reproduce: what is run, what is not run again, and the tables."""

import csv
import io
import json
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from experiments import config as config_lib
from experiments import (
  convergence,
  published,
  reproduce,
  reproduce_cells,
  reproduce_specs,
  reproduce_tables,
  tables,
  workdir,
)
from experiments.errors import ConfigError, HmanError, WorkdirError
from experiments.reproduce_specs import SPECS
from experiments.tables import Measure, Table

from tiny_runs import TINY

OVERRIDES = [f'--config.{name}={value}' for name, value in TINY.items()]


def _plan(table, out, seeds=3, only=(), overrides=()):
  spec = SPECS[table]
  variants = reproduce_cells.choose(spec, only)
  return variants, reproduce_cells.plan(spec, variants, seeds, out, overrides)


def _finish(cell, scores, class_names=('a', 'b'), validation=(0.5, 1.0)):
  """What a finished run leaves, with these test scores."""
  cell.workdir.mkdir(parents=True)
  (cell.workdir / 'config.json').write_text(config_lib.to_json(cell.config))
  (cell.workdir / 'label_map.txt').write_text('\n'.join(class_names) + '\n')
  records = [
    {'mode': 'train', 'step': step, 'loss': 1 / step, 'acc/step': 0.5}
    for step in (1, 2, 3)
  ]
  records += [
    {'mode': 'validation', 'step': step, 'acc/top1': value}
    for step, value in zip((10, 20), validation)
  ]
  lines = [json.dumps(record) + '\n' for record in records]
  (cell.workdir / 'metrics.jsonl').write_text(''.join(lines))
  workdir.finish(cell.workdir, {'test': scores}, 'done')


# --- published numbers ------------------------------------------------------


def test_published_numbers_are_those_of_the_paper():
  """Rows of Table II average to the mAP in the text, as corrected."""
  for name, of_class in published.OLYMPIC_AP.items():
    related = {r.label: r.value for r in published.OLYMPIC_SPORTS_RELATED}
    text = {**published.OLYMPIC_SPORTS, **related}[name]
    assert np.mean(list(of_class.values())) == pytest.approx(text, abs=0.006)
    assert len(of_class) == 16
  soft, reinforce = (
    list(published.OLYMPIC_AP[n].values()) for n in ('hm_soft', 'hm_reinforce')
  )
  at = published.FIRST_EXCHANGED
  printed = [soft[:at] + reinforce[at:], reinforce[:at] + soft[at:]]
  means = [round(100 * np.mean(row), 1) for row in printed]
  assert means == [79.1, 80.2]  # what the note says
  assert set(published.OLYMPIC_FOLDERS.values()) == set(
    published.OLYMPIC_CLASSES
  )
  assert published.HMDB51['hm_gumbel_adaptive'] == 0.442
  assert set(published.HMDB51) == set(config_lib.PRESETS)


# --- tables -----------------------------------------------------------------


def _table():
  return Table(
    'A & B',
    ('model', 'published %', 'ours, acc %'),
    [
      ('hm_soft', (0.438, Measure(0.4, 0.0125, 3, chance=0.02))),
      ('a|b, 5 %', (None, Measure(0.25, float('nan'), 1))),
      ('CHAM (published)', (0.434, None)),
    ],
    ('a note',),
  )


def test_markdown():
  lines = tables.markdown(_table()).splitlines()
  assert lines[0] == '**A & B**' and lines[-1] == '- a note'
  assert len({len(line) for line in lines[2:7]}) == 1
  assert '43.8' in lines[4] and '40.0 ± 1.2 (n=3), chance 2.0' in lines[4]
  assert '25.0 (n=1)' in lines[5] and 'a\\|b' in lines[5]


def test_csv_reads_back():
  rows = list(csv.DictReader(io.StringIO(tables.to_csv(_table()))))
  assert rows[0]['ours, acc % std'] == '0.0125'
  assert rows[0]['ours, acc % n'] == '3'
  assert rows[1]['ours, acc % std'] == '' and rows[1]['published %'] == ''
  assert rows[2] == {
    'model': 'CHAM (published)', 'published %': '0.434',
    'ours, acc % mean': '', 'ours, acc % std': '', 'ours, acc % n': '',
    'ours, acc % chance': '',
  }  # fmt: skip


def test_latex_is_escaped():
  text = tables.latex(_table())
  assert r'hm\_soft & 43.8 & 40.0 $\pm$ 1.2 (n=3), chance 2.0 \\' in text
  assert r'a|b, 5 \% &  & 25.0 (n=1) \\' in text
  assert text.count(r'\\') == 4
  assert r'\begin{tabular}{lrr}' in text and r'\end{tabular}' in text


def test_the_spread_is_that_of_a_sample():
  found = tables.measure([0.1, 0.2, 0.6])
  assert found.mean == pytest.approx(0.3)
  assert found.std == pytest.approx(np.std([0.1, 0.2, 0.6], ddof=1))
  assert tables.measure([]) is None


# --- plans ------------------------------------------------------------------


def test_jhmdb_has_three_seeds_of_split_1_and_one_of_the_others(tmp_path):
  variants, cells = _plan('jhmdb', tmp_path)
  assert len(variants) == 7 and len(cells) == 35
  of_one = [(c.split, c.seed) for c in cells if c.variant == 'hm_soft']
  assert of_one == [(1, 0), (1, 1), (1, 2), (2, 0), (3, 0)]
  assert len({c.workdir for c in cells}) == 35
  cell = cells[-1]
  assert cell.config.data.split == 3 and cell.config.seed == 0
  assert f'--config.model.name={cell.variant}' in cell.arguments
  assert not any(tmp_path.iterdir())


def test_each_seed_of_ucf_sports_has_the_next_random_split(tmp_path):
  _, cells = _plan('ucf_sports', tmp_path, seeds=4, only=['hm_soft'])
  found = [(c.seed, c.config.data.split, c.workdir.name) for c in cells]
  assert found == [
    (0, 1, 'split1_seed0'),
    (1, 2, 'split2_seed1'),
    (2, 3, 'split3_seed2'),
    (3, 1, 'split1_seed3'),
  ]
  for cell in cells:
    _finish(cell, {'acc/top1': 0.5 + 0.1 * cell.seed, 'mAP': 0.1})
  spec = SPECS['ucf_sports']
  variants = reproduce_cells.choose(spec, ['hm_soft'])
  (made,) = reproduce_tables.make_tables(spec, variants, cells, {})
  assert made.columns == ('model', 'published %', 'ours, accuracy %')
  (paper, ours), *_, (related, nothing) = [values for _, values in made.rows]
  assert paper == 0.811 and ours.n == 4
  assert ours.mean == pytest.approx(0.65)
  assert related == 0.74 and nothing is None


def test_quickstart_has_both_scorers(tmp_path):
  _, cells = _plan('quickstart', tmp_path, seeds=1)
  found = {c.variant: c.config.model for c in cells}
  assert set(found) == set(config_lib.PRESETS) | {
    f'{n}_location' for n in config_lib.PRESETS if n.startswith('hm_')
  }
  for name, model in found.items():
    location = name.endswith('_location')
    assert model.scorer == ('location' if location else 'content')
    assert model.name == name.removesuffix('_location')


def test_sampled_evaluation_trains_nothing_of_its_own(tmp_path):
  variants, cells = _plan('ablations', tmp_path, only=['full', 'sampled'])
  assert len(variants) == 2
  assert [c.name for c in cells] == ['full/seed0', 'full/seed1', 'full/seed2']
  variants, cells = _plan('ablations', tmp_path)
  models = {c.variant: c.config.model for c in cells}
  assert models['full'].top_detector
  assert not models['no_top_detector'].top_detector
  assert models['copied_zero'].copied_boundary == 'zero'
  fixed = {
    n: m.boundary_period for n, m in models.items() if m.boundary == 'fixed'
  }
  assert fixed == {'no_hierarchy': 1, 'fixed_skip': reproduce_specs.FIXED_SKIP}


def test_overrides_reach_the_config(tmp_path):
  overrides = [
    '--config.train.learning_rate=0.5', '--config.data.root=a=b c',
    '--config.model.layer_norm=true', '--config.train.num_steps=70',
  ]  # fmt: skip
  _, cells = _plan('hmdb51', tmp_path, seeds=1, overrides=overrides)
  config = cells[0].config
  assert config.train.learning_rate == 0.5 and config.train.num_steps == 70
  assert config.data.root == 'a=b c' and config.model.layer_norm is True
  assert '--config.data.root=a=b c' in cells[0].arguments


@pytest.mark.parametrize(
  ('overrides', 'message'),
  [
    (['--config.train.num_stesp=7'], r'Did you mean config\.train\.num_steps'),
    (['--config.train.num_steps=7.5'], r"expected an integer >= 1, got '7\.5'"),
    (['--config.train.num_steps=0'], 'expected an integer >= 1, got 0'),
    (['--config.model.layer_norm=maybe'], 'True or False'),
    (['--config.seed=3'], r'config\.seed: the table sets it'),
    (['--config.data.split=2'], 'the table sets it'),
    (['--config.model.name=hm_soft'], 'the table sets it'),
    (['--config.train.num_steps', '7'], 'expected --config.FIELD=VALUE'),
    (['stray'], 'expected --config.FIELD=VALUE'),
  ],
)
def test_wrong_overrides(tmp_path, overrides, message):
  with pytest.raises(ConfigError, match=message):
    _plan('jhmdb', tmp_path, overrides=overrides)


def test_wrong_rows(tmp_path):
  with pytest.raises(HmanError, match=r"no row 'hm_sof' .*Rows: softmax"):
    _plan('jhmdb', tmp_path, only=['hm_sof'])


def test_runs_of_another_config_are_refused(tmp_path):
  _, cells = _plan('quickstart', tmp_path, only=['hm_soft'])
  _finish(cells[1], {})
  _plan('quickstart', tmp_path, only=['hm_soft'])
  with pytest.raises(WorkdirError, match=r'num_steps: was 2000, is 90'):
    _plan(
      'quickstart',
      tmp_path,
      only=['hm_soft'],
      overrides=['--config.train.num_steps=90'],
    )


@pytest.mark.parametrize('root', ['', 'no/such/folder'])
def test_missing_data_are_one_message(tmp_path, root):
  overrides = [f'--config.data.root={root}']
  _, cells = _plan('jhmdb', tmp_path, overrides=overrides)
  with pytest.raises(HmanError, match=r'config\.data\.root: expected the fold'):
    reproduce_cells.check_data(cells)
  _, cells = _plan('quickstart', tmp_path)
  reproduce_cells.check_data(cells)


# --- what comes out ---------------------------------------------------------


def _scores(value):
  return {
    'acc/top1': value,
    'mAP': value / 2,
    'attention/hit_rate': value,
    'attention/hit_rate_chance': 0.02,
    'boundary/f1': value,
    'boundary/f1_chance': 0.2,
    'boundary/f1_2': value,
    'boundary/f1_2_chance': 0.3,
  }


def test_hmdb51_stands_beside_the_paper(tmp_path):
  spec = SPECS['hmdb51']
  variants, cells = _plan('hmdb51', tmp_path, seeds=2)
  cells = [c for c in cells if c.variant != 'lstm_mean']
  for cell in cells:
    _finish(cell, {'acc/top1': 0.4 + 0.02 * cell.seed, 'mAP': 0.1})
  (made,) = reproduce_tables.make_tables(
    spec, variants, cells, {'lstm_mean/split1_seed0': 'exit code 1'}
  )
  rows = dict(made.rows)
  assert made.columns == ('model', 'published %', 'ours, accuracy %')
  paper, ours = rows['HM-AN, REINFORCE']
  assert paper == 0.415
  assert (ours.mean, ours.n) == (pytest.approx(0.41), 2)
  assert ours.std == pytest.approx(0.02 / 2**0.5)
  assert rows['LSTM, average-pooled'] == (0.405, None)
  assert rows['CHAM (published)'] == (0.434, None)
  assert len(rows) == 7 + 5
  notes = '\n'.join(made.notes)
  assert 'Missing: lstm_mean/split1_seed0: exit code 1' in notes
  assert 'efficientnet_lite0' in notes and 'T = 40' in notes


def test_splits_are_apart_and_averaged(tmp_path):
  spec = SPECS['jhmdb']
  variants, cells = _plan('jhmdb', tmp_path, only=['hm_soft', 'lstm_soft'])
  values = {(1, 0): 0.5, (1, 1): 0.6, (1, 2): 0.7, (2, 0): 0.3, (3, 0): 0.9}
  kept = [c for c in cells if c.variant == 'hm_soft' or c.split != 3]
  for cell in kept:
    _finish(cell, {'acc/top1': values[cell.split, cell.seed], 'mAP': 0.1})
  (made,) = reproduce_tables.make_tables(spec, variants, kept, {})
  assert made.columns == (
    'model', 'split 1 %', 'split 2 %', 'split 3 %', 'mean of splits %',
  )  # fmt: skip
  rows = dict(made.rows)
  first, second, third, mean = rows['HM-AN, soft attention']
  assert (first.n, second.n, third.n, mean.n) == (3, 1, 1, 3)
  assert mean.mean == pytest.approx((0.6 + 0.3 + 0.9) / 3)
  assert mean.std == pytest.approx(np.std([0.6, 0.3, 0.9], ddof=1))
  assert rows['LSTM, soft attention (baseline)'][2:] == (None, None)


def test_truth_gives_hit_rate_and_boundaries_with_chance(tmp_path):
  spec = SPECS['quickstart']
  only = ['hm_soft', 'lstm_mean']
  variants, cells = _plan('quickstart', tmp_path, seeds=2, only=only)
  for cell in cells:
    scores = _scores(0.5 + 0.1 * cell.seed)
    if cell.variant == 'lstm_mean':
      scores = {k: v for k, v in scores.items() if 'boundary' not in k}
    _finish(cell, scores)
  (made,) = reproduce_tables.make_tables(spec, variants, cells, {})
  assert made.columns[1:] == (
    'ours, accuracy %', 'attention hit rate %', 'boundary F1, layer 1 %',
    'boundary F1, layer 2 %',
  )  # fmt: skip
  rows = dict(made.rows)
  values = rows['HM-AN, soft attention, content scorer']
  assert [v.mean for v in values] == pytest.approx([0.55] * 4)
  assert values[0].chance is None
  assert [v.chance for v in values[1:]] == pytest.approx([0.02, 0.2, 0.3])
  assert rows['LSTM, average-pooled'][2:] == (None, None)
  text = reproduce_tables.cells_csv(cells)
  found = list(csv.DictReader(io.StringIO(text)))
  assert [row['seed'] for row in found] == ['0', '0', '1', '1']
  assert float(found[-1]['acc/top1']) == pytest.approx(0.6)


def test_the_olympic_classes(tmp_path):
  spec = SPECS['olympic_sports']
  only = ['hm_soft', 'lstm_mean']
  variants, cells = _plan('olympic_sports', tmp_path, seeds=2, only=only)
  for cell in cells:
    _finish(cell, {'acc/top1': 0.5, 'mAP': 0.6 + 0.1 * cell.seed})
    rows = [
      {'class': 'diving_platfrom_10m', 'average_precision': 0.8},
      {'class': 'snatch', 'average_precision': None},
      {'class': 'curling', 'average_precision': 0.2 + 0.2 * cell.seed},
    ]
    (cell.workdir / 'evaluation.json').write_text(
      json.dumps({'per_class': rows})
    )
  made, classes = reproduce_tables.make_tables(spec, variants, cells, {})
  rows = dict(made.rows)
  assert made.columns[2] == 'ours, mAP %'
  assert rows['HM-AN, soft attention'][0] == 0.824
  assert rows['HM-AN, soft attention'][1].mean == pytest.approx(0.65)
  assert any('exchanged' in note for note in made.notes)
  assert classes.columns == (
    'class', 'Conv-Attention (published) %', 'CHAM (published) %',
    'lstm_mean (ours) %', 'hm_soft (published) %', 'hm_soft (ours) %',
  )  # fmt: skip
  rows = dict(classes.rows)
  assert len(rows) == 17
  assert rows['Platform 10m'][3] == 0.867
  assert rows['Platform 10m'][4].mean == pytest.approx(0.8)
  assert rows['Snatch'][4] is None
  assert rows['curling'][4].std == pytest.approx(np.std([0.2, 0.4], ddof=1))


def test_failures_are_told(tmp_path):
  log = tmp_path / 'logs' / 'x.log'
  said = reproduce_cells._run(['no_such_module'], log)
  assert said.startswith('exit code 1: ') and 'no_such_module' in said
  assert reproduce_cells._last_words('step 1\nerror: a\nerror: b\n  c\n') == (
    'b\n  c'
  )
  assert reproduce_cells._last_words('x\ny: ValueError\n') == 'y: ValueError'
  assert reproduce_cells._last_words('') == 'no word'
  with pytest.raises(HmanError, match='holds no run'):
    reproduce_cells._run(['experiments.evaluate', '--workdir=none'], log)


def test_reinforce_and_adaptive_gumbel_are_drawn_together(tmp_path):
  spec = SPECS['quickstart']
  only = ['hm_reinforce', 'hm_gumbel_adaptive', 'hm_reinforce_location']
  variants, cells = _plan('quickstart', tmp_path, seeds=3, only=only)
  slow, fast = (0.2, 0.8), (0.8, 1.0)
  # One run is not there: it is left out of both.
  cells = [c for c in cells if (c.variant, c.seed) != ('hm_gumbel_adaptive', 2)]
  for cell in cells:
    validation = fast if cell.variant == 'hm_gumbel_adaptive' else slow
    _finish(cell, {'acc/top1': 0.5, 'mAP': 0.5}, validation=validation)
  runs = reproduce_tables.convergence_runs(spec, cells)
  assert list(runs) == ['convergence']
  assert [len(paths) for paths in runs['convergence'].values()] == [2, 2]
  (made,) = reproduce_tables.make_tables(spec, variants, cells, {})
  # 90 % of 0.8 is on the line from (10, 0.2) to (20, 0.8), and before 0.8.
  assert made.notes[-1] == (
    'Steps to a validation accuracy of 72.0 % (90 % of the lower final one), '
    'convergence.png: HM-AN, REINFORCE, content scorer: 19 ± 0 (2 of 2 runs); '
    'HM-AN, Gumbel-softmax, adaptive temperature, content scorer: 9 ± 0 '
    '(2 of 2 runs).'
  )
  reproduce_tables.write_convergence(tmp_path / 'out', runs)
  for end, start in (('png', b'\x89PNG'), ('pdf', b'%PDF')):
    found = (tmp_path / 'out' / f'convergence.{end}').read_bytes()
    assert found.startswith(start) and len(found) > 5000
  panels = convergence.panels(runs['convergence'])
  assert [p.title for p in panels] == [
    'training loss', 'training accuracy', 'validation accuracy',
  ]  # fmt: skip
  assert panels[0].curves[0].mean == pytest.approx([1, 1 / 2, 1 / 3])
  assert panels[2].curves[1].steps == [10, 20]


def test_a_mark_that_is_never_reached_is_told(tmp_path):
  _, cells = _plan('jhmdb', tmp_path, seeds=1, only=['hm_reinforce', 'hm_soft'])
  for cell in cells:
    values = (0.1, 0.1) if cell.split == 2 else (0.4, 0.9)
    _finish(cell, {}, validation=values)
  runs = {'a': [c.workdir for c in cells if c.variant == 'hm_soft']}
  mark, reached = convergence.steps_to_share(runs, 1.0)
  assert mark == pytest.approx((0.9 + 0.1 + 0.9) / 3)
  assert len(reached['a']) == 2
  notes = reproduce_tables.convergence_notes({'x': runs})
  assert '(2 of 3 runs)' in notes[0]


def _call(monkeypatch, capsys, *arguments):
  flags = reproduce.FLAGS
  for name in flags.flag_values_dict():
    flags[name].unparse()
  monkeypatch.setattr(sys, 'argv', ['reproduce', *map(str, arguments)])
  with pytest.raises(SystemExit) as stop:
    reproduce.program.run(reproduce.main, flags, reproduce.__doc__)
  said = capsys.readouterr()
  return stop.value.code, said.out, said.err


def test_the_program_runs_what_is_missing_only(tmp_path, monkeypatch, capsys):
  def call(*more):
    return _call(
      monkeypatch, capsys, '--table=quickstart', '--seeds=1',
      '--only=softmax_regression', f'--out={tmp_path}', *more, '--', *OVERRIDES,
    )  # fmt: skip

  code, out, _ = call('--dry_run')
  assert code == 0 and out.split()[:2] == [
    'missing',
    'softmax_regression/seed0',
  ]
  assert not any(tmp_path.iterdir())
  code, out, error = call()
  assert code == 0, error
  assert '[1/1] softmax_regression/seed0' in out
  assert '| softmax regression on frames |' in out
  before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob('cells/**/*')}
  first = (tmp_path / 'table.md').read_text()
  code, out, _ = call('--dry_run')
  assert code == 0 and out.startswith('finished')
  code, out, _ = call()
  assert code == 0 and '[1/1]' not in out
  assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob('cells/**/*')} == (
    before
  )
  assert (tmp_path / 'table.md').read_text() == first
  for name in ('table.csv', 'table.tex', 'cells.csv'):
    assert (tmp_path / name).read_text()


@pytest.mark.slow
def test_sampled_evaluation_of_a_finished_run(
  tiny_workdir, tmp_path, monkeypatch, capsys
):
  shutil.copytree(tiny_workdir, tmp_path / 'cells' / 'full' / 'seed0')
  code, out, error = _call(
    monkeypatch, capsys, '--table=ablations', '--seeds=1',
    '--only=full,sampled', f'--out={tmp_path}', '--', *OVERRIDES,
  )  # fmt: skip
  assert code == 0, error
  assert '[1/' not in out
  report = json.loads(
    (tmp_path / 'cells/full/seed0/evaluation_sampled_8.json').read_text()
  )
  assert report['num_samples'] == reproduce_specs.NUM_DRAWS
  text = (tmp_path / 'table.csv').read_text()
  rows = list(csv.DictReader(io.StringIO(text)))
  value = report['metrics']['boundary/f1']
  assert float(rows[1]['boundary F1, layer 1 % mean']) == value


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    ((), '--table: missing'),
    (('--table=hmdb52',), 'hmdb51'),
    (('--table=jhmdb', '--seeds=0'), 'seeds'),
    (('--table=jhmdb',), 'Add "-- --config.data.root=FOLDER"'),
    (('--table=jhmdb', '--sedes=1'), 'Did you mean'),
  ],
)
def test_mistakes_end_in_one_message(monkeypatch, capsys, arguments, message):
  code, _, error = _call(monkeypatch, capsys, *arguments)
  assert code == 2 and message in error


def test_a_stop_is_handed_on_and_waited_for():
  code = """
import subprocess
from experiments import reproduce_cells
child = subprocess.Popen(['sleep', '60'])
print('waiting', flush=True)
reproduce_cells._wait(child)
"""
  command = [sys.executable, '-c', code]
  with subprocess.Popen(
    command,
    cwd=pathlib.Path(__file__).parents[1],
    stdout=subprocess.PIPE,
    text=True,
  ) as program:
    assert program.stdout is not None
    program.stdout.readline()
    time.sleep(0.5)
    program.terminate()
    try:
      assert program.wait(30) == 128 + signal.SIGTERM
    finally:
      program.kill()
