"""What users bring, from dense to sketched, trained, restricted and finished: by one rule."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from public_models import MODELS

import rosler_jax as rj
from rosler_jax._paths import path_name

RANK = 2


def of_exact_rank(model: Any, rank: int) -> Any:
    """The model with every matrix replaced by one of that rank, of about its size."""
    views = rj.matrix_views(model)

    def replace(path: Any, leaf: Any) -> Any:
        row = views[path_name(path)]
        if row.role != "matrix":
            return leaf
        g, m, n = row.view.matrix_shape(leaf.shape)
        rng = np.random.default_rng(zlib.crc32(row.name.encode()))
        factors = rng.normal(size=(g, m, rank)), rng.normal(size=(g, rank, n))
        w = jnp.asarray(factors[0] @ factors[1] / np.sqrt(rank * m), leaf.dtype)
        return row.view.from_matrices(w, leaf.shape)

    graphdef, params, rest = nnx.split(model, nnx.Param, ...)
    return nnx.merge(graphdef, jax.tree_util.tree_map_with_path(replace, params), rest)


def outputs(model: Any, args: Any) -> Any:
    return nnx.jit(lambda model, args: model(*args))(model, args)


def distance(a: Any, b: Any) -> float:
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.fixture(params=MODELS)
def case(request: Any) -> Any:
    build, arguments = MODELS[request.param]
    return of_exact_rank(build(), RANK), arguments(jax.random.key(1))


def test_one_rule_reaches_the_matrices_and_exact_rank_is_kept(case: Any) -> None:
    model, args = case
    views = rj.matrix_views(model)
    # Of all that has two axes and more and is no bias: position tables and embeddings, too.
    sizes = {
        row.name: int(np.prod(row.shape))
        for row in views.rows
        if len(row.shape) - len(row.stack) >= 2 and row.role not in ("bias", "scale")
    }
    rules = [rj.Rule("*", rank=RANK)]
    new, report = rj.sketchify(model, rules, rngs=nnx.Rngs(2), from_weights=True)
    reached = {row.path.replace(".", "/") + "/kernel" for row in report.rows if row.rank}
    assert sum(sizes[name] for name in reached) >= 0.9 * sum(sizes.values())
    assert set(sizes) >= reached
    expected = outputs(model, args)
    assert distance(outputs(new, args), expected) < 1e-5
    # Folded, it is smaller still, computes the same, and has nothing of the training left.
    small = rj.finish(new)
    assert distance(outputs(small, args), expected) < 1e-5
    assert not any(path[-1] == "u" for path, _ in nnx.to_flat_state(nnx.state(small)))


@pytest.mark.slow
def test_ares_bp_trains_through_its_switch_and_is_finished(case: Any) -> None:
    model, args = case
    new, _ = rj.sketchify(model, [rj.Rule("*", rank=RANK, mode="ares")], rngs=nnx.Rngs(2))
    target = outputs(model, args)
    tx = rj.ares_bp(optax.adam(3e-3), switch_step=2)
    optimizer = nnx.Optimizer(new, tx, wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> Any:
        def loss(model: Any) -> Any:
            return jnp.mean((model(*args) - target) ** 2)

        value, grads = nnx.value_and_grad(loss)(model)
        optimizer.update(model, grads)
        return value

    losses = [float(step(new, optimizer)) for _ in range(12)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    flags = [v for path, v in nnx.to_flat_state(nnx.state(new)) if path[-1] == "parallel"]
    assert flags and all(np.all(np.asarray(v[...]) == 0) for v in flags)
    small = rj.finish(new)
    assert distance(outputs(small, args), outputs(new, args)) < 1e-5
    graphdef, state = nnx.split(small)
    text = str(jax.make_jaxpr(lambda state: nnx.merge(graphdef, state)(*args))(state))
    assert not [
        word for word in ("cond[", "qr[", "triangular_solve", "householder") if word in text
    ]


@pytest.mark.slow
def test_restricting_layers_of_exact_rank_changes_nothing(case: Any) -> None:
    model, _ = case
    views = rj.matrix_views(model)
    params = nnx.state(model, nnx.Param)
    tx = rj.restrict_rank(optax.sgd(0.0), RANK, every=1, view=views)
    # A weight that never moved is left alone: these move, by nothing that rounding keeps.
    tiny = jax.tree.map(lambda p: jnp.full_like(p, 1e-30), params)
    moved = rj.restrict_rank(optax.sgd(1.0), RANK, every=1, view=views)
    for optimizer in (tx, moved):
        state = optimizer.init(params)
        updates, _ = jax.jit(optimizer.update)(tiny, state, params)
        after = optax.apply_updates(params, updates)
        for (path, a), b in zip(
            jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(params), strict=True
        ):
            row = views[path_name(path)]
            size = float(jnp.linalg.norm(b)) + 1e-12
            assert float(jnp.linalg.norm(a - b)) < 2e-6 * size, row.name
    factored, errors = rj.extract_factors(params, RANK, view=views)
    assert max(map(float, errors.values())) < 1e-5
    assert len(errors) == sum(
        row.role == "matrix" and min(row.view.matrix_shape(row.shape)[1:]) > RANK
        for row in views.rows
    )
    merged = rj.optim.merge_factors(factored)
    for a, b in zip(jax.tree.leaves(merged), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
