"""One frame at a time: the step of a live stream, compiled once.

    stream = streaming.start(model, variables, features)
    next_frame = streaming.compiled_step(model, deterministic=True)
    stream, output = next_frame(variables, stream, frame)

A layer that COPYs is skipped: its products are left out by `lax.cond`, so that
a layer above a silent one costs nothing.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hman_jax.cells import HMLSTM
from hman_jax.models import Recogniser, RecogniserOutput, SoftmaxRegression
from hman_jax.types import Array

Model = Recogniser | SoftmaxRegression


class Stream(NamedTuple):
  """What is carried from frame to frame.

  Attributes:
    state: of the model's cell; None without one.
    num_frames: int32 scalar, frames already run.
  """

  state: Any
  num_frames: Array


def start(
  model: Model, variables: Any, features: Array, mask: Array | None = None
) -> Stream:
  """The stream before its first frame.

  Args:
    model: a recogniser.
    variables: of the model.
    features: `[B, T, N, D]`; a model with initial_state='mean_features' makes
      its first state of these frames, of others only the shape is used.
    mask: bool `[B, T]`, True where valid; None: all valid.

  Returns:
    `Stream`.
  """
  state = model.first_state(variables, features, mask)
  return Stream(state, jnp.zeros((), jnp.int32))


def step(
  model: Model,
  variables: Any,
  stream: Stream,
  features: Array,
  *,
  boundaries: Array | None = None,
  **options: Any,
) -> tuple[Stream, RecogniserOutput]:
  """Runs the next frame; frame by frame it gives what `model.apply` gives.

  It has no gradients. Layers are skipped where all rows COPY: it is at its
  best with B = 1.

  Args:
    model: a recogniser.
    variables: of the model.
    stream: from `start` or the step before.
    features: `[B, N, D]` of one frame.
    boundaries: `[B, L]`, for a cell with boundary='given' only.
    **options: further ones of `model.apply`, such as `deterministic=True`.

  Returns:
    (stream, output): `Stream` after the frame, and `RecogniserOutput` without
    the axis of time, its `state` None.
  """
  if isinstance(model, Recogniser) and isinstance(model.cell, HMLSTM):
    cell = dataclasses.replace(model.cell, skip_copies=True)
    model = dataclasses.replace(model, cell=cell)
  out = model.apply(
    variables,
    features[:, None],
    boundaries=None if boundaries is None else boundaries[:, None],
    state=stream.state,
    start=stream.num_frames,
    **options,
  )
  shown = jax.tree.map(lambda x: x[:, 0], out._replace(state=None))
  return Stream(out.state, stream.num_frames + 1), shown


def compiled_step(model: Model, **options: Any) -> Any:
  """`step` of a model under `jit`; the stream's memory is used again.

  Args:
    model: a recogniser.
    **options: static options of `step`.

  Returns:
    `next_frame(variables, stream, features, **arrays) -> (stream, output)`.
    The stream that is given is donated: use the one that comes back.

  Example:
    >>> from hman_jax import models
    >>> model = models.create(5, cell='none', attention='none')
    >>> x = jnp.ones((1, 3, 49, 16))
    >>> variables = model.init(jax.random.key(0), x)
    >>> stream = start(model, variables, x)
    >>> next_frame = compiled_step(model, deterministic=True)
    >>> for t in range(3):
    ...   stream, output = next_frame(variables, stream, x[:, t])
    >>> int(stream.num_frames), output.logits.shape
    (3, (1, 5))
  """
  run = functools.partial(step, model, **options)
  return jax.jit(run, donate_argnums=1)
