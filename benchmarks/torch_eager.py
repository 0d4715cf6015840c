"""The same recogniser in eager PyTorch, gates fused, for comparison."""

from typing import Any

import numpy as np


class Recogniser:
  """Parameters copied from a `hman_jax` recogniser, and its loss.

  Gates of a layer are one product for each input, as one would write it in
  PyTorch; the boundary logit is a further column.
  """

  def __init__(self, torch: Any, params: Any, attention: str):
    """Copies parameters.

    Args:
      torch: the module `torch`.
      params: 'params' of a recogniser with the location scorer.
      attention: 'soft' or 'gumbel_adaptive'.
    """
    self.torch, self.attention = torch, attention
    self.parameters: list[Any] = []
    dense = lambda p: (self._own(p['kernel']), self._own(p['bias']))
    self.location = dense(params['attention']['location_logits'])
    if attention != 'soft':
      self.inverse = dense(params['attention']['inverse_temperature'])
    self.head = dense(params['head'])
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

  def _own(self, array):
    tensor = self.torch.tensor(np.asarray(array), requires_grad=True)
    self.parameters.append(tensor)
    return tensor

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
      below = self._attend(features[:, t], hs[0], deterministic)
      z_below = torch.ones_like(zs[0])
      for l, layer in enumerate(self.layers):
        s = hs[l] @ layer['recurrent'] + layer['bias']
        s = s + (z_below * below) @ layer['bottom_up']
        if 'top_down' in layer:
          s = s + (zs[l] * hs[l + 1]) @ layer['top_down']
        i, f, o, g, a = torch.split(s.float(), [sizes[l]] * 4 + [1], dim=1)
        i, f, o, g = i.sigmoid(), f.sigmoid(), o.sigmoid(), g.tanh()
        copy = (1 - zs[l]) * (1 - z_below)
        cs[l] = zs[l] * i * g + (1 - zs[l]) * (
          z_below * (f * cs[l] + i * g) + (1 - z_below) * cs[l]
        )
        hs[l] = copy * hs[l] + (1 - copy) * o * cs[l].tanh()
        zs[l] = self._boundary(a, deterministic)
        below, z_below = hs[l], zs[l]
      shown.append(torch.cat(hs, dim=1))
    return torch.stack(shown, dim=1) @ self.head[0] + self.head[1]

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
    return torch.bmm(weights[:, None].to(features.dtype), features)[:, 0]

  def _boundary(self, a, deterministic):
    torch = self.torch
    if not deterministic:
      uniform = torch.rand_like(a).clamp_min(1e-30)
      a = a + uniform.log() - (-uniform).log1p()
    soft = (a / 0.3).sigmoid()
    return soft + ((soft > 0.5).to(soft.dtype) - soft).detach()

  def gradients(self, features, labels, bfloat16: bool):
    """The loss and the gradients of all parameters."""
    torch = self.torch
    with torch.autocast('cpu', dtype=torch.bfloat16, enabled=bfloat16):
      logits = self.logits(features, deterministic=False)
    flat = logits.float().flatten(0, 1)
    targets = labels[:, None].expand(logits.shape[:2]).flatten()
    loss = torch.nn.functional.cross_entropy(flat, targets)
    return loss, torch.autograd.grad(loss, self.parameters)
