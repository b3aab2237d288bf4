"""Random entries behave as random ones, beside a reference generator.

Each figure is computed for our entries and for NumPy's Philox generator; bounds are those that
independent draws keep with a probability of at least 1 - 1e-6 a test.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import rosler_kernels as rk

ROWS, COLS = 2048, 512
Z = 6.0  # standard deviations: 2e-9 two-sided, times the few thousand figures of a test


def ours(kind, seed=11):
    scale = COLS**0.5
    return np.asarray(rk.materialize(rk.make(kind, seed, ROWS, COLS)), np.float64) * scale


def reference(kind):
    generator = np.random.Generator(np.random.Philox(5))
    if kind == "gaussian":
        return generator.standard_normal((ROWS, COLS))
    return generator.choice([-1.0, 1.0], (ROWS, COLS))


@pytest.fixture(params=["rademacher", "gaussian"])
def kind(request):
    return request.param


@pytest.fixture(params=[ours, reference], ids=["ours", "numpy"])
def entries(request, kind):
    return request.param(kind)


def test_moments(entries, kind):
    n = entries.size
    fourth, eighth = (3.0, 105.0) if kind == "gaussian" else (1.0, 1.0)
    # Moments k has variance (E x^2k - (E x^k)^2) / n.
    assert abs(entries.mean()) < Z / n**0.5
    assert abs((entries**2).mean() - 1) <= Z * ((fourth - 1) / n) ** 0.5 + 1e-6
    assert abs((entries**3).mean()) < Z * ((15.0 if kind == "gaussian" else 1.0) / n) ** 0.5
    assert abs((entries**4).mean() - fourth) <= Z * ((eighth - fourth**2) / n) ** 0.5 + 1e-5


def test_no_two_rows_and_no_two_columns_are_correlated(entries):
    for x in (entries[:COLS], entries[:COLS].T, entries[-COLS:]):
        gram = x @ x.T / x.shape[1]
        off = gram[~np.eye(len(gram), dtype=bool)]
        # Products of independent unit entries: variance 1 / COLS each.
        assert np.abs(off).max() < (Z + 1.5) * COLS**-0.5


@pytest.mark.parametrize(
    "lag", [(0, 1), (1, 0), (1, 1), (2, 0), (32, 0), (64, 0), (0, 32), (64, 1)]
)
def test_no_lattice_of_neighbours(entries, lag):
    down, right = lag
    a = entries[: ROWS - down, : COLS - right]
    b = entries[down:, right:]
    assert abs((a * b).mean()) < Z / a.size**0.5


def test_spectrum_is_flat(entries):
    # Power at each frequency of a white field is exponential with mean 1: its largest of n is below
    # log(n / p) but with probability p. A lattice is a line far above.
    power = np.abs(np.fft.rfft2(entries)) ** 2 / entries.size
    power = power[:, 1:-1].ravel()
    assert power.max() < np.log(power.size / 1e-6)
    assert stats.kstest(power, "expon").pvalue > 1e-6


def test_runs_of_signs(entries):
    # Pairs, triples and quadruples of neighbouring signs down a column: uniform over 2^k patterns.
    bits = (entries > 0).astype(int)
    for k in (2, 3, 4):
        usable = bits[: ROWS // k * k].reshape(-1, k, COLS)
        words = np.tensordot(2 ** np.arange(k), usable, axes=(0, 1)).ravel()
        assert stats.chisquare(np.bincount(words, minlength=2**k)).pvalue > 1e-6


def test_extreme_singular_values_are_those_of_random_matrices(entries):
    # Marchenko-Pastur: sqrt(ROWS) +- sqrt(COLS), to fluctuations of order ROWS^(-1/6).
    values = np.linalg.svd(entries, compute_uv=False) / ROWS**0.5
    edge = (COLS / ROWS) ** 0.5
    assert abs(values[0] - (1 + edge)) < 0.05
    assert abs(values[-1] - (1 - edge)) < 0.05


def test_seeds_are_independent(kind):
    a = ours(kind, 0)
    for seed in (1, 2**32, 2**63, 2**64 - 1):
        assert abs((a * ours(kind, seed)).mean()) < Z / a.size**0.5


def test_sparse_columns_and_signs_are_uniform():
    sketch = rk.sparse_sign(3, 2**16, 64, nnz=4)
    place, value = rk.family("sparse_sign").pattern(sketch, 0, 2**16)
    for t in range(4):
        block = np.asarray(place[:, t]) - 16 * t
        negative = np.asarray(value[:, t] < 0)
        counts = np.bincount(2 * block + negative, minlength=32)
        assert stats.chisquare(counts).pvalue > 1e-6
    # Neighbouring rows and neighbouring nonzeros choose independently.
    first, second = np.asarray(place[:-1, 0]), np.asarray(place[1:, 0])
    assert stats.chisquare(np.bincount(16 * first + second, minlength=256)).pvalue > 1e-6
    across = 16 * np.asarray(place[:, 0]) + np.asarray(place[:, 1]) - 16
    assert stats.chisquare(np.bincount(across, minlength=256)).pvalue > 1e-6


def test_hash_bits_match_the_generator_of_jax_in_distribution():
    from rosler_kernels.hashing import threefry_2x32

    counter = jnp.arange(2**18, dtype=jnp.uint32)
    mine = np.asarray(threefry_2x32((jnp.uint32(1), jnp.uint32(2)), (counter, 0))[0])
    jaxs = np.asarray(jax.random.bits(jax.random.key(3), (2**18,)))
    assert stats.ks_2samp(mine, jaxs).pvalue > 1e-6
