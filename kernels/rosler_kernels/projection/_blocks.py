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


def by_blocks(
    y: Array,
    rows: int,
    size: int,
    part: Callable[[Any, int], Callable[[Array], Array]],
    numbers: int | None = NUMBERS,
) -> Array:
    """A result (b, rows) in blocks of columns, and each of them in blocks of examples.

    Args:
      y: (b, n).
      rows: columns of the result.
      size: of its blocks.
      part: (first, size) -> from some examples to their block; what it makes is made once.
      numbers: of a block of examples; None: all examples at once.
    """
    known = isinstance(y.shape[0], int)
    count = fitting(size, numbers) if numbers is not None and known else None
    if count is not None and count >= y.shape[0]:
        count = None  # all at once
    if size == rows and count is None:
        return part(0, rows)(y).astype(y.dtype)

    def column(first: Any, size: int, out: Array) -> Array:
        run = part(first, size)

        def some(at: Any, size: int, out: Array) -> Array:
            block = run(examples(y, at, size)).astype(y.dtype)
            return jax.lax.dynamic_update_slice(out, block, (at, first))

        if count is None:
            return jax.lax.dynamic_update_slice_in_dim(out, run(y).astype(y.dtype), first, axis=1)
        return over(y.shape[0], count, some, out)

    return over(rows, size, column, jnp.zeros((y.shape[0], rows), y.dtype))
