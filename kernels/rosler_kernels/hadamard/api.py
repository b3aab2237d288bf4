"""hadamard_transform: an operation that is its own transpose."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _operation as operation
from .._problem import Problem

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def hadamard_transform(
    x: Float[Array, "... n"], *, implementation: str | None = None
) -> Float[Array, "... n"]:
    """x H_n along the last axis, H[i, c] = (-1)^popcount(i & c), not normalised.

    H is symmetric and H H = n I: the transform is its own cotangent, and n times its own inverse.

    Args:
      x: floating array (..., n), n a power of two.
      implementation: a key of ``rosler_kernels.IMPLEMENTATIONS``.

    Returns:
      array (..., n) of x's dtype, accumulated in float32 (or wider, if x is).

    Raises:
      TypeError: x is not floating.
      ValueError: n is not a power of two, or the implementation is unknown or cannot run.

    >>> import jax.numpy as jnp
    >>> hadamard_transform(jnp.array([1.0, 0.0, 0.0, 2.0])).tolist()
    [3.0, -1.0, -1.0, 3.0]
    """
    x = operation.floating("hadamard_transform", x)
    n = x.shape[-1] if x.ndim else 0
    if n < 1 or n & (n - 1):
        raise ValueError(
            f"hadamard_transform: shape {x.shape}; expected a last axis of a power of two: pad it"
        )
    return operation.apply(HADAMARD, implementation, x)[0]


HADAMARD = operation.define(
    "hadamard",
    __package__,
    describe=lambda examples, x: (
        Problem("hadamard", "walsh", x.dtype.name, (examples, x.shape[-1], x.shape[-1])),
        (x.shape[-1], x.dtype),
    ),
    shapes=lambda x: (x.shape[-1:],),
    run=lambda module, x, **options: (module.transform(x, **options),),
    partner=lambda **_: {},
)
