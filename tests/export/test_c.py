"""Exported C: equal to the specification bit for bit, with both compilers and on every board."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from exported_models import (
    CONV_SHAPE,
    SIGNAL_SHAPE,
    VOLUME_SHAPE,
    convnet,
    make_model,
    mlp,
    pixels,
    reals,
    signal_net,
    volume_net,
)
from hypothesis import HealthCheck, event, given, reject, settings
from hypothesis import strategies as st
from random_networks import networks, random_graph
from small_networks import CASES as SMALL

from rosler_jax.export import ExportError, lower, run_integer
from rosler_jax.export.c.layout import PER_WORD, pack_rows
from rosler_jax.export.c.source import HEADER, SOURCE, write_c
from rosler_jax.export.firmware import run_firmware, run_host
from rosler_jax.graph import run_batch
from rosler_jax.graph.version1 import build_graph

SKETCHES = ("srht", "rademacher", "sparse_sign", "block_perm", "rows_uniform", "pool")
IMAGES = ("seeded_dct_images", "seeded_pool_images")
NETS = {
    **{name: (*SMALL[name], pixels) for name in IMAGES},
    "mlp, dct": (mlp("dct"), (70,), pixels),
    **{f"mlp, {sketch}": (mlp(sketch), (70,), pixels) for sketch in SKETCHES},
    "mlp, tanh": (mlp("srht", "tanh"), (70,), reals),
    "images": (convnet(), CONV_SHAPE, pixels),
    "volumes": (volume_net(), VOLUME_SHAPE, pixels),
    **{f"signals, {sketch}": (signal_net(sketch), SIGNAL_SHAPE, reals) for sketch in SKETCHES},
}
DTYPES = ("int16", "int8", "int4")
EXAMPLES = int(os.environ.get("ROSLER_EXAMPLES", "12"))
"""Of random networks; each is compiled, so that more take minutes."""

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")


@functools.lru_cache
def model_of(name, bits):
    specs, shape, _ = NETS[name]
    return make_model(specs, bits=bits, shape=shape)


def compilers():
    return [
        pytest.param(
            c, marks=pytest.mark.skipif(shutil.which(c) is None, reason=f"{c} is not installed")
        )
        for c in ("gcc", "clang")
    ]


def write(source, folder):
    folder.mkdir(exist_ok=True)
    (folder / HEADER).write_text(source.header)
    (folder / SOURCE).write_text(source.source)
    return folder


def extremes(program, count=4):
    """Inputs at the ends of what their type holds, and some in between."""
    info = np.iinfo(program.input_dtype)
    rng = np.random.default_rng(2)
    size = int(np.prod(program.in_shape))
    ends = rng.choice(np.array([info.min, info.max], program.input_dtype), (count, size))
    between = rng.integers(info.min, info.max, (count, size), endpoint=True)
    constant = [np.full((1, size), v) for v in (info.min, info.max, 0)]
    return np.concatenate([ends, between, *constant]).astype(program.input_dtype)


# Every network once, and those with the most kinds of products with all weights.
CASES = [(name, "int16") for name in NETS] + [
    (name, dtype)
    for name in ("mlp, srht", "images", "volumes", "signals, rademacher")
    for dtype in DTYPES[1:]
]


@needs_gcc
@pytest.mark.parametrize("name, dtype", CASES)
def test_integers_are_equal_bit_for_bit_under_sanitizers(tmp_path, name, dtype):
    _, shape, inputs = NETS[name]
    model = model_of(name, 16)
    program = lower(model.graph, inputs(shape, 20), dtype=dtype)
    folder = write(write_c(program), tmp_path)
    x = np.concatenate([program.quantize_input(inputs(shape)).reshape(5, -1), extremes(program)])
    found = run_host(folder, x, sanitize=True)
    np.testing.assert_array_equal(found, run_integer(program, x).reshape(len(x), -1))


@pytest.mark.parametrize("compiler", compilers())
@pytest.mark.parametrize("name", ["mlp, srht", "images", "volumes", "signals, block_perm"])
def test_both_compilers_take_it_without_a_warning(tmp_path, name, compiler):
    _, shape, inputs = NETS[name]
    model = model_of(name, 4)
    program = lower(model.graph, inputs(shape, 20), dtype="int4")
    folder = write(write_c(program), tmp_path)
    x = extremes(program)
    found = run_host(folder, x, compiler=compiler)  # warnings are errors there
    np.testing.assert_array_equal(found, run_integer(program, x).reshape(len(x), -1))


@needs_gcc
@pytest.mark.parametrize("name", [*NETS, "mlp, gaussian"])
def test_floats_agree(tmp_path, name):
    specs, shape, inputs = NETS.get(name) or (mlp("gaussian"), (70,), pixels)
    model = make_model(specs, bits=32, shape=shape)
    folder = write(write_c(model.graph), tmp_path)
    x = inputs(shape)
    found = run_host(folder, x, sanitize=True)
    expected = np.asarray(run_batch(model.graph, x)).reshape(len(x), -1)
    # float32 sums in another order: below a hundred units in the last place of the largest output.
    ulps = np.abs(found - expected).max() / np.spacing(np.abs(expected).max())
    assert ulps < 100


@pytest.mark.slow
@pytest.mark.skipif(
    None in map(shutil.which, ("arm-none-eabi-gcc", "qemu-system-arm")),
    reason="arm-none-eabi-gcc or qemu-system-arm is not installed",
)
@pytest.mark.parametrize("board", ["cortex-m3", "cortex-m4", "cortex-m7"])
@pytest.mark.parametrize(
    "name, dtype",
    [
        ("mlp, srht", "int4"),
        ("seeded_dct_images", "int8"),
        ("images", "int16"),
        ("volumes", "int8"),
        ("signals, rademacher", "int8"),
    ],
)
def test_boards_compute_the_same_bits(tmp_path, name, dtype, board):
    _, shape, inputs = NETS[name]
    model = model_of(name, 16)
    program = lower(model.graph, inputs(shape, 20), dtype=dtype)
    folder = write(write_c(program), tmp_path)
    x = np.concatenate([program.quantize_input(inputs(shape)).reshape(5, -1), extremes(program)])
    run = run_firmware(folder, x, board=board)
    np.testing.assert_array_equal(run.outputs, run_integer(program, x).reshape(len(x), -1))


@pytest.mark.slow
@needs_gcc
@settings(deadline=None, max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
@given(
    network=networks(), bits=st.sampled_from([2, 3, 4, 8, 16, 32]), dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**16),
)  # fmt: skip
def test_any_network_is_equal_bit_for_bit(network, bits, dtype, seed):
    graph = random_graph(network, bits, seed)
    inputs = (pixels if network.pixels else reals)(network.shape, 20, seed)
    try:
        program = lower(graph, inputs, dtype=dtype)
    except ExportError as error:
        event(str(error)[:60])
        reject()
    with tempfile.TemporaryDirectory() as folder:
        write(write_c(program), Path(folder))
        x = program.quantize_input(inputs[:3]).reshape(3, -1)
        x = np.concatenate([x, extremes(program)])
        found = run_host(folder, x, sanitize=True)
    np.testing.assert_array_equal(found, run_integer(program, x).reshape(len(x), -1))


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("n, m", [(1, 1), (4, 8), (7, 13), (9, 16)])
def test_layout_loses_nothing(bits, n, m):
    rng = np.random.default_rng(0)
    top = 2 ** (bits - 1) - 1
    rows = rng.integers(-top, top + 1, (n, m))
    words = pack_rows(rows, bits)
    assert words.size == n * -(-m // PER_WORD[bits])
    fields = [(int(w) >> (bits * k)) & (2**bits - 1) for w in words for k in range(PER_WORD[bits])]
    offset = 8 if bits == 4 else 0
    signed = [
        ((f + 2 ** (bits - 1)) % 2**bits) - 2 ** (bits - 1) if not offset else f - 8 for f in fields
    ]
    padding = len(signed) - rows.size
    assert sorted(signed) == sorted([*rows.ravel().tolist(), *[0] * padding])


def test_the_source_is_self_contained_and_static():
    model = make_model(convnet(), bits=4, shape=CONV_SHAPE)
    source = write_c(lower(model.graph, pixels(CONV_SHAPE, 20), dtype="int4"))
    for word in ("malloc", "printf", "static int", "goto"):
        assert word not in source.source
    includes = {line for line in source.source.splitlines() if line.startswith("#include")}
    assert includes == {'#include "rosler_model.h"', "#include <string.h>", "#include <arm_acle.h>"}
    assert source.source.isascii()
    assert source.arena_bytes % 8 == 0
    assert f"ROSLER_MODEL_BYTES {source.model_bytes}\n" in source.header


def test_seeded_layers_are_smaller_than_what_they_stand_for():
    model = make_model(mlp("srht"), bits=8)
    source = write_c(lower(model.graph, pixels((70,), 20), dtype="int8"))
    core = model.tensors["2/u"].values.size
    assert source.constant_bytes["seeds"] == 4 * 2 * 4
    assert source.constant_bytes["weights"] < core + 37 * 5 + 29 * 5 + 29 * 7 + 4 * 50


def test_an_identity_is_a_copy(tmp_path):
    graph = build_graph([{"kind": "flatten"}], {}, (2, 3))
    folder = write(write_c(graph), tmp_path)
    x = reals((6,))
    np.testing.assert_array_equal(run_host(folder, x), x)
