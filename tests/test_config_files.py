"""Config files that are none, or fail: one message, exit code 2."""

import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent

FILES = {
  'raises': ('raise RuntimeError("boom")', 'boom'),
  'leaves': ('import sys; sys.exit(0)', 'the file left by exit(0)'),
  'returns None': (
    'def get_config(): return None',
    'returned NoneType, no ConfigDict',
  ),
  'returns a dict': (
    'def get_config(): return {}',
    'returned dict, no ConfigDict',
  ),
  'no function': ('x = 1', "no attribute 'get_config'"),
  'no Python': ('def get_config(:', 'invalid syntax'),
  'not a .py': ('seed: 1', "no attribute 'get_config'"),
  'holds itself': (
    'import ml_collections\n'
    'def get_config():\n'
    '  config = ml_collections.ConfigDict()\n'
    '  config.model = config\n'
    '  return config\n',
    'a section holds itself',
  ),
  'a typo inside': (
    'from configs import quickstart\n'
    'def get_config():\n'
    '  config = quickstart.get_config()\n'
    '  config.model.hiden_size = 1\n'
    '  return config\n',
    'Did you mean config.model.hidden_size?',
  ),
}


def _refused(folder, arguments, message):
  done = subprocess.run(
    [
      sys.executable, '-m', 'experiments.main', f'--workdir={folder}/run',
      *arguments,
    ],
    cwd=ROOT, capture_output=True, text=True, timeout=300,
  )  # fmt: skip
  assert done.returncode == 2, done.stderr
  assert message in done.stderr
  assert 'Traceback' not in done.stderr
  assert not (folder / 'run').exists()


@pytest.mark.slow
@pytest.mark.parametrize('name', FILES)
def test_a_file_that_is_no_config(tmp_path, name):
  text, message = FILES[name]
  path = tmp_path / ('a.yaml' if name == 'not a .py' else 'a.py')
  path.write_text(text)
  _refused(tmp_path, [f'--config={path}'], message)


@pytest.mark.slow
@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config=https://example.org/x.py'], '--config: '),
    (['--config=configs'], '--config: '),
    (['--flagfile=x'], '--flagfile: not read'),
    (['--undefok=x', '--x=1'], '--undefok: not taken'),
    (['config.seed=1'], 'no positional arguments'),
    (['--config.seed=1', '--config.seed=2'], 'given twice'),
    (['--config.model=3'], 'config.model: no such field'),
    (
      ['--config=configs/quickstart.py', '--allow_config_change=sed'],
      'Did you mean config.seed?',
    ),
  ],
)
def test_arguments_that_hide_a_mistake(tmp_path, arguments, message):
  if not arguments[0].startswith('--config='):
    arguments = ['--config=configs/quickstart.py', *arguments]
  _refused(tmp_path, arguments, message)
