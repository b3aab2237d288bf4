"""Operations as primitives: one equation each, and exact under every transformation of JAX."""

from __future__ import annotations

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from abstract_devices import H100
from flax import nnx

import rosler_kernels as rk
from rosler_jax.nn import SketchLinear
from rosler_kernels import selection, tuning
from rosler_kernels.chain import xla as chain
from rosler_kernels.projection import xla

KINDS = ("rademacher", "srht", "sparse_sign", "dct", "pool", "rows_norm")


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def new(kind, seed, rows, cols):
    weights = {"w": normal(9, rows, 3)} if rk.FAMILIES[kind].weighted else {}
    return rk.make(kind, seed, rows, cols, **weights)


def patches(x, sketch, **options):
    return rk.project_patches(x, sketch, window=(2, 3), strides=(1, 2), padding="SAME", **options)


def hadamard(x, sketch, **options):
    return rk.hadamard_transform(x, **options)


# The operation, the sketch's rows and columns, the shape of an example's x.
OPERATIONS = {
    "project": (rk.project, (40, 12), (40,)),
    "transpose": (rk.project_transpose, (40, 12), (12,)),
    "patches": (patches, (18, 5), (5, 6, 3)),
    "hadamard": (hadamard, (18, 5), (16,)),
}
PRIMITIVES = {
    "project": ("rosler_project", {"transpose": False}),
    "transpose": ("rosler_project", {"transpose": True}),
    "patches": ("rosler_project_patches", {"transpose": False}),
    "hadamard": ("rosler_hadamard", {}),
}


def matrix(operation, shape, sketch):
    """The operation on one example as a matrix, by the reference."""
    size = int(np.prod(shape))
    one = lambda e: operation(e.reshape(1, *shape), sketch, implementation="reference").ravel()
    return np.asarray(jax.vmap(one)(jnp.eye(size)), np.float64)


def close(got, want):
    np.testing.assert_allclose(got, np.asarray(want).reshape(np.shape(got)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_one_equation(name, kind):
    operation, size, shape = OPERATIONS[name]
    sketch = new(kind, 3, *size)
    jaxpr = jax.make_jaxpr(operation)(jnp.ones((2, *shape)), sketch)
    equation = jaxpr.eqns[-1]  # before it, padding
    primitive, params = PRIMITIVES[name]
    assert (equation.primitive.name, len(jaxpr.eqns)) == (primitive, 1 + (name == "patches"))
    assert params.items() <= equation.params.items()
    assert all(isinstance(hash(value), int) for value in equation.params.values())
    if name != "hadamard":
        static = equation.params["sketch"]
        assert (static.kind, static.rows, static.cols) == (kind, *size)
        assert static.sketch(*sketch.arrays()).params == sketch.params
    if name == "patches":
        assert equation.params["window"].window == (2, 3)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_derivatives_of_every_kind(name, kind):
    operation, size, shape = OPERATIONS[name]
    sketch = new(kind, 3, *size)
    apply = functools.partial(operation, sketch=sketch)
    a = matrix(operation, shape, sketch)
    x, dx = normal(0, 4, *shape), normal(1, 4, *shape)
    y = apply(x)
    flat = lambda v: np.asarray(v, np.float64).reshape(4, -1)
    close(y, flat(x) @ a)
    out, tangent = jax.jit(lambda x, dx: jax.jvp(apply, (x,), (dx,)))(x, dx)
    np.testing.assert_array_equal(out, y)
    close(tangent, flat(dx) @ a)
    close(jax.linearize(apply, x)[1](dx), flat(dx) @ a)
    delta = normal(2, *y.shape)
    want = flat(delta) @ a.T
    close(jax.linear_transpose(apply, x)(delta)[0], want)
    close(jax.linear_transpose(jax.linear_transpose(apply, x), delta)((x,))[0], flat(x) @ a)
    loss = lambda x: jnp.sum(jnp.sin(apply(x)) * delta)
    want = (np.cos(flat(x) @ a) * flat(delta)) @ a.T
    close(jax.grad(loss)(x), want)
    np.testing.assert_array_equal(jax.grad(jax.checkpoint(loss))(x), jax.grad(loss)(x))
    close(jax.jvp(loss, (x,), (dx,))[1], np.sum(want * flat(dx)))
    # Second derivatives, forward over reverse.
    curvature = -np.sin(flat(x) @ a) * flat(delta) * (flat(dx) @ a)
    close(jax.jvp(jax.grad(loss), (x,), (dx,))[1], curvature @ a.T)
    # Mapped, whichever axis: one axis of examples more.
    several = normal(3, 4, *shape[:-1], 3, shape[-1])
    axis = several.ndim - 2
    mapped = jax.vmap(jax.grad(loss), axis, axis)(several)
    each = [jax.grad(loss)(jnp.take(several, i, axis)) for i in range(3)]
    close(mapped, np.stack(each, axis))
    batched = jax.make_jaxpr(jax.vmap(apply, axis))(several)
    assert not any(eqn.params.get("maps") for eqn in batched.eqns)


@pytest.mark.parametrize("kind", KINDS[:3])
@pytest.mark.parametrize("shared", [True, False])
def test_maps_over_seeds_and_inputs_nest(kind, shared):
    x = normal(0, 3, 30) if shared else normal(0, 2, 4, 3, 30)
    seeds = jnp.arange(8).reshape(2, 4)

    def loss(x, seed):
        return jnp.sum(jnp.sin(rk.project(x, rk.make(kind, seed, 30, 10))))

    axes = (None, 0) if shared else (0, 0)
    both = jax.vmap(jax.vmap(loss, axes), axes)
    total, tangent = jax.jvp(lambda x: jnp.sum(both(x, seeds)), (x,), (x,))
    each = [
        jax.value_and_grad(loss)(x if shared else x[i, j], seeds[i, j])
        for i in range(2)
        for j in range(4)
    ]
    close(total, sum(value for value, _ in each))
    gradients = np.stack([gradient for _, gradient in each])
    want = gradients.sum(0) if shared else gradients.reshape(x.shape)
    close(jax.grad(lambda x: jnp.sum(both(x, seeds)))(x), want)
    close(tangent, np.sum(np.asarray(x) * want))
    mapped = jax.vmap(jax.vmap(jax.grad(loss), axes), axes)(x, seeds)
    close(mapped, gradients)
    # Then over inputs once more: behind the axes of the seeds.
    more = jnp.stack([x, 2 * x], -2)
    got = jax.vmap(lambda x: both(x, seeds), -2)(more)
    close(got, jnp.stack([both(x, seeds), both(2 * x, seeds)]))


def test_operations_under_remat_of_scan():
    sketch = rk.srht(3, 16, 16)

    def loss(x):
        step = jax.checkpoint(lambda x, _: (jnp.sin(rk.project(x, sketch)), None))
        return jnp.sum(jax.lax.scan(step, x, None, length=3)[0])

    x, omega = normal(0, 2, 16), rk.materialize(sketch)

    def want(x):
        for _ in range(3):
            x = jnp.sin(x @ omega)
        return jnp.sum(x)

    close(jax.grad(loss)(x), jax.grad(want)(x))
    close(jax.jvp(loss, (x,), (x,))[1], jax.jvp(want, (x,), (x,))[1])


@pytest.mark.parametrize("call", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_the_second_call_compiles_nothing(call, monkeypatch):
    lowered = []
    project = xla.project
    monkeypatch.setattr(xla, "project", lambda *a, **o: lowered.append(a) or project(*a, **o))
    apply = call(lambda x, seed: rk.project(x, rk.rademacher(seed, 53, 7)))
    for seed in range(3):
        apply(normal(0, 3, 53), jnp.uint32(seed))
    assert len(lowered) == 1


def test_a_chain_is_one_program_where_nothing_is_traced(monkeypatch):
    made = []
    products = chain.chain
    monkeypatch.setattr(chain, "chain", lambda *a, **o: made.append(a) or products(*a, **o))
    x, u = normal(0, 3, 51), normal(1, 5, 6)
    call = lambda: rk.sketch_matmul(x, rk.srht(1, 51, 5), u, rk.srht(2, 23, 6))
    first = call()
    np.testing.assert_array_equal(call(), first)
    assert len(made) == 1
    if jax.__version_info__ < (0, 11):  # which inlines when it traces, and later ones as they lower
        assert "jit" not in str(jax.make_jaxpr(lambda x: rk.sketch_matmul(x, u.T @ u, u.T, u))(u))
    monkeypatch.setenv(selection.VARIABLE, "xla")  # what is asked for is part of the key
    count = len(made)
    np.testing.assert_array_equal(call(), first)
    with rk.use_implementation("xla"):
        np.testing.assert_array_equal(call(), first)
    assert len(made) == count + 2


@pytest.mark.parametrize("held", ["stored", "seeded"])
def test_forward_mode_through_a_chain(held):
    x, c, u, r = (normal(i, *s) for i, s in enumerate(((5, 30), (30, 4), (4, 6), (6, 20))))
    left, right = (c, r) if held == "stored" else (rk.srht(1, 30, 4), rk.srht(2, 20, 6))
    whole = lambda f, back: (
        (rk.materialize(f).T if back else rk.materialize(f)) if held == "seeded" else f
    )
    got = jax.jvp(lambda x, u: rk.sketch_matmul(x, left, u, right), (x, u), (x, u))
    want = jax.jvp(lambda x, u: x @ whole(left, False) @ u @ whole(right, True), (x, u), (x, u))
    close(got[0], want[0])
    close(got[1], want[1])


@pytest.mark.parametrize("mode", ["chain", "seeded"])
def test_forward_mode_through_a_layer(mode):
    graph, state = nnx.split(SketchLinear(40, 30, rank=8, mode=mode, rngs=nnx.Rngs(0)))
    loss = lambda x: jnp.sum(jnp.sin(nnx.merge(graph, state)(x)))
    x, dx = normal(0, 3, 40), normal(1, 3, 40)
    close(jax.jvp(loss, (x,), (dx,))[1], jnp.vdot(jax.grad(loss)(x), dx))


SKETCH = rk.rademacher(0, 1024, 64)
TYPE = jax.ShapeDtypeStruct((512, 1024), jnp.float32)


def exported(function):
    return jax.export.export(
        jax.jit(function),
        platforms=["cpu", "cuda", "tpu"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call("mosaic_gpu_v2")],
    )(TYPE)


def test_one_export_chooses_for_each_platform(monkeypatch):
    entry = {
        "operation": "project",
        "kind": "rademacher",
        "dtype": "float32",
        "shape": [512, 1024, 64],
        "blocks": {"rows": 64, "cols": 64, "stages": 2, "splits": 1},
        "xla_over_kernel": 1.5,
    }
    table = {"mosaic_gpu": {H100: [entry]}}
    monkeypatch.setattr(tuning, "_table", lambda: json.loads(json.dumps(table)))
    project = lambda x: rk.project(x, SKETCH)
    x = normal(0, 512, 1024)
    want = rk.project(x, SKETCH)
    plain = exported(project)  # the kinds of the devices are not known
    assert "mosaic_gpu_v2" not in plain.mlir_module()
    with rk.assume_device("gpu", H100):
        mixed = exported(project)
        backward = exported(jax.grad(lambda x: jnp.sum(project(x))))
    assert "@mosaic_gpu_v2(" in mixed.mlir_module()
    assert "mosaic_gpu_v2" not in backward.mlir_module()  # nobody measured the transpose
    if jax.default_backend() == "cpu":
        for program in (plain, mixed):
            np.testing.assert_array_equal(program.call(x), want)


def test_a_forced_implementation_runs_on_every_platform():
    with rk.use_implementation("reference"):
        text = exported(lambda x: rk.project(x, SKETCH)).mlir_module()
    assert "tensor<1024x64xf32>" in text  # Omega, formed whole
