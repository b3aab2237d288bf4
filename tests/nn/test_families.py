"""The one word that names a layer's families: in layers of both libraries, in rules, in the zoo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from written_out import matrices, params_of

import rosler_jax as rj
import rosler_kernels as rk
from rosler_jax import _ranks
from rosler_jax.linen import SketchConv, SketchDense
from rosler_jax.models import mlp
from rosler_jax.nn._families import kinds

WORDS = ("dct", "pool", "dct:6x4", "pool:6x4/srht", "dct:6x4/pool", "srht/dct:5x4")


def normal(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("mode", ["seeded", "ares"])
def test_a_layer_of_any_word_is_the_dense_product_and_learns(word: str, mode: Any) -> None:
    inner = 12 if mode == "seeded" else None
    layer = rj.SketchLinear(48, 20, 5, mode=mode, sketch=word, in_sketch=inner, rngs=nnx.Rngs(0))
    (w,) = matrices(params_of(layer), layer.sketches())
    x = normal(1, 64, 48)
    np.testing.assert_allclose(layer(x), x @ w + layer.bias[...], atol=1e-4)
    tx = rj.ares_bp(optax.adam(1e-2), switch_step=5) if mode == "ares" else optax.adam(1e-2)
    optimizer, y = nnx.Optimizer(layer, tx, wrt=nnx.Param), x[:, :20]

    @nnx.jit
    def step(layer: Any, optimizer: Any) -> Any:
        value, grads = nnx.value_and_grad(lambda layer: jnp.mean((layer(x) - y) ** 2))(layer)
        optimizer.update(layer, grads)
        return value

    losses = [step(layer, optimizer) for _ in range(30)]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("word", "m", "wanted"),
    [
        ("dct", 784, ["dct", "dct"]),
        ("dct:28x28", 784, ["dct (28, 28)", "dct"]),
        ("dct:28x28/srht", 784, ["dct (28, 28)", "srht"]),
        ("dct:28x28/srht", 300, ["srht", "srht"]),
        ("pool/dct:7x7", 300, ["pool", "dct (7, 7)"]),
        ("pool:9x9/dct:7x7", 300, ["dct", "dct (7, 7)"]),
    ],
)
def test_sizes_belong_to_the_side_they_are_named_for(word: str, m: int, wanted: list[str]) -> None:
    found = [f"{name} {size}" if size else name for name, size in kinds(word, m)]
    assert found == wanted


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("fourier", "unknown sketch kind 'fourier'"),
        ("dct/fourier", "unknown sketch kind 'fourier'"),
        ("dct:28", "'dct:28'; expected a family, or dct/pool:HEIGHTxWIDTH"),
        ("srht:28x28", "expected a family"),
        ("rows_norm", "samples the rows of a given matrix"),
        ("dct:5x5", "48 inputs, which are no such images; pass a second family"),
        ("srht/dct:5x5", "rows=20; expected a multiple of height x width = 5 x 5"),
        ("pool:6x8", "cols=13; expected a \\* b \\* 1 channels"),
    ],
)
def test_a_word_that_cannot_be_is_refused(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        rj.SketchLinear(48, 20, 5, mode="seeded", in_sketch=13, sketch=word, rngs=nnx.Rngs(0))


def test_linen_and_convolutions_have_them_too() -> None:
    options: Any = {"rank": 4, "mode": "seeded"}
    dense = SketchDense(20, sketch="dct:6x4/srht", in_sketch=12, **options)
    x = normal(1, 3, 48)
    variables = dense.init(jax.random.key(0), x)
    small = variables["params"]["u"]
    assert small.shape == (12, 4)
    psi, omega = rk.dct(0, 48, 12, height=6, width=4), variables["sketch"]["omega_seed"]
    low = rk.project(x, psi) * (12 / 48) ** 0.5 @ small
    want = rk.project_transpose(low, rk.make("srht", omega, 20, 4))
    np.testing.assert_allclose(dense.apply(variables, x), want, atol=1e-5)
    conv = SketchConv(8, (3, 3), sketch="dct:3x3/rademacher", in_sketch=8, **options)
    image = normal(2, 2, 6, 6, 2)
    variables = conv.init(jax.random.key(0), image)
    assert jnp.isfinite(conv.apply(variables, image)).all()


@pytest.mark.slow
def test_a_rule_for_all_layers_gives_images_their_family_and_others_the_second() -> None:
    model = mlp(input_shape=(12, 8), outputs=3, hidden=(40, 30), rngs=nnx.Rngs(0))
    rules = [
        rj.Rule("head", skip=True),
        rj.Rule("*", 4, "seeded", in_sketch=24, sketch="dct:12x8/srht"),
    ]
    small, _ = rj.sketchify(model, rules, rngs=nnx.Rngs(1))
    names = [[kind.name for kind in layer.plan.kinds] for layer in small.hidden]
    assert names == [["dct", "srht"], ["srht", "srht"]]
    assert _ranks.mask_key(small)[0][-1] == "dct:12x8/srht"  # nested, so that ranks are masks
    x = normal(0, 2, 12, 8)
    graph = rj.trace(small, x)
    np.testing.assert_allclose(rj.graph.run_batch(graph, x), small(x), atol=1e-5)


@pytest.mark.parametrize("front", ["dct:24", "pool:24", "srht:30"])
def test_a_front_stores_nothing(front: str, tmp_path: Path) -> None:
    sizes = {}
    for name in (front, None):
        model = mlp(input_shape=(12, 8), outputs=3, hidden=16, front=name, rngs=nnx.Rngs(0))
        x = normal(0, 2, 12, 8)
        file = tmp_path / "m.rosler"
        rj.save(file, rj.trace(model, x), bits=16)
        np.testing.assert_allclose(rj.load(file)(x), model(x), atol=2e-3)
        sizes[name] = file.stat().st_size
        if name:
            cols = int(name.partition(":")[2])
            plain = mlp(input_shape=(cols,), outputs=3, hidden=16, rngs=nnx.Rngs(0))
            rj.save(file, rj.trace(plain, normal(0, 2, cols)), bits=16)
            assert sizes[name] < file.stat().st_size + 70  # a line that names it
    assert model.front is None and sizes[front] < sizes[None] - 16 * 2 * (96 - 30) + 70


def test_a_front_that_does_not_fit_is_refused() -> None:
    for front, message in (("dct", "expected FAMILY:COLUMNS"), ("dct:97", "cols=97")):
        with pytest.raises(ValueError, match=message):
            mlp(input_shape=(12, 8), outputs=3, front=front, rngs=nnx.Rngs(0))
