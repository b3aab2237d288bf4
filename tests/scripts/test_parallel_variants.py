"""Variants of the parallel stage: gradients are what they say, and bases change nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import rosler_kernels as rk
from rosler_jax.nn.functional import sketch_dot

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))
import parallel_variants as variants
from parallel_variants import WAYS

M, N, S, BATCH = 20, 14, 3, 9
pytestmark = pytest.mark.slow  # of the scripts of benchmarks
KEYS = jax.random.split(jax.random.key(0), 8)
X, DELTA = (jax.random.normal(k, (BATCH, n)) for k, n in zip(KEYS, (M, N), strict=False))
CHAIN = {
    "c": jax.random.normal(KEYS[2], (M, S)),
    "u": jnp.diag(jnp.array([1.0, 2.0, 3.0])),
    "r": jax.random.normal(KEYS[3], (S, N)),
}
FULL = X.T @ DELTA  # the gradient of W
RIDGE = 5e-3  # what the ridge of the core solve makes of small random cores


def close(a: Any, b: Any, tolerance: float = 2e-4) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * float(jnp.abs(b).max()))


def product(chain: Any) -> Any:
    return chain["c"] @ chain["u"] @ chain["r"]


def entered(name: str, key: Any = KEYS[4]) -> tuple[Any, Any]:
    bases = WAYS[name].bases(key, CHAIN)
    return WAYS[name].enter(CHAIN, bases), bases


def pulled(name: str) -> tuple[Any, Any, Any]:
    factors, bases = entered(name)
    y, pull = jax.vjp(lambda f, x: WAYS[name].product(f, bases, x), factors, X)
    close(y, X @ product(CHAIN), RIDGE)
    grads, d_x = pull(DELTA)
    close(d_x, DELTA @ product(CHAIN).T, RIDGE)
    return grads, bases, factors


def sketches_of(w: Any, bases: Any) -> dict[str, Any]:
    psi, omega = bases
    return {"c": w @ omega, "a": psi.T @ w @ omega, "r": psi.T @ w}


@pytest.mark.parametrize("name", ["sketches", "adapted, every update"])
def test_gradients_are_sketches_of_the_full_one(name: str) -> None:
    grads, bases, _ = pulled(name)
    jax.tree.map(close, grads, sketches_of(FULL, bases))


def test_gradients_from_sketched_inputs_are_sketches_of_a_projection() -> None:
    grads, bases, _ = pulled("sketched inputs")
    onto = bases[0] @ jnp.linalg.pinv(bases[0])
    jax.tree.map(close, grads, sketches_of(onto @ FULL, bases))


def test_sketches_are_the_library_s() -> None:
    psi, omega = rk.gaussian(1, M, 2 * S), rk.gaussian(2, N, S)
    bases = rk.materialize(psi), rk.materialize(omega)
    factors = variants.sketched(CHAIN, bases)

    def library(f: Any, x: Any) -> Any:
        return sketch_dot(x, f["c"], f["a"].T, f["r"], parallel=jnp.ones(()), psi=psi, omega=omega)

    def ours(f: Any, x: Any) -> Any:
        return WAYS["sketches"].product(f, bases, x)

    for f in (library, ours):
        _, pull = jax.vjp(f, factors, X)
        jax.tree.map(close, pull(DELTA)[0], sketches_of(FULL, bases))


def test_noisy_gradient_has_no_bias_and_no_noise_but_in_c() -> None:
    exact = jax.vjp(lambda f: WAYS["chain"].product(f, (), X), CHAIN)[1](DELTA)[0]

    def one(key: Any) -> Any:
        bases = variants.input_basis(key, CHAIN)
        pull = jax.vjp(lambda f: variants.noisy_chain_product(f, bases, X), CHAIN)[1]
        return pull(DELTA)[0]

    grads = jax.vmap(one)(jax.random.split(KEYS[5], 4000))
    close(grads["u"][0], exact["u"])
    close(grads["r"][0], exact["r"])
    apart = jnp.linalg.norm(grads["c"].mean(0) - exact["c"]) / jnp.linalg.norm(exact["c"])
    alone = jnp.linalg.norm(grads["c"][0] - exact["c"]) / jnp.linalg.norm(exact["c"])
    assert apart < 0.1 < alone


def tangent(w: Any, g: Any) -> Any:
    u, _, vt = jnp.linalg.svd(w)
    left, right = u[:, :S] @ u[:, :S].T, vt[:S].T @ vt[:S]
    return left @ g + g @ right - left @ g @ right


def dense_tangent(d: Any, bases: Any) -> Any:
    psi, omega = bases
    return psi @ d["r"] + d["c"] @ omega.T - psi @ d["a"] @ omega.T


def test_adapted_gradient_is_the_tangent_space_s() -> None:
    grads, bases, factors = pulled("adapted, every update")
    close(dense_tangent(grads, bases), tangent(product(CHAIN), FULL))

    def moved(rate: float) -> Any:  # of rank s, and off the step by its square
        new = jax.tree.map(lambda f, g: f - rate * g, factors, grads)
        return (
            product(variants.unsketched(new))
            - product(CHAIN)
            + rate * tangent(product(CHAIN), FULL)
        )

    far, near = (float(jnp.linalg.norm(moved(rate))) for rate in (2e-2, 1e-2))
    assert 3 < far / near < 6


def test_momentum_moves_to_the_new_tangent_space() -> None:
    grads, old, factors = pulled("adapted, every update")
    chain = variants.unsketched(jax.tree.map(lambda f, g: f - 0.05 * g, factors, grads))
    new = variants.adapted_bases(KEYS[0], chain)
    found = dense_tangent(variants.projected_again(grads, old, new), new)
    close(found, tangent(product(chain), dense_tangent(grads, old)), 1e-3)


@pytest.mark.parametrize("name", sorted(set(WAYS) - {"seeded"}))
def test_entering_and_leaving_keep_the_weights(name: str) -> None:
    factors, _ = entered(name)
    close(product(WAYS[name].leave(factors)), product(CHAIN), RIDGE)


def test_what_is_kept() -> None:
    net = variants.new_network(KEYS[0], 60, (50,), 10, 2)

    def kept(name: str) -> int:
        way = WAYS[name]
        params, _, bases = variants.enter(way, variants.sgd(0.1), KEYS[1], net)
        return variants.kept_bytes_an_example(
            lambda p, x: way.product(p["factors"][0], bases[0], x).sum(), params, 60
        )

    assert kept("sketches") == 4 * 60
    assert kept("sketched inputs") == 4 * 4
    assert kept("chain, sketched inputs") == 4 * (4 + 2)
    assert kept("chain") == 4 * (60 + 2 + 2)


@pytest.mark.slow
def test_training_goes_through_new_bases() -> None:
    net = variants.new_network(KEYS[0], 12, (10, 10), 3, 2)
    x = jax.random.normal(KEYS[1], (64, 12))
    y = jnp.argmax(x[:, :3], 1)
    data = variants.Data(x, y, x, y, x, y)
    way = WAYS["adapted, every update"]._replace(every=3)  # 8 updates an epoch: two are left over

    def run(net: Any) -> Any:
        return variants.train(way, variants.sgd(0.3), KEYS[2], net, data, 12, 8)

    net, (_, test) = jax.jit(run)(net)
    assert test[-1] > 0.8 and jax.tree.all(jax.tree.map(lambda a: jnp.isfinite(a).all(), net))
    assert optax.tree.get(variants.sgd(0.1).init(net), "trace") is not None
