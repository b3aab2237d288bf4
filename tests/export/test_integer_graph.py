"""Integers of any graph: near the floats, within their proofs, and the C equal bit for bit."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[1] / "graph"))
from hand_made import Maker, every_kind, weight, window
from hypothesis import HealthCheck, event, given, reject, settings
from hypothesis import strategies as st
from random_graphs import random_graph
from tiny_models import BUILDERS, INPUTS, randomise

import rosler_kernels as rk
from rosler_jax.export import ExportError, lower, run_integer
from rosler_jax.export.c.source import HEADER, SOURCE, write_c
from rosler_jax.export.firmware import run_firmware
from rosler_jax.export.intops import LIMITS
from rosler_jax.graph import Graph, Weight, run, trace
from rosler_jax.graph.kinds import (
    Affine,
    Concat,
    Conv,
    Cumulative,
    Dense,
    Gather,
    Map,
    MatMul,
    Norm,
    PatchProject,
    Pool,
    Project,
    Reduce,
    Scan,
    Slice,
    Softmax,
    Take,
    Transpose,
)

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
EXAMPLES = int(os.environ.get("ROSLER_EXAMPLES", "12"))
"""Of random graphs; each is compiled, so that more take minutes."""
C_MAIN = """
#include <stdio.h>
#include "rosler_model.h"
static rosler_arena arena;
{buffers}
int main(void)
{{
    while ({reads}) {{
        rosler_predict({names}, &arena);
        {writes}
    }}
    return 0;
}}
"""
OPTIONS = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror", "-g",
           "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]  # fmt: skip


def run_c(folder: Path, program, inputs) -> list[np.ndarray]:
    """Exported C on a batch, built with sanitizers; unused memory of the arena is overwritten."""
    source = write_c(program, poison=0x55)
    (folder / HEADER).write_text(source.header)
    (folder / SOURCE).write_text(source.source)
    sides = ("input", "x", program.inputs), ("output", "y", program.outputs)
    named = [
        (f"rosler_{side}{f'_{k}' if len(values) > 1 else ''}", f"{letter}{k}", value)
        for side, letter, values in sides
        for k, value in enumerate(values)
    ]
    size = {name: max(1, int(np.prod(v.shape))) for _, name, v in named}
    buffers = "\n".join(f"static {ctype} {name}[{size[name]}];" for ctype, name, _ in named)
    xs, ys = ([n for _, n, _ in named if n[0] == side] for side in "xy")
    reads = " && ".join(f"fread({n}, sizeof {n}, 1, stdin) == 1" for n in xs)
    writes = " ".join(f"fwrite({n}, sizeof {n}, 1, stdout);" for n in ys)
    main = C_MAIN.format(buffers=buffers, reads=reads, names=", ".join([*xs, *ys]), writes=writes)
    (folder / "main.c").write_text(main)
    subprocess.run(["gcc", *OPTIONS, SOURCE, "main.c", "-o", "m"], cwd=folder, check=True)
    given = b"".join(
        np.ascontiguousarray(x[i]).tobytes() for i in range(len(inputs[0])) for x in inputs
    )
    out = subprocess.run(["./m"], cwd=folder, input=given, check=True, stdout=subprocess.PIPE)
    types = [
        (f"f{k}", "uint8" if v.dtype == "bool" else v.dtype, (size[f"y{k}"],))
        for k, v in enumerate(program.outputs)
    ]
    rows = np.frombuffer(out.stdout, np.dtype(types))
    return [rows[f"f{k}"] for k in range(len(types))]


def examples(graph: Graph, count: int = 12, seed: int = 0) -> list[np.ndarray]:
    """Real inputs, and small whole numbers."""
    rng = np.random.default_rng(seed)
    return [
        rng.integers(0, 5, (count, *v.shape)).astype(np.int32)
        if v.dtype == "int32"
        else rng.normal(size=(count, *v.shape)).astype(v.dtype)
        for v in graph.inputs
    ]


def integers(program, xs) -> list[np.ndarray]:
    """Inputs as the program takes them; then the ends of their types, and anything between."""
    rng = np.random.default_rng(1)
    out = []
    for k, (value, x) in enumerate(zip(program.inputs, xs, strict=True)):
        whole = value.dtype in ("int32", "bool")
        q = x.astype(value.dtype) if whole else program.quantize_input(x, k)
        low, high = LIMITS[value.dtype]
        ends = rng.choice([low, high], (2, *value.shape))
        more = rng.integers(low, high, (2, *value.shape), endpoint=True)
        out.append(np.concatenate([q, ends, more]).astype(value.dtype))
    return out


def check(graph: Graph, tmp_path: Path, near: float, xs=None, **options) -> None:
    """The integers are near the floats, relative to the largest output; the C is equal to them."""
    xs = examples(graph) if xs is None else xs
    program = lower(graph, xs[0] if len(xs) == 1 else xs, **options)
    q = integers(program, xs)
    found = run_integer(program, *q)
    found = found if isinstance(found, list) else [found]
    expected = jax.vmap(lambda *x: run(graph, x))(*xs)
    for y, real, value in zip(found, expected, program.outputs, strict=True):
        y, real = y[: len(xs[0])] * value.scale, np.asarray(real, np.float64)
        if value.dtype == "int16":
            assert np.abs(y - real).max() <= near * np.abs(real).max()
        elif near <= 0.01:
            assert (y == real).mean() > 0.9
    if shutil.which("gcc"):
        for y, c in zip(found, run_c(tmp_path, program, q), strict=True):
            np.testing.assert_array_equal(y.reshape(len(y), -1), c)


def _unary(kind, *shape, **fields):
    m = Maker()
    return m.graph(m.add(kind, m.input(*shape), **fields))


def _binary(function, left, right, constant=False):
    m = Maker()
    x = m.input(*left)
    y = m.constant(weight("w", *right)) if constant else m.input(*right)
    return m.graph(m.add(Map, x, y, function=function))


def _attention():
    m = Maker()
    x = m.input(6, 8)
    q, k, v = (m.add(Dense, x, weight=weight(name, 8, 8), name=name) for name in "qkv")
    scores = m.add(MatMul, q, k, shapes=[(1, 6, 8), (1, 6, 8)], transpose=True)
    scale = m.constant(Weight("scale", np.float32(0.1)))
    scores = m.add(Map, scores, scale, shapes=[(6, 6), ()], function="mul")
    mask = m.constant(Weight("mask", np.tril(np.ones((6, 6), np.bool_))))
    low = m.constant(Weight("low", np.float32(-3e38)))
    scores = m.add(Map, mask, scores, low, shapes=[(6, 6), (6, 6), ()], function="select")
    p = m.add(Softmax, scores)
    y = m.add(MatMul, p, v, shapes=[(1, 6, 6), (1, 6, 8)], transpose=False)
    y = m.add(Map, y, x, shapes=[(6, 8), (6, 8)], function="add")
    return m.graph(m.add(Norm, y, center=True, epsilon=1e-5, scale=weight("s", 8)))


def _residual():
    m = Maker()
    x = m.input(7, 6, 4)
    same = window(3, 3, padding=((1, 1), (1, 1)))
    y = m.add(Conv, x, weight=weight("a", 3, 3, 4, 8), bias=weight("b", 8), window=same)
    y = m.add(Map, y, function="relu")
    z = m.add(Conv, y, weight=weight("c", 3, 3, 8, 8), window=same)
    y = m.add(Map, m.add(Map, y, z, function="add"), function="relu")
    deep = window(3, 3, strides=(2, 1), padding=((1, 1), (1, 0)), groups=8)
    y = m.add(Conv, y, weight=weight("d", 3, 3, 1, 8), bias=weight("e", 8), window=deep)
    y = m.add(Map, y, function="clamp", numbers=(0.0, 6.0))
    y = m.add(Conv, y, weight=weight("f", 1, 1, 8, 6), window=window(1, 1))
    y = m.add(Pool, y, function="max", window=window(2, 2, strides=(1, 1), padding=((0, 1),) * 2))
    return m.graph(m.add(Reduce, y, function="sum", axes=(0, 1), scale=1 / 20))


def _gathered():
    m = Maker()
    ids = m.input(5, dtype="int32")
    x = m.add(Gather, m.constant(weight("table", 9, 4)), ids)
    x = m.add(Cumulative, x, shapes=[(1, 5, 4)], function="sum", reverse=False)
    at = m.add(Reduce, ids, function="argmax", axes=(0,))
    return m.graph(m.add(Slice, x, at, shapes=[(1, 5, 4), ()], size=2), at)


def _joined():
    m = Maker()
    x = m.input(3, 4)
    y = m.add(Map, m.add(Dense, x, weight=weight("w", 4, 4)), function="exp")
    z = m.add(Concat, x, y, axis=1)
    z = m.add(Transpose, z, axes=(1, 0))
    return m.graph(m.add(Take, z, index=(((-1, 0, 1), (6, -2, 3)), None), fill=1.5))


def _scanned():
    """A recurrent cell over six positions, from the last to the first, and what it says of each."""
    m = Maker()
    state, x = m.input(7), m.input(6, 4)
    body = Maker()
    stack, carry, row = body.input(4, 7), body.input(7), body.input(4)
    moved = body.add(MatMul, row, stack, shapes=[(1, 1, 4), (1, 4, 7)], transpose=False)
    rest = body.add(Dense, carry, shapes=[(1, 7)], weight=weight("r", 7, 7), name="r")
    moved = body.add(Map, moved, rest, shapes=[(7,), (7,)], function="add")
    moved = body.add(Map, moved, function="tanh")
    inner = body.constant(weight("inner", 7))
    told = body.add(Map, moved, inner, shapes=[(7,), (7,)], function="mul")
    told = body.add(Reduce, told, function="max", axes=(0,))
    last, said = m.add(
        Scan, m.constant(weight("cell", 4, 7)), state, x, shapes=[(4, 7), (7,), (6, 4)], shared=1,
        carries=1, length=6, reverse=True, body=body.graph(moved, told),
    )  # fmt: skip
    return m.graph(last, said, m.add(Map, said, function="isfinite"))


GRAPHS = {
    "affine": lambda: _unary(
        Affine, 5, 3, center=np.float32([1, 2, 3]), factor=np.float32([2, -1, 0.3])
    ),
    **{
        f"{name} of one": lambda name=name: _unary(Map, 40, function=name)
        for name in ("tanh", "sigmoid", "silu", "gelu", "softplus", "erf", "abs", "exp", "neg")
    },
    **{
        f"{name} of two": lambda name=name: _binary(name, (4, 5), (4, 5))
        for name in ("add", "sub", "mul", "max", "min", "lt", "ge")
    },
    "truth": lambda: _unary(Map, 4, 5, function="bool"),
    "whole": lambda: _unary(Map, 4, 5, function="int32"),
    "add of a row": lambda: _binary("add", (2, 3, 4), (3, 1), constant=True),
    "division": lambda: _binary("div", (6, 4), (1, 4), constant=True),
    "sum": lambda: _unary(Reduce, 3, 4, 5, function="sum", axes=(1,)),
    "max": lambda: _unary(Reduce, 3, 4, 5, function="max", axes=(0, 2)),
    "argmin": lambda: _unary(Reduce, 3, 9, function="argmin", axes=(1,)),
    "mean under a window": lambda: _unary(
        Pool, 6, 5, 3, function="sum", scale=0.25,
        window=window(2, 2, strides=(2, 1), padding=((1, 0), (0, 1))),
    ),
    "softmax": lambda: _unary(Softmax, 4, 9),
    "norm": lambda: _unary(
        Norm, 4, 33, center=True, epsilon=1e-5, scale=weight("s", 33), bias=weight("b", 33)
    ),
    "root mean square": lambda: _unary(Norm, 4, 16, center=False, epsilon=1e-3),
    "attention": _attention,
    "residual": _residual,
    "gathered": _gathered,
    "joined": _joined,
    "scanned": _scanned,
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_sixteen_bits(tmp_path, name):
    check(GRAPHS[name](), tmp_path, 0.01, dtype="int16")


@pytest.mark.parametrize("name", GRAPHS)
def test_eight_bits(tmp_path, name):
    check(GRAPHS[name](), tmp_path, 0.15, dtype="int8", activations=8)


SUMMED = {
    "dense": ((3, 6), Dense, {"weight": weight("w", 6, 8)}),
    "sketch": ((2, 32), Project, {"sketch": rk.srht(0, 32, 8), "scale": 1.0, "transpose": False}),
    "patches": (
        (8, 4), PatchProject,
        {"sketch": rk.sparse_sign(0, 12, 8), "scale": 1.0, "window": window(3)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("ends", [(0.0, 6.0), (-1.0, 5.0), (1.0, 6.0)])
@pytest.mark.parametrize("kind", SUMMED)
def test_a_clamp_after_a_sum(tmp_path, kind, ends):
    """As a part of it, if the ends are those of bytes: not of a sketch's 16 bits, not above 0."""
    shape, made, fields = SUMMED[kind]
    m = Maker()
    y = m.add(Map, m.add(made, m.input(*shape), **fields), function="clamp", numbers=ends)
    graph = m.graph(m.add(Dense, y, weight=weight("v", 8, 4)))
    xs = [9 * x for x in examples(graph)]  # so that both ends are reached
    check(graph, tmp_path, 0.15, xs, dtype="int8", activations=8)
    ops = [type(op).__name__ for op in lower(graph, xs[0], dtype="int8", activations=8).ops]
    assert ("Limited" in ops) == (kind != "dense" or ends[0] > 0)


@pytest.mark.slow
@pytest.mark.skipif(
    None in map(shutil.which, ("arm-none-eabi-gcc", "qemu-system-arm")),
    reason="arm-none-eabi-gcc or qemu-system-arm is not installed",
)
@pytest.mark.parametrize("activations", [16, 8])
@pytest.mark.parametrize("board", ["cortex-m3", "cortex-m4"])  # without and with pairs of products
def test_boards_compute_the_same_bits(tmp_path, board, activations):
    graph = _residual()
    xs = examples(graph)
    program = lower(graph, xs[0], dtype="int8", activations=activations)
    source = write_c(program)
    (tmp_path / HEADER).write_text(source.header)
    (tmp_path / SOURCE).write_text(source.source)
    (q,) = integers(program, xs)
    found = run_firmware(tmp_path, q.reshape(len(q), -1), board=board)
    np.testing.assert_array_equal(found.outputs, run_integer(program, q).reshape(len(q), -1))


@pytest.mark.slow
@needs_gcc
@pytest.mark.parametrize("name", ["ds_cnn", "autoencoder"])
def test_networks_of_mlperf_tiny_in_eight_bits(tmp_path, name):
    model = BUILDERS[name]()
    randomise(model, jax.random.key(1))
    x = np.random.default_rng(0).normal(size=(16, *INPUTS[name])).astype(np.float32)
    check(trace(model, x[:1]), tmp_path, 0.03, [x], dtype="int8", activations=8)


@pytest.mark.slow
@needs_gcc
@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 2**20), dtype=st.sampled_from(["int16", "int8", "int4"]),
    activations=st.sampled_from([16, 8]),
)  # fmt: skip
def test_any_graph_is_equal_bit_for_bit(seed, dtype, activations):
    if dtype == "int16":
        activations = 16
    graph, _ = random_graph(seed)
    xs = examples(graph, seed=seed)
    try:
        program = lower(graph, xs[0] if len(xs) == 1 else xs, dtype=dtype, activations=activations)
    except ExportError as error:
        event(str(error)[:60])
        reject()
    q = integers(program, xs)
    found = run_integer(program, *q)
    with tempfile.TemporaryDirectory() as folder:
        made = run_c(Path(folder), program, q)
    for y, c in zip(found if isinstance(found, list) else [found], made, strict=True):
        np.testing.assert_array_equal(y.reshape(len(y), -1), c)


def test_what_has_no_integers_is_refused_by_name():
    graph, given = every_kind()
    with pytest.raises(ExportError, match="KernelGrad has no integer form"):
        lower(graph, [np.asarray(x)[None] for x in given])
    with pytest.raises(ExportError, match=r"div of two values.*divide by constants"):
        lower(_binary("div", (4,), (4,)), [np.ones((2, 4)), np.ones((2, 4))])
    with pytest.raises(ExportError, match=r"floor jumps.*8 bits"):
        lower(_unary(Map, 8, function="floor"), np.linspace(-9, 9, 16).reshape(2, 8))
    with pytest.raises(ExportError, match="logarithm of a softmax"):
        lower(_unary(Softmax, 2, 3, log=True), np.ones((2, 2, 3)))
    with pytest.raises(ExportError, match="with int8 or int4"):
        lower(_unary(Map, 4, function="relu"), np.ones((2, 4)), dtype="int16", activations=8)
