"""Factors as stacks of matrices, whatever the layer's layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from jaxtyping import Array, Float


def column_matrices(
    c: Float[Array | np.ndarray, "*stack m_s"], u: Float[Array | np.ndarray, "*stack s l"]
) -> Any:
    """The column factor of each of the ``k`` matrices that a layer, or a stack of them, holds.

    Layouts: dense ``C (m, s)``, ``U (s, l)``; batched ``C (g, m, s)``, ``U (g, s, l)``; convolution
    ``C (*window, c_in / g, g s)``, ``U (g, s, l)``. Axes in front of both count layers.

    Args:
      c: column factor; NumPy or JAX.
      u: core, which tells the layout and the number of layers.

    Returns:
      Shape ``(k, m, s)``.

    Example:
      >>> import numpy as np
      >>> column_matrices(np.ones((5, 3, 3, 4, 6)), np.ones((5, 2, 3, 3))).shape
      (10, 36, 3)
    """
    s = u.shape[-2]
    if _is_batched(c.shape, u.shape):
        return c.reshape(-1, *c.shape[-2:])
    g = u.shape[-3]
    layers = math.prod(u.shape[:-3])
    return c.reshape(layers, -1, g, s).swapaxes(1, 2).reshape(layers * g, -1, s)


def fold_columns(
    matrices: Float[Array | np.ndarray, "k m s"], shape: Sequence[int], core_shape: Sequence[int]
) -> Any:
    """The inverse of :func:`column_matrices`, for a column factor and a core of those shapes."""
    if _is_batched(shape, core_shape):
        return matrices.reshape(*shape)
    g, s = core_shape[-3:-1]
    layers = math.prod(core_shape[:-3])
    return matrices.reshape(layers, g, -1, s).swapaxes(1, 2).reshape(*shape)


def _is_batched(shape: Sequence[int], core_shape: Sequence[int]) -> bool:
    return (*shape[:-2], shape[-1]) == tuple(core_shape[:-1])
