"""hadamard_transform: checks, choice of implementation, its own derivative."""

from __future__ import annotations

import functools
import importlib
import math
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from ..selection import IMPLEMENTATIONS, Choice, Problem, backend_options, choose
from ..sharding import by_example

if TYPE_CHECKING:
    from types import ModuleType

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

    >>> hadamard_transform(jnp.array([1.0, 0.0, 0.0, 2.0])).tolist()
    [3.0, -1.0, -1.0, 3.0]
    """
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"hadamard_transform: dtype {x.dtype}; expected a floating array")
    n = x.shape[-1] if x.ndim else 0
    if n < 1 or n & (n - 1):
        raise ValueError(
            f"hadamard_transform: shape {x.shape}; expected a last axis of a power of two: pad it"
        )
    problem = Problem("hadamard", "walsh", x.dtype.name, (math.prod(x.shape[:-1]), n, n))

    def unsupported(module: str) -> str | None:
        check = getattr(_module(module), "unsupported", None)
        return None if check is None else check(n, x.dtype)

    choice = choose(problem, implementation, unsupported)
    return by_example(functools.partial(_transform, choice), x)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{name}")


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
@functools.partial(jax.jit, static_argnums=0)
def _transform(choice: Choice, x: Array) -> Array:
    module = _module(IMPLEMENTATIONS[choice.name].module)
    options = backend_options(choice, getattr(module, "Blocks", None))
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    return module.transform(flat, **options).reshape(x.shape)


def _forward(choice: Choice, x: Array) -> tuple[Array, None]:
    return _transform(choice, x), None


def _backward(choice: Choice, _: None, cotangent: Array) -> tuple[Array]:
    return (_transform(choice, cotangent),)


_transform.defvjp(_forward, _backward)
