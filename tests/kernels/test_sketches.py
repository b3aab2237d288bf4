"""The families: entries against their written definitions, tiles, arguments."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rosler_kernels as rk
from rosler_kernels import hashing
from rosler_kernels.sketches.block_perm import row_block, wiring
from rosler_kernels.sketches.srht import columns, ranks

PINNED = {
    "gaussian": 6.20399,
    "rademacher": 7.69356,
    "sparse_sign": -4.40764,
    "block_perm": 6.07439,
    "srht": -10.22325,
    "rows_uniform": 17.73998,
}

KINDS = list(rk.FAMILIES)
SEEDED = [kind for kind, family in rk.FAMILIES.items() if not family.weighted]
RANDOM = [kind for kind in SEEDED if not rk.FAMILIES[kind].fixed]


def new(kind, seed, rows, cols, **options):
    if rk.FAMILIES[kind].weighted:
        options["w"] = jax.random.normal(jax.random.key(99), (rows, 3))
    return rk.make(kind, seed, rows, cols, **options)


def hash_words(sketch, tag, row, col):
    key = hashing.domain_key(sketch.seed, tag)
    return [np.asarray(w) for w in hashing.threefry_2x32(key, (row, col))]


def test_rademacher_entry_by_entry():
    sketch = rk.rademacher(5, 200, 9)
    omega = np.asarray(rk.materialize(sketch))
    for i, j in [(0, 0), (31, 1), (32, 2), (63, 3), (64, 4), (130, 8), (199, 0)]:
        word = hash_words(sketch, hashing.Tag.RADEMACHER, i // 64, j)[i % 64 // 32]
        sign = -1 if (int(word) >> (i % 32)) & 1 else 1
        assert omega[i, j] == np.float32(sign) * np.float32(1 / 3)


def test_gaussian_is_box_muller_of_the_words():
    sketch = rk.gaussian(5, 51, 7)
    w0, w1 = hash_words(sketch, hashing.Tag.GAUSSIAN, np.arange(26)[:, None], np.arange(7)[None])
    u, v = ((w0 >> 8) + 1.0) / 2.0**24, (w1 >> 8) / 2.0**24
    radius = np.sqrt(-2 * np.log(u))
    want = np.stack([radius * np.cos(2 * np.pi * v), radius * np.sin(2 * np.pi * v)], 1)
    want = want.reshape(52, 7)[:51] / np.sqrt(7)
    np.testing.assert_allclose(rk.materialize(sketch), want, rtol=1e-5, atol=2e-6)


def test_gaussian_kolmogorov_smirnov():
    # sqrt(n) D is beyond 2.0 with probability 2 exp(-8) = 7e-4 under normality; the seed is fixed.
    stats = pytest.importorskip("scipy.stats")
    sketch = rk.gaussian(1, 700, 300)
    sample = np.asarray(rk.materialize(sketch), np.float64).ravel() * np.sqrt(300)
    assert stats.kstest(sample, "norm").statistic * np.sqrt(sample.size) < 2.0
    # Rows 2k and 2k + 1 share a hash: their products must have mean 0, deviation 1/sqrt(n).
    pair = np.asarray(rk.materialize(sketch), np.float64) * np.sqrt(300)
    assert abs((pair[0::2] * pair[1::2]).mean()) < 5 / np.sqrt(pair.size / 2)


@pytest.mark.parametrize(
    ("rows", "cols", "nnz"), [(100, 16, 4), (37, 11, 3), (9, 5, 5), (50, 8, 1)]
)
def test_sparse_sign_has_one_entry_in_each_block(rows, cols, nnz):
    omega = np.asarray(rk.materialize(rk.sparse_sign(2, rows, cols, nnz=nnz)))
    for t in range(nnz):
        block = omega[:, t * cols // nnz : (t + 1) * cols // nnz]
        np.testing.assert_array_equal((block != 0).sum(1), 1)
    np.testing.assert_allclose(np.unique(np.abs(omega[omega != 0])), 1 / np.sqrt(nnz), rtol=1e-6)


def test_sparse_sign_buckets_are_uniform():
    # Chi-square of 16 buckets in one block: 15 degrees of freedom, deviation sqrt(30); six above is
    # 48.
    n = 32000
    omega = np.asarray(rk.materialize(rk.sparse_sign(3, n, 32, nnz=2)))
    for block in (omega[:, :16], omega[:, 16:]):
        counts = (block != 0).sum(0)
        assert ((counts - n / 16) ** 2 / (n / 16)).sum() < 48
    assert abs((omega > 0).sum() - n) < 5 * np.sqrt(2 * n) / 2


@pytest.mark.parametrize(
    ("rows", "cols", "blocks", "kappa", "nnz"),
    [(64, 64, 8, 3, 2), (101, 70, 4, 4, 3), (33, 17, 1, 1, 2), (40, 40, 16, 16, 1)],
)
def test_block_perm_is_wired_by_disjoint_permutations(rows, cols, blocks, kappa, nnz):
    sketch = rk.block_perm(4, rows, cols, blocks=blocks, kappa=kappa, nnz=nnz)
    wires = np.asarray(wiring(sketch, jnp.arange(blocks, dtype=jnp.uint32)))
    for permutation in wires.T:
        np.testing.assert_array_equal(np.sort(permutation), np.arange(blocks))
    assert all(len(set(row)) == kappa for row in wires)  # edge-disjoint
    block_of = np.asarray(row_block(sketch, jnp.arange(rows, dtype=jnp.uint32)))
    starts = [b * rows // blocks for b in range(blocks + 1)]
    np.testing.assert_array_equal(block_of, np.repeat(np.arange(blocks), np.diff(starts)))
    omega = np.asarray(rk.materialize(sketch))
    for b in range(blocks):
        part = omega[:, b * cols // blocks : (b + 1) * cols // blocks]
        met = (wires[block_of] == b).any(1)
        np.testing.assert_array_equal((part != 0).sum(1), np.where(met, nnz, 0))
    np.testing.assert_allclose(
        np.unique(np.abs(omega[omega != 0])), 1 / np.sqrt(kappa * nnz), rtol=1e-6
    )


@pytest.mark.parametrize(("rows", "cols"), [(64, 20), (50, 64), (1, 1), (2, 2), (33, 5)])
def test_srht_is_signs_times_distinct_hadamard_columns(rows, cols):
    linalg = pytest.importorskip("scipy.linalg")
    sketch = rk.srht(6, rows, cols)
    n2 = 1 << (rows - 1).bit_length()
    chosen = np.asarray(columns(sketch, jnp.arange(cols, dtype=jnp.uint32)))
    assert len(set(chosen.tolist())) == cols
    np.testing.assert_array_equal(ranks(sketch, jnp.asarray(chosen)), np.arange(cols))
    i = np.arange(rows)
    word = np.stack(hash_words(sketch, hashing.Tag.SRHT_SIGNS, i // 64, 0))[i % 64 // 32, i]
    signs = 1.0 - 2.0 * ((word >> (i % 32)) & 1)
    want = signs[:, None] * linalg.hadamard(n2)[:rows, chosen] / np.sqrt(cols)
    np.testing.assert_allclose(rk.materialize(sketch), want, rtol=1e-6)


def test_full_srht_is_orthogonal():
    omega = np.asarray(rk.materialize(rk.srht(0, 50, 64)), np.float64)
    np.testing.assert_allclose(omega @ omega.T, np.eye(50), atol=1e-6)


def test_rows_uniform_selects_scaled_rows():
    sketch = rk.rows_uniform(7, 30, 12)
    omega = np.asarray(rk.materialize(sketch))
    word, _ = hash_words(sketch, hashing.Tag.ROWS_UNIFORM, 0, np.arange(12))
    want = np.zeros((30, 12))
    want[(word.astype(np.uint64) * 30) >> np.uint64(32), np.arange(12)] = np.sqrt(30 / 12)
    np.testing.assert_allclose(omega, want, rtol=1e-6)


@pytest.mark.parametrize("kind", ["rows_norm", "rows_leverage"])
def test_weighted_rows_follow_their_probabilities(kind):
    rng = np.random.default_rng(8)
    w = (rng.normal(size=(20, 3)) * rng.exponential(size=(20, 1))).astype(np.float32)
    w[[4, 11]] = 0
    cols = 40000
    sketch = getattr(rk, kind)(9, jnp.asarray(w), cols)
    matrix = w if kind == "rows_norm" else np.linalg.qr(w.astype(np.float64))[0]
    p = (matrix**2).sum(1) / (matrix**2).sum()
    assert sketch.data is not None
    index, scale = (np.asarray(sketch.data[k]) for k in ("indices", "scales"))
    np.testing.assert_allclose(scale, 1 / np.sqrt(cols * p[index]), rtol=2e-4)
    # Multinomial frequencies: five deviations of each.
    frequency = np.bincount(index, minlength=20) / cols
    assert (np.abs(frequency - p) <= 5 * np.sqrt(p * (1 - p) / cols) + 1e-7).all()
    assert frequency[4] == frequency[11] == 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "cols"), [(130, 12), (1, 1), (300, 47)])
def test_tiles_are_bit_equal_to_the_whole(kind, rows, cols):
    sketch = new(kind, 3, rows, cols)
    whole = np.asarray(rk.materialize(sketch))
    assert whole.shape == (rows, cols)
    rng = np.random.default_rng(rows)
    traced = jax.jit(lambda sketch, i, j, r, c: rk.tile(sketch, i, r, j, c), static_argnums=(3, 4))
    n_rows, n_cols = max(1, rows * 2 // 3), max(1, cols // 2)
    for _ in range(3):
        i, j = int(rng.integers(0, rows - n_rows + 1)), int(rng.integers(0, cols - n_cols + 1))
        want = whole[i : i + n_rows, j : j + n_cols]
        np.testing.assert_array_equal(rk.tile(sketch, i, n_rows, j, n_cols), want)
        np.testing.assert_array_equal(traced(sketch, i, j, n_rows, n_cols), want)
    np.testing.assert_array_equal(rk.tile(sketch, 0, rows), whole)


@pytest.mark.parametrize("kind", [kind for kind in SEEDED if kind != "dct"])
def test_tile_far_beyond_two_to_the_31_elements(kind):
    # Entry (row, column) must use the row itself, not a position among rows * cols elements.
    rows, cols = 2**31 - 1, 2**20 if kind != "rows_uniform" else 64
    sketch = new(kind, 1, rows, cols)
    start = rows - 200
    last = np.asarray(rk.tile(sketch, start, 200, cols - 32, 32))
    assert last.shape == (200, 32)
    np.testing.assert_array_equal(
        rk.tile(sketch, jnp.uint32(start + 70), 130, jnp.int32(cols - 20), 20), last[70:, 12:]
    )
    if kind in ("gaussian", "rademacher", "srht"):
        first = np.asarray(rk.tile(sketch, 0, 200, 0, 32))
        assert np.abs(np.corrcoef(first.ravel(), last.ravel())[0, 1]) < 5 / np.sqrt(last.size)
        assert len({row.tobytes() for row in last}) == 200


@pytest.mark.parametrize("kind", ["sparse_sign", "block_perm"])
def test_far_rows_of_sparse_sketches_have_all_their_entries(kind):
    sketch = new(kind, 1, 2**31 - 1, 96)
    part = np.asarray(rk.tile(sketch, 2**31 - 101, 100))
    per_row = 4 if kind == "sparse_sign" else sketch.param("kappa") * sketch.param("nnz")
    np.testing.assert_array_equal((part != 0).sum(1), per_row)


@pytest.mark.parametrize("kind", RANDOM)
def test_pinned_entries_never_change(kind):
    # A change of these is a change of every saved model: it needs a new family name.
    sketch = new(kind, 12345, 1000, 60)
    got = np.asarray(rk.materialize(sketch), np.float64)
    weights = np.sin(np.arange(got.size)).reshape(got.shape)
    np.testing.assert_allclose((got * weights).sum(), PINNED[kind], rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_is_a_pytree_of_its_seed(kind):
    sketch = new(kind, 1, 64, 16)
    leaves = jax.tree.leaves(sketch)
    assert leaves[-1 if sketch.data is None else 0].shape in {(2,), (16,)}
    assert sum(leaf.shape == (2,) for leaf in leaves) == 1
    copy = jax.tree.map(lambda leaf: leaf, sketch)
    np.testing.assert_array_equal(rk.materialize(copy), rk.materialize(sketch))


@pytest.mark.parametrize("kind", RANDOM)
def test_a_new_seed_does_not_retrace(kind):
    traced = jax.jit(chex.assert_max_traces(lambda sketch: rk.materialize(sketch), 1))
    a, b = traced(new(kind, 1, 64, 16)), traced(new(kind, 2, 64, 16))
    assert (np.asarray(a) != np.asarray(b)).any()
    chex.clear_trace_counter()


def test_dtype_of_materialize():
    sketch = rk.rademacher(0, 10, 5)
    whole = rk.materialize(sketch)
    for dtype in (jnp.bfloat16, jnp.float16):
        got = rk.materialize(sketch, dtype)
        assert got.dtype == dtype
        np.testing.assert_array_equal(got, whole.astype(dtype))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rk.gaussian(0, 0, 4), "rows=0"),
        (lambda: rk.rademacher(0, 4, 2**31), "cols=2147483648"),
        (lambda: rk.srht(0, 100, 129), "cols=129"),
        (lambda: rk.srht(0, 0, 1), "rows=0"),
        (lambda: rk.sparse_sign(0, 10, 4, nnz=5), "nnz=5"),
        (lambda: rk.sparse_sign(0, 10, 4, nnz=0), "nnz=0"),
        (lambda: rk.block_perm(0, 64, 64, blocks=6), "power of two"),
        (lambda: rk.block_perm(0, 64, 64, blocks=128), "blocks=128"),
        (lambda: rk.block_perm(0, 64, 64, blocks=8, kappa=9), "kappa=9"),
        (lambda: rk.block_perm(0, 64, 64, blocks=8, nnz=9), "nnz=9"),
        (lambda: rk.dct(0, 8, 9), "cols=9; expected 1 to 8"),
        (lambda: rk.dct(0, 50000, 9), "give height and width"),
        (lambda: rk.dct(0, 50, 9, height=5), "height=5, width=None"),
        (lambda: rk.pool(0, 50, 9, height=5, width=9), "a multiple of height x width = 5 x 9"),
        (lambda: rk.pool(0, 56, 9, height=4, width=7), r"a \* b \* 2 channels"),
        (lambda: rk.rows_norm(0, jnp.ones(3), 2), r"shape \(3,\)"),
        (lambda: rk.make("rows_norm", 0, 3, 2), "pass w"),
        (lambda: rk.make("rows_norm", 0, 3, 2, w=jnp.ones((4, 2))), r"expected \(3, k\)"),
        (lambda: rk.make("fourier", 0, 3, 2), "fourier"),
        (lambda: rk.tile(rk.gaussian(0, 10, 4), 8, 3), "rows 8 to 10 of 10"),
        (lambda: rk.tile(rk.gaussian(0, 10, 4), 0, 3, 2, 3), "columns 2 to 4 of 4"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("kind", rk.FAMILIES)
@pytest.mark.parametrize("shape", [(37, 12), (64, 5), (3, 1)])
def test_entries_of_one_magnitude_have_it(kind: str, shape: tuple[int, int]) -> None:
    rows, cols = shape
    w = {"w": jax.random.normal(jax.random.key(1), (rows, 2))} if rk.family(kind).weighted else {}
    sketch = rk.make(kind, 5, rows, cols, **w)
    entries = np.unique(np.abs(np.asarray(rk.materialize(sketch))))
    magnitude = rk.family(kind).magnitude
    if magnitude is not None:
        assert set(entries.tolist()) <= {0.0, magnitude(sketch)}
    elif rows > 3:
        assert len(entries) > 2
