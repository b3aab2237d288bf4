"""sketch_matmul: checks, choice of implementation, and the cotangents of both training stages."""

from __future__ import annotations

import functools
import importlib
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from ..products import outer
from ..projection import explain, project
from ..selection import IMPLEMENTATIONS, Choice, Problem, backend_options, choose
from ..sharding import by_example
from ..sketches import Sketch

if TYPE_CHECKING:
    from types import ModuleType

    from jaxtyping import Array, Float

    Factor = Array | Sketch
    Chosen = tuple[Choice, str | None]


class Parallel(NamedTuple):
    """The sketches that aRes-BP's parallel stage takes the cotangents with.

    Attributes:
      psi: co-range sketch, m -> l.
      omega: range sketch, n -> s.
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

    >>> from rosler_kernels import srht
    >>> x, u = jnp.ones((2, 20)), jnp.ones((8, 4))
    >>> sketch_matmul(x, srht(1, 20, 8), u, srht(2, 30, 4)).shape
    (2, 30)

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """
    x = jnp.asarray(x)
    _check(x, c, u, r, parallel)
    choice = _choose(x, c, u, r, implementation)
    run = functools.partial(_chain, (choice, implementation))
    return by_example(run, x, c, u, r, parallel)


def _sizes(factor: Factor, transposed: bool) -> tuple[int, int]:
    if isinstance(factor, Sketch):
        return (factor.cols, factor.rows) if transposed else (factor.rows, factor.cols)
    if factor.ndim != 2:
        raise ValueError(f"sketch_matmul: factor of shape {factor.shape}; expected a matrix")
    return factor.shape[0], factor.shape[1]


def _check(x: Array, c: Factor, u: Array, r: Factor, parallel: Parallel | None) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"sketch_matmul: x of dtype {x.dtype}; expected a floating array")
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


def _choose(x: Array, c: Factor, u: Array, r: Factor, implementation: str | None) -> Choice:
    kinds = [f.kind if isinstance(f, Sketch) else "stored" for f in (c, r)]
    m, n = _sizes(c, False)[0], _sizes(r, True)[1]
    shape = (math.prod(x.shape[:-1]), m, n)
    problem = Problem("sketch_matmul", "/".join(kinds), x.dtype.name, shape)

    def unsupported(module: str) -> str | None:
        check = getattr(_module(module), "unsupported", None)
        return None if check is None else check(c, u.shape, r, x.dtype)

    return choose(problem, implementation, unsupported)


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"{__package__}.{name}")


def _run(chosen: Chosen, x: Array, c: Factor, u: Array, r: Factor) -> tuple[Array, Array, Array]:
    choice, implementation = chosen
    # Which projections an XLA chain uses is settled here: inside, a cached trace would keep it.
    rows = math.prod(x.shape[:-1])
    projections = tuple(
        explain(f, (rows, size), x.dtype, transpose=transpose, implementation=implementation).name
        if choice.name == "xla" and isinstance(f, Sketch)
        else "xla"
        for f, size, transpose in ((c, x.shape[-1], False), (r, u.shape[1], True))
    )
    return _compiled(choice, projections, x, c, u, r)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compiled(
    choice: Choice, projections: tuple[str, ...], x: Array, c: Factor, u: Array, r: Factor
) -> tuple[Array, Array, Array]:
    module = _module(IMPLEMENTATIONS[choice.name].module)
    options = backend_options(choice, getattr(module, "Blocks", None))
    if choice.name == "xla":
        options["projections"] = projections
    flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y, h, z = module.chain(flat, c, u, r, **options)
    y, h, z = (a.reshape(*x.shape[:-1], a.shape[-1]) for a in (y, h, z))
    return y, h, z


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _chain(
    chosen: Chosen, x: Array, c: Factor, u: Array, r: Factor, parallel: Parallel | None
) -> Array:
    return _run(chosen, x, c, u, r)[0]


def _forward(
    chosen: Chosen, x: Array, c: Factor, u: Array, r: Factor, parallel: Parallel | None
) -> tuple[Array, tuple[Any, ...]]:
    y, h, z = _run(chosen, x, c, u, r)
    return y, (x, c, u, r, parallel, h, z)


def _backward(chosen: Chosen, residuals: tuple[Any, ...], delta: Array) -> tuple[Any, ...]:
    x, c, u, r, parallel, h, z = residuals
    dx, delta_r, delta_h = _run(chosen, delta, _transpose(r), u.T, _transpose(c))
    if parallel is None:
        d_c = None if isinstance(c, Sketch) else outer(x, delta_h)
        d_r = None if isinstance(r, Sketch) else outer(z, delta)
        return dx, d_c, outer(h, delta_r), d_r, None
    delta_omega = project(delta, parallel.omega, implementation=chosen[1])
    x_psi = project(x, parallel.psi, implementation=chosen[1])
    return dx, outer(x, delta_omega), outer(delta_omega, x_psi), outer(x_psi, delta), None


_chain.defvjp(_forward, _backward)


def _transpose(factor: Factor) -> Factor:
    """Of an array; a sketch stays: which side of the chain it is on says how it is applied."""
    return factor if isinstance(factor, Sketch) else factor.T
