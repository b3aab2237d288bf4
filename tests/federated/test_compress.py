"""What numbers are sent as, and what rounding leaves behind."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rosler_jax.federated.compress import Packed, compression, entropy_bits, pack, unpack

SPECS = [
    "float32",
    "bits:2",
    "bits:4",
    "bits:8",
    "bits:12",
    "sign",
    "step:0.5",
    "step:3",
    "top:0.1",
]


def numbers(seed, shape, scale=1.0):
    return scale * np.random.default_rng(seed).standard_t(3, size=shape).astype(np.float32)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("scale", [1e-20, 1.0, 1e20])
def test_what_is_sent_and_what_is_kept_are_all(spec, scale):
    """Error feedback: over rounds, all that was sent and the memory are the sum of the updates.

    Float32 sums of 30 rounds round by 30 eps of the largest partial sum at most.
    """
    how, memory, total, sent = (
        compression(spec),
        np.zeros((7, 5)),
        np.zeros((7, 5)),
        np.zeros((7, 5)),
    )
    memory = memory.astype(np.float32)
    largest = 0.0
    for k in range(30):
        x = numbers(k, (7, 5), scale)
        packed = pack(how, {"w": x + memory})
        got = np.asarray(unpack(packed, {"w": x})["w"])
        memory = x + memory - got
        total, sent = total + x, sent + got.astype(np.float64)
        largest = max(largest, np.abs(total).max(), np.abs(sent).max(), np.abs(memory).max())
    assert np.abs(sent + memory - total).max() <= 60 * 2**-24 * largest


@settings(max_examples=60, deadline=None)
@given(
    spec=st.sampled_from(SPECS), seed=st.integers(0, 10**6),
    shape=st.sampled_from([(), (1,), (13,), (4, 9), (2, 3, 5)]),
)  # fmt: skip
def test_integers_are_within_their_levels_and_scales_are_bfloat16(spec, seed, shape):
    how, x = compression(spec), numbers(seed, shape)
    packed = jax.jit(lambda x: pack(how, x))({"w": x})
    if not how.levels:
        assert np.array_equal(packed.values[0], x)
        return
    q, scale = np.asarray(packed.values[0]), np.asarray(packed.scales[0])
    assert q.dtype == np.int16 and np.abs(q).max(initial=0) <= how.levels
    assert float(jnp.asarray(scale, jnp.bfloat16)) == float(scale) > 0
    if spec.startswith("bits"):  # nothing is cut: within half a step
        assert np.abs(q * scale - x).max(initial=0) <= scale * (0.5 + 1e-6)


def test_top_sends_the_largest():
    x = numbers(0, (100,))
    q = np.asarray(pack(compression("top:0.07"), x).values[0])
    assert set(np.flatnonzero(q)) <= set(np.argsort(-np.abs(x))[:7]) and np.abs(q).max() >= 126
    exact = np.abs(x).max() / 127 / 2  # what is smaller is rounded to zero
    assert (np.abs(x) > 1.02 * exact)[np.argsort(-np.abs(x))[:7]].sum() == np.count_nonzero(q)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("spec", ["bits:4", "step:2", "top:0.5", "sign"])
def test_what_is_no_number_shows_in_the_scale(spec, bad):
    packed = pack(compression(spec), {"a": jnp.array([1.0, bad]), "b": jnp.ones(3)})
    assert not np.isfinite(packed.scales[0]) and np.isfinite(packed.scales[1])


def test_zeros_are_zeros():
    for spec in SPECS:
        packed = pack(compression(spec), jnp.zeros((3, 2)))
        assert not np.asarray(unpack(packed, jnp.zeros((3, 2)))).any()


def test_under_vmap_each_client_has_its_own_scale():
    how, x = compression("step:1"), jnp.stack([jnp.ones(8), 100 * jnp.ones(8)])
    packed = jax.vmap(lambda v: pack(how, v))(x)
    assert packed.scales[0].shape == (2,) and float(packed.scales[0][1] / packed.scales[0][0]) > 90


def test_entropy_of_known_counts():
    q = jnp.array([0] * 6 + [1] + [-1], jnp.int16)
    expected = -(6 * np.log2(6 / 8) + 2 * np.log2(1 / 8)) + 16
    assert float(entropy_bits(Packed((q,), (jnp.ones(()),)), 3)) == pytest.approx(expected)
    assert float(entropy_bits(Packed((q.astype(jnp.float32),), (1.0,)), 0)) == 8 * 32


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("zip", "compression 'zip' is none of float32, bits"),
        ("bits:1", r"1 is outside 2\.\.16"),
        ("top:2", r"2 is outside 1e-06\.\.1"),
        ("float32:3", "float32 takes no number"),
    ],
)
def test_errors(spec, message):
    with pytest.raises(ValueError, match=message):
        compression(spec)
