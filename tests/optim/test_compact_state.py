"""compact_state: what rounding keeps in expectation, and what it takes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rosler_jax.optim.compact_state import OCTAVE, compact_state, decode, encode

DTYPES = [jnp.bfloat16, jnp.int8]
STEP = {"bfloat16": 2.0**-7, "int8": 2 ** (1 / OCTAVE) - 1}  # from a number to the next


def there_and_back(x, dtype, seed=0):
    return decode(encode(x, jnp.dtype(dtype), jax.random.key(seed)))


@pytest.mark.parametrize("dtype", DTYPES)
def test_rounds_to_a_neighbour_and_without_bias(dtype):
    rng = np.random.default_rng(0)
    # Over 20 octaves, of both signs.
    x = rng.choice([-1, 1], (5, 40)) * 2.0 ** rng.uniform(-20, 0, (5, 40))
    x = jnp.asarray(x, jnp.float32)
    runs = jax.vmap(lambda seed: there_and_back(x, dtype, seed))(jnp.arange(3000))
    step = STEP[jnp.dtype(dtype).name]
    np.testing.assert_array_less(jnp.abs(runs / x - 1), step * 1.001)
    # Between two neighbours a distance d apart the variance is at most d^2 / 4.
    np.testing.assert_allclose(runs.mean(0) / x, 1, atol=5 * step / 2 / np.sqrt(3000))
    assert len(np.unique(np.asarray(runs[:, 0, 0]))) == 2


@pytest.mark.parametrize("dtype", DTYPES)
def test_averages_of_squares_go_where_they_should(dtype):
    # Steps of an average with b2 = 0.999 are smaller than the distance of two bfloat16 numbers,
    # so that rounding to the nearest never moves from the first value.
    tx = compact_state(optax.scale_by_rms(decay=0.999, initial_scale=1.0), dtype)
    g = jnp.full((4, 512), 0.5)

    def step(state, _):
        return tx.update(g, state)[1], None

    state = jax.jit(lambda s: jax.lax.scan(step, s, None, 3000)[0])(tx.init(g))
    nu = decode(state.inner_state).nu
    wanted = 0.25 + 0.75 * 0.999**3000
    # The noise of a step lasts a thousand steps: a variance of step^2 / 4 / (1 - 0.999^2).
    spread = STEP[jnp.dtype(dtype).name] / 2 * np.sqrt(1 / (1 - 0.999**2)) * wanted
    np.testing.assert_allclose(nu.mean(), wanted, atol=5 * spread / np.sqrt(nu.size))


@pytest.mark.parametrize("dtype", DTYPES)
def test_edges(dtype):
    zeros = jnp.zeros((3, 4))
    np.testing.assert_array_equal(there_and_back(zeros, dtype), zeros)
    broken = jnp.asarray([[1.0, jnp.nan], [1.0, jnp.inf], [1.0, 2.0]])
    back = there_and_back(broken, dtype)
    assert not np.isfinite(back[0, 1]) and not np.isfinite(back[1, 1])
    np.testing.assert_array_equal(back[2], [1.0, 2.0])  # powers of two are exact
    extremes = jnp.asarray([3e38, 1e-30, 1e-3, 0.0])
    back = there_and_back(extremes, dtype)
    assert np.isfinite(back).all() and back[3] == 0 and (np.asarray(back[:3]) > 0).all()
    assert there_and_back({"count": jnp.int32(3), "scalar": jnp.float32(0.1)}, dtype) == {
        "count": 3, "scalar": jnp.float32(0.1),
    }  # fmt: skip
    assert there_and_back(jnp.zeros((0, 3)), dtype).shape == (0, 3)


def test_bytes():
    params = {"kernel": jnp.ones((64, 32)), "bias": jnp.ones(32)}

    def size(tx):
        leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
        return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)

    adam = optax.adam(1e-3)
    extra = 4 + 8  # our count and seed
    assert size(adam) == 2 * 4 * (64 * 32 + 32) + 4
    assert size(compact_state(adam, jnp.bfloat16)) == 2 * 2 * (64 * 32 + 32) + 4 + extra
    assert size(compact_state(adam, jnp.int8)) == 2 * (64 * 33 + 33) + 4 + extra


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
def test_trains_as_the_whole_state_does(dtype):
    x = jnp.asarray(np.random.default_rng(0).standard_normal((256, 32)), jnp.float32)
    y = jnp.sin(x @ jnp.asarray(np.random.default_rng(1).standard_normal((32, 8)), jnp.float32))

    def loss(p):
        return jnp.mean((jnp.tanh(x @ p["a"]) @ p["b"] - y) ** 2)

    def train(tx):
        rng = np.random.default_rng(2)
        params = {k: jnp.asarray(rng.standard_normal(s) / 6, jnp.float32)
                  for k, s in (("a", (32, 48)), ("b", (48, 8)))}  # fmt: skip

        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.jit(lambda c: jax.lax.scan(step, c, None, 400))(
            (params, tx.init(params))
        )
        return float(loss(params)), float(loss(jax.tree.map(jnp.zeros_like, params)))

    whole, start = train(optax.adam(1e-2))
    rounded, _ = train(compact_state(optax.adam(1e-2), dtype))
    assert whole < 0.3 * start
    assert rounded < whole + 0.1 * (start - whole)


@pytest.mark.slow
def test_one_trace_and_vmap():
    tx = compact_state(optax.adam(1e-2), jnp.int8, seed=3)
    g = {"w": jnp.ones((3, 4, 5))}
    update = jax.jit(tx.update)
    _, state = update(g, tx.init(g))
    update(g, state)
    assert update._cache_size() == 1
    jax.vmap(lambda g: tx.update(g, tx.init(g))[0])(g)


def test_refuses_other_dtypes():
    with pytest.raises(ValueError, match="cannot be held in float8_e4m3fn; pass bfloat16 or int8"):
        compact_state(optax.adam(1e-3), jnp.float8_e4m3fn)
