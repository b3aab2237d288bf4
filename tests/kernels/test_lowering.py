"""Every kernel lowers for the devices it is written for, forward and backward, without one."""

from __future__ import annotations

import contextlib
import re

import jax
import jax.numpy as jnp
import pytest
from abstract_devices import H100, mesh_of

import rosler_kernels as rk
from rosler_kernels.specs import KERNEL_FAMILIES

TPUS = ["TPU v4", "TPU v5e", "TPU v6 lite"]
DEVICES = [("gpu", H100), *(("tpu", kind) for kind in TPUS)]
MARKS = {"gpu": "mosaic_gpu_v2", "tpu": "tpu_custom_call"}


@contextlib.contextmanager
def target(platform, kind):
    with contextlib.ExitStack() as stack:
        stack.enter_context(rk.assume_device(platform, kind))
        if platform == "tpu":
            mesh = mesh_of(platform, kind, 1, "a")
            stack.enter_context(jax.sharding.use_abstract_mesh(mesh))
        yield


def kernels_in(function, arguments, platform, kind):
    """How many calls of a kernel the lowered function holds."""
    with target(platform, kind):
        exported = jax.export.export(
            jax.jit(function),
            platforms=["cuda" if platform == "gpu" else "tpu"],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(MARKS[platform])],
        )(*arguments)
    functions = re.split(r"func\.func \w+ @", exported.mlir_module())[1:]
    bodies = {text.partition("(")[0]: text for text in functions}

    def count(name):  # JAX 0.12 writes a function that is called twice once
        callees = re.findall(r"\bcall @(\w+)\(", bodies[name])
        return bodies[name].count(f"@{MARKS[platform]}(") + sum(map(count, callees))

    return count("main")


def square(y):
    return jnp.sum(jnp.square(y.astype(jnp.float32)))


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d[1])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float16"])
@pytest.mark.parametrize("kind", KERNEL_FAMILIES)
def test_projection_lowers_forward_and_backward(kind, dtype, device):
    x = jax.ShapeDtypeStruct((256, 1024), dtype)

    def step(x, seed):
        sketch = rk.make(kind, seed, 1024, 128)
        return jax.grad(
            lambda x: square(rk.project(x, sketch, implementation=f"mosaic_{device[0]}"))
        )(x)

    seed = jax.ShapeDtypeStruct((), jnp.uint32)
    assert kernels_in(step, (x, seed), *device) >= 2


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d[1])
def test_vmap_over_inputs_and_seeds_lowers(device):
    def loss(x, seed):
        sketch = rk.rademacher(seed, 512, 128)
        return square(rk.project(x, sketch, implementation=f"mosaic_{device[0]}"))

    x, seeds = jax.ShapeDtypeStruct((3, 64, 512), "bfloat16"), jax.ShapeDtypeStruct((3,), "uint32")
    assert kernels_in(jax.vmap(jax.grad(loss)), (x, seeds), *device) >= 2


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d[1])
@pytest.mark.parametrize("held", ["stored", "seeded", "parallel"])
def test_chain_lowers_forward_and_backward(held, device):
    x, c, u, r = (
        jax.ShapeDtypeStruct(shape, "bfloat16")
        for shape in ((256, 1024), (1024, 64), (64, 128), (128, 512))
    )
    name = f"mosaic_{device[0]}"
    psi, omega = rk.rademacher(1, 1024, 128), rk.rademacher(2, 512, 64)

    def loss(x, c, u, r):
        if held == "seeded":
            left, right = rk.srht(1, 1024, 64), rk.srht(2, 512, 128)
            return square(rk.sketch_matmul(x, left, u, right, implementation=name))
        parallel = rk.Parallel(psi, omega) if held == "parallel" else None
        return square(rk.sketch_matmul(x, c, u, r, parallel=parallel, implementation=name))

    found = kernels_in(jax.grad(loss, (0, 1, 2, 3)), (x, c, u, r), *device)
    # Forward, the error's chain, and in the parallel stage both sketched operands.
    assert found >= (4 if held == "parallel" else 2)


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d[1])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_hadamard_lowers_forward_and_backward(dtype, device):
    def loss(x):
        return square(rk.hadamard_transform(x, implementation=f"mosaic_{device[0]}"))

    x = jax.ShapeDtypeStruct((64, 4096), dtype)
    assert kernels_in(jax.grad(loss), (x,), *device) >= 2


@pytest.mark.parametrize("device", DEVICES, ids=lambda d: d[1])
@pytest.mark.parametrize("strides", [1, 2])
def test_patches_lower_forward_and_backward(strides, device):
    def loss(x):
        sketch = rk.rademacher(0, 9 * 32, 64)
        y = rk.project_patches(
            x,
            sketch,
            window=(3, 3),
            strides=strides,
            padding="SAME",
            implementation=f"mosaic_{device[0]}",
        )
        return square(y)

    x = jax.ShapeDtypeStruct((8, 16, 16, 32), "bfloat16")
    assert kernels_in(jax.grad(loss), (x,), *device) >= 2
