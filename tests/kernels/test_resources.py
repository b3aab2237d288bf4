"""Memory of a projection, and projections over several devices."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from abstract_devices import H100, mesh_of
from jax.sharding import PartitionSpec as P

import rosler_kernels as rk
from rosler_kernels.projection import _blocks, _dense
from rosler_kernels.sketches import FAMILIES
from rosler_kernels.sketches.srht import order_bits
from rosler_kernels.specs import CPU as SPECS_CPU
from rosler_kernels.specs import Spec

KINDS = [kind for kind, family in FAMILIES.items() if not family.weighted]
SHAPES = ((65536, 8192, 64), (65536, 8192, 256), (128, 65536, 1024))
CPU = jax.default_backend() == "cpu"
# XLA for CPUs has no slices of bfloat16: it widens the whole of an array first, whatever is asked.
NARROW = "float16" if CPU else "bfloat16"
LARGE = [
    Spec(kind, *shape, dtype, transpose)
    for kind in KINDS
    for shape, dtype in ((SHAPES[0], "float32"), *((shape, NARROW) for shape in SHAPES))
    for transpose in (False, True)
    if not (kind == "dct" and shape[1] > 46_340)  # the longest axis whose squares fit 32 bits
]
TILE = 4 * _dense.TILE_ENTRIES if CPU else _dense.TILE_BYTES[1]
# A tile, its words, and a copy; a block of the input, one of the output, and two between them.
# cuBLAS takes 32 MB for itself, and XLA parts of a product whose sums it splits.
ALLOWED = 3 * TILE + 4 * 4 * _blocks.NUMBERS + (0 if CPU else 32 << 20)


def extra_memory(spec):
    """Bytes of temporaries that the compiler counts."""
    project = rk.project_transpose if spec.transpose else rk.project
    width = spec.cols if spec.transpose else spec.rows
    x = jax.ShapeDtypeStruct((spec.batch, width), spec.dtype)
    compiled = jax.jit(lambda x, s: project(x, s, implementation="xla")).lower(x, spec.sketch(0))
    return compiled.compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("spec", LARGE, ids=lambda spec: spec.name)
def test_extra_memory_is_of_a_tile(spec):
    more = 0
    if not CPU and not FAMILIES[spec.kind].signed and not spec.transpose:
        more = 8 * spec.batch * min(spec.cols, _dense.FEW_LANES)  # sums of both parts of entries
    if FAMILIES[spec.kind].structure == "rows":
        more = 8 * spec.batch * spec.cols  # scaled, before it is scattered
    assert extra_memory(spec) <= ALLOWED + more


FEW = [spec for spec in SPECS_CPU if spec.rows * spec.cols > 4 * _dense.TILE_ENTRIES]


@pytest.mark.parametrize("spec", FEW, ids=lambda spec: spec.name)
def test_extra_memory_of_few_examples(spec):
    """Of so few that none of their blocks counts: a tile, its words and a copy."""
    allowed = 3 * TILE + (0 if CPU else 32 << 20)
    if spec.kind == "srht":  # a transform works on a whole block, padded: twice its bytes
        allowed += 8 * min(spec.batch << order_bits(spec.rows), _blocks.NUMBERS)
    assert extra_memory(spec) <= allowed


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec as P
import rosler_kernels as rk
mesh = Mesh(np.array(jax.devices()), ("data",))
assert len(jax.devices()) == 4
x = jax.random.normal(jax.random.key(0), (8, 100))
for kind in ("rademacher", "gaussian", "sparse_sign", "block_perm", "srht", "rows_uniform", "dct"):
    sketch = rk.make(kind, 3, 100, 24)
    want = rk.project(x, sketch, implementation="reference")
    loss = lambda x: jnp.sum(jnp.sin(rk.project(x, sketch)))
    shard = jax.shard_map(
        lambda x, s: rk.project(x, s), mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data")
    )
    np.testing.assert_allclose(jax.jit(shard)(x, sketch), want, atol=1e-5)
    # The gradient, device by device.
    grad = jax.shard_map(jax.grad(loss), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_allclose(jax.jit(grad)(x), jax.grad(loss)(x), atol=1e-5)
    # And by sharding alone, without shard_map.
    placed = jax.device_put(x, NamedSharding(mesh, P("data")))
    np.testing.assert_allclose(jax.jit(rk.project)(placed, sketch), want, atol=1e-5)
seeds = jnp.arange(4)
each = jax.shard_map(
    lambda x, seed: rk.project(x, rk.rademacher(seed[0], 100, 24)),
    mesh=mesh, in_specs=(P(), P("data")), out_specs=P("data"),
)
got = jax.jit(each)(x, seeds).reshape(4, 8, 24)
for k in range(4):
    np.testing.assert_allclose(got[k], rk.project(x, rk.rademacher(k, 100, 24)), atol=1e-5)
print("sharded")
"""


@pytest.mark.slow
def test_shard_map_over_four_devices():
    environment = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    environment["JAX_PLATFORMS"] = "cpu"
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.stdout.strip() == "sharded", done.stderr[-2000:]


@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_shard_map_of_a_kernel_lowers(platform):
    kind = H100 if platform == "gpu" else "TPU v5e"
    mesh = mesh_of(platform, kind, 2, "data")
    name = "mosaic_gpu_v2" if platform == "gpu" else "tpu_custom_call"

    def run(x, seed):
        sketch = rk.rademacher(seed, 512, 128)
        return rk.project(x, sketch, implementation=f"mosaic_{platform}")

    with rk.assume_device(platform, kind):
        sharded = jax.shard_map(run, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"))
        exported = jax.export.export(
            jax.jit(sharded),
            platforms=["cuda" if platform == "gpu" else "tpu"],
            disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(name)],
        )(jax.ShapeDtypeStruct((256, 512), jnp.bfloat16), jax.ShapeDtypeStruct((), jnp.uint32))
    assert f"@{name}(" in exported.mlir_module()
