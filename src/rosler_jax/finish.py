"""``finish``: trained sketch layers of any NNX model in their smallest form."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from flax import nnx

from rosler_jax import _replace
from rosler_jax._layer_views import parts_of
from rosler_jax.factors import SketchFactors, reconstruct
from rosler_jax.factors import fold as fold_core
from rosler_jax.nn import SketchConv, SketchEinsum, SketchLinear, SketchLinearGeneral
from rosler_jax.nn._module import SketchModule
from rosler_jax.nn._variables import Mode
from rosler_jax.views import MatrixView

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def finish(model: Any, *, fold: bool = True) -> Any:
    r"""Folds every chain and ares layer of a trained NNX model to its smallest form.

    ``C U R`` becomes two factors, ``C (U R)`` or ``(C U) R``, where ``k (m + n) < m n`` with
    ``k = min(s, l)``, and else the dense layer that it stands for. What aRes-BP needed goes: the
    flag, the seeds, the surplus rows and columns, and with them every branch, solve and
    factorisation of the layers' graph. Seeded layers, layers of two factors and all others stay;
    so do stacks, layer by layer, and layers that are shared.

    Shapes alone decide the form, so that it works inside ``jit``, ``vmap`` and ``eval_shape``; the
    values that are checked are checked where they are known.

    Args:
      model: any NNX model (or a single layer), trained; it is not changed.
      fold: False leaves chains as they are and makes plain chains of ares layers, ``C``,
        ``U[:, :s]``, ``R[:s]``: the factors that a quantiser saw in training, and a model to train
        on with any optimiser.

    Returns:
      The new model; it computes the same, up to float rounding.

    Raises:
      ValueError: if a layer is still in the parallel stage of aRes-BP, its weights are tied to
        another layer's, or without ``fold`` its surplus columns are not zero; naming its path.

    Example:
      >>> import jax.numpy as jnp
      >>> from rosler_jax import SketchLinear
      >>> layer = SketchLinear(20, 30, rank=4, rngs=nnx.Rngs(0))
      >>> small = finish(layer)
      >>> small.mode, small.u, small.c.shape, small.r.shape
      ('two-factor', None, (20, 4), (4, 30))
      >>> bool(jnp.allclose(small(jnp.ones(20)), layer(jnp.ones(20)), atol=1e-5))
      True
    """
    copy, is_layer = nnx.clone(model), _is_chain if fold else _is_ares
    _, tied = _replace.survey(copy, is_layer)

    def decide(layer: Any, path: str) -> Any:
        name = path or "the model"
        if layer.parallel is not None and _known(layer.parallel[...] != 0):
            raise ValueError(
                f"{name} is still in the parallel stage of aRes-BP (parallel="
                f"{np.asarray(layer.parallel[...])}); train past its switch_step with ares_bp"
            )
        if id(layer) in tied:
            raise ValueError(f"{name}: its factors are tied to another layer's; untie them first")
        return _finished(layer) if fold else _chain(layer, name)

    return _replace.replace(copy, is_layer, decide)


def _is_chain(node: Any) -> bool:
    return isinstance(node, SketchModule) and node.mode in ("chain", "ares")


def _is_ares(node: Any) -> bool:
    return isinstance(node, SketchModule) and node.mode == "ares"


def _known(holds: Array) -> bool:
    """Whether it is known to hold anywhere: not while it is traced."""
    return not isinstance(holds, jax.core.Tracer) and bool(np.any(holds))


def _finished(layer: Any) -> Any:
    k, m, n = min(layer.plan.rank, layer.plan.inner), layer.plan.m, layer.plan.n
    if k * (m + n) >= m * n:
        return DENSE[type(layer)](layer)
    two = _per_matrix(layer, fold_core)
    _become(layer, "two-factor", k)
    _keep(layer, {name: _as_factor(layer, name, getattr(two, name)) for name in ("c", "r")})
    return layer


def _chain(layer: Any, name: str) -> Any:
    """The chain that an ares layer is: the switch has left zeros in the surplus of ``U``."""
    s, (c, u, r) = layer.plan.rank, (getattr(layer, name)[...] for name in ("c", "u", "r"))
    if _known(u[..., s:] != 0):
        raise ValueError(
            f"{name}: columns of U beyond its rank {s} are not zero; noise in the gradients, or a "
            "flag put down by hand, moves them. Leave out fold=False"
        )
    _become(layer, "chain", s)
    _keep(layer, {"c": c, "u": u[..., :s], "r": r[..., :s, :]})
    return layer


def _become(layer: Any, mode: Mode, k: int) -> None:
    layer.plan = dataclasses.replace(layer.plan, mode=mode, rank=k, inner=k)
    layer.mode, layer.rank, layer.inner = mode, k, k


def _keep(layer: Any, factors: dict[str, Array]) -> None:
    """Sets these factors, with the metadata that they had; all else but the bias goes."""
    for name in ("c", "u", "r", "parallel", "psi_seed", "omega_seed"):
        variable = getattr(layer, name)
        kept = variable.replace(factors[name]) if name in factors else nnx.data(None)
        setattr(layer, name, kept)


def _per_matrix(layer: Any, function: Callable[[SketchFactors], Any]) -> Any:
    """``function`` of the factors of every matrix; results have the leading axes (stack, g)."""
    parts = parts_of(layer)
    c, u, r = (getattr(layer, name)[...] for name in ("c", "u", "r"))
    stack = u.shape[: u.ndim - len(parts["u"].shape)]
    matrices = {}
    for name, value in (("c", c), ("u", u), ("r", r)):
        view = parts[name].view
        assert view is not None
        flat = value.reshape(math.prod(stack), *value.shape[len(stack) :])
        matrices[name] = jax.vmap(view.to_matrices)(flat)
    out = jax.vmap(jax.vmap(function))(SketchFactors(**matrices))
    return jax.tree.map(lambda a: a.reshape(*stack, *a.shape[1:]), out)


def _as_factor(layer: Any, name: str, matrices: Float[Array, "*stack g a b"]) -> Array:
    """Matrices in the layout of the layer's parameter of that name, by its (new) plan."""
    part = parts_of(layer)[name]
    assert part.view is not None
    stack = matrices.shape[:-3]
    flat = matrices.reshape(math.prod(stack), *matrices.shape[-3:])
    single = part.view
    out = jax.vmap(lambda a: single.from_matrices(a, part.shape))(flat)
    return out.reshape(*stack, *part.shape)


# Dense layers, for factors that are larger than the matrix.


def _dense(layer: Any, make: Callable[..., Any]) -> Any:
    """The dense layer that ``make`` gives, with the matrices of the sketch layer as its kernel."""
    w = _per_matrix(layer, reconstruct)  # (*stack, g, m, n)
    new = nnx.eval_shape(lambda: make(use_bias=False, dtype=layer.dtype, rngs=nnx.Rngs(0)))
    part = parts_of(new)["kernel"]
    view: MatrixView | None = part.view
    assert view is not None
    stack = w.shape[:-3]
    flat = w.reshape(math.prod(stack), *w.shape[-3:])
    kernel = jax.vmap(lambda a: view.from_matrices(a, part.shape))(flat)
    kernel = kernel.reshape(*stack, *part.shape)
    new.kernel = nnx.Param(kernel.astype(layer.param_dtype))
    new.param_dtype = layer.param_dtype
    new.precision = getattr(layer, "precision", new.precision)
    if layer.bias is not None:
        new.use_bias, new.bias = True, nnx.data(layer.bias)
    return new


def _linear(layer: Any) -> Any:
    return _dense(layer, lambda **o: nnx.Linear(layer.in_features, layer.out_features, **o))


def _linear_general(layer: Any) -> Any:
    options = {"axis": layer.axis, "batch_axis": dict(enumerate(layer.batch_shape))}
    return _dense(
        layer, lambda **o: nnx.LinearGeneral(layer.in_features, layer.out_features, **options, **o)
    )


def _einsum(layer: Any) -> Any:
    def make(use_bias: bool, **options: Any) -> Any:
        del use_bias
        return nnx.Einsum(layer.einsum_str, layer.kernel_shape, **options)

    new = _dense(layer, make)
    new.bias_shape = layer.bias_shape
    return new


def _conv(layer: Any) -> Any:
    lift = layer.lift
    options: dict[str, Any] = {
        "strides": lift.strides,
        "padding": layer.pad_mode or lift.padding,
        "input_dilation": lift.input_dilation,
        "kernel_dilation": lift.kernel_dilation,
        "feature_group_count": lift.groups,
        "precision": lift.precision,
    }
    m, n, window = layer.in_features, layer.out_features, layer.kernel_size
    return _dense(layer, lambda **o: nnx.Conv(m, n, window, **options, **o))


DENSE: dict[type, Callable[[Any], Any]] = {
    SketchLinear: _linear,
    SketchLinearGeneral: _linear_general,
    SketchEinsum: _einsum,
    SketchConv: _conv,
}
"""The dense layer of each sketch layer: a new one is one line here."""
