"""Weights coded, streamed or sparse in C: the outputs of packed ones, in fewer bytes of flash."""

from __future__ import annotations

import dataclasses
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from rosler_jax import trace
from rosler_jax._quantized import QuantizedTensor
from rosler_jax.cli import main as command
from rosler_jax.export import ExportError, Training, export, lower, run_integer
from rosler_jax.export.c.coded import FORMS, entries
from rosler_jax.export.c.source import HEADER, SOURCE, CSource, write_c
from rosler_jax.export.firmware import run_firmware, run_host
from rosler_jax.export.firmware.host import FLAGS
from rosler_jax.graph import Graph, Weight
from rosler_jax.graph.save import save

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
OTHERS = tuple(form for form in FORMS if form != "packed")


def sparse_graph(graph: Graph, levels: int, axis: int | None = None) -> Graph:
    """The same with mostly zeros as weights: integers of one scale, or one along an axis."""
    rng = np.random.default_rng(levels)

    def weight(old: Weight) -> Weight:
        q = np.rint(rng.laplace(size=old.shape) * levels / 4) * (rng.random(old.shape) < 0.25)
        q = np.clip(q, -levels, levels).astype(np.int8)
        q[..., -1] = 0  # an output that nothing feeds
        scale = rng.uniform(0.5, 1.0, () if axis is None else old.shape[axis]) / levels
        place = None if axis is None else axis + q.ndim
        stored = QuantizedTensor(q, scale.astype(np.float32), 4 if levels <= 7 else 8, place)
        return Weight(old.name, stored)

    def op(old: Any) -> Any:
        if hasattr(old, "body"):
            return dataclasses.replace(old, body=of(old.body))
        changes = {"weight": weight(old.weight)} if hasattr(old, "weight") else {}
        return dataclasses.replace(old, **changes)

    def of(graph: Graph) -> Graph:
        return dataclasses.replace(graph, ops=tuple(map(op, graph.ops)))

    return of(graph)


def vectors(rngs: nnx.Rngs) -> Any:
    layers = [nnx.Linear(90, 21, rngs=rngs), nnx.relu, nnx.Linear(21, 8, rngs=rngs), nnx.relu]
    return nnx.Sequential(*layers, nnx.Linear(8, 34, rngs=rngs))


def flatten(x: jax.Array) -> jax.Array:
    return x.reshape(len(x), -1)


def images(rngs: nnx.Rngs) -> Any:
    layers = [nnx.Conv(2, 7, (3, 3), rngs=rngs), nnx.relu, nnx.Conv(7, 9, (1, 1), rngs=rngs)]
    layers += [
        nnx.relu,
        nnx.Conv(9, 10, (3, 2), strides=2, rngs=rngs),
        flatten,
    ]
    return nnx.Sequential(*layers, nnx.Linear(120, 6, rngs=rngs))


def rows(rngs: nnx.Rngs) -> Any:
    return nnx.Sequential(nnx.Linear(14, 24, rngs=rngs), nnx.relu, nnx.Linear(24, 12, rngs=rngs))


def steps(rngs: nnx.Rngs) -> Any:
    return nnx.RNN(nnx.SimpleCell(10, 12, rngs=rngs))


NETS = {"vectors": (vectors, (90,)), "images": (images, (7, 6, 2)), "rows": (rows, (5, 14)),
        "steps": (steps, (4, 10))}  # fmt: skip
CASES = [
    ("vectors", "int8", 16, 7, None),
    ("vectors", "int8", 8, 3, None),
    ("vectors", "int16", 16, 100, -1),
    ("vectors", "float32", 0, 7, -2),
    ("images", "int8", 16, 3, None),
    ("images", "int4", 8, 7, -1),
    ("images", "float32", 0, 7, None),
    ("rows", "int4", 16, 7, None),
    ("rows", "float32", 0, 40, -1),
    ("steps", "int8", 16, 7, None),
    ("steps", "float32", 0, 3, None),
]


def model_of(name: str, dtype: str, activations: int, levels: int, axis: int | None) -> Any:
    """A graph or an integer program, inputs, and outputs; None for those of packed floats."""
    make, shape = NETS[name]
    x = np.random.default_rng(1).normal(size=(12, *shape)).astype(np.float32)
    graph = sparse_graph(trace(make(nnx.Rngs(0)), x), levels, axis)
    if dtype == "float32":
        return graph, x, None
    program = lower(graph, x, dtype=dtype, activations=activations)
    given = program.quantize_input(x)
    return program, given, run_integer(program, given).reshape(len(x), -1)


def write(source: CSource, folder: Path) -> Path:
    folder.mkdir()
    (folder / HEADER).write_text(source.header)
    (folder / SOURCE).write_text(source.source)
    return folder


@needs_gcc
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_outputs_are_those_of_packed_weights(case: Any, tmp_path: Path) -> None:
    model, x, expected = model_of(*case)
    packed = write_c(model)
    if expected is None:
        expected = run_host(write(packed, tmp_path / "packed"), x)
    for form in OTHERS:
        source = write_c(model, weights=form, poison=0x55)
        found = run_host(write(source, tmp_path / form), x, sanitize=True)
        np.testing.assert_array_equal(found, expected, err_msg=form)
        assert source.model_bytes < packed.model_bytes
        assert (source.decoded_bytes > 0) == ("rosler_init" in source.header)


def test_a_stream_of_rows_takes_little_memory() -> None:
    model, _, _ = model_of("vectors", "int8", 16, 7, None)
    coded, streamed, sparse = (write_c(model, weights=form) for form in OTHERS)
    assert streamed.decoded_bytes == sparse.decoded_bytes == 0 < coded.decoded_bytes
    # Sums, activities and a row of 21 outputs; two vectors of 16 bits beside them.
    assert streamed.arena_bytes <= 7 * 21 + 2 * 90 + 2 * 21 + 8 * 4


@needs_gcc
def test_code_for_one_kind_of_streams_where_the_other_saves_less_than_its_code(
    tmp_path: Path,
) -> None:
    model, x, _ = model_of("vectors", "int8", 16, 7, None)
    rng = np.random.default_rng(0)
    walks = np.clip(np.cumsum(rng.integers(-1, 2, (90, 21)), axis=0), -7, 7)  # smooth along inputs
    ops, changed = [], False
    for op in model.ops:
        if hasattr(op, "weight") and not changed:
            op, changed = dataclasses.replace(op, weight=walks), True
        ops.append(op)
    program = dataclasses.replace(model, ops=tuple(ops))
    source = write_c(program, weights="coded")
    assert "#define ROSLER_SMOOTH 1\n#define ROSLER_PLAIN 0\n" in source.source
    found = run_host(write(source, tmp_path / "edge"), x, sanitize=True)
    np.testing.assert_array_equal(found, run_integer(program, x).reshape(len(x), -1))


def test_what_is_larger_stays_packed() -> None:
    rng = np.random.default_rng(0)
    model, _, _ = model_of("rows", "int8", 16, 7, None)
    ops = [
        dataclasses.replace(op, weight=rng.integers(-127, 128, op.weight.shape))
        if hasattr(op, "weight") else op
        for op in model.ops
    ]  # fmt: skip
    full = dataclasses.replace(model, ops=tuple(ops))
    sources = {write_c(full, weights=form).source for form in FORMS}
    assert len(sources) == 1


@given(st.lists(st.integers(-8, 7) | st.just(0), min_size=1, max_size=60), st.integers(0, 20))
@settings(max_examples=50, deadline=None)
def test_entries_are_read_back(column: list[int], gap: int) -> None:
    found, (count,) = entries(np.array(column)[:, None], 4, gap)
    read, at = [0] * len(column), -1
    for entry in found.tolist():
        at += 1 + (entry >> 4)
        read[at] = (entry & 15) - 2 * (entry & 8)
    assert (read, count) == (column, len(found))
    assert all(entry >> 4 <= gap for entry in found.tolist())


@pytest.mark.slow
@pytest.mark.skipif(
    None in map(shutil.which, ("arm-none-eabi-gcc", "qemu-system-arm")), reason="no emulator"
)
def test_on_the_board_they_are_the_same_and_decoded_once(tmp_path: Path) -> None:
    model, x, expected = model_of("vectors", "int8", 8, 3, None)
    found = {
        form: run_firmware(write(write_c(model, weights=form), tmp_path / form), x)
        for form in FORMS
    }  # fmt: skip
    for run in found.values():
        np.testing.assert_array_equal(run.outputs, expected)
    started = [form for form, run in found.items() if run.start_instructions]
    assert started == ["coded"]
    packed, coded, streamed, sparse = found.values()
    assert coded.instructions - packed.instructions < 20  # whether it is decoded
    assert coded.most_instructions - coded.least_instructions < 100
    assert streamed.instructions > coded.instructions
    assert streamed.ram_bytes < coded.ram_bytes
    assert sparse.flash_data_bytes < packed.flash_data_bytes


TWO = """
#include <stdio.h>
#include "a_model.h"
#include "b_model.h"
int main(void)
{
    static a_arena a;
    static b_arena b;
    static a_output y[A_OUTPUT_SIZE];
    static b_output z[B_OUTPUT_SIZE];
    static a_input x[A_INPUT_SIZE];
    a_init(&a); /* the other decodes its weights when it is called */
    a_predict(x, y, &a);
    b_predict(x, z, &b);
    for (int k = 0; k < A_OUTPUT_SIZE; ++k) {
        if (y[k] != z[k]) {
            return 1;
        }
    }
    return 0;
}
"""


@needs_gcc
def test_two_models_in_one_program_decode_their_own(tmp_path: Path) -> None:
    model, shape = NETS["vectors"]
    x = np.random.default_rng(1).normal(size=(40, *shape)).astype(np.float32)
    graph = sparse_graph(trace(model(nnx.Rngs(0)), x), 7)
    for name in "ab":
        export(graph, tmp_path, dtype="int8", calibration=x, board=None, name=name, weights="coded")
    (tmp_path / "main.c").write_text(TWO)
    files = ["main.c", "a_model.c", "b_model.c"]
    subprocess.run(["gcc", *FLAGS, *files, "-o", "main"], cwd=tmp_path, check=True, timeout=100)
    subprocess.run([tmp_path / "main"], check=True, timeout=20)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make, shape = NETS["vectors"]
    graph = sparse_graph(trace(make(nnx.Rngs(0)), np.ones((1, *shape), np.float32)), 7)
    save(tmp_path / "model.rosler", graph, coded=True)
    np.save(tmp_path / "x.npy", jax.random.normal(jax.random.key(0), (40, *shape)))
    return tmp_path / "model.rosler"


def test_the_report_has_all_forms_side_by_side(saved: Path, tmp_path: Path, capsys: Any) -> None:
    line = ["export", str(saved), "--calibration", str(tmp_path / "x.npy"), "--dtype", "int8"]
    options = ["--weights", "sparse", "--board", "none", "--out", str(tmp_path / "edge")]
    assert command([*line, *options]) == 0
    assert "sparse (chosen)" in capsys.readouterr().out
    found = json.loads((tmp_path / "edge" / "size_report.json").read_text())
    forms = found["weights"]["forms"]
    assert tuple(forms) == tuple(FORMS)
    assert forms["sparse"]["data_bytes"] == found["flash"]["data_bytes"]
    assert found["weights"]["least"]["flash_bytes"] in ("coded", "streamed")
    limit = ["--flash", str(forms["sparse"]["data_bytes"]), "--ram", "1000"]
    assert command([*line, *limit, "--board", "none", "--out", str(tmp_path / "less")]) == 1
    assert "--weights streamed or sparse would fit" in capsys.readouterr().err


def test_refusals_say_what_to_do(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="'zipped'; use one of packed, coded, streamed, sparse"):
        export(saved, tmp_path / "edge", weights="zipped")
    with pytest.raises(ExportError, match="'sparse' cannot train on the device"):
        export(saved, tmp_path / "edge", weights="sparse", train=Training())
    with pytest.raises(ExportError, match="weights are for the target c"):
        export(saved, tmp_path / "edge", weights="coded", target="stablehlo")
