"""The same recognisers in eager PyTorch, for comparison."""

from typing import Any

import numpy as np


class _Peer:
  """Parameters copied from a `hman_jax` recogniser, and its loss.

  Args:
    torch: the module `torch`.
    params: 'params' of a recogniser with the location scorer.
  """

  def __init__(self, torch: Any, params: Any):
    self.torch = torch
    self.parameters: list[Any] = []
    self.location = self._dense(params['attention']['location_logits'])
    self.head = self._dense(params['head'])

  def _own(self, array):
    tensor = self.torch.tensor(np.asarray(array), requires_grad=True)
    self.parameters.append(tensor)
    return tensor

  def _dense(self, params):
    return self._own(params['kernel']), self._own(params['bias'])

  def logits(self, features, deterministic: bool):
    """Logits `[B, T, C]` of features `[B, T, N, D]`."""
    raise NotImplementedError

  def gradients(self, features, labels, bfloat16: bool):
    """The loss and the gradients of all parameters."""
    torch = self.torch
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=bfloat16):
      logits = self.logits(features, deterministic=False)
    flat = logits.float().flatten(0, 1)
    targets = labels[:, None].expand(logits.shape[:2]).flatten()
    loss = torch.nn.functional.cross_entropy(flat, targets)
    return loss, torch.autograd.grad(loss, self.parameters)


class Recogniser(_Peer):
  """HM-AN. Gates of a layer are one product for each input, as one would write
  it in PyTorch; the boundary logit is a further column.

  Args:
    torch: the module `torch`.
    params: 'params' of a recogniser with the location scorer.
    attention: 'soft' or 'gumbel_adaptive'.
    compile_step: whether `torch.compile` compiles the step.
  """

  def __init__(
    self, torch: Any, params: Any, attention: str, compile_step: bool = False
  ):
    super().__init__(torch, params)
    self.attention = attention
    if attention != 'soft':
      self.inverse = self._dense(params['attention']['inverse_temperature'])
    self.layers = []
    for layer in params['cell'].layers:
      joined = lambda name, layer=layer: np.concatenate(
        [
          np.asarray(getattr(layer, name)),
          np.asarray(getattr(layer, f'{name}_z'))[..., None],
        ],
        axis=-1,
      )
      self.layers.append(
        {
          name: self._own(joined(name))
          for name in ('recurrent', 'bottom_up', 'top_down', 'bias')
          if getattr(layer, name) is not None
        }
      )
    self.step = torch.compile(self._step) if compile_step else self._step

  def logits(self, features, deterministic: bool):
    """Logits `[B, T, C]` of features `[B, T, N, D]`."""
    torch = self.torch
    batch, steps = features.shape[:2]
    sizes = [layer['recurrent'].shape[0] for layer in self.layers]
    cs = [features.new_zeros(batch, size) for size in sizes]
    hs = [features.new_zeros(batch, size) for size in sizes]
    zs = [features.new_zeros(batch, 1) for _ in sizes]
    shown = []
    for t in range(steps):
      cs, hs, zs = self.step(features[:, t], cs, hs, zs, deterministic)
      shown.append(torch.cat(hs, dim=1))
    return torch.stack(shown, dim=1) @ self.head[0] + self.head[1]

  def _step(self, features, cs, hs, zs, deterministic):
    torch = self.torch
    cs, hs, zs = list(cs), list(hs), list(zs)
    below = self._attend(features, hs[0], deterministic)
    z_below = torch.ones_like(zs[0])
    for l, layer in enumerate(self.layers):
      s = hs[l] @ layer['recurrent'] + layer['bias']
      s = s + (z_below * below) @ layer['bottom_up']
      if 'top_down' in layer:
        s = s + (zs[l] * hs[l + 1]) @ layer['top_down']
      sizes = [cs[l].shape[1]] * 4 + [1]
      i, f, o, g, a = torch.split(s.float(), sizes, dim=1)
      i, f, o, g = i.sigmoid(), f.sigmoid(), o.sigmoid(), g.tanh()
      copy = (1 - zs[l]) * (1 - z_below)
      cs[l] = zs[l] * i * g + (1 - zs[l]) * (
        z_below * (f * cs[l] + i * g) + (1 - z_below) * cs[l]
      )
      hs[l] = copy * hs[l] + (1 - copy) * o * cs[l].tanh()
      zs[l] = self._boundary(a, deterministic)
      below, z_below = hs[l], zs[l]
    return cs, hs, zs

  def _attend(self, features, h, deterministic):
    torch = self.torch
    e = (h @ self.location[0] + self.location[1]).float()
    if self.attention == 'soft':
      weights = e.softmax(dim=1)
    else:
      raw = (h @ self.inverse[0] + self.inverse[1]).float()
      tau = 1 / (torch.nn.functional.softplus(raw) + 1)
      if not deterministic:
        e = e - torch.empty_like(e).exponential_().log()
      soft = (e / tau).softmax(dim=1)
      hard = torch.nn.functional.one_hot(soft.argmax(dim=1), e.shape[1])
      weights = soft + (hard - soft).detach()
    return _mean(torch, weights, features)

  def _boundary(self, a, deterministic):
    torch = self.torch
    if not deterministic:
      uniform = torch.rand_like(a).clamp_min(1e-30)
      a = a + uniform.log() - (-uniform).log1p()
    soft = (a / 0.3).sigmoid()
    return soft + ((soft > 0.5).to(soft.dtype) - soft).detach()


class Baseline(_Peer):
  """The paper's baseline: `torch.nn.LSTM` layers with soft attention.

  Args:
    torch: the module `torch`.
    params: 'params' of a recogniser of an LSTM and soft attention, with the
      location scorer.
  """

  def __init__(self, torch: Any, params: Any):
    super().__init__(torch, params)
    layers = params['cell'].layers
    size, width = layers[0].bottom_up.shape
    self.lstm = torch.nn.LSTM(size, width // 4, len(layers), batch_first=True)
    with torch.no_grad():
      for l, layer in enumerate(layers):
        values = {
          f'weight_ih_l{l}': _torch_gates(layer.bottom_up).T,
          f'weight_hh_l{l}': _torch_gates(layer.recurrent).T,
          f'bias_ih_l{l}': _torch_gates(layer.bias),
          f'bias_hh_l{l}': np.zeros(layer.bias.shape),
        }
        for name, value in values.items():
          getattr(self.lstm, name).copy_(torch.tensor(value))
    self.parameters += list(self.lstm.parameters())

  def logits(self, features, deterministic: bool):
    """Logits `[B, T, C]` of features `[B, T, N, D]`; it draws nothing."""
    del deterministic
    torch = self.torch
    shape = (self.lstm.num_layers, len(features), self.lstm.hidden_size)
    h, c = features.new_zeros(shape), features.new_zeros(shape)
    shown = []
    for t in range(features.shape[1]):
      e = (h[0] @ self.location[0] + self.location[1]).float()
      context = _mean(torch, e.softmax(dim=1), features[:, t])
      _, (h, c) = self.lstm(context[:, None], (h, c))
      shown.append(h.transpose(0, 1).flatten(1))
    return torch.stack(shown, dim=1) @ self.head[0] + self.head[1]


def _mean(torch, weights, features):
  return torch.bmm(weights[:, None].to(features.dtype), features)[:, 0]


def _torch_gates(array) -> np.ndarray:
  """Columns in the order i, f, g, o, where ours are i, f, o, g."""
  i, f, o, g = np.split(np.asarray(array), 4, axis=-1)
  return np.concatenate([i, f, g, o], axis=-1)
