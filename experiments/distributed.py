"""Several processes as one run: how they start, agree, and end.

All is a single process until `start` was told otherwise; then every process
runs the same program, and the functions that say so are called by all of them.
"""

import dataclasses
import hashlib
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

from experiments import coordinator
from experiments.errors import ConfigError, PeerError, StorageError
from experiments.watchdog import SUSPECT_S, Watchdog

CONNECT_S = 300  # for all processes to come
SHARED_S = 10.0  # for a file to be seen by all: network disks are late
WATCHDOG_S = 600.0
_ROOT = pathlib.Path(__file__).resolve().parents[1]
_CODE = ('configs', 'data', 'experiments', 'hman_jax')
_ENVIRONMENT = {
  'coordinator_address': 'JAX_COORDINATOR_ADDRESS',
  'num_processes': 'JAX_NUM_PROCESSES',
  'process_id': 'JAX_PROCESS_ID',
}
_CONNECTION = re.compile(
  'gloo|nccl|connection|coordination|barrier|heartbeat', re.IGNORECASE
)


class Place(NamedTuple):
  """Where a process stands among the others.

  Attributes:
    address: HOST:PORT of the coordinator, which process 0 starts.
    num_processes: how many there are.
    process_id: which this is.
    devices: local devices of this one; None: all that it sees.
  """

  address: str
  num_processes: int
  process_id: int
  devices: Sequence[int] | None = None


@dataclasses.dataclass
class _Group:
  place: Place
  client: Any
  watchdog: Watchdog
  service: subprocess.Popen | None
  exchanges: int = 0


_group: _Group | None = None


def place(
  coordinator_address: str | None = None,
  num_processes: int | None = None,
  process_id: int | None = None,
  detect: bool = False,
  environment: Mapping[str, str] = os.environ,
) -> Place | None:
  """Where this process stands, from flags, the environment or the launcher.

  Args:
    coordinator_address: HOST:PORT; else JAX_COORDINATOR_ADDRESS.
    num_processes: else JAX_NUM_PROCESSES.
    process_id: else JAX_PROCESS_ID.
    detect: ask JAX for what is not given: it knows SLURM, Kubernetes, Open MPI
      and Cloud TPU.
    environment: of the process.

  Returns:
    None for a single process.

  Raises:
    ConfigError: if a part is missing or wrong.
  """
  given: dict[str, Any] = {
    'coordinator_address': coordinator_address,
    'num_processes': num_processes,
    'process_id': process_id,
  }
  for name, variable in _ENVIRONMENT.items():
    text = environment.get(variable)
    if given[name] is not None or not text:
      continue
    if name != 'coordinator_address' and not text.isdecimal():
      raise ConfigError(f'{variable}: expected an integer >= 0, got {text!r}.')
    given[name] = text if name == 'coordinator_address' else int(text)
  devices = None
  if detect:
    from jax._src import clusters

    *found, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
      *given.values(), None, None, CONNECT_S
    )
    given = dict(zip(given, found))
    if None in found:
      raise ConfigError(
        '--distributed: neither SLURM, Kubernetes (with the kubernetes '
        'package), Open MPI nor Cloud TPU is found here. Give '
        '--coordinator_address, --num_processes and --process_id.'
      )
  elif all(value is None for value in given.values()):
    return None
  if given['num_processes'] == 1:
    return None
  missing = [name for name, value in given.items() if value is None]
  if missing:
    raise ConfigError(
      f'--{missing[0]}: missing (or {_ENVIRONMENT[missing[0]]}). Several '
      'processes need --coordinator_address=HOST:PORT of process 0, '
      '--num_processes and --process_id; or --distributed under SLURM, '
      'Kubernetes, Open MPI or on Cloud TPU.'
    )
  address, count, index = given.values()
  host, _, port = address.rpartition(':')
  if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
    raise ConfigError(
      f'--coordinator_address: expected HOST:PORT, got {address!r}.'
    )
  if not 0 <= index < count:
    raise ConfigError(
      '--process_id: expected an integer >= 0 and < --num_processes='
      f'{count}, got {index}.'
    )
  return Place(address, count, index, devices)


def start(where: Place | None, watchdog_s: float = WATCHDOG_S) -> None:
  """Joins the other processes; before anything else of JAX.

  Args:
    where: from `place`; None: a single process, nothing happens.
    watchdog_s: seconds without getting on after which the run ends.

  Raises:
    PeerError: if the others do not come.
  """
  global _group
  if where is None:
    return
  import jax
  from jax._src import distributed as jax_distributed

  jax.config.update('jax_enable_preemption_service', False)  # SIGTERM is ours
  jax.config.update('jax_cpu_collectives_implementation', 'gloo')
  service = None
  if where.process_id == 0:
    service = coordinator.start(where.address, where.num_processes)
  try:
    jax.distributed.initialize(
      where.address,
      where.num_processes,
      where.process_id,
      local_device_ids=where.devices,
      cluster_detection_method='deactivate',
      initialization_timeout=CONNECT_S,
      heartbeat_timeout_seconds=coordinator.HEARTBEAT_S,
      shutdown_timeout_seconds=coordinator.SHUTDOWN_S,
      # JAX's own service in process 0, which nobody asks.
      coordinator_bind_address='127.0.0.1:0',
    )
  except RuntimeError as e:
    raise PeerError(
      f'process {where.process_id} of {where.num_processes}: the others did '
      f'not come to {where.address} within {CONNECT_S} s '
      f'({str(e).splitlines()[0]}). '
      'Look at their output; check the address, and that nothing blocks it.'
    ) from e
  client = jax_distributed.global_state.client
  watchdog = Watchdog(client, where.process_id, where.num_processes, watchdog_s)
  _group = _Group(where, client, watchdog, service)
  watchdog.start()
  # The first collective waits for the others for 30 s only, on CPU; here all of
  # them are at the same place.
  from jax.experimental import multihost_utils

  wait()
  multihost_utils.sync_global_devices('hman_jax')


def count() -> int:
  """Number of processes."""
  return 1 if _group is None else _group.place.num_processes


def index() -> int:
  """Number of this process."""
  return 0 if _group is None else _group.place.process_id


def is_first() -> bool:
  """Whether this is process 0, which writes what all share."""
  return index() == 0


def beat(where: str = '', alone: bool = False) -> None:
  """Tells the watchdog that this process got on; see `Watchdog.beat`."""
  if _group is not None:
    _group.watchdog.beat(where, alone)


def exchange(value: Any) -> list[Any]:
  """What every process gives, by process; all call it.

  Args:
    value: JSON-able.
  """
  group = _group
  if group is None:
    return [value]
  group.exchanges += 1
  key = lambda n, i: f'hman_jax/exchange/{n}/{i}'
  here, mine = group.exchanges, group.place.process_id
  group.client.key_value_set(key(here, mine), json.dumps(value))
  values = [
    json.loads(_get(group.client, key(here, i)))
    for i in range(group.place.num_processes)
  ]
  if here > 1:  # whoever gave now, has read what was given before
    group.client.key_value_delete(key(here - 1, mine))
  group.watchdog.beat()
  return values


def from_first(value: Any) -> Any:
  """What process 0 gives; all call it, the others' values are dropped."""
  return exchange(value if is_first() else None)[0]


def wait() -> None:
  """Waits until all processes are here."""
  exchange(None)


def after_first(do: Callable[[], Any]) -> Any:
  """Does something in process 0, then in the others, who find it done.

  Args:
    do: prepares the data.

  Returns:
    What it gives here.
  """
  if _group is None:
    return do()
  key = 'hman_jax/first_is_done'
  if not is_first():
    beat('waiting for process 0 to prepare the data', alone=True)
    _get(_group.client, key)
  beat('preparing the data', alone=True)
  result = do()
  if is_first():
    _group.client.key_value_set(key, 'yes')
  return result


def _get(client, key: str) -> str:
  """A value, as soon as it is there; signals are heard meanwhile."""
  while True:
    try:
      return client.blocking_key_value_get(key, 1000)
    except Exception as e:
      if 'DEADLINE_EXCEEDED' not in str(e):
        raise


def check_same(what: Mapping[str, Any]) -> None:
  """Refuses processes that do not do the same.

  Args:
    what: JSON-able values that have to be the same in all of them, by name.

  Raises:
    ConfigError: naming what differs, and where.
  """
  digests = exchange({k: _digest(v) for k, v in what.items()})
  names = sorted(set().union(*digests))
  differing = [n for n in names if len({d.get(n) for d in digests}) > 1]
  if not differing:
    return
  shown = {n: what.get(n) for n in differing[:10]}
  lines = [
    f'{n}: ' + '; '.join(
      f'{_short(v.get(n))} in process {i}' for i, v in enumerate(values)
    )
    for values in [exchange(shown)]
    for n in shown
  ]  # fmt: skip
  raise ConfigError(
    'the processes differ in what must be the same:\n  '
    + '\n  '.join(lines)
    + '\nStart all of them with the same flags, code and data.'
  )


def code_digest() -> str:
  """SHA-256 of the program's source files."""
  digest = hashlib.sha256()
  for folder in _CODE:
    for path in sorted((_ROOT / folder).rglob('*.py')):
      digest.update(f'{path.relative_to(_ROOT)}\0'.encode())
      digest.update(path.read_bytes())
  return digest.hexdigest()


def check_shared(path: pathlib.Path) -> None:
  """Refuses a file of process 0 that the others do not see.

  Args:
    path: a file that process 0 has just written.

  Raises:
    StorageError: if it is not there, or another one.
  """
  text = from_first(path.read_text() if is_first() else None)
  end = time.monotonic() + SHARED_S
  while count() > 1:
    try:
      if path.read_text() == text:
        break
    except OSError:
      pass
    if time.monotonic() > end:
      raise StorageError(
        f'{path.parent}: process {index()} does not see what process 0 writes '
        'here. Give all of them one --workdir on a file system that they share.'
      )
    time.sleep(0.1)
  wait()


def leave(code: int, message: str) -> None:
  """Ends this process at once, telling the others; nothing for a single one."""
  if _group is None:
    return
  _group.watchdog.leave(message, code)
  os._exit(code)


def is_connection(error: Exception) -> bool:
  """Whether an error may come of another process that is gone."""
  return _group is not None and bool(_CONNECTION.search(str(error)))


def lost(error: Exception) -> NoReturn:
  """Ends this process after an error that a lost one may have caused.

  If so, the watchdog says which before this does.
  """
  assert _group is not None
  _group.watchdog.suspect()
  time.sleep(SUSPECT_S + 3.0)
  text = str(error).strip() or type(error).__name__
  first = text.splitlines()[0]
  if is_connection(error):
    code = PeerError.exit_code
    first = f'the connection to another process is lost: {first}'
    print(f'error: process {index()}: {first}', file=sys.stderr)
  else:
    code = 1
    traceback.print_exception(error)
  sys.stdout.flush()
  sys.stderr.flush()
  leave(code, first)
  raise AssertionError('left')


def finish() -> None:
  """Waits for all processes, and parts from them."""
  global _group
  if _group is None:
    return
  import jax

  beat('finished')
  wait()
  group, _group = _group, None
  group.watchdog.close()
  jax.distributed.shutdown()
  if group.service is not None:
    coordinator.stop(group.service)


def _digest(value: Any) -> str:
  text = json.dumps(value, sort_keys=True)
  return hashlib.sha256(text.encode()).hexdigest()


def _short(value: Any) -> str:
  text = repr(value)
  return text if len(text) <= 80 else f'{text[:77]}...'
