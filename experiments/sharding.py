"""Which device holds what: rows of the batch, and parts of the state.

The mesh has two axes: 'data', over which the rows of a batch are spread, and
'model', over which the state's large matrices are, by one table of rules.
"""

import re
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data import pipeline
from experiments.errors import ConfigError

# (pattern searched for in the path of an array of the state, its partition);
# the first that is found counts, and what none finds is on every device. The
# optimiser's moments and the moving average have the path of their parameter
# within their own. One column a gate and unit: the gates' matrices.
RULES: tuple[tuple[str, PartitionSpec], ...] = (
  (r'cell/(layers/\d+/)?(bottom_up|recurrent|top_down)$',
   PartitionSpec(None, 'model')),
)  # fmt: skip


def make_mesh(
  train: ml_collections.ConfigDict, devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh ('data', 'model') over devices of all processes.

  The rows of a process are one block of the batch, in the order of processes.

  Args:
    train: config.train.
    devices: None: all.

  Raises:
    ConfigError: if devices and parts do not divide the batch, or processes
      cannot hold whole copies of the model.
  """
  devices = list(jax.devices() if devices is None else devices)
  devices.sort(key=lambda d: (d.process_index, d.id))
  model = train.model_devices
  of_process = [d.process_index for d in devices]
  for number in set(of_process):
    if of_process.count(number) % model:
      raise ConfigError(
        'config.train.model_devices: expected a divisor of the '
        f'{of_process.count(number)} devices of process {number}, got {model}.'
      )
  data = len(devices) // model
  if train.batch_size % (data * train.accumulate_steps):
    raise ConfigError(
      f'config.train.batch_size: expected a multiple of the {len(devices)} '
      f'devices divided by config.train.model_devices={model}, times '
      f'config.train.accumulate_steps={train.accumulate_steps}, got '
      f'{train.batch_size}.'
    )
  return Mesh(
    np.asarray(devices).reshape(data, model),
    ('data', 'model'),
    axis_types=(AxisType.Auto, AxisType.Auto),
  )


def rows(mesh: Mesh) -> NamedSharding:
  """The first axis over the mesh's 'data'."""
  return NamedSharding(mesh, PartitionSpec('data'))


def everywhere(mesh: Mesh) -> NamedSharding:
  """A copy on every device."""
  return NamedSharding(mesh, PartitionSpec())


def of_state(
  state: Any,
  mesh: Mesh,
  rules: Sequence[tuple[str, PartitionSpec]] = RULES,
) -> Any:
  """Where each array of a state is.

  Args:
    state: a pytree of arrays.
    mesh: of devices; a rule's axis that it lacks, or has one device on, leaves
      the array on every device.
    rules: (pattern, partition), the first that fits counts.

  Returns:
    The same tree of `NamedSharding`.

  Raises:
    ConfigError: if a partition does not divide an array.
  """

  def place(path, x):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    for pattern, spec in rules:
      if not re.search(pattern, name):
        continue
      for size, axis in zip(x.shape, spec):
        if axis is None or mesh.shape.get(axis, 1) == 1:
          continue
        if size % mesh.shape[axis]:
          raise ConfigError(
            f'config.train.model_devices={mesh.shape[axis]} does not divide '
            f'{name} {list(x.shape)}. Give a divisor of {size}.'
          )
        return NamedSharding(mesh, spec)
      break
    return everywhere(mesh)

  return jax.tree.map_with_path(place, state)


def put(tree: Any, places: Any) -> Any:
  """Arrays that every process has, where they belong.

  Args:
    tree: a pytree of arrays, the same in all processes.
    places: the same tree of `NamedSharding`.
  """
  if jax.process_count() == 1:
    return jax.device_put(tree, places)

  def parts(x, place):
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, place, host.__getitem__)

  return jax.tree.map(parts, tree, places)


def put_key(key: jax.Array, mesh: Mesh) -> jax.Array:
  """A typed PRNG key on every device, of all processes."""
  return jax.random.wrap_key_data(
    put(jax.random.key_data(key), everywhere(mesh))
  )


def put_rows(batch: pipeline.Batch, mesh: Mesh) -> dict[str, jax.Array]:
  """The batch on its devices, from the rows that this process has."""
  sharding = rows(mesh)
  if sharding.is_fully_addressable:
    return jax.device_put(batch, sharding)
  return {
    name: jax.make_array_from_process_local_data(sharding, x)
    for name, x in batch.items()
  }
