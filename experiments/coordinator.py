"""JAX's coordination service in a process of its own, a child of process 0.

In process 0 itself, where `jax.distributed` would have it, it dies with that
process, and JAX then aborts all others at once with a C++ stack. Here it lives
on long enough for them to see who is missing, and to say so.
"""

import signal
import socket
import subprocess
import sys
import time

from experiments.errors import PeerError

LINGER_S = 45.0  # more than the others need to see that process 0 is dead
HEARTBEAT_S = 100  # JAX's own; ours (`watchdog`) is heard before
SHUTDOWN_S = 60
_READY, _END = 'ready', b'end\n'


def start(address: str, num_processes: int) -> subprocess.Popen:
  """Starts the service at the port of an address, on all interfaces.

  Args:
    address: HOST:PORT.
    num_processes: how many will come.

  Returns:
    The child; `stop` ends it, and it ends some time after this process does.

  Raises:
    PeerError: if it cannot listen there.
  """
  port = address.rpartition(':')[2]
  child = subprocess.Popen(
    [sys.executable, '-m', 'experiments.coordinator', port, str(num_processes)],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    stderr=subprocess.DEVNULL,
    start_new_session=True,  # a signal to the run's group is not for it
  )
  assert child.stdout is not None
  line = child.stdout.readline().decode().strip()
  if line != _READY:
    raise PeerError(
      f'--coordinator_address: cannot listen on port {port}: '
      f'{line or "the service ended"}. Give another port to all processes.'
    )
  return child


def stop(child: subprocess.Popen) -> None:
  """Ends the service; nobody needs it any more."""
  child.communicate(_END)


def _wait_for_port(port: int) -> str:
  """Waits while a run that has just ended still holds it; what is wrong."""
  end = time.monotonic() + LINGER_S + 5.0
  both = socket.has_dualstack_ipv6()
  while True:
    try:
      # gRPC would share a port that is in use without a word.
      with socket.create_server(
        ('', port),
        family=socket.AF_INET6 if both else socket.AF_INET,
        dualstack_ipv6=both,
      ):
        return ''
    except OSError as e:
      if time.monotonic() > end:
        return e.strerror or str(e)
    time.sleep(0.5)


def main(port: str, num_processes: str) -> None:
  """Serves until process 0 says so, or has been gone for a while."""
  for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_IGN)
  wrong = _wait_for_port(int(port))
  if wrong:
    print(wrong, flush=True)
    return
  from jax._src.lib import _jax

  service = _jax.get_distributed_runtime_service(
    f'[::]:{port}',
    int(num_processes),
    heartbeat_timeout=HEARTBEAT_S,
    shutdown_timeout=SHUTDOWN_S,
  )
  print(_READY, flush=True)
  if sys.stdin.buffer.read() != _END:  # process 0 is gone
    time.sleep(LINGER_S)
  service.shutdown()


if __name__ == '__main__':
  main(*sys.argv[1:])
