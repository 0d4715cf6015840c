"""Checkpoints: the latest few, and the best on validation (Orbax, isolated)."""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp


class Checkpoints:
  """Saves and restores training states below a working directory.

  `checkpoints/` holds the latest `keep` states, `best/` the one with the
  highest score on validation; of equal scores the later one.

  Args:
    workdir: the working directory.
    keep: how many of the latest states to keep.
  """

  def __init__(self, workdir: pathlib.Path, keep: int):
    self._latest = _manager(
      workdir / 'checkpoints', ocp.CheckpointManagerOptions(max_to_keep=keep)
    )
    self._best = _manager(
      workdir / 'best', ocp.CheckpointManagerOptions(max_to_keep=1)
    )

  def save(self, step: int, state: Any) -> None:
    """Saves the latest state."""
    if self._latest.latest_step() != step:
      _save(self._latest, step, state, {})

  def save_best(self, step: int, state: Any, score: float) -> None:
    """Saves the state if its score is the highest so far."""
    best = self.best_score()
    if best is None or (score >= best[1] and step > best[0]):
      _save(self._best, step, state, {'score': score})

  def best_score(self) -> tuple[int, float] | None:
    """(step, score) of the best state, or None."""
    step = self._best.latest_step()
    if step is None:
      return None
    args = ocp.args.Composite(metadata=ocp.args.JsonRestore())
    return step, self._best.restore(step, args=args).metadata['score']

  def latest_step(self) -> int | None:
    """The step of the latest state, or None."""
    return self._latest.latest_step()

  def restore_latest(self, like: Any) -> Any | None:
    """The latest state, or None; `like` gives shapes and types."""
    step = self._latest.latest_step()
    return None if step is None else _restore(self._latest, step, like)

  def restore_best(self, like: Any) -> Any:
    """The best state on validation; `like` gives shapes and types."""
    return _restore(self._best, self._best.latest_step(), like)

  def close(self) -> None:
    """Waits for what is being written."""
    self._latest.close()
    self._best.close()


def _manager(directory: pathlib.Path, options) -> ocp.CheckpointManager:
  options.enable_async_checkpointing = False
  return ocp.CheckpointManager(directory.absolute(), options=options)


def _save(manager, step: int, state: Any, metadata: dict) -> None:
  args = ocp.args.Composite(
    state=ocp.args.StandardSave(state), metadata=ocp.args.JsonSave(metadata)
  )
  manager.save(step, args=args, force=True)
  manager.wait_until_finished()


def _restore(manager, step: int, like: Any) -> Any:
  abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
  args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
  return manager.restore(step, args=args).state
