"""dct and pool: the transforms that they are, on vectors and on images with channels."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rosler_kernels as rk
from rosler_kernels.sketches.dct import frequencies
from rosler_kernels.sketches.pool import grid

IMAGE = {"height": 10, "width": 14}
# Rows, columns, options: vectors, images, windows that do not divide their axis, all columns.
CASES: dict[str, tuple[str, int, int, dict[str, int]]] = {
    "dct of vectors": ("dct", 100, 30, {}),
    "dct of images": ("dct", 140, 37, IMAGE),
    "dct of channels": ("dct", 420, 50, IMAGE),
    "all of a dct": ("dct", 280, 280, IMAGE),
    "pool of vectors": ("pool", 100, 25, {}),
    "pool of images": ("pool", 140, 35, IMAGE),
    "pool of channels": ("pool", 420, 105, IMAGE),
    "uneven pool of vectors": ("pool", 103, 30, {}),
    "uneven pool of images": ("pool", 420, 36, IMAGE),
}


def made(name: str) -> rk.Sketch:
    kind, rows, cols, options = CASES[name]
    return rk.make(kind, 0, rows, cols, **options)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("name", CASES)
def test_columns_are_orthogonal_and_of_a_random_sketchs_norm(name: str) -> None:
    sketch = made(name)
    omega = np.asarray(rk.materialize(sketch), np.float64)
    gram = omega.T @ omega * sketch.cols / sketch.rows
    np.testing.assert_allclose(np.trace(gram), sketch.cols, rtol=1e-6)
    if "uneven" in name:
        gram = gram / np.diag(gram)
    np.testing.assert_allclose(gram, np.eye(sketch.cols), atol=1e-6)
    assert (rk.FAMILIES[sketch.kind].fixed, sketch.seed.tolist()) == (True, [0, 0])


@pytest.mark.parametrize("name", CASES)
def test_products_by_the_axes_are_those_of_the_whole(name: str) -> None:
    sketch = made(name)
    omega = np.asarray(rk.materialize(sketch), np.float64)
    x, y = normal(1, 3, sketch.rows), normal(2, 3, sketch.cols)
    np.testing.assert_allclose(rk.project(x, sketch), x @ omega, atol=1e-5)
    np.testing.assert_allclose(rk.project_transpose(y, sketch), y @ omega.T, atol=1e-5)
    half = rk.project(jnp.asarray(x, jnp.bfloat16), sketch)
    want = np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) @ omega
    np.testing.assert_allclose(np.asarray(half, np.float64), want, rtol=8e-3, atol=1e-5)
    gradient = jax.vmap(jax.grad(lambda x: jnp.sum(rk.project(x, sketch) ** 2)))(x)
    np.testing.assert_allclose(gradient, 2 * x @ omega @ omega.T, rtol=1e-4, atol=1e-4)


def test_dct_is_scipys() -> None:
    fft: Any = pytest.importorskip("scipy.fft")
    i, j = np.mgrid[:28, :20] / 28
    smooth = np.stack([np.exp(-((i - a) ** 2) - (j - 0.3) ** 2) for a in (0.1, 0.5)])
    norm = np.sqrt(60 / 560)  # of a sketch's columns to 1
    got = rk.project(smooth.reshape(2, -1), rk.dct(0, 560, 60, height=28, width=20)) * norm
    u, v = frequencies(28, 20, 60).T
    np.testing.assert_allclose(got, fft.dctn(smooth, axes=(1, 2), norm="ortho")[:, u, v], atol=1e-5)
    line = smooth.reshape(2, -1)
    got = rk.project(line, rk.dct(0, 560, 60)) * norm
    np.testing.assert_allclose(got, fft.dct(line, norm="ortho")[:, :60], atol=1e-5)


@pytest.mark.parametrize(("height", "width"), [(28, 28), (6, 15), (9, 4), (1, 7), (5, 1)])
def test_frequencies_grow_as_a_box_and_each_comes_once(height: int, width: int) -> None:
    found = frequencies(height, width, height * width)
    assert len({*map(tuple, found.tolist())}) == height * width
    assert (found.max(axis=0) == (height - 1, width - 1)).all()
    for k in range(1, min(height, width) + 1 if height == width else 0):
        assert found[: k * k].max() == k - 1
    np.testing.assert_array_equal(frequencies(height, width, 5), found[:5])


def test_pool_is_the_sum_of_its_windows() -> None:
    x = normal(3, 2, 28, 28, 3)
    sketch = rk.pool(0, 28 * 28 * 3, 14 * 7 * 3, height=28, width=28)
    want = x.reshape(2, 7, 4, 14, 2, 3).sum((2, 4)).reshape(2, -1)
    np.testing.assert_allclose(rk.project(x.reshape(2, -1), sketch), want, atol=1e-5)
    assert grid(sketch) == (7, 14)
    # Of axes that windows do not divide, the first are the longer ones.
    omega = np.asarray(rk.materialize(rk.pool(0, 11, 4)))
    np.testing.assert_array_equal(omega.sum(0), [3, 3, 3, 2])


def test_a_large_dct_of_images_costs_its_axes_alone() -> None:
    # 256 x 256 to 4,096: the whole of Omega is 1.07 GB, and a product by it 268 M multiplications
    # an example.
    sketch = rk.dct(0, 65536, 4096, height=256, width=256)
    compiled = jax.jit(rk.project).lower(jnp.zeros((1, 65536)), sketch).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 6e6
    cost: Any = compiled.cost_analysis()
    assert cost["flops"] < 3e7


def test_low_frequencies_and_pools_hold_more_of_a_digit_than_a_random_sketch(
    real_data: Path,
) -> None:
    # Measured on these 2,000 digits, of their energy: 144 cosines 88 %, 196 cosines 92 %, 196 pools
    # 84 %; of any 144 random directions 144 / 784 = 18 %.
    with gzip.open(real_data / "mnist/t10k-images-idx3-ubyte.gz") as file:
        raw = np.frombuffer(file.read(), np.uint8, offset=16)
    x = raw[: 2000 * 784].reshape(2000, 784).astype(np.float32)

    def held(kind: str, cols: int) -> float:
        options = {} if kind == "gaussian" else {"height": 28, "width": 28}
        sketch = rk.make(kind, 0, 784, cols, **options)
        basis, _ = np.linalg.qr(np.asarray(rk.materialize(sketch), np.float64))
        return float(((x @ basis) ** 2).sum() / (x.astype(np.float64) ** 2).sum())

    found = [held("dct", 144), held("dct", 196), held("pool", 196), held("gaussian", 144)]
    np.testing.assert_allclose(found, [0.884, 0.924, 0.842, 0.18], atol=0.01)
