"""Random compositions around ares_bp and restrict_rank: right, or refused, and nothing between."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compositions import ByHand, apply, around, build, inner, name_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import rosler_kernels as rk
from rosler_jax.initializers import ares_sketches
from rosler_jax.nn import functional

EXAMPLES = int(os.environ.get("ROSLER_EXAMPLES", "6"))
"""Of each kind; each is compiled, so that more take minutes."""

STEPS = 9
random_examples = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def by_name(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {name_of(path): np.asarray(leaf, np.float32) for path, leaf in leaves}


def train(d, params, gradient):
    """The library's answer by step, or None where it refuses."""
    tx = build(d)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(gradient(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    try:
        state = tx.init(params)
    except ValueError as error:
        assert "ares_bp" in str(error) or "parallel optimiser" in str(error), error
        return None
    _, history = jax.jit(lambda carry: jax.lax.scan(step, carry, length=STEPS))((params, state))
    history = by_name(history)
    return None if any(np.isnan(v[-1]).any() for v in history.values()) else history


def train_by_hand(d, params, gradient):
    composition, history = ByHand(d), []
    values, treedef = by_name(params), jax.tree.structure(params)
    for _ in range(STEPS):
        tree = jax.tree.unflatten(treedef, list(values.values()))
        values = apply(values, *composition.update(by_name(gradient(tree)), values))
        history.append(values)
    return {k: np.stack([v[k] for v in history]) for k in values}


# restrict_rank.

WEIGHTS = [("one/kernel",), ("one/kernel", "two/kernel"), ("two/bias",)]


def weights(seed):
    rng = np.random.default_rng(seed)
    return {
        "one": {"kernel": jnp.asarray(rng.normal(size=(5, 6)), jnp.float32)},
        "two": {
            "bias": jnp.asarray(rng.normal(size=4), jnp.float32),
            "kernel": jnp.asarray(rng.normal(size=(6, 4)), jnp.float32),
        },
    }


def towards(target):
    return lambda params: jax.tree.map(lambda p, t: p - t, params, target)


@pytest.mark.slow
@random_examples
@given(around(st.tuples(st.just("restrict"), inner(WEIGHTS), st.sampled_from([1, 2, 4])), WEIGHTS))
def test_restrict_rank_holds_the_rank_or_refuses(d):
    got = train(d, weights(0), towards(weights(1)))
    if got is not None:
        want = train_by_hand(d, weights(0), towards(weights(1)))
        for name, expected in want.items():
            np.testing.assert_allclose(got[name], expected, atol=2e-3, err_msg=name)


# ares_bp.

M, N = 6, 5
PSI, OMEGA = rk.gaussian(1, M, 3), rk.gaussian(2, N, 2)
X = jnp.asarray(np.random.default_rng(0).normal(size=(12, M)), jnp.float32)
Y = jnp.tanh(X @ jnp.asarray(np.random.default_rng(1).normal(size=(M, 3)), jnp.float32))
LAYER = tuple(f"hidden/{name}" for name in ("bias", "c", "parallel", "r", "u"))
PARTS = [("hidden/u",), ("hidden/c",), ("hidden/bias",), LAYER, ("head/kernel",)]
NETWORK = {
    "head": {"kernel": 0.3 * jax.random.normal(jax.random.key(4), (N, 3))},
    "hidden": {
        **{k: v for k, v in vars(ares_sketches(jax.random.key(0), PSI, OMEGA)).items()},
        "bias": jnp.zeros(N),
        "parallel": jnp.ones(()),
    },
}


def outputs(params):
    p = params["hidden"]
    flag = p["parallel"]
    h = functional.sketch_dot(X, p["c"], p["u"], p["r"], parallel=flag, psi=PSI, omega=OMEGA)
    return jnp.tanh(h + p["bias"][None]) @ params["head"]["kernel"]


gradient_of_loss = jax.jit(jax.grad(lambda params: jnp.mean((outputs(params) - Y) ** 2)))


def tear(history):
    """How far the sketches are from those of one matrix, at each step of the parallel stage."""
    psi, omega = (np.asarray(rk.materialize(s)) for s in (PSI, OMEGA))
    core = history["hidden/u"].swapaxes(1, 2)
    apart = [psi.T @ history["hidden/c"] - core, history["hidden/r"] @ omega - core]
    off = np.max([np.linalg.norm(d, axis=(1, 2)) for d in apart], axis=0)
    return np.max(off / np.linalg.norm(core, axis=(1, 2)) * (history["hidden/parallel"] > 0.5))


CORE = st.tuples(st.just("ares"), inner(PARTS), inner(PARTS), st.sampled_from([1, 3, 99]))


@pytest.mark.slow
@random_examples
@given(
    around(
        st.one_of(
            CORE,
            CORE,
            st.tuples(
                st.just("labelled"),
                st.sampled_from([LAYER, LAYER[:-1], ("hidden/c", "hidden/r", "hidden/u")]),
                CORE,
                st.just(0.1),
            ),
        ),
        PARTS,
    )
)
def test_ares_bp_trains_sketches_of_one_matrix_or_refuses(d):
    got = train(d, NETWORK, gradient_of_loss)
    if got is None:
        return
    assert tear(got) < 0.05
    want = train_by_hand(d, NETWORK, gradient_of_loss)
    product = lambda h: h["hidden/c"] @ h["hidden/u"] @ h["hidden/r"]
    np.testing.assert_array_equal(got["hidden/parallel"], want["hidden/parallel"])
    np.testing.assert_allclose(product(got), product(want), atol=2e-2)
    np.testing.assert_allclose(got["head/kernel"], want["head/kernel"], atol=2e-2)
