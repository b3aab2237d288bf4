"""NaN and infinities on every target, and real inputs made integers; the rule: reference.py."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exported_models import CONV_SHAPE, convnet, linear, make_model, mlp, of, pixels, reals

from rosler_jax.export import firmware, lower
from rosler_jax.export.c.files import Port, Ports
from rosler_jax.export.c.source import HEADER, SOURCE, write_c
from rosler_jax.export.c.train import Training, write_training
from rosler_jax.export.c.train.job import train_in_c
from rosler_jax.export.firmware import run_host, run_program
from rosler_jax.export.firmware.host import FLAGS
from rosler_jax.export.firmware.toolchain import ToolchainError
from rosler_jax.export.inputs import quantized
from rosler_jax.graph import Graph, run_batch
from rosler_jax.graph.version1 import build_graph

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40], np.float32)
OPERATIONS = {
    "relu": ([of("relu")], (60,)),
    "gelu": ([of("gelu")], (60,)),
    "tanh": ([of("tanh")], (60,)),
    "affine": ([of("standardize", mean=1.0, std=2.0)], (60,)),
    "max_pool of signals": ([of("max_pool", window=3)], (20, 3)),
    "max_pool of images": ([of("max_pool", window=[3, 2])], (6, 5, 2)),
    "max_pool of volumes": ([of("max_pool", window=[2, 1, 2])], (4, 4, 2, 2)),
    "avg_pool": ([of("avg_pool", window=2)], (6, 5, 2)),
}
DROPPED = {  # what runtimes' own kernels make of NaN in pooling
    "onnx": ("max_pool",),
    "tflite": ("max_pool", "avg_pool"),
}


def special(shape: tuple[int, ...], count: int = 12) -> np.ndarray:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, *shape)).astype(np.float32)
    places = rng.random(x.shape) < 0.2
    x[places] = rng.choice(SPECIAL, places.sum())
    return x


def in_c(graph: Graph, x: np.ndarray, folder: Path) -> np.ndarray:
    source = write_c(graph)
    (folder / HEADER).write_text(source.header)
    (folder / SOURCE).write_text(source.source)
    return run_host(folder, x.reshape(len(x), -1)).reshape(len(x), *graph.out_shape)


def in_onnx(graph: Graph, x: np.ndarray, folder: Path) -> np.ndarray:
    pytest.importorskip("onnx")
    ort = pytest.importorskip("onnxruntime")
    from rosler_jax.export.onnx import onnx_bytes

    session = ort.InferenceSession(onnx_bytes(graph), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": x})[0]


def in_tflite(graph: Graph, x: np.ndarray, folder: Path) -> np.ndarray:
    pytest.importorskip("tflite")
    litert = pytest.importorskip("ai_edge_litert.interpreter")
    from rosler_jax.export.tflite import tflite_model

    interpreter = litert.Interpreter(model_content=tflite_model(graph), num_threads=1)
    interpreter.resize_tensor_input(interpreter.get_input_details()[0]["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    return np.asarray(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


def in_stablehlo(graph: Graph, x: np.ndarray, folder: Path) -> np.ndarray:
    pytest.importorskip("flatbuffers")
    from rosler_jax.export.stablehlo import exported

    return np.asarray(exported(graph).call(x))


TARGETS = {"c": in_c, "onnx": in_onnx, "tflite": in_tflite, "stablehlo": in_stablehlo}


@needs_gcc
@pytest.mark.parametrize(
    ("target", "name"),
    [(t, n) for t in TARGETS for n in OPERATIONS if not n.startswith(DROPPED.get(t, "-"))],
)
def test_operations_make_of_nan_and_infinity_what_jax_does(
    target: str, name: str, tmp_path: Path
) -> None:
    specs, shape = OPERATIONS[name]
    graph, x = build_graph(specs, {}, shape), special(shape)
    want = np.asarray(run_batch(graph, x))
    assert np.isnan(want).any()
    np.testing.assert_allclose(TARGETS[target](graph, x, tmp_path), want, rtol=1e-5, atol=1e-6)


@needs_gcc
@pytest.mark.parametrize("family", ["srht", "rademacher", "sparse_sign", "block_perm", None])
def test_a_dead_sensor_shows_in_the_outputs_of_c(family: str | None, tmp_path: Path) -> None:
    specs, shape = (mlp(family), (70,)) if family else (convnet(), CONV_SHAPE)
    graph, x = make_model(specs, bits=32, shape=shape).graph, pixels(shape, 3)
    x[1, 5] = np.nan
    found = in_c(graph, x, tmp_path)
    assert np.isnan(found[1]).all()  # a relu made zeros of them
    np.testing.assert_allclose(found[[0, 2]], run_batch(graph, x)[np.array([0, 2])], rtol=1e-4)


ARGMAX = """
#include <stdio.h>
#include "rosler_model.h"
int main(void)
{
    rosler_output y[ROSLER_OUTPUT_SIZE];
    while (fread(y, sizeof y, 1, stdin) == 1) printf("%d ", rosler_argmax(y));
    return 0;
}
"""


def compiled(folder: Path, main: str, *sources: str) -> Path:
    (folder / "main.c").write_text(main)
    command = ["gcc", *FLAGS, *sources, "main.c", "-o", "main", "-lm"]
    subprocess.run(command, cwd=folder, check=True, timeout=120)
    return folder / "main"


@needs_gcc
def test_argmax_is_that_of_numpy_and_jax(tmp_path: Path) -> None:
    graph = build_graph([of("relu")], {}, (5,))
    y = special((5,), 200)
    in_c(graph, y, tmp_path)
    program = compiled(tmp_path, ARGMAX, SOURCE)
    found = subprocess.run([program], input=y.tobytes(), capture_output=True, check=True).stdout
    np.testing.assert_array_equal([int(i) for i in found.split()], y.argmax(1))


@needs_gcc
@pytest.mark.parametrize("options", [{}, {"momentum": 0.0, "batch": 1}, {"clip": 1.0}])
def test_training_on_nan_shows_in_the_loss_and_the_weights(options: dict[str, Any]) -> None:
    graph = make_model([linear(6, 8), of("relu"), linear(8, 3)], bits=32).graph
    x = reals((1, 6), 2)
    x[1, 0, 2] = np.nan
    source = write_training(graph, Training(**options))
    done = train_in_c(source, x, np.zeros((2, 1)), 0.1)
    assert np.isfinite(done.losses[0])
    assert np.isnan(done.losses[1])
    assert np.isnan(done.weights["2/kernel"]).all()  # errors of NaN were taken for zero


# Integers.

QUANTIZE = """
#include <stdint.h>
#define Q_INPUT_SIZE @SIZE@
typedef @TYPE@_t q_input;
@FUNCTION@
static float x[Q_INPUT_SIZE];
static q_input q[Q_INPUT_SIZE];
"""
ON_HOST = """
#include <stdio.h>
int main(void)
{
    int32_t lost;
    if (fread(x, sizeof x, 1, stdin) != 1) return 1;
    lost = q_quantize(x, q);
    return fwrite(&lost, 4, 1, stdout) != 1 || fwrite(q, sizeof q, 1, stdout) != 1;
}
"""
ON_BOARD = """
#include "firmware.h"
int main(void)
{
    int32_t lost;
    const int from = firmware_open_to_read("in.bin"), to = firmware_open_to_write("out.bin");
    if (firmware_read(from, x, sizeof x) != sizeof x) return 1;
    lost = q_quantize(x, q);
    firmware_write(to, &lost, 4);
    firmware_write(to, q, sizeof q);
    firmware_close(to);
    return 0;
}
"""


def real_inputs(dtype: str, scale: float) -> np.ndarray:
    """Random ones, halves, what lies round the limits, and the ends of the type."""
    limits, rng = np.iinfo(dtype), np.random.default_rng(0)
    low, high = float(limits.min), float(limits.max)
    steps = np.concatenate([
        rng.uniform(1.2 * low - 9, 1.2 * high, 400), rng.integers(low - 3, high + 3, 200) + 0.5,
        np.add.outer([low, high, 0.0], np.arange(-2, 2.25, 0.25)).ravel(),
    ])  # fmt: skip
    near = np.nextafter(steps.astype(np.float32), np.float32(0))
    ends = np.concatenate(
        [SPECIAL, -SPECIAL, np.array([3.4e38, -3e38, 2.0**31, -(2.0**63)], np.float32)]
    )
    return np.concatenate([(steps * scale).astype(np.float32), near * np.float32(scale), ends])


@needs_gcc
@pytest.mark.parametrize("where", ["gcc", "clang", "cortex-m3", "cortex-m4"])
@pytest.mark.parametrize(
    ("dtype", "scale"), [("int16", 2.0**-9), ("int16", 2.0**40), ("uint8", 1.0)]
)
def test_inputs_are_quantised_as_in_python(
    dtype: str, scale: float, where: str, tmp_path: Path
) -> None:
    x = real_inputs(dtype, scale)
    steps = np.rint(x.astype(np.float64) / scale)
    limits = np.iinfo(dtype)
    lost = int((~((steps >= limits.min) & (steps <= limits.max))).sum())
    text = QUANTIZE.replace("@SIZE@", str(x.size)).replace("@TYPE@", dtype)
    text = text.replace(
        "@FUNCTION@", Ports("q_", [Port("x", dtype, x.size, scale)], []).quantizers()
    )
    if where.startswith("cortex"):
        try:
            firmware.find_toolchain()
        except ToolchainError as error:
            pytest.skip(str(error))
        (tmp_path / "main.c").write_text(text + ON_BOARD)
        run = run_program(
            [tmp_path / "main.c"], board=where, files={"in.bin": x.tobytes()}, outputs=["out.bin"]
        )
        data = run.files["out.bin"]
    else:
        if shutil.which(where) is None:
            pytest.skip(f"{where} is not installed")
        (tmp_path / "main.c").write_text(text + ON_HOST)
        command = [where, *FLAGS, "-fsanitize=undefined", "-fno-sanitize-recover=all", "main.c"]
        subprocess.run([*command, "-o", "main"], cwd=tmp_path, check=True, timeout=120)
        done = subprocess.run([tmp_path / "main"], input=x.tobytes(), capture_output=True)
        assert done.returncode == 0, done.stderr
        data = done.stdout
    assert int(np.frombuffer(data, np.int32, 1)[0]) == lost
    found = np.frombuffer(data, dtype, offset=4)
    with np.errstate(invalid="raise"):  # no cast of NaN
        np.testing.assert_array_equal(found, quantized(x, scale, dtype))
    assert (found[np.isnan(x)] == 0).all()


@needs_gcc
def test_the_header_of_integers_quantises(tmp_path: Path) -> None:
    """As a user would: include the header, quantise, predict; C++ takes it, too."""
    graph = make_model([linear(4, 3)], bits=8).graph
    program = lower(graph, reals((4,), 30), dtype="int8")
    source = write_c(program)
    (tmp_path / HEADER).write_text(source.header)
    (tmp_path / SOURCE).write_text(source.source)
    main = (
        '#include "rosler_model.h"\nint main(void)\n{\n    static rosler_arena arena;\n'
        "    const float x[4] = {1e9f, -1e9f, 0.0f, 1.0f};\n    rosler_input q[4];\n"
        "    rosler_output y[3];\n    const int lost = rosler_quantize(x, q);\n"
        "    rosler_predict(q, y, &arena);\n"
        "    return lost == 2 && q[0] == 32767 && q[1] == -32768 ? 0 : 1;\n}\n"
    )
    assert subprocess.run([compiled(tmp_path, main, SOURCE)], timeout=60).returncode == 0
    fixed = write_training(graph, Training(dtype="fixed"), calibration=reals((4,), 30))
    assert "rosler_train_quantize(const float *x, rosler_train_input *q)" in fixed.header
    assert "quantize(" not in write_c(graph).header + write_training(graph).header
