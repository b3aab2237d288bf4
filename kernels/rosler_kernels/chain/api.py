"""sketch_matmul: checks, choice of implementation, and the cotangents of both training stages."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from .. import _operation as operation
from .._problem import Problem
from ..products import outer
from ..projection.api import project
from ..selection import Choice
from ..sharding import by_example
from ..sketches import Sketch
from ..sketches._base import only_live
from . import xla

if TYPE_CHECKING:
    from jaxtyping import Array, Float

    from ..sketches._base import Static

    Factor = Array | Sketch
    How = tuple[Choice, str | None]


class Parallel(NamedTuple):
    """The sketches that aRes-BP's parallel stage takes the cotangents with.

    Attributes:
      psi: co-range sketch, m -> l.
      omega: range sketch, n -> s.

    >>> import jax.numpy as jnp
    >>> from rosler_kernels import rademacher
    >>> two = Parallel(psi=rademacher(0, 20, 8), omega=rademacher(1, 30, 4))
    >>> x, c, u, r = (jnp.ones(shape) for shape in ((2, 20), (20, 4), (4, 8), (8, 30)))
    >>> sketch_matmul(x, c, u, r, parallel=two).shape
    (2, 30)
    """

    psi: Sketch
    omega: Sketch


def sketch_matmul(
    x: Float[Array, "... m"],
    c: Float[Array, "m s"] | Sketch,
    u: Float[Array, "s l"],
    r: Float[Array, "l n"] | Sketch,
    *,
    parallel: Parallel | None = None,
    implementation: str | None = None,
) -> Float[Array, "... n"]:
    r"""y = ((x C) U) R; an outer factor may be a seed.

    In place of C a sketch Psi (m -> s) makes ``x Psi`` of the first product, in place of R a sketch
    Omega (n -> l) makes ``z Omega^T`` of the last: then only U is read from memory.

    Cotangents, with delta that of y: ``dx = ((delta R^T) U^T) C^T``, a chain again, and

    - the successive stage (``parallel=None``), back-propagation through the chain:
      ``dC = x^T ((delta R^T) U^T)``, ``dU = (x C)^T (delta R^T)``, ``dR = ((x C) U)^T delta``;
    - the parallel stage of aRes-BP, sketches of G = x^T delta, which is never formed:
      ``dC = x^T (delta Omega)``, ``dR = (x Psi)^T delta``, and in the place of U's cotangent
      ``((x Psi)^T (delta Omega))^T``, that of the transposed core matrix ``A^T``.

    Args:
      x: floating array (..., m).
      c: column factor (m, s), or a sketch of m rows and s columns.
      u: core (s, l), of x's dtype.
      r: row factor (l, n), or a sketch of n rows and l columns.
      parallel: the two sketches of the parallel stage; c and r must then be arrays.
      implementation: a key of ``rosler_kernels.IMPLEMENTATIONS``.

    Returns:
      array (..., n) of x's dtype; intermediates are rank-sized.

    Raises:
      TypeError: x is not floating, or a factor has another dtype.
      ValueError: shapes do not chain, ``parallel`` meets a seeded factor, or the implementation is
        unknown or cannot run.

    >>> import jax.numpy as jnp
    >>> from rosler_kernels import srht
    >>> x, u = jnp.ones((2, 20)), jnp.ones((8, 4))
    >>> sketch_matmul(x, srht(1, 20, 8), u, srht(2, 30, 4)).shape
    (2, 30)

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """
    x = operation.floating("sketch_matmul", x)
    _check(x, c, u, r, parallel)
    c, u, r = _live(c, u, r)
    operands, params = _operands(x, c, u, r)
    how = operation.explain(CHAIN, implementation, *operands, **params), implementation
    if parallel is None and how[0].name == "xla":
        return by_example(lambda *operands: _products(how, *operands)[0], x, c, u, r)
    return by_example(functools.partial(_chain, how), x, c, u, r, parallel)


def _sizes(factor: Factor, transposed: bool) -> tuple[int, int]:
    if isinstance(factor, Sketch):
        return (factor.cols, factor.rows) if transposed else (factor.rows, factor.cols)
    if factor.ndim != 2:
        raise ValueError(f"sketch_matmul: factor of shape {factor.shape}; expected a matrix")
    return factor.shape[0], factor.shape[1]


def _check(x: Array, c: Factor, u: Array, r: Factor, parallel: Parallel | None) -> None:
    for name, factor in (("c", c), ("u", u), ("r", r)):
        if not isinstance(factor, Sketch) and factor.dtype != x.dtype:
            raise TypeError(f"sketch_matmul: {name} is {factor.dtype}, x is {x.dtype}; cast one")
    (m, s), (l, n) = _sizes(c, False), _sizes(r, True)
    if x.ndim < 1 or x.shape[-1] != m or u.shape != (s, l):
        raise ValueError(
            f"sketch_matmul: x {x.shape}, c {(m, s)}, u {u.shape}, r {(l, n)} do not chain; "
            "expected (..., m), (m, s), (s, l), (l, n)"
        )
    if parallel is None:
        return
    if isinstance(c, Sketch) or isinstance(r, Sketch):
        raise ValueError("sketch_matmul: the parallel stage learns c and r; pass them as arrays")
    psi, omega = parallel
    if (psi.rows, psi.cols, omega.rows, omega.cols) != (m, l, n, s):
        raise ValueError(
            f"sketch_matmul: psi {(psi.rows, psi.cols)} and omega {(omega.rows, omega.cols)}; "
            f"expected {(m, l)} and {(n, s)}"
        )


def _live(c: Factor, u: Array, r: Factor) -> tuple[Factor, Array, Factor]:
    """The same chain, its sketches whole: what of their columns is live is the core's part."""
    if isinstance(c, Sketch) and c.live is not None:
        u, c = only_live(u.T, c).T, dataclasses.replace(c, live=None)
    if isinstance(r, Sketch) and r.live is not None:
        u, r = only_live(u, r), dataclasses.replace(r, live=None)
    return c, u, r


def _operands(
    x: Array, left: Factor, core: Array, right: Factor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The operands and static parameters of the operation."""
    split = lambda f: (f.static(), f.arrays()) if isinstance(f, Sketch) else (None, (f,))  # noqa: E731
    (first, a), (last, b) = split(left), split(right)
    return (x, *a, core, *b), {"left": first, "right": last}


def _factors(arrays: tuple[Any, ...], left: Static | None, right: Static | None) -> tuple[Any, ...]:
    """The left factor, the core and the right factor of an operation's operands."""
    count = 1 if left is None else 1 + len(left.data)
    made = lambda static, arrays: static.sketch(*arrays) if static else arrays[0]  # noqa: E731
    return made(left, arrays[:count]), arrays[count], made(right, arrays[count + 1 :])


def _describe(
    examples: int, x: Any, *arrays: Any, left: Static | None, right: Static | None
) -> tuple[Problem, tuple[Any, ...]]:
    _, core, last = _factors(arrays, left, right)
    kinds = "/".join("stored" if static is None else static.kind for static in (left, right))
    shape = (examples, x.shape[-1], _sizes(last, True)[1])
    return Problem("sketch_matmul", kinds, x.dtype.name, shape), (left, core.shape, right, x.dtype)


def _shapes(x: Any, *arrays: Any, **params: Any) -> tuple[tuple[int, ...], ...]:
    _, core, last = _factors(arrays, **params)
    return (_sizes(last, True)[1],), *((size,) for size in core.shape)


CHAIN = operation.define(
    "chain",
    __package__,
    describe=_describe,
    shapes=_shapes,
    run=lambda module, x, *arrays, left, right, **options: module.chain(
        x, *_factors(arrays, left, right), **options
    ),
)


def _products(how: How, x: Array, c: Factor, u: Array, r: Factor) -> tuple[Array, Array, Array]:
    """(y, h, z): of one kernel where it was chosen, else of three operations."""
    choice = how[0]
    if choice.name == "xla":
        return _three(how, x, c, u, r)
    operands, params = _operands(x, c, u, r)
    return operation.apply(CHAIN, choice.name if choice.asked else None, *operands, **params)


# One program where nothing is traced: three calls would take twice the time of a small chain. Of
# its key, the reason names what the environment asked for, which traces do not see.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _three(how: How, x: Array, c: Factor, u: Array, r: Factor) -> tuple[Array, Array, Array]:
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y, h, z = xla.chain(flat, c, u, r, implementation=how[1])
    y, h, z = (a.reshape(*x.shape[:-1], a.shape[-1]) for a in (y, h, z))
    return y, h, z


# Not what transposes of the products would make: the parallel stage chooses its own cotangents, and
# a kernel's intermediates, of which dC and dU are made, would be computed a second time.
@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chain(how: How, x: Array, c: Factor, u: Array, r: Factor, parallel: Parallel | None) -> Array:
    return _products(how, x, c, u, r)[0]


def _forward(
    how: How, x: Array, c: Factor, u: Array, r: Factor, parallel: Parallel | None
) -> tuple[Array, tuple[Any, ...]]:
    y, h, z = _products(how, x, c, u, r)
    return y, (x, c, u, r, parallel, h, z)


def _backward(how: How, residuals: tuple[Any, ...], delta: Array) -> tuple[Any, ...]:
    x, c, u, r, parallel, h, z = residuals
    dx, delta_r, delta_h = _products(how, delta, _transpose(r), u.T, _transpose(c))
    if parallel is None:
        d_c = None if isinstance(c, Sketch) else outer(x, delta_h)
        d_r = None if isinstance(r, Sketch) else outer(z, delta)
        return dx, d_c, outer(h, delta_r), d_r, None
    delta_omega = project(delta, parallel.omega, implementation=how[1])
    x_psi = project(x, parallel.psi, implementation=how[1])
    return dx, outer(x, delta_omega), outer(delta_omega, x_psi), outer(x_psi, delta), None


_chain.defvjp(_forward, _backward)


def _transpose(factor: Factor) -> Factor:
    """Of an array; a sketch stays: which side of the chain it is on says how it is applied."""
    return factor if isinstance(factor, Sketch) else factor.T
