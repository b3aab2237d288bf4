"""Any graph in C: every kind and function as the reference computes it, memory poisoned."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import public_models
import pytest
import tiny_models

from rosler_jax.export.c.source import HEADER, SOURCE, write_c
from rosler_jax.export.firmware.host import FLAGS, SANITIZERS
from rosler_jax.graph import Graph, Weight, run, trace

sys.path.insert(0, str(Path(__file__).parents[1] / "graph"))

from hand_made import Maker, every_kind, weight, window
from random_graphs import MAKERS, random_graph

from rosler_jax.graph.functions import FUNCTIONS
from rosler_jax.graph.kinds import Conv, Dense, Gather, Map

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
POISON = (0xFF, 0xA5)
"""Bytes of dead memory: NaN, and a small number."""


def driver(graph: Graph) -> str:
    """A program that reads all inputs one behind the other and writes all outputs."""

    def each(kind: str, letter: str, values: tuple) -> list[tuple[str, str, str]]:
        ends = [""] if len(values) == 1 else [f"_{k}" for k in range(len(values))]
        return [
            (f"rosler_{kind}{e}", f"{letter}{e}", f"ROSLER_{kind.upper()}{e}_SIZE") for e in ends
        ]

    inputs, outputs = each("input", "x", graph.inputs), each("output", "y", graph.outputs)
    held = "\n".join(f"static {t} {v}[{n}];" for t, v, n in (*inputs, *outputs))
    reads = " && ".join(f"fread({v}, sizeof {v}, 1, stdin) == 1" for _, v, _ in inputs)
    writes = " ".join(f"fwrite({v}, sizeof {v}, 1, stdout);" for _, v, _ in outputs)
    names = ", ".join(v for _, v, _ in (*inputs, *outputs))
    return f"""#include <stdio.h>
#include "rosler_model.h"
static rosler_arena arena;
{held}
int main(void) {{
    while ({reads}) {{
        rosler_predict({names}, &arena);
        {writes}
    }}
    return 0;
}}
"""


def run_c(graph, inputs, folder, *, poison=None, compiler="gcc", sanitize=True):
    """The outputs of one example."""
    source = write_c(graph, poison=poison)
    (folder / HEADER).write_text(source.header)
    (folder / SOURCE).write_text(source.source)
    (folder / "main.c").write_text(driver(graph))
    options = [*FLAGS, *(SANITIZERS if sanitize else ())]
    command = [compiler, *options, SOURCE, "main.c", "-o", "model", "-lm"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    types = {"float32": np.float32, "int32": np.int32, "bool": np.uint8}
    given = [np.asarray(x, types[v.dtype]) for x, v in zip(inputs, graph.inputs, strict=True)]
    # An example before, of other numbers: nothing may be left of it.
    other = [np.zeros_like(x) for x in given]
    text = b"".join(x.tobytes() for x in (*other, *given))
    made = subprocess.run(
        [folder / "model"], input=text, capture_output=True, timeout=60,
        env={"ASAN_OPTIONS": "detect_leaks=0"},
    )  # fmt: skip
    assert made.returncode == 0, made.stderr.decode()
    data, found = made.stdout[len(made.stdout) // 2 :], []
    for v in graph.outputs:
        size = int(np.prod(v.shape)) * np.dtype(types[v.dtype]).itemsize
        found.append(np.frombuffer(data[:size], types[v.dtype]).reshape(v.shape))
        data = data[size:]
    assert not data
    return found, source


def check(graph, inputs, folder, ulps=300, **options):
    """Within so many units in the last place of an output's largest number.

    Sums run in another order, and expf, tanhf and the like of libm and of XLA differ by a few
    units; norms and differences of large numbers make that larger.
    """
    found, source = run_c(graph, inputs, folder, **options)
    expected = [np.asarray(y) for y in run(graph, inputs)]
    for y, z, value in zip(found, expected, graph.outputs, strict=True):
        if value.dtype != "float32":
            np.testing.assert_array_equal(y, z.astype(y.dtype))
            continue
        np.testing.assert_array_equal(np.isfinite(y), np.isfinite(z))
        np.testing.assert_array_equal(np.isnan(y), np.isnan(z))
        fine = np.isfinite(z)
        np.testing.assert_array_equal(y[~fine & ~np.isnan(z)], z[~fine & ~np.isnan(z)])
        if fine.any():
            unit = np.spacing(max(np.abs(z[fine]).max(), np.float32(1e-30)))
            error = np.abs(y[fine].astype(np.float64) - z[fine]).max() / unit
            assert error <= ulps, f"{error} units of {value}"
    return source


@pytest.mark.parametrize("seed", range(40))
def test_random_graphs(tmp_path, seed):
    graph, inputs = random_graph(seed)
    check(graph, inputs, tmp_path, poison=POISON[seed % 2], sanitize=seed % 4 == 0)


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_by_itself(tmp_path, kind):
    for seed in range(3):
        graph, inputs = random_graph(seed + 1000, [kind], 4)
        check(graph, inputs, tmp_path, poison=POISON[seed % 2])


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
def test_the_graph_of_every_kind(tmp_path, compiler):
    if shutil.which(compiler) is None:
        pytest.skip(f"{compiler} is not installed")
    graph, inputs = every_kind()
    check(graph, inputs, tmp_path, compiler=compiler, poison=0xFF)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*tiny_models.INPUTS, *public_models.MODELS])
def test_models_as_users_write_them(tmp_path, name):
    if name in tiny_models.INPUTS:
        model = tiny_models.BUILDERS[name]()
        tiny_models.randomise(model, jax.random.key(1))
        rng = np.random.default_rng(0)
        inputs = [rng.normal(size=tiny_models.INPUTS[name]).astype(np.float32)]
        graph = trace(model, jnp.zeros((1, *inputs[0].shape)))
    else:
        build, arguments = public_models.MODELS[name]
        model, args = build(), arguments(jax.random.key(1))
        graph = trace(model, *args)
        inputs = [np.asarray(x)[0] for x in jax.tree.leaves(args)]
    source = check(graph, inputs, tmp_path, ulps=50, poison=0xFF, sanitize=name == "lstm")
    assert source.arena_bytes == source.least_bytes
    assert source.model_bytes <= sum(w.values.nbytes for w in graph.weights())


def test_two_rows_at_a_time(tmp_path):
    """Products large enough for it, of odd numbers of rows and outputs; a relu goes with them."""
    m = Maker()
    x = m.input(21, 21, 16)
    first = weight("first", 3, 3, 16, 15)
    x = m.add(Conv, x, weight=first, window=window(3, 3, padding=((1, 1), (1, 1))))
    x = m.add(Map, x, function="relu")
    x = m.add(
        Conv, x, weight=weight("second", 1, 1, 15, 31), bias=weight("bias", 31), window=window(1, 1)
    )
    x = m.add(Dense, x, shapes=[(441, 31)], weight=weight("third", 31, 6))
    graph = m.graph(x, m.add(Map, x, function="relu"))
    inputs = [np.random.default_rng(0).normal(size=(21, 21, 16)).astype(np.float32)]
    source = check(graph, inputs, tmp_path, poison=0xFF)
    assert source.source.count("rosler_dense_rows_f32(") == 1 + 3


def test_a_table_that_is_also_a_matrix_is_stored_once(tmp_path):
    m = Maker()
    ids = m.input(3, dtype="int32")
    table = Weight("table", np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32))
    x = m.add(Gather, m.constant(table), ids, shapes=[(20, 8), (3,)])
    graph = m.graph(m.add(Dense, x, weight=table.then("transpose", (1, 0))))
    source = check(graph, [np.int32([4, 19, 0])], tmp_path)
    assert source.constant_bytes["weights"] == 4 * 20 * 8


def test_outputs_that_are_inputs_constants_or_one_another(tmp_path):
    m = Maker()
    x = m.input(5)
    kept = m.constant(Weight("kept", np.float32([1, 2, 3])))
    y = m.add(Map, x, function="relu")
    graph = m.graph(y, x, kept, y, y)
    check(graph, [np.float32([1, -1, 0, 2, np.nan])], tmp_path, poison=0xFF)


SPECIAL = np.float32(
    [0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, 3, -3, 6, 7, 20, -20, 88, -88, 100, -100, 1e-3,
     1e9, -1e9, 3e38, np.inf, -np.inf, np.nan, 0.1, -0.9, 0.7, 2147483648.0, -2147483904.0, 11]
)  # fmt: skip
WHOLE = np.int32([0, 1, -1, 2, -2, 3, 7, -7, 100, -100, 2**31 - 1, -(2**31), 46341, 5, -5, 13])
NUMBERS = {"clamp": (-1.0, 6.0), "power": (3.0,)}
FLOATS_ONLY = {
    "gelu", "gelu_exact", "tanh", "sigmoid", "silu", "hard_sigmoid", "hard_swish", "softplus",
    "elu", "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "cbrt", "sin", "cos", "erf", "erfc",
    "atan2", "floor", "ceil", "round", "isfinite",
}  # fmt: skip


def function_graph(function: str, dtype: str, numbers: tuple[float, ...] = ()):
    m = Maker()
    arity = FUNCTIONS[function].arity
    values = SPECIAL if dtype == "float32" else WHOLE
    if dtype == "bool":
        values = np.array([0, 1], np.bool_)
    n = len(values)
    pairs = np.repeat(values, n), np.tile(values, n)
    inputs = [pairs[k % 2] if arity > 1 else values for k in range(arity)]
    if function == "select":
        inputs[0] = np.arange(n * n) % 3 == 0
    reads = [m.input(*x.shape, dtype=x.dtype.name) for x in inputs]
    y = m.add(Map, *reads, function=function, numbers=numbers or NUMBERS.get(function, ()))
    return m.graph(y), inputs


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functions_of_special_floats(tmp_path, function):
    if function in ("and", "or", "xor"):
        pytest.skip("of truth values")
    graph, inputs = function_graph(function, "float32")
    found, _ = run_c(graph, inputs, tmp_path)
    (expected,) = (np.asarray(y) for y in run(graph, inputs))
    y, z = found[0].astype(np.float64), expected.astype(np.float64)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(z))
    fine = np.isfinite(z)
    np.testing.assert_array_equal(y[~np.isfinite(z) & ~np.isnan(z)], z[~fine & ~np.isnan(z)])
    # 1 + tanh(x) of a negative x has the precision of 1.
    atol = 2e-7 if function == "gelu" else 1e-30
    np.testing.assert_allclose(y[fine], z[fine], rtol=1e-6, atol=atol)


@pytest.mark.parametrize("function", sorted(set(FUNCTIONS) - FLOATS_ONLY))
def test_functions_of_whole_numbers(tmp_path, function):
    dtype = "bool" if function in ("and", "or", "xor", "not") else "int32"
    graph, inputs = function_graph(function, dtype)
    if function == "pow":  # XLA gives no meaning to a negative exponent of a whole number
        inputs[1] = np.abs(inputs[1] % 32)
    found, _ = run_c(graph, inputs, tmp_path)
    (expected,) = (np.asarray(y) for y in run(graph, inputs))
    np.testing.assert_array_equal(found[0], expected.astype(found[0].dtype))
