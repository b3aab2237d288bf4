r"""Sketches of the weights behind learnt factors, and factors of the weights behind sketches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import rosler_kernels as rk
from rosler_jax._paths import path_name, role_name
from rosler_jax.factors import core_from_sketch

if TYPE_CHECKING:
    from jaxtyping import Array, Float, PyTree

    from rosler_jax.views import MatrixView, Views

_HIGHEST = jax.lax.Precision.HIGHEST


class Layer(NamedTuple):
    """A weight that is held as factors ``C R`` or ``C U R``.

    Attributes:
      places: of its leaves among those of the parameters, by ``c``, ``u`` and ``r``.
      views: of ``c`` and ``r``, as stacks of matrices.
      shapes: of the leaves.
      rank: of the factors.
      omega, psi: sketches of its outputs and its inputs.
    """

    places: dict[str, int]
    views: dict[str, MatrixView]
    shapes: dict[str, tuple[int, ...]]
    rank: int
    omega: rk.Sketch
    psi: rk.Sketch


def factored_layers(like: PyTree, views: Views, seed: int, more: int) -> dict[str, Layer]:
    """The layers of learnt factors by name.

    Args:
      like: shapes of the parameters.
      views: what each parameter is.
      seed: of the sketches.
      more: columns of ``Y`` beyond the rank; ``Z`` has twice as many rows as ``Y`` columns.
    """
    leaves = jax.tree_util.tree_leaves_with_path(like)
    places = {path_name(path): (k, jnp.shape(leaf)) for k, (path, leaf) in enumerate(leaves)}
    found: dict[str, Layer] = {}
    for number, name in enumerate(sorted(n for n in places if role_name(n) == "c")):
        prefix = name[: len(name) - 1]
        parts = {part: places[prefix + part] for part in "cur" if prefix + part in places}
        if "r" not in parts or views[name].role != "factor":
            continue
        seen: dict[str, Any] = {part: views[prefix + part].view for part in parts if part != "u"}
        shapes = {part: shape for part, (_, shape) in parts.items()}
        _, m, rank = seen["c"].matrix_shape(shapes["c"])
        _, inner, n = seen["r"].matrix_shape(shapes["r"])
        if inner != rank:  # of aRes-BP's parallel stage, where C and R are sketches already
            continue
        s = min(rank + more, m, n)
        key = jax.random.fold_in(jax.random.key(seed), number)
        omega, psi = jax.random.split(key)
        found[prefix.rstrip("/")] = Layer(
            {part: place for part, (place, _) in parts.items()}, seen, shapes, rank,
            rk.gaussian(omega, n, s), rk.gaussian(psi, m, min(2 * s, m)),
        )  # fmt: skip
    return found


def _factors(layer: Layer, leaves: list[Any]) -> tuple[Any, Any, Any]:
    """C, U and R as stacks of matrices ``(g, ., .)``; of two factors U is the identity."""
    c, r = (layer.views[part].to_matrices(leaves[layer.places[part]]) for part in "cr")
    if "u" not in layer.places:
        return (
            c,
            jnp.broadcast_to(jnp.eye(layer.rank, dtype=c.dtype), (len(c), *[layer.rank] * 2)),
            r,
        )
    u = leaves[layer.places["u"]]
    return c, jnp.broadcast_to(u.reshape(-1, *u.shape[-2:]), (len(c), *u.shape[-2:])), r


def sketches_of(layers: dict[str, Layer], params: PyTree) -> PyTree:
    """``Y = W Omega`` and ``Z = Psi^T W`` of the factored weights, and the other leaves.

    Costs ``O((m + n) s rank)``: ``C (U (R Omega))`` and ``((Psi^T C) U) R``.
    """
    leaves = jax.tree.leaves(params)
    taken = {place for layer in layers.values() for place in layer.places.values()}
    sketched = {}
    for name, layer in layers.items():
        c, u, r = _factors(layer, leaves)
        right = rk.project(r.astype(jnp.float32), layer.omega)
        left = rk.project(jnp.swapaxes(c, -1, -2).astype(jnp.float32), layer.psi)
        left = jnp.swapaxes(left, -1, -2)
        sketched[name] = {"y": _product(c, u, right), "z": _product(left, u, r)}
    rest = {str(k): leaf for k, leaf in enumerate(leaves) if k not in taken}
    return {"sketched": sketched, "rest": rest}


def _product(*factors: Array) -> Array:
    first, *others = factors
    for factor in others:
        first = jnp.matmul(first, factor, precision=_HIGHEST)
    return first


def rebuilt(layers: dict[str, Layer], sketches: PyTree, old: PyTree) -> PyTree:
    """Parameters of sketches: of each weight the best factors of its rank, close to the old ones.

    ``W = Y (Psi^T Y)^+ Z`` by generalised Nystroem, its leading singular triplets ``P S Q^T``, and
    balanced factors ``C = P S^a T``, ``U = T^T S^b T'``, ``R = T'^T S^a Q^T``. The rotations T, T'
    bring C and R as close to the old ones as they go (Procrustes), so that what changes is small.
    Any other T would let the factors drift apart from round to round, one small and one large.
    """
    leaves, treedef = jax.tree.flatten(old)
    for k, leaf in sketches["rest"].items():
        leaves[int(k)] = leaf
    for name, layer in layers.items():
        found = sketches["sketched"][name]
        before = _factors(layer, leaves)
        made = jax.vmap(lambda y, z, c, u, r, at=layer: _rebuild(at, y, z, c, u, r))(
            found["y"], found["z"], *before
        )
        for part, place in layer.places.items():
            value = made[part]
            shape = layer.shapes[part]
            view = layer.views.get(part)
            # One core for groups that share it: the mean; a stack has one each.
            value = view.from_matrices(value, shape) if view else _cores(value, shape)
            leaves[place] = value.astype(leaves[place].dtype)
    return jax.tree.unflatten(treedef, leaves)


def _cores(value: Array, shape: tuple[int, ...]) -> Array:
    stacks = int(np.prod(shape[:-2], dtype=int))
    return value.reshape(stacks, -1, *shape[-2:]).mean(1).reshape(shape)


def _rebuild(layer: Layer, y: Any, z: Any, c: Any, u: Any, r: Any) -> dict[str, Array]:
    psi_y = rk.project(y.T, layer.psi).T
    q, upper = rk.qr(y)
    # (Psi^T Y)^+ Z without a division by small singular values: by the ridge of the core's solve.
    core = _product(core_from_sketch(psi_y), z)
    left, sigma, right = rk.svd(_product(upper, core))
    left, sigma, right = (
        _product(q, left[:, : layer.rank]),
        sigma[: layer.rank],
        right[: layer.rank],
    )
    three = "u" in layer.places
    outer = (sigma ** (1 / 3 if three else 1 / 2))[None]
    new_c, new_r = left * outer, right * outer.T
    if not three:
        turn = _rotation(_product(new_c.T, c) + _product(new_r, r.T))
        return {"c": _product(new_c, turn), "r": _product(turn.T, new_r)}
    turn_c, turn_r = _rotation(_product(new_c.T, c)), _rotation(_product(new_r, r.T))
    return {
        "c": _product(new_c, turn_c),
        "u": _product(turn_c.T, jnp.diag(outer[0]), turn_r),
        "r": _product(turn_r.T, new_r),
    }


def _rotation(a: Float[Array, "s s"]) -> Float[Array, "s s"]:
    """The orthogonal T with the largest ``trace(T^T A)``."""
    left, _, right = rk.svd(a)
    return _product(left, right)
