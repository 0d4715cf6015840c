"""The HM-LSTM's layer as one GPU kernel forward and one backward (Pallas).

What is launched. XLA runs a step of three layers and an attention as 51 kernels
forward and 44 backward (counted: `benchmarks.launches`). Here a layer's sums,
gates and states are one kernel, and one backward, beside which XLA prepares
what it reads; 27 and 27 remain.

    XLA     x = [h_{t-1}; z_below h_below; z_{t-1} h_above], one array `[B, K]`
    kernel  s = x [U; W; V] + b, a = x [u; w; v] + b_z, c_t and h_t

and backward, from s, which the forward pass kept (`deferred.fused`):

    kernel  ds, dx = ds [U; W; V]^T + da [u; w; v]^T, dc, dh, dz
    XLA     the gradients of x's parts, and of z and what it was made of

Noise, estimators, masks and a top layer without detector are thus XLA's, as
they were, on `[B]` numbers; so is the attention, on which the bottom layer's x
depends at each step: no launch can hold several steps. Weight gradients remain
one product over all steps.

What stays on chip. The three layers of the paper (H = 512, D = 2048) read 11.5
million weights a step: 46 MB in float32, 23 MB in bfloat16. A multiprocessor of
an H200 has 228 KB of shared memory, all 132 have 30 MB: float32 does not fit
them, and bfloat16 would need a launch that outlives the step, in which all
programs wait for each other twice a layer; Pallas has no such barrier for
Triton. So the weights stay in the 50 MB of second-level cache, which outlives a
launch, and a program streams its columns through shared memory: 16 rows by 16
units forward, that is 128 programs for 64 rows and 512 units; 16 rows by 32
columns of x backward. `obstacle` holds the count: H = 512 fits in both
precisions, H = 1024 in neither (D = 2048: 151 and 75 MB).

Float32 products follow `jax_default_matmul_precision`, as XLA's do. JAX calls
the Triton backend deprecated since 0.11; 0.12 has it. The kernels are for one
device: `jit` over several runs them on all rows on each.
"""

import dataclasses
import functools
import warnings
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from hman_jax import deferred, precision
from hman_jax.cells.hm_lstm import HMLSTM, HMLSTMParams
from hman_jax.types import Array

CACHE_BYTES = 50_000_000  # the second-level cache of an H100 or H200

_ROWS = 16  # of the batch, a program; the least a Triton product takes
_UNITS = 16  # whose four gates a program of the forward kernel makes
_WIDTH = 32  # columns of dx a program of the backward kernel makes
_DEPTH = 64  # columns of x that the forward kernel sums over at a time

_COMPILER = triton.CompilerParams(num_warps=4, num_stages=3)


def with_kernel(cell: Any) -> Any:
  """The same cell with these kernels; a cell that is no `HMLSTM` as it is.

  Args:
    cell: an `HMLSTM`, or another `Cell`.

  Returns:
    A `PallasHMLSTM` with the cell's options, or the cell.

  Example:
    >>> with_kernel(HMLSTM(hidden_sizes=(32,))).hidden_sizes
    (32,)
  """
  if type(cell) is not HMLSTM:
    return cell
  return PallasHMLSTM(**_options(cell))


def obstacle(
  cell: HMLSTM, params: HMLSTMParams, batch_shape: Any
) -> str | None:
  """Why a step cannot run by the kernels.

  Args:
    cell: its options.
    params: of the cell.
    batch_shape: leading shape of the state.

  Returns:
    The reason in words, or None if nothing is in the way.
  """
  if cell.layer_norm:
    return 'layer_norm needs all units of a layer in one program'
  if cell.skip_copies:
    return 'skip_copies leaves out products that the kernel makes'
  if any(h % _WIDTH for h in cell.hidden_sizes):
    return f'hidden_sizes {cell.hidden_sizes} are not multiples of {_WIDTH}'
  if len(batch_shape) != 1 or not isinstance(batch_shape[0], int):
    return f'leading shape {batch_shape} is not one number'
  if batch_shape[0] % _ROWS:
    return f'the batch of {batch_shape[0]} is not a multiple of {_ROWS}'
  kernels = [k for layer in params.layers for k in _kernels(layer)]
  if any(k.dtype != jnp.float32 for k in kernels):
    return f'parameters are of {kernels[0].dtype}, not float32'
  size = sum(k.size for k in kernels) * jnp.dtype(cell.dtype).itemsize
  if size > CACHE_BYTES:
    return f'weights of {size} bytes exceed a cache of {CACHE_BYTES}'
  return None


@dataclasses.dataclass(frozen=True)
class PallasHMLSTM(HMLSTM):
  """An `HMLSTM` whose layers run by the kernels, on CUDA.

  Elsewhere the same sums are XLA's. What has an `obstacle` runs as `HMLSTM`
  does, with a warning. Gradients are for `deferred.scan` only.

  Attributes:
    interpret: run the kernels by Pallas's interpreter on any platform: for
      tests, and slow.
  """

  interpret: bool = False

  def step(self, params: Any, state: Any, x: Array, *args: Any, **kwargs: Any):
    """See `HMLSTM.step`."""
    reason = obstacle(self, params, x.shape[:-1])
    if reason is None:
      return super().step(params, state, x, *args, **kwargs)
    text = f"backward='pallas' runs as 'deferred': {reason}."
    warnings.warn(text, stacklevel=2)
    return HMLSTM(**_options(self)).step(params, state, x, *args, **kwargs)

  def _layer(self, layer, c, h, above, below, z_before, z_below, copy):
    parts = [h, z_below[:, None] * below]
    columns = [layer.recurrent_z, layer.bottom_up_z]
    if above is not None:
      parts.append(z_before[:, None] * above)
      columns.append(layer.top_down_z)
    value = _padded(parts)
    kernel = _padded(_kernels(layer), axis=0)
    bias = layer.bias[None]
    if layer.bias_z is None:  # a top layer without detector
      column, bias_z = jnp.zeros(value.shape[1]), jnp.zeros(())
    else:
      column, bias_z = _padded(columns), layer.bias_z
    fixed = jax.lax.stop_gradient(kernel).astype(self.dtype)
    (_, logit), (c, h) = deferred.fused(
      _Layer(self),
      value,
      [kernel, column],
      [bias, bias_z],
      [c, h, z_before, z_below, fixed],
    )
    return c, h, None if layer.bias_z is None else logit

  def advance(
    self, gates: Any, c: Array, h: Array, z_before: Array, z_below: Array
  ) -> tuple[Array, Array]:
    """c and h after a step, of the four gates' sums, each `[..., H]`."""
    *squashed, g = gates
    i, f, o = (jax.nn.sigmoid(x) for x in squashed)
    copy = (1 - z_before) * (1 - z_below)
    gates = i, f, o, jnp.tanh(g)
    return self._combine(gates, c, h, z_before, z_below, copy)


def _options(cell: HMLSTM) -> dict[str, Any]:
  return {f.name: getattr(cell, f.name) for f in dataclasses.fields(HMLSTM)}


def _kernels(layer) -> list[Array]:
  kernels = [layer.recurrent, layer.bottom_up, layer.top_down]
  return [k for k in kernels if k is not None]


def _padded(parts: list[Array], axis: int = -1) -> Array:
  """The parts in a row, and zeros up to a multiple of what a kernel reads."""
  shape = list(parts[0].shape)
  shape[axis] = -sum(p.shape[axis] for p in parts) % _DEPTH
  return jnp.concatenate([*parts, jnp.zeros(shape, parts[0].dtype)], axis)


@dataclasses.dataclass(frozen=True)
class _Layer:
  """What `deferred.fused` runs: sums (s, a), results (c, h).

  Its others are c, h `[B, H]`, z_before, z_below `[B]` and the kernel in the
  dtype of the products; of the sums, s is read by nothing else.
  """

  cell: PallasHMLSTM

  def forward(self, value, weights, biases, others):
    return self._choose(
      functools.partial(_forward, self.cell), self._forward_by_xla,
      value, weights, biases, others,
    )  # fmt: skip

  def results(self, sums, others):
    return list(self.cell.advance(jnp.split(sums[0], 4, -1), *others[:4]))

  def backward(self, weights, sums, others, d_sums, d_results):
    d_gates, d_value, d_others = self._choose(
      functools.partial(_backward, self.cell), self._backward_by_xla,
      weights, sums, others, d_sums[1], d_results,
    )  # fmt: skip
    return [d_gates, d_sums[1]], d_value, [*d_others, None]

  def product(self, k, value, weight):
    return precision.dot(value, weight, 'float32' if k else self.cell.dtype)

  def _choose(self, by_kernel, by_xla, *args):
    if self.cell.interpret:
      return by_kernel(*args)
    return jax.lax.platform_dependent(*args, cuda=by_kernel, default=by_xla)

  def _forward_by_xla(self, value, weights, biases, others):
    sums = [
      self.product(k, value, w) + b
      for k, (w, b) in enumerate(zip(weights, biases))
    ]
    return sums, self.results(sums, others)

  def _backward_by_xla(self, weights, sums, others, d_logit, d_results):
    def results(gates, *others):
      return self.results([gates], others)

    _, pull = jax.vjp(results, sums[0], *others[:4])
    d_gates, *d_others = pull(d_results)
    kernel, column = weights
    value = jax.ShapeDtypeStruct(
      (d_gates.shape[0], kernel.shape[0]), d_gates.dtype
    )
    push = jax.linear_transpose(lambda x: self.product(0, x, kernel), value)
    (d_value,) = push(d_gates)
    return d_gates, d_value + d_logit[:, None] * column[None], d_others


def _call(
  kernel, cell, grid, in_specs, out_specs, out_shape, *args, in_place=()
):  # fmt: skip
  """`pl.pallas_call` of blocks given as (shape, index of the block)."""
  spec = lambda at: pl.BlockSpec(*at)
  return pl.pallas_call(
    functools.partial(kernel, cell),
    grid=grid,
    in_specs=[spec(s) for s in in_specs],
    out_specs=[spec(s) for s in out_specs],
    out_shape=[jax.ShapeDtypeStruct(s, jnp.float32) for s in out_shape],
    input_output_aliases=dict(in_place),
    compiler_params=_COMPILER,
    interpret=cell.interpret,
    name=kernel.__name__.strip('_'),
  )(*args)


def _forward(cell: PallasHMLSTM, value, weights, biases, others):
  """`_Layer.forward` by the kernel."""
  c, h, z_before, z_below, kernel = others
  (batch, size), depth = c.shape, value.shape[1]
  row = ((_ROWS,), lambda i, n: (i,))
  tile = ((_ROWS, _UNITS), lambda i, n: (i, n))
  gates = ((_ROWS, 4, _UNITS), lambda i, n: (i, 0, n))
  sums, logit, new_c, new_h = _call(
    _forward_kernel, cell, (batch // _ROWS, size // _UNITS),
    [
      ((_ROWS, depth), lambda i, n: (i, 0)),
      ((depth, 4, _UNITS), lambda i, n: (0, 0, n)),
      ((depth,), lambda i, n: (0,)),
      ((4, _UNITS), lambda i, n: (0, n)),
      ((1,), lambda i, n: (0,)),
      tile, tile, row, row,
    ],
    [gates, row, tile, tile],
    [(batch, 4, size), (batch,), c.shape, c.shape],
    value, kernel.reshape(depth, 4, size), weights[1],
    biases[0].reshape(4, size), biases[1].reshape(1), c, h, z_before, z_below,
    in_place=((5, 2), (6, 3)),  # a program reads c and h where it writes them
  )  # fmt: skip
  return [sums.reshape(batch, 4 * size), logit], [new_c, new_h]


def _forward_kernel(
  cell, value, kernel, column, bias, bias_z, c, h, z_before, z_below,
  sums, logit, new_c, new_h,
):  # fmt: skip
  def add(k, totals):
    at = pl.ds(k * _DEPTH, _DEPTH)
    x = value[:, at]
    *gates, a = totals
    factor = x.astype(kernel.dtype)
    gates = [
      s + triton.dot(factor, kernel[at, g, :]) for g, s in enumerate(gates)
    ]
    return *gates, a + jnp.sum(x * column[at][None], axis=1)

  zeros = jnp.zeros((_ROWS, _UNITS), jnp.float32)
  totals = (*[zeros] * 4, jnp.zeros(_ROWS, jnp.float32))
  *gates, a = jax.lax.fori_loop(0, value.shape[1] // _DEPTH, add, totals)
  gates = [s + bias[g, :][None] for g, s in enumerate(gates)]
  for g, s in enumerate(gates):
    sums[:, g, :] = s
  new_c[...], new_h[...] = cell.advance(
    gates, c[...], h[...], z_before[...], z_below[...]
  )

  @pl.when(pl.program_id(1) == 0)
  def _():
    logit[...] = a + bias_z[0]


def _backward(cell: PallasHMLSTM, weights, sums, others, d_logit, d_results):
  """`_Layer.backward` by the kernel: gradients of (s, x, others)."""
  c, h, z_before, z_below, kernel = others
  (batch, size), depth = c.shape, kernel.shape[0]
  row = ((_ROWS,), lambda i, n: (i,))
  rows = ((_ROWS, size), lambda i, n: (i, 0))
  gates = ((_ROWS, 4, size), lambda i, n: (i, 0, 0))
  d_gates, d_value, *d_others = _call(
    _backward_kernel, cell, (batch // _ROWS, depth // _WIDTH),
    [
      gates, rows, rows, row, row,
      ((_WIDTH, 4, size), lambda i, n: (n, 0, 0)),
      ((_WIDTH,), lambda i, n: (n,)),
      row, rows, rows,
    ],
    [gates, ((_ROWS, _WIDTH), lambda i, n: (i, n)), rows, rows, row, row],
    [(batch, 4, size), (batch, depth), c.shape, c.shape, (batch,), (batch,)],
    sums[0].reshape(batch, 4, size), c, h, z_before, z_below,
    kernel.reshape(depth, 4, size), weights[1], d_logit, *d_results,
  )  # fmt: skip
  return d_gates.reshape(batch, 4 * size), d_value, d_others


def _backward_kernel(
  cell, sums, c, h, z_before, z_below, kernel, column, d_logit, d_new_c,
  d_new_h, d_gates, d_value, d_c, d_h, d_before, d_below,
):  # fmt: skip
  # Every program makes the gates' gradients of its rows, for its product;
  # program n writes those of the n-th units. There are enough: K >= H.
  mine = pl.program_id(1)

  def add(j, totals):
    at = pl.ds(j * _WIDTH, _WIDTH)
    total, before, below = totals
    _, pull = jax.vjp(
      cell.advance, [sums[:, g, at] for g in range(4)],
      c[:, at], h[:, at], z_before[...], z_below[...],
    )  # fmt: skip
    gates, dc, dh, more_before, more_below = pull(
      (d_new_c[:, at], d_new_h[:, at])
    )

    @pl.when(mine == j)
    def _():
      for g, s in enumerate(gates):
        d_gates[:, g, at] = s
      d_c[:, at], d_h[:, at] = dc, dh

    for g, s in enumerate(gates):
      factor = s.astype(kernel.dtype)
      total += triton.dot(factor, kernel[:, g, at], trans_b=True)
    return total, before + more_before, below + more_below

  zeros = jnp.zeros(_ROWS, jnp.float32)
  start = jnp.zeros((_ROWS, _WIDTH), jnp.float32), zeros, zeros
  total, before, below = jax.lax.fori_loop(0, c.shape[1] // _WIDTH, add, start)
  d_value[...] = total + d_logit[...][:, None] * column[...][None]

  @pl.when(mine == 0)
  def _():
    d_before[...], d_below[...] = before, below
