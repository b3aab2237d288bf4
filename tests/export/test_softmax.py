"""Softmax in integers: near the real one, and the same bits in C."""

from __future__ import annotations

import shutil
import subprocess

import numpy as np
import pytest
from exported_models import make_model, mlp, pixels
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rosler_jax.export import ExportError, lower
from rosler_jax.export.c.source import HEADER, SOURCE, write_c
from rosler_jax.export.softmax import multiplier, softmax

DRIVER = """
#include <stdio.h>
#include "rosler_model.h"
int main(void)
{
    rosler_output y[ROSLER_OUTPUT_SIZE];
    TYPE p[ROSLER_OUTPUT_SIZE];
    while (fread(y, sizeof y, 1, stdin) == 1) {
        rosler_softmax(y, p);
        fwrite(p, sizeof p, 1, stdout);
    }
    return 0;
}
"""


def run_softmax(source, y, ctype, folder):
    (folder / HEADER).write_text(source.header)
    (folder / SOURCE).write_text(source.source)
    (folder / "main.c").write_text(DRIVER.replace("TYPE", ctype))
    flags = ["-std=c99", "-O2", "-Wall", "-Wextra", "-Wconversion", "-pedantic", "-Werror"]
    command = ["gcc", *flags, "-fsanitize=undefined,address", "-fno-sanitize-recover=all"]
    sources = [str(folder / SOURCE), str(folder / "main.c"), "-o", str(folder / "main"), "-lm"]
    subprocess.run([*command, f"-I{folder}", *sources], check=True)
    done = subprocess.run([str(folder / "main")], input=y.tobytes(), stdout=-1, check=True)
    return np.frombuffer(done.stdout, {"uint16_t": "<u2", "float": "<f4"}[ctype]).reshape(y.shape)


@settings(max_examples=200, deadline=None)
@given(
    y=hnp.arrays(np.int16, st.tuples(st.just(3), st.integers(1, 20))),
    exponent=st.floats(-18, 2),
)
def test_is_near_the_real_softmax(y, exponent):
    scale = 2.0**exponent
    p = softmax(y, scale).astype(np.float64) / 32768
    z = y.astype(np.float64) * scale
    e = np.exp(z - z.max(-1, keepdims=True))
    # Interpolation errs by h^2 / 8 = 2^-11 of e at most, all else by some units of 2^-15.
    assert np.abs(p - e / e.sum(-1, keepdims=True)).max() < 2.0**-10
    assert np.abs(p.sum(-1) - 1).max() <= y.shape[1] * 2.0**-15


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_c_gives_the_same_bits(tmp_path):
    model = make_model(mlp(), bits=8)
    program = lower(model.graph, pixels((70,), 20), dtype="int8")
    rng = np.random.default_rng(0)
    y = rng.integers(-32768, 32767, (200, 7), endpoint=True).astype(np.int16)
    y[100:] //= 64
    source = write_c(program, probabilities=True)
    found = run_softmax(source, y, "uint16_t", tmp_path)
    np.testing.assert_array_equal(found, softmax(y, program.output_scale))


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
def test_float_c_is_a_softmax(tmp_path):
    graph = make_model(mlp(), bits=32).graph
    y = np.random.default_rng(0).normal(0, 30, (50, 7)).astype(np.float32)
    y[0, 3], y[1, 2], y[2, 1] = np.nan, np.inf, -np.inf  # NaN and infinity: all are NaN
    found = run_softmax(write_c(graph, probabilities=True), y, "float", tmp_path)
    with np.errstate(invalid="ignore"):
        e = np.exp(y - y.max(-1, keepdims=True), dtype=np.float64)
        want = e / e.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-12)
    assert np.isnan(found[:2]).all()
    assert np.isfinite(found[2:]).all()


def test_scales_out_of_range_are_refused():
    for scale in (0.0, 2.0**-40, 2.0**30, float("nan")):
        with pytest.raises(ExportError, match="no integer softmax"):
            multiplier(scale)
