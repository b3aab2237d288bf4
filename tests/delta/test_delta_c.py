"""Deltas on the device: the numbers bit for bit, the weights to rounding, what C code cannot."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from command_line import call
from flax import nnx

from rosler_jax import save, trace
from rosler_jax.delta import save_delta, seeded_delta
from rosler_jax.export import ExportError, export

COMPILERS = [
    pytest.param(c, marks=pytest.mark.skipif(shutil.which(c) is None, reason=f"{c} is missing"))
    for c in ("gcc", "clang")
]
FLAGS = ["-O2", "-std=c99", "-Wall", "-Wextra", "-Werror", "-ffp-contract=off", "-shared", "-fPIC"]


def normal(shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def mlp():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(nnx.Linear(20, 16, rngs=rngs), nnx.relu, nnx.Linear(16, 5, rngs=rngs))


def conv():
    rngs = nnx.Rngs(0)
    return nnx.Sequential(
        nnx.Conv(2, 6, (3, 3), rngs=rngs), nnx.relu, lambda x: x.reshape(x.shape[0], -1),
        nnx.Linear(6 * 16, 5, rngs=rngs),
    )  # fmt: skip


class Device:
    """A compiled model."""

    def __init__(self, folder, compiler):
        library = folder / "model.so"
        source = str(folder / "rosler_model.c")
        subprocess.run([compiler, *FLAGS, "-o", str(library), source, "-lm"], check=True)
        self.library = ctypes.CDLL(str(library))
        self.arena = (ctypes.c_int64 * 8192)()

    def predict(self, x, outputs=5):
        def one(v):
            v, y = np.ascontiguousarray(v, np.float32), np.zeros(outputs, np.float32)
            self.library.rosler_predict(_pointer(v), _pointer(y), self.arena)
            return y

        return np.stack([one(v) for v in x])

    def tune(self, z):
        self.library.rosler_tune(None if z is None else _pointer(np.asarray(z, np.float32)))


def _pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("form", ["full", "seeded", "lora-xs", "sketched"])
@pytest.mark.parametrize(("build", "shape"), [(mlp, (20,)), (conv, (4, 4, 2))])
def test_a_device_takes_a_delta_over_the_air(form, build, shape, compiler, tmp_path):
    model, x = build(), normal((4, *shape))
    delta = seeded_delta(model, 17, seed=2**32 - 1, form=form, rank=4)
    done = export(trace(model, x), tmp_path, board=None, delta=delta)
    device = Device(tmp_path, compiler)
    np.testing.assert_allclose(device.predict(x), model(x), rtol=1e-5, atol=1e-5)
    tuned = jax.jit(lambda z: delta.apply(model, z)(x))
    for seed in (1, 2):
        z = jnp.asarray(normal((17,), seed))
        device.tune(z)
        wanted = tuned(z)
        np.testing.assert_allclose(device.predict(x), wanted, rtol=1e-4, atol=1e-5)
    device.tune(None)
    np.testing.assert_allclose(device.predict(x), model(x), rtol=1e-5, atol=1e-5)
    sizes = sum(weight.size if form == "full" else np.prod(weight.shape)
                for weight in delta.plan.weights)  # fmt: skip
    assert done.report["ram"]["decoded_bytes"] == 4 * sizes + (0 if form == "full" else 16)
    assert "#define ROSLER_DELTA_NUMBERS 17" in (tmp_path / "rosler_model.h").read_text()


@pytest.mark.parametrize("compiler", COMPILERS)
@pytest.mark.parametrize("k", [1, 7, 64, 100, 320])
def test_shared_numbers_are_those_of_jax_bit_for_bit(k, compiler, tmp_path):
    # Of a base of zeros and an identity for input, the outputs are the changes themselves.
    model = nnx.Linear(20, 16, use_bias=False, rngs=nnx.Rngs(0))
    model.kernel[...] = jnp.zeros((20, 16))
    delta = seeded_delta(model, k, seed=77, form="full")
    export(trace(model, np.eye(20, dtype=np.float32)), tmp_path, board=None, delta=delta)
    device, z = Device(tmp_path, compiler), jnp.asarray(normal((k,)))
    device.tune(z)
    found = device.predict(np.eye(20), 16)
    wanted = np.asarray(delta.change(delta.plan.weights[0], z))
    np.testing.assert_array_equal(found.view(np.uint32), wanted.view(np.uint32))


def test_what_c_cannot_apply_is_refused(tmp_path):
    model, x = mlp(), normal((4, 20))
    graph = trace(model, x)
    with pytest.raises(ExportError, match=r"applies deltas of the forms full, .* not 'lora'"):
        export(graph, tmp_path / "a", board=None, delta=seeded_delta(model, 9, form="lora"))
    delta = seeded_delta(model, 9, form="full")
    for more in ({"dtype": "int8", "calibration": x}, {"target": "onnx"}, {"weights": "sparse"}):
        with pytest.raises(ExportError, match="delta= is for C code in float32"):
            export(graph, tmp_path / "b", board=None, delta=delta, **more)
    other = seeded_delta({"other": {"kernel": jnp.ones((20, 16))}}, 9, form="full")
    with pytest.raises(ExportError, match="changes 'other/kernel', which is no weight"):
        export(graph, tmp_path / "c", board=None, delta=other)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("compiler", COMPILERS[:1])
def test_from_the_command_line(compiler, tmp_path, capsys):
    model, x = mlp(), normal((4, 20))
    save(tmp_path / "m.rosler", model, x)
    delta = seeded_delta(model, 9, form="full")
    save_delta(tmp_path / "task.delta", delta, normal((9,)))
    command = ["export", str(tmp_path / "m.rosler"), "--out", str(tmp_path / "edge"),
               "--board", "none", "--delta", str(tmp_path / "task.delta")]  # fmt: skip
    assert call(capsys, *command).code == 0
    device = Device(tmp_path / "edge", compiler)
    z = normal((9,), 3)
    device.tune(z)
    wanted = delta.apply(model, jnp.asarray(z))(x)
    np.testing.assert_allclose(device.predict(x), wanted, rtol=1e-4, atol=1e-5)
