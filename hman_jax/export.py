"""Trained recognisers as programs that run without this library.

    programs = export.programs(model, variables, feature_shape=(49, 1280))
    file.write_bytes(programs.blocks.serialize())

and where there is only JAX:

    blocks = jax.export.deserialize(file.read_bytes())
    blocks.call(parameters, features, mask)['probabilities']

Arguments and results are dicts of arrays, parameters too: no class of ours is
needed to read them.
"""

from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from hman_jax import streaming
from hman_jax.models import RecogniserOutput
from hman_jax.types import Array, PyTree

PLATFORMS = ('cpu', 'cuda', 'tpu')


class Programs(NamedTuple):
  """A recogniser in evaluation, as three programs, and its parameters.

  Attributes:
    parameters: arrays by name, the first argument of each program.
    blocks: `(parameters, features [B, T, N, D], mask [B, T]) -> output`, for
      any B and T: `logits` `[B, T, C]`, `probabilities` `[B, C]` (softmax a
      step, mean over the valid steps), and, where the model has them, `weights`
      `[B, T, N]` of the attention, `z` and `operation` `[B, T, L]`.
    stream_start: `(parameters, features [1, T, N, D], mask [1, T]) -> stream`,
      for any T: the first frames, which some models begin from.
    stream_step: `(parameters, stream, features [1, N, D]) -> (stream, output)`
      of the next frame: as of `blocks`, without T.
  """

  parameters: dict[str, Array]
  blocks: jax.export.Exported
  stream_start: jax.export.Exported
  stream_step: jax.export.Exported


def programs(
  model: streaming.Model,
  variables: Any,
  feature_shape: tuple[int, int],
  *,
  dtype: Any = jnp.float16,
  platforms: tuple[str, ...] = PLATFORMS,
  **options: Any,
) -> Programs:
  """Exports a recogniser; evaluation, with nothing drawn.

  Args:
    model: a recogniser.
    variables: of the model.
    feature_shape: (N, D).
    dtype: of the features that the programs take.
    platforms: where they shall run.
    **options: further ones of `model.apply`, such as `boundary_slope`.

  Returns:
    `Programs`; `.serialize()` of each needs the package flatbuffers.

  Example:
    >>> from hman_jax import models
    >>> model = models.create(3, cell='none', attention='none')
    >>> variables = model.init(jax.random.key(0), jnp.ones((1, 1, 4, 2)))
    >>> p = programs(model, variables, (4, 2), platforms=('cpu',))
    >>> x, mask = jnp.ones((2, 5, 4, 2), jnp.float16), jnp.ones((2, 5), bool)
    >>> p.blocks.call(p.parameters, x, mask)['probabilities'].shape
    (2, 3)
  """
  options = {'deterministic': True, **options}
  parameters, rebuild = _named(variables)

  def blocks(parameters, features, mask):
    out = model.apply(rebuild(parameters), features, mask, **options)
    p = jnp.where(mask[..., None], jax.nn.softmax(out.logits), 0.0)
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return {**_shown(out), 'probabilities': jnp.sum(p, axis=1) / count}

  def start(parameters, features, mask):
    return streaming.start(model, rebuild(parameters), features, mask)

  batch, steps = jax.export.symbolic_shape('batch, steps')
  shapes = jax.tree.map(_shape, parameters)
  clips = lambda rows: (
    jax.ShapeDtypeStruct((rows, steps, *feature_shape), dtype),
    jax.ShapeDtypeStruct((rows, steps), jnp.bool),
  )
  stream, rebuild_stream = _named(jax.eval_shape(start, shapes, *clips(1)))

  def step(parameters, stream, features):
    after, out = streaming.step(
      model, rebuild(parameters), rebuild_stream(stream), features, **options
    )
    shown = _shown(out)
    shown['probabilities'] = jax.nn.softmax(out.logits)
    return _named(after)[0], shown

  named_start = lambda *args: _named(start(*args))[0]
  export = lambda f, *args: jax.export.export(jax.jit(f), platforms=platforms)(
    shapes, *args
  )
  frame = jax.ShapeDtypeStruct((1, *feature_shape), dtype)
  return Programs(
    parameters=parameters,
    blocks=export(blocks, *clips(batch)),
    stream_start=export(named_start, *clips(1)),
    stream_step=export(step, stream, frame),
  )


def _shown(out: RecogniserOutput) -> dict[str, Array]:
  """What a program returns, by name."""
  shown = {'logits': out.logits}
  if out.attention is not None:
    shown['weights'] = out.attention.weights
  if out.cell is not None and out.cell.z is not None:
    shown |= {'z': out.cell.z, 'operation': out.cell.operation}
  return shown


def _named(tree: PyTree) -> tuple[dict[str, Any], Any]:
  """The leaves by name, and the function from such a dict to the tree."""
  leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
  name = lambda path: jax.tree_util.keystr(path, simple=True, separator='/')
  names = [name(path) for path, _ in leaves]
  rebuild = lambda named: structure.unflatten([named[n] for n in names])
  return dict(zip(names, (leaf for _, leaf in leaves))), rebuild


def _shape(x: Array | np.ndarray) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(x.shape, x.dtype)
