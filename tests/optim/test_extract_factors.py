"""extract_factors and merge_factors, on plain, Linen and NNX parameters."""

from __future__ import annotations

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from rosler_jax import matrix_views
from rosler_jax.optim.extract_factors import LowRank, extract_factors, merge_factors
from rosler_jax.optim.restrict_rank import restrict_rank
from rosler_jax.views import MatrixView

CONV = {"kernel": MatrixView((0, 1, 2), (3,))}


def normal(shape, seed=0, dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def restricted(params, rank, view=None):
    """Parameters right after a restriction."""
    optimizer = restrict_rank(optax.sgd(0.1), rank, every=1, view=view)
    updates, _ = jax.jit(optimizer.update)(params, optimizer.init(params), params)
    return optax.apply_updates(params, updates)


@pytest.mark.parametrize("shape", [(20, 13), (13, 20), (3, 3, 4, 11)])
def test_exact_and_balanced_after_a_restriction(shape):
    view = CONV if len(shape) == 4 else None
    params = restricted({"kernel": normal(shape), "bias": normal((shape[-1],))}, 4, view)
    factored, errors = extract_factors(params, 4, view=view)
    c, r = factored["kernel"].c, factored["kernel"].r
    assert c.shape == (*shape[:-1], 4) and r.shape == (4, shape[-1])
    assert set(errors) == {"kernel"} and errors["kernel"] < 2e-6
    np.testing.assert_allclose(merge_factors(factored)["kernel"], params["kernel"], atol=1e-5)
    np.testing.assert_array_equal(factored["bias"], params["bias"])
    # Both Gram matrices are the diagonal of singular values.
    sigma = np.linalg.svd(np.asarray(params["kernel"]).reshape(-1, shape[-1]), compute_uv=False)
    flat = c.reshape(-1, 4)
    np.testing.assert_allclose(flat.T @ flat, np.diag(sigma[:4]), atol=1e-4)
    np.testing.assert_allclose(r @ r.T, np.diag(sigma[:4]), atol=1e-4)


def test_error_of_a_matrix_of_higher_rank():
    w = normal((30, 20))
    _, errors = extract_factors({"kernel": w}, 5, oversampling=15)  # the whole range: exact SVD
    sigma = np.linalg.svd(np.asarray(w, np.float64), compute_uv=False)
    expected = np.sqrt(np.sum(sigma[5:] ** 2) / np.sum(sigma**2))
    np.testing.assert_allclose(errors["kernel"], expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_dtypes_are_kept_and_the_error_counts_their_rounding(dtype):
    factored, errors = extract_factors({"w": normal((20, 13), 0, dtype)}, 13, lambda name: True)
    assert factored["w"].c.dtype == factored["w"].r.dtype == dtype
    # Full rank, so that rounding the factors is all there is: each entry errs by eps / 2 at most.
    assert 0 < errors["w"] < np.sqrt(13) * float(jnp.finfo(dtype).eps)


def test_zero_weight():
    factored, errors = extract_factors({"kernel": jnp.zeros((8, 9))}, 2)
    chex.assert_tree_all_finite((factored, errors))
    assert errors["kernel"] == 0


def test_jit_vmap_and_no_retrace():
    chex.clear_trace_counter()
    function = jax.jit(jax.vmap(chex.assert_max_traces(lambda p: extract_factors(p, 3), n=1)))
    params = {"kernel": normal((2, 8, 9)), "b": normal((2, 9))}
    for scale in (1.0, 2.0):
        factored, errors = function(jax.tree.map(lambda x, s=scale: s * x, params))
    assert factored["kernel"].c.shape == (2, 8, 3) and errors["kernel"].shape == (2,)
    single, _ = extract_factors({"kernel": 2 * params["kernel"][1], "b": params["b"][1]}, 3)
    merged = jax.vmap(merge_factors)(factored)["kernel"][1]
    np.testing.assert_allclose(merged, merge_factors(single)["kernel"], atol=1e-4)


def test_linen_layer_run_through_its_factors():
    x = normal((2, 6, 6, 3), 1)
    conv = nn.Conv(8, (3, 3))
    params = restricted(conv.init(jax.random.key(0), x)["params"], 3, CONV)
    factored, _ = extract_factors(params, 3, view=CONV)
    c, r = factored["kernel"].c, factored["kernel"].r
    thin = nn.Conv(3, (3, 3), use_bias=False).apply({"params": {"kernel": c}}, x)
    y = nn.Conv(8, (1, 1)).apply(
        {"params": {"kernel": r[None, None], "bias": params["bias"]}}, thin
    )
    np.testing.assert_allclose(y, conv.apply({"params": params}, x), atol=1e-5)


def test_nnx_state_round_trip():
    net = nnx.Sequential(
        nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.Linear(8, 12, rngs=nnx.Rngs(1))
    )
    graph, params = nnx.split(net, nnx.Param)
    params = restricted(params, 3, matrix_views(net))
    factored, errors = extract_factors(params, 3, view=matrix_views(net))
    assert set(errors) == {"layers/0/kernel", "layers/1/kernel"}
    assert all(error < 2e-6 for error in errors.values())
    pure = nnx.to_pure_dict(factored)
    assert isinstance(pure["layers"][1]["kernel"], LowRank)
    assert pure["layers"][1]["kernel"].c.shape == (8, 3)
    x = normal((2, 6, 6, 3))
    expected = nnx.merge(graph, params)(x)
    np.testing.assert_allclose(nnx.merge(graph, merge_factors(factored))(x), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("rank", "where", "error", "message"),
    [
        (0, None, ValueError, "rank 0 is too small"),
        (2.0, None, TypeError, "rank must be a Python int"),
        (2, lambda name: False, ValueError, "selects none of the parameters"),
        (9, lambda name: name == "w", ValueError, r"rank 9 exceeds min\(in=8, out=9\)=8 of 'w'"),
        (2, lambda name: name == "b", ValueError, r"selects 'b' with shape \(9,\)"),
    ],
)
def test_refuses(rank, where, error, message):
    with pytest.raises(error, match=message):
        extract_factors({"w": jnp.ones((8, 9)), "b": jnp.ones(9)}, rank, where)
