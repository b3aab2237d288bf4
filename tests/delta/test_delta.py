"""Seeded deltas: every form against NumPy, layers beside their base, files, and what is refused."""

from __future__ import annotations

import hashlib

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import rosler_kernels as rk
from rosler_jax import linen, rate_coded
from rosler_jax.delta import (
    FORMS,
    DeltaFileError,
    DeltaParam,
    decode_delta,
    encode_delta,
    inject,
    load_delta,
    save_delta,
    seeded_delta,
)
from rosler_jax.delta.seeded_delta import seeds_of
from rosler_jax.views import MatrixView

RANK = 2
VIEWS = {
    "attention": MatrixView((0,), (1, 2)),
    "grouped": MatrixView((0,), (1,), groups=2),
    "stack": MatrixView((1,), (2,), stack=(0,)),
    "bias": None,
}


def normal(shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def tree():
    shapes = {"attention": (5, 2, 6), "bias": (7,), "grouped": (4, 10), "stack": (2, 9, 8)}
    return {name: normal(shape, i) for i, (name, shape) in enumerate(shapes.items())}


def by_hand(form, w, v, seeds, rank=RANK):
    """The change of one matrix by NumPy, float64, of its numbers."""
    m, n = w.shape

    def signs(seed, rows):
        omega = rk.materialize(rk.rademacher(seed, rows, rank))
        return np.sign(np.asarray(omega, np.float64)) / np.sqrt(rows)

    a, b = signs(seeds[0], m), signs(seeds[1], n).T
    match form:
        case "full":
            return v.reshape(m, n)
        case "lora":
            return (a + v[: m * rank].reshape(m, rank)) @ v[m * rank :].reshape(rank, n)
        case "seeded-side":
            return a @ v.reshape(rank, n)
        case "vera":
            return a @ np.diag(0.1 + v[:rank]) @ b @ np.diag(v[rank:])
        case "seeded":
            return a @ v.reshape(rank, rank) @ b
        case "lora-xs":
            left, sigma, right = np.linalg.svd(w.astype(np.float64), full_matrices=False)
            left, sigma, right = left[:, :rank], sigma[:rank], right[:rank]
            sign = np.sign(left[np.abs(left).argmax(0), range(rank)])
            sigma = sigma / np.linalg.norm(sigma) * np.sqrt(rank)
            return (left * sign * sigma) @ v.reshape(rank, rank) @ (right * sign[:, None])
        case "sketched":
            c, r = w @ b.T, a.T @ w
            c, r = (x / np.linalg.norm(x) * np.sqrt(rank) for x in (c, r))
            return c @ v.reshape(rank, rank) @ r
    raise AssertionError(form)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_what_it_says(form):
    w = {"hidden": {"kernel": normal((9, 7))}}
    delta = seeded_delta(w, seed=3, form=form, rank=RANK)
    z = normal((delta.plan.k,), 1) / 3
    seeds = seeds_of(3, "hidden/kernel", 1)
    kernel = np.asarray(w["hidden"]["kernel"])
    wanted = kernel + by_hand(form, kernel, np.asarray(z, np.float64), seeds)
    found = jax.jit(delta.apply)(w, z)["hidden"]["kernel"]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("k", [None, 11])
def test_starts_at_the_base_and_can_leave_it(form, k):
    base = tree()
    delta = seeded_delta(base, k, seed=5, form=form, rank=RANK, view=VIEWS)
    chex.assert_trees_all_equal(delta.apply(base, delta.start()), base)

    def loss(z):
        return sum(jnp.sum(jnp.sin(w)) for w in delta.apply(base, z).values())

    gradient = jax.jit(jax.grad(loss))(delta.start())
    assert gradient.shape == (delta.plan.k,)
    assert (jnp.abs(gradient) > 0).mean() > (0.4 if form in ("lora", "vera") else 0.9)
    apply = jax.jit(lambda delta, z: delta.apply(base, z))
    apply(delta, delta.start())
    apply(delta, delta.start() + 1)
    assert apply._cache_size() == 1


def test_shared_numbers_are_one_signed_entry_a_row():
    base = {"a": {"kernel": normal((30, 20))}, "b": {"kernel": normal((20, 25))}}
    delta = seeded_delta(base, 16, seed=9, form="full")
    rows = jax.jit(jax.jacobian(lambda z: jnp.concatenate(
        [delta.numbers(weight, z) for weight in delta.plan.weights]
    )))(delta.start())  # fmt: skip
    assert rows.shape == (1100, 16)
    np.testing.assert_array_equal((rows != 0).sum(1), 1)
    np.testing.assert_allclose(np.abs(rows).max(1), np.sqrt(16 / 1100), rtol=1e-6)
    # An isometry, but for the last block.
    np.testing.assert_allclose(rows.T @ rows, np.eye(16), atol=16 / 1100)


def test_shared_numbers_are_pinned():
    delta = seeded_delta({"kernel": jnp.zeros((6, 4))}, 8, seed=2**31 + 5, form="full")
    found = delta.numbers(delta.plan.weights[0], jnp.arange(1.0, 9.0)) * np.sqrt(3)
    assert np.round(np.asarray(found)).astype(int).tolist() == PINNED


PINNED = [4, -5, -6, -7, -8, 1, 2, 3, -3, 4, 5, -6, 7, -8, -1, -2, 3, 4, 5, 6, 7, 8, -1, 2]


class Layers(nnx.Module):
    def __init__(self, rngs):
        self.linear = nnx.Linear(12, 8, rngs=rngs)
        self.general = nnx.LinearGeneral((8,), (4, 6), rngs=rngs)
        self.einsum = nnx.Einsum("bhd,hde->be", (4, 6, 10), None, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, 10, decode=False, rngs=rngs)

    def __call__(self, x):
        y = self.einsum(self.general(nnx.relu(self.linear(x))))
        return self.attention(y[None])[0]


@pytest.mark.parametrize("form", [form for form, row in FORMS.items() if row.factors])
@pytest.mark.parametrize("k", [None, 13])
def test_layers_beside_their_base_compute_the_same(form, k):
    model, x = Layers(nnx.Rngs(0)), normal((5, 12))
    delta = seeded_delta(model, k, seed=1, form=form, rank=RANK)
    z = normal((delta.plan.k,), 2) / 2
    tuned = inject(model, delta, z)

    def loss(m):
        return jnp.sum((y := m(x)) ** 2), y

    one = nnx.DiffState(0, DeltaParam)
    gradients, outputs = nnx.jit(nnx.grad(loss, argnums=one, has_aux=True))(tuned)
    wanted, expected = jax.jit(jax.grad(lambda z: loss(delta.apply(model, z)), has_aux=True))(z)
    np.testing.assert_allclose(outputs, expected, rtol=1e-3, atol=1e-4)
    (found,) = jax.tree.leaves(gradients)
    np.testing.assert_allclose(found, wanted, rtol=2e-3, atol=1e-3)
    run = nnx.jit(lambda model: model(x))
    np.testing.assert_allclose(run(inject(model, delta)), run(model), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_trains_as_an_nnx_model():
    model, x, y = Layers(nnx.Rngs(0)), normal((32, 12)), normal((32, 10), 1)
    tuned = inject(model, seeded_delta(model, 40, form="lora", rank=RANK))
    optimizer = nnx.Optimizer(tuned, optax.adam(3e-2), wrt=DeltaParam)
    before = jax.tree.leaves(nnx.state(tuned, nnx.Param))

    @nnx.jit
    def step(model, optimizer):
        def loss(m):
            return jnp.mean((m(x) - y) ** 2)

        value, grads = nnx.value_and_grad(loss, argnums=nnx.DiffState(0, DeltaParam))(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(tuned, optimizer)) for _ in range(60)]
    assert losses[-1] < 0.95 * losses[0]
    chex.assert_trees_all_equal(before, jax.tree.leaves(nnx.state(tuned, nnx.Param)))


@pytest.mark.slow
def test_a_linen_model():
    model = nn.Sequential([nn.Dense(16), nn.relu, nn.Dense(4)])
    x = normal((3, 8))
    params = model.init(jax.random.key(0), x)["params"]
    delta = seeded_delta(
        params, 9, form="lora-xs", rank=3, view=linen.matrix_views(model, {"params": params}, x)
    )
    tuned = delta.apply(params, jnp.ones(9))
    assert not np.allclose(model.apply({"params": tuned}, x), model.apply({"params": params}, x))


# Files.


@pytest.mark.parametrize("bits", [32, 16, 8, 4, 3, 2])
@pytest.mark.parametrize("form", ["full", "lora-xs"])
def test_a_file_comes_back(bits, form, tmp_path):
    base = {"a": {"kernel": normal((30, 20))}}
    delta = seeded_delta(base, 12, seed=70_000, form=form, rank=4, wrt=("a/*", "z/*"))
    z = normal((12,), 4)
    size = save_delta(tmp_path / "task.delta", delta, z, bits=bits)
    again, found = load_delta(tmp_path / "task.delta", base)
    assert again.plan == delta.plan
    step = {32: 0, 16: 2**-14, 8: 0.02, 4: 0.3, 3: 0.7, 2: 2.5}[bits]
    np.testing.assert_allclose(found, z, atol=step)
    assert size <= 28 + 12 * bits / 8
    chex.assert_trees_all_close(again.apply(base, found), delta.apply(base, found))


def test_zeros_take_no_bytes(tmp_path):
    base = {"kernel": normal((64, 64))}
    delta = seeded_delta(base, 512, form="full")
    coded = rate_coded({"z": delta.start().at[7].set(1.0)}, bits=4)
    size = save_delta(tmp_path / "task.delta", delta, coded.tensors["z"])
    assert size < 40
    _, z = load_delta(tmp_path / "task.delta", base)
    np.testing.assert_array_equal(np.flatnonzero(z), [7])


def test_the_bytes_of_a_file_are_pinned():
    base = {"kernel": jnp.ones((32, 16))}
    delta = seeded_delta(base, 24, seed=300, form="seeded", rank=8)
    data = encode_delta(delta, jnp.sin(jnp.arange(24.0)), bits=4)
    assert data.hex() == FILE
    again, z = decode_delta(bytes.fromhex(FILE), base)
    digest = hashlib.sha256(np.asarray(again.numbers(again.plan.weights[0], z)).tobytes())
    assert digest.hexdigest()[:16] == NUMBERS


FILE = "524401040818ac02012a04133e60169b5e379c3c579e1b66a0d331617d"
NUMBERS = "51f647a48af382c1"


def test_refuses_another_base():
    delta = seeded_delta({"kernel": jnp.ones((32, 16))}, 8, form="full")
    data = encode_delta(delta, jnp.ones(8))
    with pytest.raises(DeltaFileError, match="damaged, or of another base model"):
        decode_delta(data, {"kernel": jnp.ones((16, 32))})


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(st.data())
def test_damaged_files_are_refused(data):
    base = {"kernel": jnp.ones((32, 16))}
    whole = bytearray(encode_delta(seeded_delta(base, 24, form="full"), normal((24,)), bits=4))
    at = data.draw(st.integers(0, len(whole) - 1))
    whole[at] ^= data.draw(st.integers(1, 255))
    cut = data.draw(st.integers(0, len(whole)))
    for bad in (bytes(whole), bytes(whole[:cut]), bytes(whole) + b"\0"):
        with pytest.raises(DeltaFileError):
            decode_delta(bad, base)


@pytest.mark.parametrize(("options", "message"), [
    ({"form": "x"}, "form 'x' is unknown; pass one of full"), ({"k": 0}, "k 0 is too small"),
    ({"k": 17}, "k 17 exceeds the 16 numbers"), ({"seed": -1}, "seed -1"),
    ({"seed": 2**32}, "outside \\[0, 2\\^32\\)"), ({"rank": 9}, "rank 9 exceeds min"),
    ({"wrt": "none/*"}, "chooses none"),
])  # fmt: skip
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        seeded_delta({"kernel": jnp.ones((8, 9))}, **{"form": "lora-xs"} | options)


def test_refuses_what_cannot_be():
    base = {"kernel": jnp.ones((8, 9))}
    delta = seeded_delta(base, 4, form="full")
    with pytest.raises(ValueError, match="'kernel' has shape"):
        delta.apply({"kernel": jnp.ones((9, 8))}, delta.start())
    with pytest.raises(ValueError, match="has no 'kernel'"):
        delta.apply({"other": jnp.ones((9, 8))}, delta.start())
    with pytest.raises(DeltaFileError, match=r"shape \(5,\)"):
        encode_delta(delta, jnp.ones(5))
    with pytest.raises(DeltaFileError, match="finite"):
        encode_delta(delta, jnp.full(4, jnp.nan), bits=32)
    with pytest.raises(DeltaFileError, match="wrt was a function"):
        encode_delta(seeded_delta(base, 4, form="full", wrt=lambda name: True), jnp.ones(4))
    model = nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="has no factors"):
        inject(model, seeded_delta(model, 4, form="full"))
    with pytest.raises(ValueError, match="not of a Linear"):
        inject(model, seeded_delta(model, 4, form="lora"))
