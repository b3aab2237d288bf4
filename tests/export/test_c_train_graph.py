"""Exported C that trains any model by the graph of its gradient, against Flax and optax."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from test_c_train import NETWORKS, assert_close, examples, network

from rosler_jax._paths import path_name
from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.train import Training, write_training
from rosler_jax.export.c.train import source as writing
from rosler_jax.export.c.train.chain import cut
from rosler_jax.export.c.train.job import train_in_c
from rosler_jax.export.c.train.parts import all_names
from rosler_jax.export.c.unit import Unit
from rosler_jax.graph import trace

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")
TOLERANCE = 5e-6  # relative, in the norm of a parameter's gradient
MODELS: dict[str, Callable[[nnx.Rngs], nnx.Module]] = {}


def model(cls: Any) -> Any:
    MODELS[cls.__name__] = cls
    return cls


@model
class Residual(nnx.Module):
    shape: Any = (6, 6, 1)

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.second = nnx.Conv(4, 4, (3, 3), kernel_dilation=2, rngs=rngs)
        self.third = nnx.Conv(4, 4, (3, 3), strides=2, rngs=rngs)
        self.head = nnx.Linear(4, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.relu(self.first(x))
        x = x + nnx.relu(self.second(x))
        return self.head(nnx.relu(self.third(x)).mean((1, 2)))


@model
class Separable(nnx.Module):
    shape: Any = (6, 5, 2)

    def __init__(self, rngs: nnx.Rngs):
        self.deep = nnx.Conv(2, 4, (3, 3), feature_group_count=2, strides=(2, 1), rngs=rngs)
        self.wide = nnx.Conv(4, 6, (1, 1), rngs=rngs)
        self.gate = nnx.Linear(6, 6, rngs=rngs)
        self.head = nnx.Linear(6, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = jax.nn.hard_swish(self.wide(nnx.silu(self.deep(x))))
        x = x * jax.nn.sigmoid(self.gate(x.mean((1, 2), keepdims=True)))
        return self.head(nnx.avg_pool(x, (3, 3), (2, 2), "SAME").mean((1, 2)))


@model
class Recurrent(nnx.Module):
    shape: Any = (6, 3)

    def __init__(self, rngs: nnx.Rngs):
        self.cells = nnx.RNN(nnx.LSTMCell(3, 5, rngs=rngs))
        self.head = nnx.Linear(5, 4, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        zero = jnp.zeros((len(x), 5), x.dtype)
        return self.head(self.cells(x, initial_carry=(zero, zero))[:, -1])


@model
class Attention(nnx.Module):
    shape: Any = (4, 3)

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Linear(3, 8, rngs=rngs)
        self.norm = nnx.LayerNorm(8, rngs=rngs)
        self.attend = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)
        self.last = nnx.RMSNorm(8, rngs=rngs)
        self.head = nnx.Linear(8, 5, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = self.embed(x)
        x = x + self.attend(self.norm(x))
        return self.head(self.last(x).mean(1))


@model
class Tied(nnx.Module):
    shape: Any = (4,)  # words

    def __init__(self, rngs: nnx.Rngs):
        self.embed = nnx.Embed(7, 6, rngs=rngs)
        self.mix = nnx.Linear(6, 6, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.embed.attend(nnx.gelu(self.mix(self.embed(x))).mean(1))


@model
class Unet(nnx.Module):
    shape: Any = (6, 6, 1)
    loss = "mse"

    def __init__(self, rngs: nnx.Rngs):
        self.down = nnx.Conv(1, 3, (3, 3), rngs=rngs)
        self.deep = nnx.Conv(3, 4, (3, 3), rngs=rngs)
        self.up = nnx.ConvTranspose(4, 3, (2, 2), strides=(2, 2), rngs=rngs)
        self.last = nnx.Conv(6, 1, (3, 3), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        down = nnx.relu(self.down(x))
        deep = nnx.relu(self.deep(nnx.max_pool(down, (3, 3), (2, 2), "SAME")))
        return self.last(jnp.concatenate([down, self.up(deep)], -1))


@functools.lru_cache
def made(name: str, seed: int = 0) -> tuple[Any, Any]:
    """A model with its parameters drawn at random, biases too, and its graph."""
    module: Any = nnx.jit(lambda: MODELS[name](nnx.Rngs(seed)))()
    rng = np.random.default_rng(seed)
    graphdef, state, rest = nnx.split(module, nnx.Param, ...)
    state = jax.tree.map(lambda p: p + 0.1 * rng.normal(size=p.shape).astype(np.float32), state)
    module = nnx.merge(graphdef, state, rest)
    kind = np.int32 if name == "Tied" else np.float32
    return module, trace(module, np.zeros((1, *module.shape), kind))


def data(module: Any, graph: Any, steps: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    shape, size = (steps, count, *module.shape), int(np.prod(graph.out_shape))
    words = graph.inputs[0].dtype == "int32"
    x = rng.integers(0, 7, shape).astype(np.int32) if words else rng.normal(size=shape)
    if hasattr(module, "loss"):
        return x, rng.normal(size=(steps, count, size))
    return x, rng.integers(0, size, (steps, count))


def loss_of(module: Any) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The mean loss of a batch from parameters of 64 bits by their paths, and these."""
    graphdef, state, rest = nnx.split(module, nnx.Param, ...)
    leaves, tree = jax.tree_util.tree_flatten_with_path(state)
    names = [path_name(path) for path, _ in leaves]

    def loss(params: dict[str, Any], x: Any, target: Any) -> Any:
        state = jax.tree.unflatten(tree, [params[name] for name in names])
        merged = nnx.merge(graphdef, state, jax.tree.map(lambda v: v, rest))
        y = merged(x).reshape(len(x), -1)
        if hasattr(module, "loss"):
            return ((y - target) ** 2).mean()
        return optax.softmax_cross_entropy_with_integer_labels(y, target).mean()

    values = [np.asarray(value, np.float64) for _, value in leaves]
    return loss, dict(zip(names, values, strict=True))


@pytest.mark.parametrize("name", MODELS)
def test_gradients_equal_jax_in_double(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "Unit", functools.partial(Unit, poison=0xFF))
    module, graph = made(name)
    x, targets = data(module, graph, 1, 3)
    source = write_training(
        graph, Training(momentum=0.0, loss=getattr(module, "loss", "cross_entropy"))
    )
    assert ", 255, " in source.source  # floats are NaN where nobody needs them
    found = train_in_c(source, x, targets, 0.0, predict=x[0], sanitize=True)
    with jax.enable_x64(True):
        loss, params = loss_of(module)
        lost, wanted = jax.jit(jax.value_and_grad(loss))(params, x[0], targets[0])
    assert found.velocity.keys() == wanted.keys()
    held = {w.name: w.stored for w in graph.weights()}
    for key, value in params.items():  # a factor that tracing folded into a tensor trains with it
        wanted[key] = np.asarray(wanted[key]) * np.linalg.norm(value) / np.linalg.norm(held[key])
    scale = max(np.linalg.norm(v) for v in wanted.values())
    for key in [key for key, v in wanted.items() if np.linalg.norm(v) < 1e-6 * scale]:
        assert key == "attend/key/bias"  # softmax does not see it
        assert np.linalg.norm(found.velocity[key]) < 1e-6 * scale
        del wanted[key]
    assert_close(found.velocity, wanted, TOLERANCE)
    np.testing.assert_allclose(found.losses, [lost], rtol=1e-5)
    graphdef, state = nnx.split(module)
    apply = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))
    y = np.asarray(apply(state, x[0].astype(graph.inputs[0].dtype)))
    np.testing.assert_allclose(found.outputs, y.reshape(3, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "clip"), [("Residual", None), ("Recurrent", 0.3), ("Tied", 0.3)])
def test_steps_equal_optax(name: str, clip: float | None) -> None:
    module, graph = made(name)
    x, targets = data(module, graph, 5, 3)
    found = train_in_c(
        write_training(graph, Training(clip=clip, batch=3)), x, targets, 0.1, sanitize=True
    )
    first = optax.identity() if clip is None else optax.clip_by_global_norm(clip)
    tx = optax.chain(first, optax.sgd(0.1, momentum=0.9))
    with jax.enable_x64(True):
        loss, params = loss_of(module)
        grad, state = jax.jit(jax.grad(loss)), tx.init(params)
        for each, target in zip(x, targets, strict=True):
            updates, state = tx.update(grad(params, each, target), state, params)
            params = optax.apply_updates(params, updates)
    assert_close(found.weights, params, 1e-5)


def test_what_is_frozen_may_be_any_graph() -> None:
    """Then only the head trains, by the statements written for chains."""
    module, graph = made("Residual")
    x, targets = data(module, graph, 3, 2)
    before, rest = cut(graph, frozenset({"head/kernel", "head/bias"})) or (None, [])
    assert before is not None and len(rest) == 1
    source = write_training(graph, Training(parts="head", momentum=0.0, batch=2))
    assert [field.name for field in source.fields] == ["head/kernel", "head/bias"]
    assert "rosler_train_frozen" in source.source
    found = train_in_c(source, x, targets, 0.1, sanitize=True)
    with jax.enable_x64(True):
        loss, params = loss_of(module)
        grad = jax.jit(jax.grad(loss))
        for each, target in zip(x, targets, strict=True):
            grads = grad(params, each, target)
            params |= {k: params[k] - 0.1 * grads[k] for k in found.weights}
    assert_close(found.weights, {k: params[k] for k in found.weights}, 1e-5)


@pytest.mark.parametrize("name", ["every operation", "signs"])
def test_both_paths_agree(name: str) -> None:
    graph = network(NETWORKS[name])
    x, labels = examples(3, 4)
    chain = write_training(graph, Training(batch=4))
    assert "rosler_train_backward" in chain.source
    any_model = write_training(graph, Training(batch=4), chains=False)
    assert "rosler_train_example" in any_model.source
    assert [f.name for f in any_model.fields] == [f.name for f in chain.fields]
    one, other = (train_in_c(s, x, labels, 0.05) for s in (chain, any_model))
    assert_close(other.weights, one.weights, 1e-5)


class Digits(nnx.Module):
    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 6, (3, 3), strides=2, rngs=rngs)
        self.second = nnx.Conv(6, 6, (3, 3), rngs=rngs)
        self.head = nnx.Linear(6 * 7 * 7, 10, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = nnx.silu(self.first(x))
        return self.head((x + nnx.silu(self.second(x))).reshape(len(x), -1))


@pytest.mark.slow
def test_a_residual_network_learns_digits() -> None:
    from rosler_jax.data import load

    digits = load("mnist5k")
    x = digits.train_x.reshape(-1, 14, 2, 14, 2).mean((2, 4))[..., None] / 255.0
    y, steps, count = digits.train_y, 150, 16
    graph = trace(Digits(nnx.Rngs(0)), np.zeros((1, 14, 14, 1), np.float32))
    rows = np.random.default_rng(0).choice(len(x), (steps, count))
    asked = np.setdiff1d(np.arange(len(x)), rows)[:500]
    source = write_training(graph, Training(batch=count))
    found = train_in_c(source, x[rows], y[rows], 0.05, predict=x[asked])
    assert found.losses[-20:].mean() < 0.3 * found.losses[:5].mean()
    assert (found.outputs.argmax(1) == y[asked]).mean() > 0.8


def test_names_are_the_models_own() -> None:
    _, graph = made("Tied")
    assert sorted(all_names(graph)) == ["embed/embedding", "mix/bias", "mix/kernel"]


def test_several_inputs_are_refused() -> None:
    graph = trace(
        (lambda w, x, y: (x + y) @ w, np.ones((3, 2), np.float32)), np.ones((1, 3)), np.ones((1, 3))
    )
    with pytest.raises(ExportError, match="2 inputs and 1 outputs"):
        write_training(graph, Training(parts="all"))
