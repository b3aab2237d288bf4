"""Run by test_explicit_mode.py in a process of four CPU devices: the same numbers on a mesh.

``jax.make_mesh`` makes meshes of explicit axes: types name their sharding, and what does not say
how its result lies on the mesh is refused.
"""

from __future__ import annotations

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import rosler_kernels as rk
from rosler_jax import linen
from rosler_jax.nn import SketchConv, SketchEinsum, SketchLinear
from rosler_jax.nn.two_factor import TwoFactorLinear
from rosler_jax.optim import ares_bp, restrict_rank, scale_by_sketched_adam

IMAGES = (8, 7, 7, 6)
LAYERS = {
    "chain": (lambda rngs: SketchLinear(20, 30, rank=4, rngs=rngs), (8, 20)),
    "chain, more axes": (lambda rngs: SketchLinear(20, 30, rank=4, rngs=rngs), (8, 5, 20)),
    "aRes": (lambda rngs: SketchLinear(20, 30, rank=4, mode="ares", rngs=rngs), (8, 20)),
    **{
        f"seeded, {kind}": (
            lambda rngs, kind=kind: SketchLinear(
                20, 30, rank=4, mode="seeded", sketch=kind, rngs=rngs
            ),
            (8, 20),
        )
        for kind in ("srht", "sparse_sign", "rows_uniform", "dct:4x5/dct", "pool:4x5/pool")
    },
    "two factors": (lambda rngs: TwoFactorLinear(20, 30, rank=4, rngs=rngs), (8, 20)),
    "conv": (lambda rngs: SketchConv(6, 8, (3, 3), rank=4, rngs=rngs), IMAGES),
    "conv, aRes": (lambda rngs: SketchConv(6, 8, (3, 3), rank=4, mode="ares", rngs=rngs), IMAGES),
    "conv, seeded": (
        lambda rngs: SketchConv(6, 8, (3, 3), rank=4, mode="seeded", rngs=rngs),
        IMAGES,
    ),
    "conv, groups": (
        lambda rngs: SketchConv(
            6, 8, (3, 3), rank=2, mode="ares", feature_group_count=2, rngs=rngs
        ),
        IMAGES,
    ),
    "einsum": (
        lambda rngs: SketchEinsum("bij,jk->bik", (20, 30), 4, bias_shape=(30,), rngs=rngs),
        (8, 3, 20),
    ),
}


def loss_and_gradients(graphdef, state, x):
    """Of the float leaves of a layer's state, and of x."""

    def loss(state, x):
        return jnp.mean(jnp.sin(nnx.merge(graphdef, state)(x)))

    return jax.jit(jax.value_and_grad(loss, (0, 1), allow_int=True))(state, x)


def floats(tree):
    return [a for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]


def close(got, want, what):
    for a, b in zip(floats(got), floats(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=what)


def check_layers(mesh):
    for name, (make, shape) in LAYERS.items():
        graphdef, state = nnx.split(make(nnx.Rngs(0)))
        x = jax.random.normal(jax.random.key(1), shape)
        want = loss_and_gradients(graphdef, state, x)
        with jax.set_mesh(mesh):
            placed = jax.device_put(x, NamedSharding(mesh, P("data")))
            again = jax.device_put(state, NamedSharding(mesh, P()))
            got = loss_and_gradients(graphdef, again, placed)
            assert jax.typeof(got[1][1]).sharding.spec[0] == "data", name
        close(got, want, name)


def check_linen(mesh):
    model = linen.SketchDense(30, rank=4)
    x = jax.random.normal(jax.random.key(1), (8, 20))
    variables = model.init(jax.random.key(0), x)
    gradient = jax.jit(jax.grad(lambda v, x: jnp.mean(jnp.sin(model.apply(v, x)))))
    want = gradient(variables, x)
    with jax.set_mesh(mesh):
        placed = jax.device_put(x, NamedSharding(mesh, P("data")))
        close(gradient(jax.device_put(variables, NamedSharding(mesh, P())), placed), want, "Linen")


def train(graphdef, params, buffers, tx, x, y):
    """Six steps in one program."""

    def loss(params):
        logits = nnx.merge(graphdef, params, buffers)(x)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), None, length=6)[0][0]


def mlp(sketch):
    """20-12-12-3, its hidden layers dense or of rank 4."""
    rngs = nnx.Rngs(0)
    hidden = [
        nnx.Linear(m, 12, rngs=rngs) if sketch is None
        else SketchLinear(m, 12, rank=4, **sketch, rngs=rngs)
        for m in (20, 12)
    ]  # fmt: skip
    return nnx.Sequential(hidden[0], nnx.relu, hidden[1], nnx.relu, nnx.Linear(12, 3, rngs=rngs))


def check_training(mesh):
    adam = optax.adam(1e-2)
    cases = {
        "chain trains": ({"mode": "chain"}, adam),
        "aRes-BP through the switch": ({"mode": "ares"}, ares_bp(adam, switch_step=3)),
        "restrict_rank": (None, restrict_rank(adam, 4, every=2)),
    }
    x = jax.random.normal(jax.random.key(2), (16, 20))
    y = jnp.arange(16) % 3
    for name, (sketch, tx) in cases.items():
        graphdef, *parts = nnx.split(mlp(sketch), nnx.Param, ...)
        parts = [nnx.to_pure_dict(part) for part in parts]
        run = jax.jit(lambda p, b, x, y, g=graphdef, tx=tx: train(g, p, b, tx, x, y))
        want = run(*parts, x, y)
        with jax.set_mesh(mesh):
            placed = [jax.device_put(a, NamedSharding(mesh, P("data"))) for a in (x, y)]
            got = run(*jax.device_put(parts, NamedSharding(mesh, P())), *placed)
        close(got, want, name)


def check_kernels(mesh):
    """On each device's own examples: a Pallas kernel too, which the compiler cannot divide."""
    x = jax.random.normal(jax.random.key(0), (8, 128))
    for implementation in ("xla", "mosaic_tpu_interpret"):
        sketch = rk.rademacher(3, 128, 64)
        loss = lambda x, s, i=implementation: jnp.sum(jnp.sin(rk.project(x, s, implementation=i)))
        want = jax.grad(loss)(x, sketch)
        with jax.set_mesh(mesh):
            placed = jax.device_put(x, NamedSharding(mesh, P("data")))
            close(jax.jit(jax.grad(loss))(placed, sketch), want, implementation)
    power = jax.random.normal(jax.random.key(0), (8, 64))
    want = rk.hadamard_transform(power)
    with jax.set_mesh(mesh):
        placed = jax.device_put(power, NamedSharding(mesh, P("data")))
        close(jax.jit(rk.hadamard_transform)(placed), want, "Hadamard")


def check_divided_factors():
    """Inputs and factors may be sharded along features: the compiler divides the chain then."""
    mesh = jax.make_mesh((2, 2), ("data", "model"))
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = ((8, 20), (20, 4), (4, 4), (4, 30))
    arrays = [jax.random.normal(k, s) / 4 for k, s in zip(keys, shapes, strict=True)]
    specs = (P("data", "model"), P("model", None), P(), P(None, "model"))
    gradient = jax.grad(lambda *a: jnp.mean(jnp.sin(rk.sketch_matmul(*a))), (0, 1, 2, 3))
    want = gradient(*arrays)
    with jax.set_mesh(mesh):
        placed = [
            jax.device_put(a, NamedSharding(mesh, s)) for a, s in zip(arrays, specs, strict=True)
        ]
        got = jax.jit(gradient)(*placed)
        for a, b in zip(got, placed, strict=True):
            assert jax.typeof(a) == jax.typeof(b)
    close(got, want, "divided factors")


def check_sketched_moments(kinds):
    """Weights in shards: moments lie as their weights, and no gradient is gathered.

    ``kinds``: of the mesh's axes, explicit or left to the compiler.
    """
    mesh = jax.make_mesh((2, 2), ("fsdp", "model"), axis_types=(kinds, kinds))
    key, (m, n), rank = jax.random.key(4), (64, 96), 4
    params = {
        "a": {"kernel": jax.random.normal(key, (m, n))},
        "b": {"kernel": jax.random.normal(key, (n, m))},
    }
    places = {
        name: {"kernel": NamedSharding(mesh, spec)}
        for name, spec in (("a", P("fsdp", "model")), ("b", P("model", "fsdp")))
    }
    variants = (
        {}, {"scaling": "channel", "family": "rademacher"},
        {"scaling": "tensor", "along": "longer", "family": "srht"},
        {"scaling": "combined", "family": "gaussian"},
        {"scaling": "subspace", "family": "rademacher", "state_dtype": jnp.int8},
    )  # fmt: skip
    for options in variants:
        tx = scale_by_sketched_adam(rank, refresh=2, **options)

        def steps(params, state, tx=tx):
            for _ in range(3):
                updates, state = tx.update(jax.tree.map(jnp.sin, params), state)
                params = jax.tree.map(lambda p, u: p + u / 100, params, updates)
            return params, state

        want, _ = jax.jit(steps)(params, tx.init(params))
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, places)
            state = tx.init(placed)
            if "state_dtype" not in options:
                along = options.get("along", "shorter")
                lies = state.sketched.mu["a/kernel"]
                spec = P(None, "model" if along == "shorter" else "fsdp", None)
                assert lies.sharding.is_equivalent_to(NamedSharding(mesh, spec), 3), lies.sharding
            compiled = jax.jit(steps).lower(placed, state).compile()
            got, _ = compiled(placed, state)
            gathered = all_gathered(compiled.as_text())
        close(got, want, f"{kinds} {options}")
        # Of a gradient a device would gather a quarter at least; sketches and bases are smaller.
        # Which cosines are the largest is known from all of a column.
        few = "family" not in options or max(gathered, default=0) < m * n // 4
        assert few, (kinds, options, gathered)


def all_gathered(program):
    """Numbers in the results of a program's gathers over the mesh."""
    found = re.findall(r"= \(?\w+\[([\d,]*)\]\S* all-gather", program)
    return [math.prod(map(int, filter(None, shape.split(",")))) for shape in found]


if __name__ == "__main__":
    data = jax.make_mesh((4,), ("data",))
    check_layers(data)
    check_linen(data)
    check_training(data)
    check_kernels(data)
    check_divided_factors()
    for kinds in (AxisType.Explicit, AxisType.Auto):
        check_sketched_moments(kinds)
    print("equal")
