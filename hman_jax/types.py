"""Axis names and array aliases used in every signature of the library.

| letter | axis                                                             |
|--------|------------------------------------------------------------------|
| B      | batch (clips)                                                    |
| T      | time (frames, or steps)                                          |
| N      | locations of a feature map, row-major, N = K * K (49 for 7 x 7)  |
| D      | numbers in the feature of one location                           |
| P      | numbers in the position code of one location                     |
| H      | hidden units of a layer                                          |
| L      | layers                                                           |
| C      | classes                                                          |

Public arrays are batch-major: `[B, T, ...]`. A mask is True where valid.
A key is a typed PRNG key (`jax.random.key`); raw `uint32` keys are accepted.
A key argument is either one key, or one key for each row of the batch
(a key array of shape `[B]`): then the noise of a row depends on its own key
only, whatever the batch it is in and however that batch is spread on devices.
"""

from typing import Any, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
PyTree: TypeAlias = Any
