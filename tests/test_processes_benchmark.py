import json

import pytest

from benchmarks import processes, train_step


def _ring_by_messages(size, members, rate, hop):
  """Seconds of a ring, one message after the other: its chunks go round twice,
  to be added up and to be handed out."""
  seconds = 0.0
  for _ in ('add', 'hand out'):
    for _ in range(members - 1):
      seconds += hop + size / members / rate
  return seconds


@pytest.mark.parametrize('members', [1, 2, 8])
def test_a_ring_is_its_messages(members):
  given = (47e6, members, 2e11, 1e-5)
  expected = _ring_by_messages(*given)
  assert processes.ring(*given) == pytest.approx(expected)


def test_a_step_on_paper():
  args = train_step.parse(['--batch=64', '--size=2048'])
  machine = processes.Machine(
    flops=1e30, memory=1e30, scan=1e-3, upload=1e30, link=1e12, network=1e9,
    hop=0.0, far_hop=0.0,
  )  # fmt: skip
  one = processes.on_paper(args, 10**6, 1, 1, machine)
  assert one['step'] == pytest.approx(60 * 3 * 1e-3)  # launches only
  assert one['share'] == 0.0
  hosts = processes.on_paper(args, 10**6, 1, 2, machine)
  assert hosts['sum'] == pytest.approx(4e6 / 1e9)
  assert hosts['step'] == pytest.approx(one['step'] + hosts['sum'])
  slow = machine._replace(upload=1e9)
  num_bytes = 2 * 64 * 60 * 49 * 2048
  fed = processes.on_paper(args, 10**6, 1, 2, slow)
  assert fed['step'] == pytest.approx(num_bytes / 1e9)


@pytest.mark.slow
def test_processes_are_measured(tmp_path, capsys):
  out = tmp_path / 'out.json'
  sizes = ['--batch=4', '--steps=3', '--locations=4', '--size=8', '--hidden=8']
  processes.main([*sizes, '--layers=2', '--repeats=2', f'--json={out}'])
  result = json.loads(out.read_text())
  # At such sizes noise decides which is larger.
  assert min(result['measured']['2'][k] for k in ('sum', 'step')) > 0
  assert [row['hosts'] for row in result['paper']] == [1, 1, 16] * 2
  assert 'on paper' in capsys.readouterr().out


@pytest.mark.parametrize('flag', ['--batch=3', '--steps=0'])
def test_wrong_sizes_are_told(flag):
  with pytest.raises(SystemExit):
    processes.parse([flag])
