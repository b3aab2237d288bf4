"""Factorisations: LAPACK's results under every transformation, and programs that end."""

from __future__ import annotations

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import rosler_kernels as rk

RNG = np.random.default_rng(0)
PLAIN = {
    rk.qr: lambda a: tuple(jnp.linalg.qr(a)),
    rk.svd: lambda a: tuple(jnp.linalg.svd(a, full_matrices=False)),
    rk.lstsq: lambda a, b: jnp.linalg.lstsq(a, b)[0],
    rk.solve_triangular: lambda t, b: jax.scipy.linalg.solve_triangular(t, b, lower=False),
}


def given(function: object, *stack: int) -> list[jax.Array]:
    if function is rk.solve_triangular:
        t = jnp.triu(jnp.asarray(RNG.normal(size=(*stack, 4, 4)), jnp.float32)) + 5 * jnp.eye(4)
        return [t, jnp.asarray(RNG.normal(size=(*stack, 4, 3)), jnp.float32)]
    a = jnp.asarray(RNG.normal(size=(*stack, 7, 4)), jnp.float32)
    return [a, a[..., :2] + 1] if function is rk.lstsq else [a]


def close(found: object, wanted: object) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("function", PLAIN, ids=lambda f: f.__name__)
def test_the_same_under_jit_vmap_and_both_modes_of_differentiation(function) -> None:
    plain = PLAIN[function]
    args = given(function)
    close(jax.jit(function)(*args), plain(*args))
    many, twice = given(function, 3), given(function, 2, 3)
    close(jax.jit(jax.vmap(function))(*many), jax.vmap(plain)(*many))
    close(jax.vmap(jax.vmap(function))(*twice), jax.vmap(jax.vmap(plain))(*twice))
    if len(args) == 2:  # one of the two is shared
        close(
            jax.vmap(function, (0, None))(many[0], args[1]),
            jax.vmap(plain, (0, None))(many[0], args[1]),
        )

    def scalar(f):
        return lambda *a: sum((abs(leaf) ** 1.5).sum() for leaf in jax.tree.leaves(f(*a)))

    close(jax.grad(scalar(function))(*args), jax.grad(scalar(plain))(*args))
    close(jax.vmap(jax.grad(scalar(function)))(*many), jax.vmap(jax.grad(scalar(plain)))(*many))
    close(jax.jvp(scalar(function), args, args)[1], jax.jvp(scalar(plain), args, args)[1])


def test_a_batch_is_one_matrix_at_a_time_on_cpus() -> None:
    if jax.default_backend() != "cpu":
        pytest.skip("elsewhere batches are batches")
    text = str(jax.make_jaxpr(jax.vmap(rk.qr))(given(rk.qr, 3)[0]))
    assert "scan" in text and "f32[3,7,4] = geqrf" not in text


ENDS = """
import jax, jax.numpy as jnp
import rosler_kernels as rk

def step(x):
    parts = []
    for i in range(6):
        q, t = rk.qr(x * (1 + i))
        parts.append(rk.solve_triangular(t + 10 * jnp.eye(48), q.T).T)
    return jnp.tanh(sum(parts)) + 0.1 * x

run = jax.jit(lambda x: jax.lax.fori_loop(0, 20, lambda i, x: jax.vmap(step)(x), x))
jax.block_until_ready(run(jax.random.normal(jax.random.key(0), (4, 512, 48))))
print("ended")
"""


@pytest.mark.slow
def test_many_under_vmap_in_a_loop_end() -> None:
    """With plain batched calls of jaxlib 0.10.2 this program hangs on two cores."""
    done = subprocess.run(
        [sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=120,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.stdout.strip() == "ended", done.stderr
