"""Models of users as graphs: the same numbers, few operations, weights by name, clear refusals."""

from __future__ import annotations

from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx
from made_once import outputs_of
from public_models import MODELS
from tiny_models import BUILDERS, INPUTS, randomise
from user_models import USER_MODELS

import rosler_jax
from rosler_jax.graph import Graph, run, trace
from rosler_jax.graph._source import TraceError
from rosler_jax.graph.functions import FUNCTIONS
from rosler_jax.graph.kinds import (
    Affine,
    Concat,
    Conv,
    Dense,
    Gather,
    Map,
    MatMul,
    Norm,
    Pool,
    Project,
    Reduce,
    Scan,
    Softmax,
    Take,
    Transpose,
)

KEY = jax.random.key(0)


def computed(graph: Graph, *inputs: Any) -> Any:
    outputs = jax.jit(jax.vmap(lambda *x: run(graph, x)))(*inputs)
    return outputs[0] if len(outputs) == 1 else outputs


def assert_same(graph: Graph, model: Any, *inputs: Any, tolerance: float = 1e-5) -> None:
    wanted = jax.tree.leaves(outputs_of(model, *inputs))
    got = jax.tree.leaves(computed(graph, *jax.tree.leaves(inputs)))
    for a, b in zip(got, wanted, strict=True):
        size = float(jnp.abs(b).max()) or 1.0
        np.testing.assert_allclose(np.asarray(a) / size, np.asarray(b) / size, atol=tolerance)


def kinds(graph: Graph) -> Counter[type]:
    return Counter(type(op) for op in graph.ops)


@pytest.mark.parametrize("name", MODELS)
def test_public_models_are_traced(name: str) -> None:
    make, arguments = MODELS[name]
    model, inputs = make(), arguments(KEY)
    graph = trace(model, *inputs)
    assert_same(graph, model, *inputs)
    # Everything that a library's function computes is one operation again.
    left = {op.function for op in graph.ops if isinstance(op, Map)}
    assert not left & {"exp", "rsqrt", "tanh", "erf", "sigmoid"}, left


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["chain", "seeded"])
@pytest.mark.parametrize("name", MODELS)
def test_sketchified_models_are_traced(name: str, mode: Any) -> None:
    make, arguments = MODELS[name]
    rules = [rosler_jax.Rule("**", rank=0.25, mode=mode)]
    model, _ = rosler_jax.sketchify(make(), rules, rngs=nnx.Rngs(1))
    model, inputs = rosler_jax.finish(model), arguments(KEY)
    graph = trace(model, *inputs)
    assert_same(graph, model, *inputs)
    assert (Project in kinds(graph)) == (mode == "seeded")
    names = {weight.name for weight in graph.weights()}
    stored = {"/".join(map(str, path)) for path, _ in nnx.to_flat_state(nnx.state(model))}
    assert {n for n in names if n.endswith(("/c", "/u", "/r", "/kernel"))} <= stored


@pytest.mark.parametrize("name", BUILDERS)
def test_the_tiny_benchmark_is_products_and_activations(name: str) -> None:
    model = BUILDERS[name]()
    randomise(model, jax.random.key(1))
    x = jax.random.normal(KEY, (2, *INPUTS[name]))
    graph = trace(model, x)
    model.eval()
    assert_same(graph, model, x)
    assert set(kinds(graph)) <= {Conv, Dense, Map, Pool, Reduce}  # batch norm is folded
    assert {op.function for op in graph.ops if isinstance(op, Map)} <= {"relu", "add"}


@pytest.mark.parametrize("name", USER_MODELS)
def test_models_of_every_style_are_traced(name: str) -> None:
    model, call, inputs, expected = USER_MODELS[name](KEY)
    graph = trace(model, *inputs)
    assert_same(graph, call, *inputs)
    assert expected <= set(kinds(graph)), kinds(graph)


FAMILIAR = {
    "gelu": nnx.gelu,
    "gelu_exact": lambda x: nnx.gelu(x, approximate=False),
    "silu": nnx.silu,
    "hard_swish": nnx.hard_swish,
    "hard_sigmoid": nnx.hard_sigmoid,
    "softplus": nnx.softplus,
    "elu": nnx.elu,
    "relu": nnx.relu,
    "sigmoid": nnx.sigmoid,
    "tanh": nnx.tanh,
    "clamp": nnx.relu6,
}


@pytest.mark.parametrize("name", FAMILIAR)
def test_activations_are_one_operation(name: str) -> None:
    x = 4 * jax.random.normal(KEY, (3, 8))
    graph = trace(FAMILIAR[name], x)
    assert [op.function for op in graph.ops if isinstance(op, Map)] == [name]
    assert len(graph.ops) == 1
    assert_same(graph, FAMILIAR[name], x, tolerance=1e-6)


def test_a_silu_of_ones_own_is_one() -> None:
    graph = trace(lambda x: jax.nn.sigmoid(x) * x, jnp.ones((1, 3)))
    assert [op.function for op in graph.ops if isinstance(op, Map)] == ["silu"]


NORMS = {
    "layer": lambda: nnx.LayerNorm(8, rngs=nnx.Rngs(0)),
    "layer without scale": lambda: nnx.LayerNorm(8, use_scale=False, rngs=nnx.Rngs(0)),
    "layer without bias": lambda: nnx.LayerNorm(8, use_bias=False, rngs=nnx.Rngs(0)),
    "layer, slow variance": lambda: nnx.LayerNorm(8, use_fast_variance=False, rngs=nnx.Rngs(0)),
    "rms": lambda: nnx.RMSNorm(8, rngs=nnx.Rngs(0)),
    "rms by hand": lambda: lambda x: x / jnp.sqrt((x * x).mean(-1, keepdims=True) + 0.01),
    "layer by hand": lambda: (
        lambda x: (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
    ),
}


@pytest.mark.parametrize("rank", [2, 3])
@pytest.mark.parametrize("name", NORMS)
def test_norms_are_one_operation(name: str, rank: int) -> None:
    norm = NORMS[name]()
    if isinstance(norm, nnx.Module):
        nnx.update(norm, jax.tree.map(lambda v: v + 0.3, nnx.state(norm)))
    x = jax.random.normal(KEY, (3, *(5,) * (rank - 2), 8))
    graph = trace(norm, x)
    (op,) = graph.ops
    assert isinstance(op, Norm)
    assert op.center == ("layer" in name)
    assert_same(graph, norm, x)


def test_a_softmax_over_another_axis_stays_what_it_is() -> None:
    x = jax.random.normal(KEY, (2, 5, 4))
    graph = trace(lambda x: jax.nn.softmax(x, axis=1), x)
    assert_same(graph, lambda x: jax.nn.softmax(x, axis=1), x)
    assert Softmax not in kinds(graph)


def test_weights_are_named_by_path_and_shared_ones_are_one_tensor() -> None:
    make, arguments = MODELS["gemma"]
    graph = trace(make(), *arguments(KEY))
    by_name: dict[str, set[int]] = {}
    for weight in graph.weights():
        by_name.setdefault(weight.name, set()).add(id(weight.stored))
    assert all(len(tensors) == 1 for tensors in by_name.values())
    uses = [weight.layout for weight in graph.weights() if weight.name == "embed/embedding"]
    assert len(uses) == 2  # the table and, turned, the head
    (gather,) = (op for op in graph.ops if isinstance(op, Gather))
    assert gather.wrap


def test_stacked_layers_are_written_out_by_slices_of_one_tensor() -> None:
    make, arguments = MODELS["scanned stack"]
    graph = trace(make(), *arguments(KEY))
    assert Scan not in kinds(graph)
    kernels = [w for w in graph.weights() if w.name == "blocks/up/kernel"]
    assert len(kernels) == 3
    assert len({id(w.stored) for w in kernels}) == 1


def test_padding_goes_into_the_window() -> None:
    conv = nnx.Conv(2, 3, (3, 3), padding="VALID", rngs=nnx.Rngs(0))

    def model(x: Any) -> Any:
        return conv(jnp.pad(x, ((0, 0), (1, 2), (0, 1), (0, 0))))

    x = jax.random.normal(KEY, (2, 6, 5, 2))
    graph = trace(model, x)
    (op,) = graph.ops
    assert isinstance(op, Conv)
    assert op.window.padding == ((1, 2), (0, 1))
    assert_same(graph, model, x)


@pytest.mark.parametrize("mode", ["wrap", "reflect", "edge"])
def test_padding_by_copies_is_picks_of_positions(mode: str) -> None:
    def model(x: Any) -> Any:
        return jnp.pad(x, ((0, 0), (2, 1), (1, 2), (0, 0)), mode=mode)

    x = jax.random.normal(KEY, (2, 5, 4, 3))
    graph = trace(model, x)
    assert_same(graph, model, x, tolerance=0)
    assert set(kinds(graph)) <= {Take, Concat}


def test_transposes_that_undo_each_other_go() -> None:
    graph = trace(lambda x: x.transpose(0, 2, 1).transpose(0, 2, 1) * 2, jnp.ones((1, 3, 4)))
    assert kinds(graph) == {Map: 1}


def test_what_does_not_depend_on_the_inputs_is_computed() -> None:
    def model(x: Any) -> Any:
        mask = jnp.tril(jnp.ones((4, 4)))
        return x @ (mask / mask.sum(-1, keepdims=True)) + jnp.cumsum(jnp.arange(4.0))

    graph = trace(model, jnp.ones((1, 4)))
    assert kinds(graph) == {Dense: 1}
    assert_same(graph, model, jax.random.normal(KEY, (3, 4)))


def test_standardisation_is_one_affine_map() -> None:
    mean, std = np.arange(3.0, dtype=np.float32), np.array([1.0, 2.0, 4.0], np.float32)
    graph = trace(lambda x: (x - mean) / std, jnp.ones((1, 3)))
    (op,) = graph.ops
    assert isinstance(op, Affine)
    np.testing.assert_allclose(op.center, mean)
    np.testing.assert_allclose(op.factor, 1 / std)


def test_several_inputs_in_any_nesting_and_several_outputs() -> None:
    def model(x: Any, state: Any) -> Any:
        new = {"h": jnp.tanh(x["a"] + state[0]), "n": state[1] + 1}
        return new["h"] * 2, new

    given = ({"a": jnp.ones((2, 3))}, (jnp.zeros((2, 3)), jnp.zeros((2,), jnp.int32)))
    graph = trace(model, *given)
    assert [v.name for v in graph.inputs] == ["0/a", "1/0", "1/1"]
    assert [v.dtype for v in graph.inputs] == ["float32", "float32", "int32"]
    assert graph.structure == [0, {"h": 1, "n": 2}]
    assert_same(graph, model, *given)


def test_batches_lie_where_one_says() -> None:
    cell = nnx.RNN(nnx.GRUCell(3, 4, rngs=nnx.Rngs(0)), time_major=True)
    x = jax.random.normal(KEY, (6, 2, 3))
    graph = trace(cell, x, batch_axes=1, out_axes=1)
    assert graph.in_shape == (6, 3)
    got = jax.vmap(lambda v: run(graph, [v])[0], 1, 1)(x)
    np.testing.assert_allclose(got, cell(x), atol=1e-5)


def test_a_model_is_traced_as_it_evaluates() -> None:
    class Net(nnx.Module):
        def __init__(self, rngs: nnx.Rngs):
            self.norm = nnx.BatchNorm(3, rngs=rngs)
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            return self.drop(self.norm(x))

    model = Net(nnx.Rngs(0))
    graph = trace(model, jnp.ones((4, 3)))
    assert not model.drop.deterministic  # the caller's stays as it was
    model.eval()
    assert_same(graph, model, jax.random.normal(KEY, (4, 3)))


def test_low_precision_is_float32_in_the_graph() -> None:
    layer = nnx.Linear(4, 3, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    graph = trace(layer, jnp.ones((1, 4)))
    assert kinds(graph) == {Dense: 1}
    x = jax.random.normal(KEY, (2, 4))
    np.testing.assert_allclose(computed(graph, x), np.float32(layer(x)), atol=0.03)


def refused_sort(x: Any) -> Any:
    return jnp.sort(x)


def refused_loop(x: Any) -> Any:
    return jax.lax.while_loop(lambda v: v.sum() < 9, lambda v: v * 2, x)


def refused_branch(x: Any) -> Any:
    return jax.lax.cond(x.sum() > 0, lambda v: v, lambda v: -v, x)


def refused_callback(x: Any) -> Any:
    return jax.pure_callback(np.sin, x, x)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (refused_sort, "sort, from .*test_trace.py"),
        (refused_loop, "while, from .*unknown length.*lax.scan"),
        (refused_branch, "branch runs depends on the inputs; use jnp.where"),
        (refused_callback, "Python runs on no device"),
    ],
)
def test_what_is_not_known_is_refused_with_the_users_line(model: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(model, jnp.ones((2, 3)))


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(TraceError, match="no axis 0"):
        trace(jnp.sin, 1.0)
    with pytest.raises(TraceError, match="expected 1 at axis 0"):
        trace(lambda x: x.reshape(-1), jnp.ones((1, 3)))
    with pytest.raises(TraceError, match="a model of type int"):
        trace(3, jnp.ones((1, 3)))


def test_every_function_has_a_meaning() -> None:
    for name, function in FUNCTIONS.items():
        numbers = {"clamp": (-1.0, 1.0), "power": (3.0,)}.get(name, ())
        values = [jnp.array([0.5, 0.25])] * function.arity
        if name in ("and", "or", "xor", "not", "select"):
            values[0] = jnp.array([True, False])
        if name in ("and", "or", "xor"):
            values[1] = values[0]
        assert function.compute(*values, *numbers).shape == (2,), name


def test_gradients_are_graphs() -> None:
    conv = nnx.Conv(2, 4, (3, 3), strides=2, rngs=nnx.Rngs(0))
    depth = nnx.Conv(4, 4, (3, 3), feature_group_count=4, rngs=nnx.Rngs(1))
    head = nnx.Linear(4, 3, rngs=nnx.Rngs(2))

    def model(x: Any) -> Any:
        return head(nnx.max_pool(nnx.relu(depth(nnx.relu(conv(x)))), (2, 2), (2, 2)).mean((1, 2)))

    x = jax.random.normal(KEY, (1, 8, 8, 2))
    graph = trace(model, x)
    params = {w.name: np.asarray(w.stored) for w in graph.weights()}

    def gradient(params: Any, x: Any) -> Any:
        return jax.grad(lambda p: (run(graph, [x[0]], p)[0] ** 2).sum())(params)

    backward = trace(gradient, params, x, batch_axes=(None, 0), out_axes=None)
    got = run(backward, [*jax.tree.leaves(params), x[0]])
    for a, b in zip(got, jax.tree.leaves(gradient(params, x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "function",
    [
        jnp.log2,
        lambda x: jnp.polyval(jnp.array([0.5, -1.0, 2.0, 3.0]), x),
        lambda x: jnp.polyval(jnp.array([0.5]), x) * x,
        jax.vmap(jax.vmap(jax.grad(jnp.tanh))),
    ],
    ids=["log2", "polynomial", "constant", "gradient of tanh"],
)
def test_functions_that_newer_jax_has_primitives_for(function: Any) -> None:
    x = jnp.abs(jax.random.normal(KEY, (3, 5))) + 0.1
    graph = trace(function, x)
    for row, wanted in zip(x, function(x), strict=True):
        np.testing.assert_allclose(run(graph, [row])[0], wanted, rtol=1e-5, atol=1e-6)


def test_embedding_gradients_add_rows() -> None:
    table = jax.random.normal(KEY, (7, 3))
    ids = jnp.array([[1, 5, 1, -1]])

    def gradient(table: Any, ids: Any) -> Any:
        return jax.grad(lambda t: (t[ids[0]] ** 3).sum())(table)

    graph = trace(gradient, table, ids, batch_axes=(None, 0), out_axes=None)
    np.testing.assert_allclose(run(graph, [table, ids[0]])[0], gradient(table, ids), rtol=1e-5)


@pytest.mark.parametrize("mode", ["clip", "fill", "wrap"])
def test_indices_beyond_a_table_are_read_as_jax_reads_them(mode: str) -> None:
    table = jax.random.normal(KEY, (5, 3))

    def model(ids: Any) -> Any:
        return jnp.take(table, ids, axis=0, mode=mode)

    ids = jnp.array([[0, 4, 5, 9, -1, -6]])
    np.testing.assert_array_equal(computed(trace(model, ids), ids), model(ids))


def test_a_known_index_that_gives_nan_is_refused() -> None:
    def model(x: Any) -> Any:
        return jnp.take(x, jnp.array([1, 7]), axis=1)

    with pytest.raises(TraceError, match=r"7.* lies beyond its axis"):
        trace(model, jnp.ones((1, 4)))
    graph = trace(lambda x: jnp.take(x, jnp.array([1, 7]), axis=1, mode="clip"), jnp.ones((1, 4)))
    assert kinds(graph) == {Take: 1}


def test_kinds_seen_here_are_few() -> None:
    seen: Counter[str] = Counter()
    for make, arguments in MODELS.values():
        seen.update(type(op).__name__ for op in trace(make(), *arguments(KEY)).ops)
    used = {Concat, Conv, Dense, Gather, Map, MatMul, Norm, Reduce, Scan, Softmax, Take, Transpose}
    assert set(seen) == {kind.__name__ for kind in used}


def test_linen_modules_and_functions_with_parameters() -> None:
    class Block(linen.Module):
        @linen.compact
        def __call__(self, x: Any, train: bool) -> Any:
            y = linen.Dense(5)(x)
            return linen.BatchNorm(use_running_average=not train)(y) + x

    x = jax.random.normal(KEY, (3, 5))
    module = Block()
    variables = module.init(KEY, x, train=False)
    graph = trace((module, variables), x, train=False)
    assert_same(graph, lambda x: module.apply(variables, x, train=False), x)
    assert {"params/Dense_0/kernel"} <= {w.name for w in graph.weights()}
    graph = trace((lambda p, x: jnp.tanh(x @ p["w"]), {"w": jnp.ones((5, 2))}), x)
    assert [w.name for w in graph.weights()] == ["w"]
