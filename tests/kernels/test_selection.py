"""Which implementation runs, and why."""

from __future__ import annotations

import json

import jax
import jax.experimental.pallas.tpu  # first: from JAX 0.12 its import has all traced again, once
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rosler_kernels as rk
from rosler_jax.nn import SketchLinear
from rosler_kernels import selection, tuning

SKETCH = rk.rademacher(0, 1024, 64)
SHAPE = (512, 1024)
H100 = "NVIDIA H100 80GB HBM3"
ON_CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="says what a CPU would choose")


@ON_CPU
def test_a_cpu_runs_xla_and_says_why():
    choice = rk.explain(SKETCH, SHAPE)
    assert choice.name == "xla"
    assert "no kernel for cpu" in choice.reason


@ON_CPU
@pytest.mark.parametrize("name", ["mosaic_gpu", "mosaic_tpu"])
def test_an_explicit_choice_that_cannot_run_raises_the_reason(name):
    with pytest.raises(ValueError, match=rf"{name}.*needs a {name[-3:]}, and this is a cpu"):
        rk.project(jnp.ones(SHAPE), SKETCH, implementation=name)


def test_an_explicit_choice_that_does_not_serve_the_operation_raises_the_reason():
    with pytest.raises(ValueError, match="rows_uniform has no kernel"):
        rk.project(
            jnp.ones((2, 9)), rk.rows_uniform(0, 9, 4), implementation="mosaic_gpu_interpret"
        )
    x, u = jnp.ones((2, 9)), jnp.ones((4, 4))
    with pytest.raises(ValueError, match="bfloat16"):
        rk.sketch_matmul(
            x, jnp.ones((9, 4)), u, jnp.ones((4, 5)), implementation="mosaic_gpu_interpret"
        )
    with pytest.raises(ValueError, match="order 16384"):
        rk.hadamard_transform(jnp.ones((1, 16384)), implementation="mosaic_gpu_interpret")


def test_unknown_names_are_named(monkeypatch):
    with pytest.raises(ValueError, match=r"'cuda'.*expected one of xla"):
        rk.project(jnp.ones(SHAPE), SKETCH, implementation="cuda")
    with pytest.raises(ValueError, match="'cuda'"), rk.use_implementation("cuda"):
        pass
    monkeypatch.setenv(selection.VARIABLE, "cuda")
    with pytest.raises(ValueError, match=f"'cuda', set by {selection.VARIABLE}"):
        rk.explain(SKETCH, SHAPE)


def test_argument_over_context_over_environment(monkeypatch):
    monkeypatch.setenv(selection.VARIABLE, "reference")
    assert rk.explain(SKETCH, SHAPE).name == "reference"
    with rk.use_implementation("mosaic_tpu_interpret"):
        assert rk.explain(SKETCH, SHAPE).name == "mosaic_tpu_interpret"
        assert rk.explain(SKETCH, SHAPE, implementation="xla").name == "xla"
        with rk.use_implementation(None):
            assert rk.explain(SKETCH, SHAPE).name == "reference"
    assert rk.explain(SKETCH, SHAPE).name == "reference"


@ON_CPU
def test_a_traced_function_follows_the_context():
    chosen = []

    @jax.jit
    def f(x):
        chosen.append(rk.explain(SKETCH, x.shape).name)
        return rk.project(x, SKETCH)

    x = jax.random.normal(jax.random.key(0), (3, 1024))
    text = {None: f.lower(x).as_text()}
    for name in ("reference", "mosaic_tpu_interpret", "reference", None):
        with rk.use_implementation(name):
            text.setdefault(name, f.lower(x).as_text())
            np.testing.assert_allclose(f(x), rk.project(x, SKETCH), rtol=1e-5, atol=1e-5)
    assert chosen == ["xla", "reference", "mosaic_tpu_interpret"]  # each of them traced once
    assert len(set(text.values())) == 3
    with rk.assume_device("tpu", "TPU v4"), rk.use_implementation("mosaic_tpu"):
        f.trace(x)
    assert chosen[3:] == ["mosaic_tpu"]


def test_a_forced_program_falls_back_where_there_is_no_kernel():
    with rk.use_implementation("mosaic_gpu_interpret"):
        choice = rk.explain(rk.rows_uniform(0, 9, 4), (2, 9))
    assert choice.name == "xla"
    assert "forced by use_implementation, but rows_uniform has no kernel" in choice.reason


@ON_CPU
def test_a_gpu_runs_a_kernel_only_where_it_was_measured_to_win(monkeypatch):
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
    with rk.assume_device("gpu", H100):
        near = rk.explain(SKETCH, (1000, 1024))
        assert near.name == "mosaic_gpu"
        assert "1.50x" in near.reason
        assert dict(near.blocks or ())["stages"] == 2
        assert rk.explain(SKETCH, (10**6, 1024)).name == "xla"
        assert rk.explain(SKETCH, SHAPE, jnp.bfloat16).name == "xla"
    with rk.assume_device("gpu", "NVIDIA H200"):
        kin = rk.explain(SKETCH, (1000, 1024))
        assert kin.name == "mosaic_gpu"
        assert kin.reason.endswith("multiprocessors of NVIDIA H200; not measured there")
    with rk.assume_device("gpu", "NVIDIA A100-SXM4-80GB"):
        assert "Hopper" in rk.explain(SKETCH, SHAPE).reason
    entry["xla_over_kernel"] = 1.02  # too close to tell
    with rk.assume_device("gpu", H100):
        assert rk.explain(SKETCH, SHAPE).name == "xla"


def test_the_shipped_table_is_sound():
    for name, devices in tuning.table().items():
        assert name in rk.IMPLEMENTATIONS
        for entries in devices.values():
            for entry in entries:
                assert set(entry) == {
                    "operation",
                    "kind",
                    "dtype",
                    "shape",
                    "blocks",
                    "xla_over_kernel",
                    "kernel_microseconds",
                }


@ON_CPU  # interpreters of other devices' kernels
@pytest.mark.parametrize("mode", ["chain", "ares", "seeded"])
@pytest.mark.parametrize("name", ["reference", "mosaic_gpu_interpret", "mosaic_tpu_interpret"])
def test_layers_run_with_the_implementation_that_is_forced(mode, name):
    layer = SketchLinear(40, 30, rank=8, mode=mode, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (3, 40))
    want = layer(x)
    with rk.use_implementation(name):
        got = layer(x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
