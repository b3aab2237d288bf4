"""Every product and layer, exported by ``jax.export`` with its gradient and a symbolic batch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

import rosler_kernels as rk
from rosler_jax import linen as twins
from rosler_jax.nn import (
    SketchConv,
    SketchEinsum,
    SketchLinear,
    SketchLinearGeneral,
    TwoFactorLinear,
)
from rosler_jax.nn._thin import thin_dot

KINDS = ("rademacher", "srht", "sparse_sign", "block_perm", "rows_uniform", "dct", "pool")


def ones(*shape: int) -> jax.Array:
    return jnp.ones(shape)


def project(kind: str, transpose: bool, x: Any) -> Any:
    sketch = rk.make(kind, 3, 20, 16)
    return (rk.project_transpose if transpose else rk.project)(x, sketch)


def patches(x: Any) -> Any:
    return rk.project_patches(x, rk.rademacher(3, 54, 4), window=(3, 3), strides=2, padding="SAME")


def layer(make: Callable[..., Any]) -> Callable[[Any], Any]:
    made = make(rngs=nnx.Rngs(0))
    return lambda x: made(x)


def linen_layer(make: Any, x: Any) -> Any:
    shapes = jax.tree.map(lambda a: a if isinstance(a, int) else 1, x.shape)
    variables = make.init(jax.random.key(0), jnp.ones(shapes))
    return make.apply(variables, x)


VECTOR, IMAGE = "b, 20", "b, 5, 5, 6"
CASES: dict[str, tuple[Callable[..., Any], str]] = {
    **{
        f"{'transpose' if back else 'project'}, {kind}": (
            partial(project, kind, back),
            "b, 16" if back else VECTOR,
        )
        for kind in KINDS
        for back in (False, True)
    },
    "project, tile by tile": (lambda x: rk.project(x, rk.rademacher(0, 128, 2**12)), "b, 128"),
    "project, two axes": (partial(project, "srht", False), "a, b, 20"),
    "patches": (patches, IMAGE),
    "patches, any size": (patches, "b, h, w, 6"),
    "hadamard": (rk.hadamard_transform, "b, 32"),
    "chain": (lambda x: rk.sketch_matmul(x, ones(20, 2), ones(2, 2), ones(2, 30)), VECTOR),
    "seeded chain": (
        lambda x: rk.sketch_matmul(x, rk.srht(1, 20, 8), ones(8, 4), rk.srht(2, 30, 4)),
        VECTOR,
    ),
    "thin_dot": (lambda x: thin_dot(x, ones(20, 3)), VECTOR),
    "two factors": (layer(partial(TwoFactorLinear, 20, 30, 4)), VECTOR),
    **{
        f"linear, {mode}": (layer(partial(SketchLinear, 20, 30, 4, mode=mode)), "a, b, 20")
        for mode in ("chain", "ares", "seeded")
    },
    **{
        f"conv, {mode}": (
            layer(partial(SketchConv, 6, 8, (3, 3), 4, padding="CIRCULAR", mode=mode)),
            IMAGE,
        )
        for mode in ("ares", "seeded")
    },
    "einsum": (layer(partial(SketchEinsum, "bij,jk->bik", (20, 30), 4, mode="seeded")), "a, b, 20"),
    "general": (
        layer(partial(SketchLinearGeneral, (4, 5), 30, 4, axis=(1, 2), mode="ares")),
        "b, 4, 5",
    ),
    "linen dense": (partial(linen_layer, twins.SketchDense(30, rank=4, mode="seeded")), VECTOR),
    "linen conv": (partial(linen_layer, twins.SketchConv(8, (3, 3), rank=4)), IMAGE),
}


@pytest.mark.parametrize("case", CASES)
def test_is_exported(case: str) -> None:
    function, shape = CASES[case]
    both = jax.jit(lambda x: (function(x), jax.grad(lambda x: jnp.sin(function(x)).sum())(x)))
    sizes = export.symbolic_shape(shape)
    exported = export.export(both)(jax.ShapeDtypeStruct(sizes, jnp.float32))
    x = jax.random.normal(
        jax.random.key(0), [n if isinstance(n, int) else 7 + i for i, n in enumerate(sizes)]
    )
    for size in (7, 2):  # examples are independent of each other
        for got, want in zip(exported.call(x[:size]), both(x), strict=True):
            np.testing.assert_allclose(got, want[:size], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mode", ["chain", "ares", "seeded"])
def test_gradients_of_the_factors_are_exported(mode: Any) -> None:
    made = SketchLinear(20, 30, 4, mode=mode, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(made, nnx.Param, ...)
    loss = lambda params, x: jnp.sin(nnx.merge(graph, params, rest)(x)).sum()
    gradient = jax.jit(lambda leaves, x: jax.tree.leaves(jax.grad(loss)(tree(leaves), x)))
    leaves, structure = jax.tree.flatten(params)
    tree = partial(jax.tree.unflatten, structure)
    sizes = export.symbolic_shape("b, 20")
    exported = export.export(gradient)(leaves, jax.ShapeDtypeStruct(sizes, jnp.float32))
    for size in (2, 7):
        x = jax.random.normal(jax.random.key(size), (size, 20))
        for got, want in zip(exported.call(leaves, x), gradient(leaves, x), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_a_kernel_that_cannot_is_refused_or_stood_in_for() -> None:
    x = jax.ShapeDtypeStruct(export.symbolic_shape("b, 64"), jnp.float32)
    sketch = rk.rademacher(0, 64, 16)
    run = lambda x, **options: rk.project(x, sketch, **options)
    with pytest.raises(ValueError, match=r"mosaic_tpu_interpret.*symbolic"):
        jax.eval_shape(partial(run, implementation="mosaic_tpu_interpret"), x)
    with rk.use_implementation("mosaic_tpu_interpret"):
        choice = rk.explain(sketch, x.shape)
    assert choice.name == "xla"
    assert "symbolic" in choice.reason
