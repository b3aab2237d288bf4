"""Layers, sketches, training and quantisation under JAX's settings, one at a time.

Settings are read while a program is traced, so that most is traced only; NaNs need a run.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import rosler_jax
import rosler_kernels as rk
from rosler_jax import linen as twins
from rosler_jax import quantization
from rosler_jax.nn import (
    SketchConv,
    SketchEinsum,
    SketchLinear,
    SketchLinearGeneral,
    TwoFactorLinear,
)
from rosler_jax.nn.functional import sketch_dot
from rosler_jax.optim import ares_bp, restrict_rank
from rosler_kernels.hashing import threefry_2x32

# Strict dtypes let bfloat16 meet nothing else; float32 is what every other number is.
SETTINGS: tuple[tuple[Callable[[], Any], Any], ...] = (
    (lambda: jax.numpy_dtype_promotion("strict"), jnp.bfloat16),
    (lambda: jax.numpy_rank_promotion("raise"), jnp.float32),
    (lambda: jax.enable_x64(True), jnp.float32),
    (lambda: jax.default_prng_impl("rbg"), jnp.float32),
)
MODES = ("chain", "ares", "seeded")
IMAGE = (2, 5, 5, 6)
LAYERS: dict[str, tuple[Callable[..., Any], tuple[int, ...]]] = {
    "linear": (partial(SketchLinear, 20, 30, 4), (3, 20)),
    "conv": (partial(SketchConv, 6, 8, (3, 3), 4), IMAGE),
    "conv, groups": (partial(SketchConv, 6, 8, (3, 3), 2, feature_group_count=2), IMAGE),
    "einsum": (partial(SketchEinsum, "bij,jk->bik", (20, 30), 4, bias_shape=(30,)), (2, 3, 20)),
    "general": (
        partial(SketchLinearGeneral, (2, 10), (4, 5), 4, axis=(1, 2), batch_axis={0: 3}),
        (3, 2, 10),
    ),
}


def step(tx: Any, loss: Callable[[Any], Any], params: Any) -> Any:
    """One training step from new parameters."""
    updates, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
    return optax.apply_updates(params, updates)


def nnx_layer(make: Callable[..., Any], shape: tuple[int, ...], dtype: Any) -> Any:
    layer = make(param_dtype=dtype, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    x = jnp.ones(shape, dtype)
    return step(optax.sgd(0.1), lambda p: nnx.merge(graph, p, rest)(x).sum(), params)


def linen_layer(layer: linen.Module, shape: tuple[int, ...], dtype: Any) -> Any:
    x = jnp.ones(shape, dtype)
    variables = layer.init(jax.random.key(0), x)
    loss = lambda p: layer.apply({**variables, "params": p}, x).sum()
    return step(optax.sgd(0.1), loss, variables["params"])


def projections(kind: str, implementation: str, dtype: Any) -> Any:
    """Both products, their gradients, patches, and the sketch written out."""
    options = (
        {"w": jax.random.normal(jax.random.key(1), (144, 3), jnp.float32)}
        if "rows_" in kind
        else {}
    )
    sketch = rk.make(kind, jax.random.key(0), 144, 64, **options if kind != "rows_uniform" else {})
    x, y, image = (jnp.ones(shape, dtype) for shape in ((3, 144), (3, 64), (1, 5, 5, 16)))

    def loss(x: Any, y: Any, image: Any) -> Any:
        with rk.use_implementation(implementation):
            return (
                rk.project(x, sketch).sum()
                + rk.project_transpose(y, sketch).sum()
                + rk.project_patches(image, sketch, window=(3, 3), padding="SAME").sum()
            )

    return jax.grad(loss, (0, 1, 2))(x, y, image), rk.materialize(sketch), rk.tile(sketch, 3, 5)


def chains(implementation: str, dtype: Any) -> Any:
    """Stored and seeded chains, both stages, and the Hadamard transform."""
    psi, omega = rk.rademacher(1, 64, 16), rk.rademacher(2, 64, 16)
    x, c, u, r = (jnp.ones(s, dtype) for s in ((3, 64), (64, 16), (16, 16), (16, 64)))

    def loss(x: Any, c: Any, u: Any, r: Any) -> Any:
        with rk.use_implementation(implementation):
            return (
                rk.sketch_matmul(x, c, u, r).sum()
                + rk.sketch_matmul(x, psi, u, omega).sum()
                + rk.sketch_matmul(x, c, u, r, parallel=rk.Parallel(psi, omega)).sum()
                + rk.hadamard_transform(x).sum()
            )

    return jax.grad(loss, (0, 1, 2, 3))(x, c, u, r)


def through_the_switch(dtype: Any) -> Any:
    """aRes-BP over its switch.

    SGD, since under strict promotion optax's Adam cannot raise a float to an integer power, nor its
    global norm add bfloat16 and the float32 of the stage's flag.
    """
    options = {"parallel": optax.sgd(0.1)} if dtype == jnp.bfloat16 else {}
    layer = SketchLinear(20, 30, 4, mode="ares", param_dtype=dtype, rngs=nnx.Rngs(0))
    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    x = jnp.ones((3, 20), dtype)
    tx = ares_bp(optax.sgd(0.1), switch_step=1, **options)

    def one(carry: Any, _: Any) -> Any:
        params, state = carry
        grads = jax.grad(lambda p: nnx.merge(graph, p, rest)(x).sum())(params)
        updates, state = tx.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(one, (params, tx.init(params)), None, length=3)[0][0]


def restricted(dtype: Any, seed: Any = 0, wrap: Callable[..., Any] = lambda tx: tx) -> Any:
    params = {"kernel": jnp.ones((8, 6), dtype), "bias": jnp.ones((6,), dtype)}
    tx = wrap(restrict_rank(optax.sgd(0.1), 2, every=1, seed=seed))
    return step(tx, lambda p: (p["kernel"] @ jnp.ones((6,), dtype)).sum(), params)


def converted(dtype: Any, mode: str) -> Any:
    """sketchify of a trained model."""
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Linear(8, 12, param_dtype=dtype, rngs=rngs))
    rules = [rosler_jax.Rule("*", rank=2, mode=mode)]
    model = rosler_jax.sketchify(model, rules, rngs=rngs, from_weights=True)[0]
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    x = jnp.ones((2, 8), dtype)
    return jax.jit(lambda p: nnx.merge(graph, p, rest)(x))(params)


def quantised(dtype: Any, bits: int) -> Any:
    params = {"kernel": jnp.ones((6, 4), dtype), "bias": jnp.ones((4,), dtype)}
    whole = quantization.dequantize_params(quantization.quantize_params(params, bits), params)
    fake = lambda bits: jax.grad(
        lambda p: sum(a.sum() for a in jax.tree.leaves(quantization.fake_quantize_params(p, bits)))
    )(params)
    return whole, fake(bits), fake(jnp.int32(bits))


def starts(dtype: Any) -> Any:
    """Factors of a dense matrix by every method, and what one does with them."""
    w, key = jnp.ones((8, 6), dtype), jax.random.key(0)
    psi, omega = rk.gaussian(1, 8, 4), rk.gaussian(2, 6, 2)
    made = [
        *(rosler_jax.initializers.from_dense(w, 2, key, method=m) for m in ("svd", "cur")),
        rosler_jax.initializers.ares_from_dense(w, psi, omega, key),
        rosler_jax.initializers.seeded_from_dense(w, psi, omega),
    ]
    x = jnp.ones((3, 8), jnp.float32)
    more = (rosler_jax.factors.fold(made[0]), rosler_jax.factors.truncate(made[0], 1))
    seeded = rosler_jax.SeededFactors(u=made[-1].u.astype(dtype), psi=psi, omega=omega)
    return (
        [rosler_jax.factors.apply(f, x) for f in made],
        [rosler_jax.factors.reconstruct(f) for f in (*made, *more, seeded)],
        rosler_jax.factors.apply(seeded, x.astype(dtype)),
        sketch_dot(x, w[:, :2], w[:2, :2], w[:2]) if dtype == x.dtype else None,
    )


CASES: dict[str, Callable[..., Any]] = {
    **{
        f"{name}, {mode}": partial(nnx_layer, partial(make, mode=mode), shape)
        for name, (make, shape) in LAYERS.items()
        for mode in MODES
    },
    "two factors": partial(nnx_layer, partial(TwoFactorLinear, 20, 30, 4), (3, 20)),
    **{
        f"linen {name}, {mode}": lambda dtype, make=make, shape=shape, mode=mode: linen_layer(
            make(mode=mode, param_dtype=dtype), shape, dtype
        )
        for name, make, shape in (
            ("dense", partial(twins.SketchDense, 30, rank=4), (3, 20)),
            ("conv", partial(twins.SketchConv, 8, (3, 3), rank=4), IMAGE),
        )
        for mode in MODES
    },
    **{
        f"{kind}, {implementation}": partial(projections, kind, implementation)
        for kind in rk.FAMILIES
        for implementation in ("xla", "reference", "mosaic_gpu_interpret", "mosaic_tpu_interpret")
        if "_interpret" not in implementation or kind == "sparse_sign"
    },
    **{
        f"chain, {name}": partial(chains, name)
        for name in ("xla", "reference", "mosaic_gpu_interpret", "mosaic_tpu_interpret")
    },
    "ares_bp": through_the_switch,
    "restrict_rank": restricted,
    "restrict_rank in apply_if_finite": partial(
        restricted, wrap=lambda tx: optax.apply_if_finite(tx, 3)
    ),
    **{f"{bits} bits": partial(quantised, bits=bits) for bits in (4, 16)},
    "starts": starts,
}


@pytest.mark.parametrize("case", CASES)
def test_is_traced(case: str) -> None:
    for setting, dtype in SETTINGS:
        with setting():
            made = jax.eval_shape(partial(CASES[case], dtype))
        # nothing grew, whatever is enabled
        allowed = {jnp.dtype(d) for d in (dtype, jnp.float32, jnp.uint32)}
        assert {a.dtype for a in jax.tree.leaves(made)} <= allowed


COMPARED = ("linear, ares", "conv, seeded", "rows_norm, xla", "ares_bp", "restrict_rank", "4 bits")
RUN = (
    *COMPARED,
    *("linear, chain", "linear, seeded", "conv, ares", "conv, groups, chain", "einsum, ares"),
    *("general, seeded", "two factors", "linen dense, seeded", "linen conv, ares"),
    *(f"{kind}, xla" for kind in rk.FAMILIES if kind != "rows_norm"),
    *("chain, xla", "restrict_rank in apply_if_finite", "16 bits", "starts"),
)


@pytest.mark.parametrize("case", RUN)
def test_makes_no_nan_on_the_way_and_the_same_numbers_under_all_settings(case: str) -> None:
    run = lambda: jax.jit(partial(CASES[case], jnp.float32))()
    want = run() if case in COMPARED else None
    with (
        jax.debug_nans(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
        jax.enable_x64(True),
    ):
        got = run()
    if want is not None:
        jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), got, want)


@pytest.mark.parametrize(("setting", "mode"), [(SETTINGS[0], "chain"), (SETTINGS[1], "seeded")])
def test_sketchify(setting: Any, mode: str) -> None:
    with setting[0]():
        converted(setting[1], mode)


def test_keys_of_another_kind() -> None:
    key = jax.random.key(7, impl="rbg")
    a, b, c, d = (int(w) for w in jax.random.key_data(key))
    seed = rk.rademacher(key, 64, 8).seed
    assert seed.tolist() == [int(w) for w in threefry_2x32((a, b), (c, d))]
    keys = jax.random.split(key, 3)
    seeds = jax.vmap(lambda key: rk.rademacher(key, 64, 8).seed)(keys)
    assert seeds.tolist() == [rk.rademacher(key, 64, 8).seed.tolist() for key in keys]
    assert len({tuple(words) for words in seeds.tolist()}) == 3
    layer = SketchLinear(20, 30, 4, mode="seeded", rngs=nnx.Rngs(key))
    assert jnp.isfinite(layer(jnp.ones((2, 20)))).all()
    jax.eval_shape(partial(restricted, jnp.float32, key))
    assert rk.rademacher(jax.random.key(7), 64, 8).seed.tolist() == [0, 7]
    with pytest.raises(ValueError, match=r"seed has shape \(4,\).*wrap_key_data"):
        rk.rademacher(jax.random.key_data(key), 64, 8)
    with pytest.raises(ValueError, match=r"seed has shape \(3,\)"):
        rk.rademacher(keys, 64, 8)
