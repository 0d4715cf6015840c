"""Interchangeable attention modules over the locations of a feature map."""

from hman_jax.attention.base import SCORERS, Attention, AttentionOutput
from hman_jax.attention.gumbel import Gumbel
from hman_jax.attention.gumbel_adaptive import GumbelAdaptive
from hman_jax.attention.mean import Mean
from hman_jax.attention.position import POSITION_CODES, position_code
from hman_jax.attention.reinforce import Reinforce
from hman_jax.attention.soft import Soft
from hman_jax.cells.base import check_choice

ATTENTIONS: dict[str, type[Attention]] = {
  'soft': Soft,
  'reinforce': Reinforce,
  'gumbel': Gumbel,
  'gumbel_adaptive': GumbelAdaptive,
  'none': Mean,
}


def create(name: str, **options) -> Attention:
  """Makes an attention module by name.

  Args:
    name: a key of `ATTENTIONS`.
    **options: attributes of the module, for example `scorer='content'`.

  Returns:
    An unbound Flax module with the signature of `Attention.__call__`.

  Raises:
    ValueError: if the name is unknown.

  Example:
    >>> create('soft', scorer='content').scorer
    'content'
  """
  check_choice('attention', name, tuple(ATTENTIONS))
  return ATTENTIONS[name](**options)


__all__ = [
  'ATTENTIONS',
  'POSITION_CODES',
  'SCORERS',
  'Attention',
  'AttentionOutput',
  'Gumbel',
  'GumbelAdaptive',
  'Mean',
  'Reinforce',
  'Soft',
  'create',
  'position_code',
]
