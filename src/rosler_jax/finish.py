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
from rosler_jax.factors import SketchFactors, fold, reconstruct
from rosler_jax.nn import SketchConv, SketchEinsum, SketchLinear, SketchLinearGeneral
from rosler_jax.nn._module import SketchModule
from rosler_jax.views import MatrixView

if TYPE_CHECKING:
    from jaxtyping import Array, Float


def finish(model: Any) -> Any:
    r"""Folds every chain and ares layer of a trained NNX model to its smallest form.

    ``C U R`` becomes two factors, ``C (U R)`` or ``(C U) R``, where ``k (m + n) < m n`` with
    ``k = min(s, l)``, and else the dense layer that it stands for. What aRes-BP needed goes: the
    flag, the seeds, the surplus rows and columns, and with them every branch, solve and
    factorisation of the layers' graph. Seeded layers, layers of two factors and all others stay;
    so do stacks, layer by layer, and layers that are shared.

    Args:
      model: any NNX model (or a single layer), trained; it is not changed.

    Returns:
      The new model; it computes the same, up to float rounding.

    Raises:
      ValueError: if a layer is still in the parallel stage of aRes-BP, or its weights are tied to
        another layer's; naming its path.

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
    copy = nnx.clone(model)
    _, tied = _replace.survey(copy, _is_chain)

    def decide(layer: Any, path: str) -> Any:
        name = path or "the model"
        if layer.parallel is not None and np.any(np.asarray(layer.parallel[...]) != 0):
            raise ValueError(
                f"{name} is still in the parallel stage of aRes-BP (parallel="
                f"{np.asarray(layer.parallel[...])}); train past its switch_step with ares_bp"
            )
        if id(layer) in tied:
            raise ValueError(f"{name}: its factors are tied to another layer's; untie them first")
        return _finished(layer)

    return _replace.replace(copy, _is_chain, decide)


def _is_chain(node: Any) -> bool:
    return isinstance(node, SketchModule) and node.mode in ("chain", "ares")


def _finished(layer: Any) -> Any:
    k, m, n = min(layer.plan.rank, layer.plan.inner), layer.plan.m, layer.plan.n
    if k * (m + n) < m * n:
        return _two_factor(layer)
    return DENSE[type(layer)](layer)


def _two_factor(layer: Any) -> Any:
    """The same layer, held as two factors."""
    two = _per_matrix(layer, fold)
    k = two.c.shape[-1]
    layer.plan = dataclasses.replace(layer.plan, mode="two-factor", rank=k, inner=k)
    layer.mode, layer.rank, layer.inner = "two-factor", k, k
    for name, matrices in (("c", two.c), ("r", two.r)):
        value = _as_factor(layer, name, matrices)
        setattr(layer, name, getattr(layer, name).replace(value))
    for name in ("u", "parallel", "psi_seed", "omega_seed"):
        setattr(layer, name, nnx.data(None))
    return layer


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
