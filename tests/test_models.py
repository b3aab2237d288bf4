"""The zoo: shapes, sizes of the references, training, sketching and tracing of every model."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import rosler_jax
from rosler_jax.graph import run
from rosler_jax.models import MODELS

KEY = jax.random.key(0)
IMAGE, GREY, SERIES, TOKENS = (16, 12, 3), (16, 12), (12, 6), (8,)

# Every model, small, with the shape of an example and the shape of its outputs.
CASES: dict[str, tuple[str, tuple[int, ...], dict[str, Any], tuple[int, ...]]] = {
    "mlp": ("mlp", IMAGE, {"hidden": (48, 32)}, (5,)),
    "mlp of one layer": ("mlp", (20,), {"hidden": 48, "activation": "gelu"}, (5,)),
    "lenet5": ("lenet5", GREY, {}, (5,)),
    "vgg16": ("vgg16", IMAGE, {"width": 4, "hidden": (32, 24)}, (5,)),
    "resnet8": ("resnet8", IMAGE, {"width": 8}, (5,)),
    "resnet20": ("resnet20", IMAGE, {"width": 8, "depth": 2}, (5,)),
    "ds_cnn": ("ds_cnn", (9, 3), {"width": 16, "depth": 2}, (5,)),
    "mobilenet_v1": ("mobilenet_v1", IMAGE, {"width": 0.125}, (5,)),
    "autoencoder": ("autoencoder", GREY, {"hidden": (48, 32), "code": 4}, (192,)),
    "lstm": ("lstm", SERIES, {"hidden": (24, 16)}, (5,)),
    "lstm of tokens": ("lstm", TOKENS, {"vocabulary": 9, "per_position": True}, (8, 5)),
    "lstm of a series": ("lstm", (12,), {"frame": 4, "hidden": 16}, (5,)),
    "transformer": ("transformer", SERIES, {"width": 16, "depth": 1}, (5,)),
    "transformer of tokens": (
        "transformer",
        TOKENS,
        {"vocabulary": 9, "width": 16, "depth": 1, "causal": True, "per_position": True},
        (8, 5),
    ),
}


def made(case: str, **more: Any) -> tuple[Any, jax.Array]:
    """A model, and a batch of four. NumPy draws the weights: initialisers take long to compile."""
    name, shape, own, _ = CASES[case]
    outputs = math.prod(shape) if name == "autoencoder" else 5
    options = {**own, **more, "input_shape": shape, "outputs": outputs}
    abstract = nnx.eval_shape(lambda: MODELS[name](rngs=nnx.Rngs(0), **options))
    graph, state = nnx.split(abstract)
    rng = np.random.default_rng(0)

    def drawn(path: Any, leaf: Any) -> Any:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):  # a stream of keys
            return jax.random.key(0) if leaf.dtype != jnp.uint32 else jnp.zeros((), jnp.uint32)
        values = rng.normal(size=leaf.shape) / math.sqrt(math.prod(leaf.shape[:-1]))
        positive = path[-1].key in ("scale", "var")
        return jnp.asarray(1 + 0.2 * np.abs(values) if positive else values, leaf.dtype)

    model = nnx.merge(graph, jax.tree.map_with_path(drawn, nnx.to_pure_dict(state)))
    if "vocabulary" in own:
        return model, jnp.asarray(rng.integers(0, own["vocabulary"], (4, *shape)), jnp.int32)
    return model, jnp.asarray(rng.normal(size=(4, *shape)), jnp.float32)


call = nnx.jit(lambda model, x: model(x))


def test_every_model_has_a_case() -> None:
    assert {name for name, *_ in CASES.values()} == set(MODELS)


@pytest.mark.parametrize("case", CASES)
def test_models_have_a_head_and_gradients_under_jit_and_vmap(case: str) -> None:
    model, x = made(case)
    assert isinstance(model.head, nnx.Linear)
    graph, *states = nnx.split(model, nnx.Param, ...)
    params, buffers = map(nnx.to_pure_dict, states)

    def loss(params: Any) -> Any:
        out = nnx.merge(graph, params, buffers)(x)
        return jnp.mean((out - 1.0) ** 2), out

    step = jax.value_and_grad(loss, has_aux=True)
    members: tuple[int, ...] = ()
    if case not in ("vgg16", "mobilenet_v1"):  # made of the others' parts, and long to compile
        step, members = jax.vmap(step), (2,)
        params = jax.tree.map(lambda v: jnp.stack([v, 0.9 * v]), params)
    (_, out), grads = jax.jit(step)(params)
    assert out.shape == (*members, 4, *CASES[case][-1])
    assert out.dtype == jnp.float32
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert jnp.isfinite(leaf).all(), path
        # A bias before a normalisation has no gradient; no other parameter is idle.
        assert path[-1].key == "bias" or jnp.abs(leaf).max() > 0, path


# Of the models of convolutions a few layers: to draw sketches of every shape takes long.
SKETCHED = {
    "lenet5": "fc*", "vgg16": "stages.4.*", "resnet8": "blocks.2.*", "resnet20": "blocks.5.*",
    "ds_cnn": "blocks.1.*", "mobilenet_v1": "blocks.12.*",
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_models_are_made_small_and_traced(case: str) -> None:
    model, x = made(case)
    pattern = SKETCHED.get(case, "*")
    rules = [rosler_jax.Rule("head", skip=True), rosler_jax.Rule(pattern, rank=0.25)]
    model, report = rosler_jax.sketchify(model, rules, rngs=nnx.Rngs(1))
    assert report.after < report.before
    assert isinstance(model.head, nnx.Linear)
    graph = rosler_jax.trace(model, x)
    model.eval()
    wanted = np.asarray(call(model, x))
    (got,) = jax.jit(jax.vmap(lambda x: run(graph, (x,))))(x)
    np.testing.assert_allclose(got, wanted, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("case", CASES)
def test_models_compute_in_bfloat16(case: str) -> None:
    model, x = made(case, dtype=jnp.bfloat16)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
    plain = made(case)[0]
    model.eval(), plain.eval()  # statistics of few examples magnify what is rounded
    out, wanted = call(model, x), np.asarray(call(plain, x))
    assert out.dtype == jnp.bfloat16
    error = np.abs(np.asarray(out, np.float32) - wanted).max()
    assert 0 < error < 0.1 * np.abs(wanted).max()


@pytest.mark.parametrize("case", ["mlp", "vgg16", "ds_cnn", "lstm", "transformer"])
def test_dropout_drops_in_training_only(case: str) -> None:
    model, x = made(case, dropout=0.5)
    assert jnp.any(call(model, x) != call(model, x))
    model.eval()
    np.testing.assert_array_equal(call(model, x), call(model, x))
    state = nnx.state(made(case)[0])
    assert not jax.tree.leaves(nnx.filter_state(state, nnx.RngState)), "keys without dropout"


# Trainable parameters and batch statistics together, as MLCommons's Keras models count them; the
# trainable ones of the other papers' networks (LeNet-5 with a dense softmax layer).
COUNTS: dict[str, tuple[tuple[int, ...], int, dict[str, Any], int]] = {
    "resnet8": ((32, 32, 3), 10, {}, 78_666),
    "ds_cnn": ((49, 10, 1), 12, {}, 24_908),
    "mobilenet_v1": ((96, 96, 3), 2, {}, 221_794),
    "autoencoder": ((640,), 640, {}, 269_992),
    "lenet5": ((28, 28), 10, {}, 61_706),
    "resnet20": ((32, 32, 3), 10, {}, 269_722),
    "vgg16": ((32, 32, 3), 10, {"hidden": ()}, 14_728_266),
    "mlp": ((28, 28), 10, {}, 785 * 1024 + 1025 * 1024 + 1025 * 10),
}
TRAINABLE = ("lenet5", "resnet20", "vgg16", "mlp")


@pytest.mark.parametrize("name", COUNTS)
def test_parameters_are_as_many_as_in_the_references(name: str) -> None:
    shape, outputs, options, count = COUNTS[name]

    def build() -> Any:
        return MODELS[name](input_shape=shape, outputs=outputs, rngs=nnx.Rngs(0), **options)

    kinds = nnx.Param if name in TRAINABLE else (nnx.Param, nnx.BatchStat)
    state = nnx.state(nnx.eval_shape(build), kinds)
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) == count


@pytest.mark.parametrize(
    "name", ["lenet5", "vgg16", "resnet8", "resnet20", "ds_cnn", "mobilenet_v1"]
)
def test_images_may_have_any_size(name: str) -> None:
    def outputs(x: jax.Array) -> jax.Array:
        options = CASES[name][2]
        return MODELS[name](input_shape=(3, 5), outputs=4, rngs=nnx.Rngs(0), **options)(x)

    assert nnx.eval_shape(outputs, jax.ShapeDtypeStruct((2, 3, 5), jnp.float32)).shape == (2, 4)


def test_a_causal_transformer_sees_nothing_that_comes_later() -> None:
    model, x = made("transformer of tokens")
    later = x.at[:, 5:].set((x[:, 5:] + 1) % 9)
    before, after = call(model, x), call(model, later)
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert jnp.any(before[:, 5:] != after[:, 5:])
    assert call(model, x[:, :3]).shape == (4, 3, 5)  # a shorter sequence has the first positions


REFUSED: dict[str, tuple[str, tuple[int, ...], dict[str, Any], str]] = {
    **{
        f"{name} of a vector": (name, (640,), {}, f"{name} takes images.*(640,)")
        for name in ("lenet5", "vgg16", "resnet8", "resnet20", "ds_cnn", "mobilenet_v1")
    },
    **{
        f"{name} of images": (name, (8, 8, 3), {}, f"{name} takes sequences.*(8, 8, 3)")
        for name in ("lstm", "transformer")
    },
    "tokens of features": ("lstm", (8, 3), {"vocabulary": 9}, "(time,) with a vocabulary"),
    "a rest": ("transformer", (10,), {"frame": 4}, "frame=4: 10 steps"),
    "frames of tokens": ("lstm", (8,), {"frame": 4, "vocabulary": 9}, "tokens are not cut"),
    "heads": ("transformer", (8, 3), {"heads": 3, "width": 16}, "heads=3 do not divide width=16"),
    "activation": ("mlp", (8,), {"activation": "sin"}, "'sin' is unknown; pass one of relu"),
    "autoencoder of classes": ("autoencoder", (8,), {}, "8 numbers, not outputs=5"),
    "no channel": ("mobilenet_v1", (8, 8), {"width": 0.01}, "pass at least 0.03125"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_shapes_and_options_are_refused(case: str) -> None:
    name, shape, options, words = REFUSED[case]
    pattern = words.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=pattern):
        MODELS[name](input_shape=shape, outputs=5, rngs=nnx.Rngs(0), **options)


@pytest.mark.parametrize("name", ["lstm", "transformer"])
def test_whole_numbers_need_a_vocabulary(name: str) -> None:
    model = MODELS[name](input_shape=(8,), outputs=5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="steps of int32; pass floats, or vocabulary"):
        model(jnp.zeros((2, 8), jnp.int32))
