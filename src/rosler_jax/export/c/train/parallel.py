r"""The parallel stage of aRes-BP for a network that has been deployed as plain factors.

A deployed layer holds ``W = C R``, or ``C U R``. New sketches of it, with new seeds,

    C' = W Omega,   A = Psi^T W Omega,   R' = Psi^T W,   U = A^+,

stand for the same matrix: with W of rank s, ``Omega (n, s)`` and ``Psi (m, l)``, ``l >= s``, the
generalised Nystroem approximation ``C' U R'`` is exact, but for rounding and the core's ridge.
Then ``dC' = x^T (delta Omega)``, ``dR' = (x Psi)^T delta`` and ``dA = (x Psi)^T (delta Omega)`` are
sketches of the gradient of W, and under SGD the three stay sketches of one matrix.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np

import rosler_kernels as rk
from rosler_jax._paths import layer_name
from rosler_jax.export._errors import ExportError
from rosler_jax.factors import RIDGE
from rosler_jax.graph.graph import Graph
from rosler_jax.graph.kinds import Dense, Op
from rosler_jax.graph.weight import Weight
from rosler_jax.nn._variables import co_range_dimension, default_sketch

if TYPE_CHECKING:
    from jaxtyping import Float

ATTEMPTS = 16  # seeds to try
TOLERANCE = 1e-3  # what the ridge and rounding may change of a matrix; the next step moves it more


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Parallel(Op):
    """``y = ((x C) A^+) R + b`` with C, A and R sketches of one matrix.

    Attributes:
      c: ``W Omega``, float32.
      a: ``Psi^T W Omega``.
      r: ``Psi^T W``.
      bias: or None.
      psi, omega: the sketches.

    Example:
      >>> from rosler_jax.graph.version1 import build_graph
      >>> spec = {"kind": "two_factor", "in_features": 8, "out_features": 6, "rank": 2}
      >>> c, r = np.eye(8, 2), np.eye(2, 6)
      >>> graph = build_graph([{**spec, "use_bias": False}], {"0/c": c, "0/r": r})
      >>> op = parallel_graph(graph, sketch="gaussian").ops[0]
      >>> op.names, op.c.shape, op.a.shape, op.r.shape
      (('0/c', '0/u', '0/r'), (8, 2), (4, 2), (4, 6))
    """

    c: Float[np.ndarray, "m s"]
    a: Float[np.ndarray, "l s"]
    r: Float[np.ndarray, "l n"]
    bias: Weight | None
    psi: rk.Sketch
    omega: rk.Sketch

    @property
    def names(self) -> tuple[str, str, str]:
        """Names of the parameters; the slot ``u`` holds ``A^T``, as in training on the host."""
        layer = self.name.removesuffix("/sketches")
        return f"{layer}/c", f"{layer}/u", f"{layer}/r"


def parallel_graph(
    graph: Graph, *, seed: int = 0, sketch: str | None = None, oversampling: int | None = None
) -> Graph:
    """Turns the plain factors of a network into sketches with new seeds.

    Args:
      graph: the network; layers of two factors, or of ``C U R``, are turned, others stay.
      seed: of the sketches; every layer gets seeds of its own.
      sketch: family of the sketches; by default what :class:`rosler_jax.SketchLinear` would take.
      oversampling: ``l - s``; default ``s``.

    Returns:
      The same network with :class:`Parallel` operations.

    Raises:
      ExportError: if no layer has two factors, or no seed gives sketches that hold one.

    Example:
      >>> from rosler_jax.graph.version1 import build_graph
      >>> specs = [
      ...     {
      ...         "kind": "two_factor",
      ...         "in_features": 8,
      ...         "out_features": 6,
      ...         "rank": 1,
      ...         "use_bias": False,
      ...     }
      ... ]
      >>> graph = build_graph(specs, {"0/c": np.ones((8, 1)), "0/r": np.ones((1, 6))})
      >>> op = parallel_graph(graph).ops[0]
      >>> bool(np.allclose(op.c @ np.linalg.pinv(op.a) @ op.r, 1.0, atol=1e-3))
      True
    """
    ops: list[Op] = []
    rest = list(graph.ops)
    while rest:
        chain = _factors(rest)
        if chain:
            ops.append(_sketched(chain, (seed, len(ops)), sketch, oversampling))
        else:
            ops.append(rest[0])
        del rest[: max(1, len(chain))]
    if not any(isinstance(op, Parallel) for op in ops):
        raise ExportError(
            "no layer has two learnt factors, so that there is nothing to train in parallel; "
            "choose stage='successive' (seeded cores and dense layers train there)"
        )
    return dataclasses.replace(graph, ops=tuple(ops))


def _factors(ops: list[Op]) -> list[Dense]:
    """The products at the head of a list that are factors of one layer's matrix."""
    chain: list[Dense] = []
    for op, role in zip(ops, ("c", "u", "r"), strict=False):
        layer = _layer(ops[0])
        if not isinstance(op, Dense) or op.in_shape[0] != 1 or layer is None:
            break
        name = op.weight.name
        if name not in (f"{layer}/{role}", f"{layer}/r") or (chain and chain[-1].bias):
            break
        chain.append(op)
        if name == f"{layer}/r":
            return chain if len(chain) > 1 else []
    return []


def _layer(op: Op) -> str | None:
    """The layer that a product's matrix is a factor of: its path without the role."""
    return layer_name(op.weight.name) if isinstance(op, Dense) else None


def _sketched(
    chain: list[Dense], seed: tuple[int, int], sketch: str | None, oversampling: int | None
) -> Parallel:
    """New sketches of one layer; of several seeds the first whose core can be solved for."""
    c = np.asarray(chain[0].weight.values, np.float64)
    for op in chain[1:-1]:
        c = c @ op.weight.values.astype(np.float64)
    r = np.asarray(chain[-1].weight.values, np.float64)
    (m, s), n = c.shape, r.shape[1]
    layer = _layer(chain[0])
    if s > min(m, n):
        raise ExportError(f"layer {layer}: rank {s} is more than {min(m, n)}; use a dense layer")
    l = co_range_dimension(s, m, n, oversampling)
    kind = sketch or default_sketch("ares", s, min(m, n))
    if kind not in rk.FAMILIES or rk.FAMILIES[kind].weighted:
        raise ExportError(f"sketch {kind!r} cannot be; use gaussian, rademacher or sparse_sign")
    for attempt in range(ATTEMPTS):
        words = np.asarray([(seed[0], 2 * (seed[1] + 2**16 * attempt) + i) for i in (0, 1)])
        psi = rk.make(kind, words[0].astype(np.uint32), m, l)
        omega = rk.make(kind, words[1].astype(np.uint32), n, s)
        psi_c = np.asarray(rk.materialize(psi), np.float64).T @ c
        r_omega = r @ np.asarray(rk.materialize(omega), np.float64)
        if _misfit(c, r, psi_c, r_omega) < TOLERANCE:
            return Parallel(
                name=f"{layer}/sketches", inputs=chain[0].inputs, outputs=chain[-1].outputs,
                in_shapes=chain[0].in_shapes, out_shapes=chain[-1].out_shapes,
                c=(c @ r_omega).astype(np.float32), a=(psi_c @ r_omega).astype(np.float32),
                r=(psi_c @ r).astype(np.float32), bias=chain[-1].bias, psi=psi, omega=omega,
            )  # fmt: skip
    raise ExportError(
        f"layer {layer}: {ATTEMPTS} seeds gave no {kind} sketches that hold its matrix of rank {s};"
        " use sketch='gaussian', or stage='successive'"
    )


def _misfit(c: np.ndarray, r: np.ndarray, psi_c: np.ndarray, r_omega: np.ndarray) -> float:
    """``|C' U R' - W| / |W|``, with the core's ridge; small sign sketches are often singular."""
    a = psi_c @ r_omega
    ridge = RIDGE * np.sum(a * a) / a.shape[1] + np.finfo(np.float32).tiny
    core = np.linalg.solve(a.T @ a + ridge * np.eye(a.shape[1]), a.T)
    left, right = np.linalg.qr(c)[1], np.linalg.qr(r.T)[1]
    wrong = left @ (r_omega @ core @ psi_c - np.eye(len(r))) @ right.T
    return float(np.linalg.norm(wrong) / max(float(np.linalg.norm(left @ right.T)), 1e-30))
