"""One fork server for all fault tests of a process."""

import pytest

import child_runs


@pytest.fixture(scope='session')
def server(tmp_path_factory):
  return child_runs.Server(tmp_path_factory.mktemp('children'))
