"""One fork server and one undisturbed run for all fault tests of a process."""

import child_runs
import pytest


@pytest.fixture(scope='session')
def server(tmp_path_factory):
  return child_runs.Server(tmp_path_factory.mktemp('children'))


@pytest.fixture(scope='session')
def undisturbed(server, tmp_path_factory):
  """The result of a run that nothing happened to."""
  workdir = tmp_path_factory.mktemp('undisturbed') / 'run'
  run = server.finish(workdir)
  assert 'top-1 accuracy' in run.output(), run.output()
  return child_runs.result(workdir)
