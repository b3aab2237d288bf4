"""Loops over blocks, so that what a product needs beside its result is of a block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Array

NUMBERS = 2**20
"""Numbers of an input or an output that a block holds beside them: 4 MB of float32."""


def over(count: int, size: int, step: Callable[[Any, int, Any], Any], carry: Any) -> Any:
    """step(first, size, carry) for all blocks of ``size`` of ``count``; the last may be smaller."""
    whole, rest = divmod(count, size)
    if whole == 1:
        carry = step(0, size, carry)
    elif whole:
        carry = jax.lax.fori_loop(0, whole, lambda i, c: step(i * size, size, c), carry)
    return step(whole * size, rest, carry) if rest else carry


def fitting(each: int, numbers: int | None = None) -> int:
    """How many examples of so many numbers make a block, by default of ``NUMBERS``."""
    return max(1, (NUMBERS if numbers is None else numbers) // max(1, each))


def pays(dtype: Any, platform: str) -> bool:
    """Whether a loop over examples saves memory.

    XLA for CPUs has no slices of bfloat16: it widens the whole of an array, whatever is asked.
    """
    return platform != "cpu" or jnp.dtype(dtype) != jnp.bfloat16


def examples(x: Array, first: Any, size: int) -> Array:
    """Those examples, by themselves: XLA might convert all of x once, not a block in each turn."""
    return jax.lax.optimization_barrier(jax.lax.dynamic_slice_in_dim(x, first, size))


def by_examples(run: Callable[[Array], Array], x: Array, cols: int, dtype: Any, each: int) -> Array:
    """run(x), as many examples at a time as make a block.

    Args:
      run: from examples to their results (b, cols).
      x: (b, n); a symbolic b is one block.
      cols, dtype: of the results.
      each: numbers of an example that ``run`` holds.
    """
    size = fitting(each)
    if not isinstance(x.shape[0], int) or x.shape[0] <= size:
        return run(x).astype(dtype)

    def step(first: Any, size: int, out: Array) -> Array:
        part = run(examples(x, first, size)).astype(dtype)
        return jax.lax.dynamic_update_slice_in_dim(out, part, first, 0)

    return over(x.shape[0], size, step, jnp.zeros((x.shape[0], cols), dtype))
