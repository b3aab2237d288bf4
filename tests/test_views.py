"""What is taken for a matrix, and for what of it: by type of layer, by rule, and with care else."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx

import rosler_jax as rj
from rosler_jax import MatrixView, matrix_views
from rosler_jax import linen as sketched_linen
from rosler_jax.quantization import (
    dequantize_params,
    fake_quantize_params,
    quantize,
    quantize_params,
)
from rosler_jax.views import select

VIEWS = [
    (MatrixView((0,), (1,)), (5, 4)),
    (MatrixView((1,), (0, 2)), (2, 5, 3)),
    (MatrixView((0, 1), (2,), groups=2), (3, 2, 6)),
    (MatrixView((2,), (1,), stack=(0,)), (3, 5, 4)),
    (MatrixView((-2,), (-1,), stack=(1, 0)), (2, 3, 5, 4)),
]


@pytest.mark.parametrize(("view", "shape"), VIEWS)
def test_matrices_of_an_array_and_back(view: MatrixView, shape: tuple[int, ...]) -> None:
    w = jax.random.normal(jax.random.key(0), shape)
    matrices = view.to_matrices(w)
    assert matrices.shape == view.matrix_shape(shape)
    np.testing.assert_array_equal(view.from_matrices(matrices, shape), w)


def test_matrices_act_as_the_layers_do() -> None:
    conv = nnx.Conv(4, 6, (3,), feature_group_count=2, padding="VALID", rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(1), (1, 3, 4))
    matrices = matrix_views(conv)["kernel"].view.to_matrices(conv.kernel[...])
    groups = [x[0, :, :2].reshape(-1), x[0, :, 2:].reshape(-1)]
    expected = jnp.concatenate([g @ m for g, m in zip(groups, matrices, strict=True)])
    np.testing.assert_allclose(conv(x)[0, 0] - conv.bias[...], expected, atol=1e-5)
    # As a matrix of one layer, the stack's second is that layer's kernel.
    make = nnx.vmap(lambda key: nnx.Linear(4, 3, rngs=nnx.Rngs(key)))
    stack = make(jax.random.split(jax.random.key(0), 5))
    row = matrix_views(stack)["kernel"]
    assert (row.stack, row.note) == ((5,), "stack of 5")
    np.testing.assert_array_equal(row.view.to_matrices(stack.kernel[...])[1], stack.kernel[...][1])


class Mine(nnx.Module):
    """A module of the user's own beside layers that are known."""

    def __init__(self, rngs: nnx.Rngs):
        self.table = nnx.Embed(9, 8, rngs=rngs)
        self.position = nnx.Param(jnp.ones((7, 8)))
        self.kernel = nnx.Param(jnp.ones((8, 8)))
        self.cube = nnx.Param(jnp.ones((2, 8, 8)))
        self.norm = nnx.vmap(lambda key: nnx.LayerNorm(8, rngs=nnx.Rngs(key)))(
            jax.random.split(jax.random.key(0), 3)
        )
        self.attention = nnx.MultiHeadAttention(2, 8, decode=False, rngs=rngs)


def test_what_is_not_certain_is_left_alone_unless_a_rule_says() -> None:
    model = Mine(nnx.Rngs(0))
    views = matrix_views(model)
    roles = {name: views[name].role for name in views if not name.startswith("attention")}
    assert roles == {
        "table/embedding": "table", "position": "unknown", "kernel": "matrix", "cube": "unknown",
        "norm/scale": "scale", "norm/bias": "bias",
    }  # fmt: skip
    assert views["attention/query/bias"].role == "bias"  # (heads, head_dim) is no matrix
    lines = str(views).splitlines()
    assert len(lines) == 2 + len(views)
    assert "by name and shape" in next(line for line in lines if line.startswith("kernel"))
    cube = MatrixView((1,), (2,), stack=(0,))
    ruled = matrix_views(model, {"cube": cube, "kernel": None})
    assert (ruled["cube"].view, ruled["kernel"].role) == (cube, "unknown")
    params = nnx.state(model, nnx.Param)
    chosen = {name for name, _, _ in select(params, ruled)}
    assert chosen == {"cube", *(f"attention/{n}/kernel" for n in ("query", "key", "value", "out"))}


def test_plain_parameters_are_kernels_of_two_axes() -> None:
    params = {
        "a": {"kernel": jnp.ones((4, 3)), "bias": jnp.ones((2, 3))},
        "b": {"kernel": jnp.ones((2, 4, 3)), "embedding": jnp.ones((4, 3))},
    }
    assert [name for name, _, _ in select(params, None)] == ["a/kernel"]
    view = MatrixView((1,), (2,), stack=(0,))
    found = select(params, {"b/kernel": view})
    assert [(name, seen) for name, _, seen in found] == [
        ("a/kernel", MatrixView((0,), (1,))), ("b/kernel", view),
    ]  # fmt: skip
    assert not select(params, lambda name, shape: None)
    assert not select({"kernel": jnp.ones((4, 3), jnp.int32)}, None)


def test_a_pattern_may_be_of_leaves_that_a_mask_hides() -> None:
    params = {"a": {"kernel": jnp.ones((4, 3))}, "b": {"w": jnp.ones((5, 4, 3))}}
    view = {"a/*": MatrixView((0,), (1,)), "b/*": MatrixView((1,), (2,), stack=(0,))}
    tx = optax.masked(rj.restrict_rank(optax.sgd(0.1), 2, 1, view=view), {"a": True, "b": False})
    updates, _ = tx.update(params, tx.init(params), params)
    assert updates["a"]["kernel"].shape == (4, 3)


def test_wrong_views_are_refused() -> None:
    params = {"a": {"kernel": jnp.ones((4, 3))}}
    with pytest.raises(ValueError, match="names an axis twice"):
        MatrixView((0,), (0,))
    with pytest.raises(ValueError, match=r"'a/kernel' of shape \(4, 3\) does not have the axes"):
        select(params, {"*": MatrixView((0,), (1, 2))})
    with pytest.raises(ValueError, match="view 'b/\\*' matches none of the parameters"):
        select(params, {"b/*": None})
    with pytest.raises(ValueError, match="no view of 'a/kernel'"):
        select(params, matrix_views(nnx.Linear(4, 3, rngs=nnx.Rngs(0))))
    with pytest.raises(TypeError, match="is none; pass matrix_views"):
        select(params, 3)
    with pytest.raises(ValueError, match="rule 'b' matches none"):
        matrix_views(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), {"b": None})
    with pytest.raises(TypeError, match=r"rosler_jax\.linen\.matrix_views"):
        matrix_views(nn.Dense(3))
    with pytest.raises(ValueError, match="groups of 3"):
        MatrixView((0,), (1,), groups=2).check((4, 3))


# --- quantisation by view ------------------------------------------------------------------------


def _stack() -> Any:
    make = nnx.vmap(lambda key: nnx.Linear(16, 8, rngs=nnx.Rngs(key)))
    model = make(jax.random.split(jax.random.key(0), 3))
    model.kernel[...] = model.kernel[...] * jnp.array([1.0, 1e-3, 1e3])[:, None, None]
    model.bias[...] = jnp.array([1.0, 1e-3, 1e3])[:, None] * jnp.arange(8.0)
    return model


@pytest.mark.parametrize("known", (True, False))
def test_every_layer_of_a_stack_has_scales_of_its_own(known: bool) -> None:
    model = _stack()
    params = nnx.state(model, nnx.Param)
    view = matrix_views(model) if known else None
    tensors = quantize_params(params, 4, view)
    restored = dequantize_params(tensors, like=params)
    faked = fake_quantize_params(params, 4, view)
    for i in range(3):
        w = params["kernel"][...][i]
        alone = rj.quantization.dequantize(quantize(w, 4, -1))
        np.testing.assert_array_equal(restored["kernel"][...][i], alone)
        np.testing.assert_array_equal(faked["kernel"][...][i], alone)
        assert float(jnp.linalg.norm(alone - w) / jnp.linalg.norm(w)) < 0.15
    assert tensors["kernel"].scale.shape == (3, 8) and tensors["bias"].bits == 16
    if known:  # by name alone a bias has one scale
        assert tensors["bias"].scale.shape == (3,)
        np.testing.assert_allclose(restored["bias"][...], params["bias"][...], rtol=1e-4)


def test_biases_of_heads_have_16_bits_and_files_hold_several_axes(tmp_path: Any) -> None:
    model = nnx.MultiHeadAttention(4, 16, decode=False, rngs=nnx.Rngs(0))
    params = nnx.state(model, nnx.Param)
    for view in (matrix_views(model), None):
        tensors = quantize_params(params, 3, view)
        assert {t.bits for name, t in tensors.items() if name.endswith("bias")} == {16}
        assert {t.bits for name, t in tensors.items() if name.endswith("kernel")} == {3}
    tensors = quantize_params(nnx.state(_stack(), nnx.Param), 3)
    size = rj.modelfile.save(tmp_path / "m.rosler", tensors, {}, {})
    loaded = rj.modelfile.load(tmp_path / "m.rosler")
    assert loaded.file_bytes == size and loaded.tensors["kernel"].axis == (0, 2)
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(
            rj.modelfile.to_numpy(loaded.tensors[name]), rj.quantization.dequantize(tensor)
        )


def test_a_stack_of_ares_layers_is_quantised_stage_by_stage() -> None:
    make = nnx.vmap(lambda key: rj.SketchLinear(12, 10, 2, mode="ares", rngs=nnx.Rngs(key)))
    model = make(jax.random.split(jax.random.key(0), 3))
    model.parallel[...] = jnp.array([0.0, 1.0, 0.0])
    params = nnx.state(model, nnx.Param)
    faked = jax.jit(lambda p: fake_quantize_params(p, 2, matrix_views(model)))(params)
    for name in ("c", "u", "r"):
        changed = [bool(jnp.any(faked[name][...][i] != params[name][...][i])) for i in range(3)]
        assert changed == [True, False, True]


def test_random_keys_are_saved_with_the_rest(tmp_path: Any) -> None:
    model = nnx.Sequential(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), nnx.Dropout(0.5, rngs=nnx.Rngs(5)))
    graphdef, state = nnx.split(model)
    rj.modelfile.save(tmp_path / "m.rosler", quantize_params(state, 16), {}, {})
    tensors = rj.modelfile.load(tmp_path / "m.rosler").tensors
    again = nnx.merge(graphdef, dequantize_params(tensors, like=state))
    x = jnp.ones((64, 4))
    np.testing.assert_array_equal(again(x) == 0, model(x) == 0)


# --- Linen ---------------------------------------------------------------------------------------


class Block(nn.Module):
    @nn.compact
    def __call__(self, x: Any, _: Any) -> Any:
        h = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=4)(h, h)
        init = nn.with_partitioning(nn.initializers.lecun_normal(), ("in", "out"))
        return x + nn.Dense(32, kernel_init=init)(nn.gelu(x)), None


class Net(nn.Module):
    def setup(self) -> None:
        self.conv = nn.Conv(32, (3,), strides=2)
        self.blocks = nn.scan(
            Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )()  # fmt: skip
        self.norm, self.drop = nn.BatchNorm(), nn.Dropout(0.1)
        self.heads = nn.Einsum((32, 4, 8), "btd,dhk->bthk")
        self.out = nn.DenseGeneral(16, axis=(-2, -1))
        self.rnn = nn.RNN(nn.LSTMCell(16))
        self.up = nn.ConvTranspose(24, (3,), strides=(2,))

    def encode(self, x: Any) -> Any:
        return self.blocks(self.conv(x), None)[0]

    def __call__(self, x: Any, train: bool = False) -> Any:
        h = self.norm(self.encode(x), use_running_average=not train)
        h = self.out(self.heads(self.drop(h, deterministic=not train)))
        return self.up(self.rnn(h))


@pytest.fixture(scope="module")
def linen() -> Any:
    x = jax.random.normal(jax.random.key(0), (2, 12, 16))
    return Net(), Net().init(jax.random.key(1), x), x


def test_linen_modules_are_seen_layer_by_layer(linen: Any) -> None:
    net, variables, x = linen
    views = sketched_linen.matrix_views(net, variables, x)
    assert len(views) == len(jax.tree.leaves(variables["params"]))
    attention = "blocks/MultiHeadDotProductAttention_0"
    assert views[f"{attention}/query/kernel"].view == MatrixView((1,), (2, 3), (0,))
    assert views[f"{attention}/out/kernel"].view == MatrixView((1, 2), (3,), (0,))
    assert views["heads/kernel"].view == MatrixView((0,), (1, 2))
    assert views["rnn/cell/hi/kernel"].role == "matrix"
    assert views["blocks/LayerNorm_0/scale"].role == "scale"
    assert views[f"{attention}/query/bias"].role == "bias"
    matrices = {row.name for row in views.rows if row.role == "matrix"}
    assert matrices == {name for name in views if name.endswith("kernel")}


@pytest.mark.slow
@pytest.mark.parametrize("mode", ("chain", "ares", "seeded", "two-factor"))
def test_linen_modules_are_sketched_and_train(linen: Any, mode: str) -> None:
    net, variables, x = linen
    rules = [rj.Rule("up", skip=True), rj.Rule("*", rank=2, mode=mode)]
    new, converted, report = sketched_linen.sketchify(net, variables, rules, x, rngs=nnx.Rngs(0))
    kinds = {row.path: row for row in report.rows}
    assert kinds["up"].rank is None
    assert all(row.rank == 2 for path, row in kinds.items() if path != "up")
    count = sum(v.size for p, v in jax.tree_util.tree_leaves_with_path(converted["params"])
                if "parallel" not in str(p[-1]) and "fingerprint" not in str(p[-1]))  # fmt: skip
    assert report.after == count < report.before
    assert converted["batch_stats"] is variables["batch_stats"]
    assert jax.jit(new.apply)(converted, x).shape == net.apply(variables, x).shape
    assert new.apply(converted, "encode", x, method="run").shape == (2, 6, 32)
    _, changed = new.apply(
        converted, x, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}
    )
    assert set(changed) == {"batch_stats"}
    loss = lambda params: jnp.mean(new.apply({**converted, "params": params}, x) ** 2)
    grads = jax.grad(loss)(converted["params"])
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    if mode == "chain":
        box = converted["params"]["blocks"]["Dense_0"]
        assert {k: v.names for k, v in box.items() if k != "bias"} == {
            "c": ("layers", "in", None), "u": ("layers", None, None), "r": ("layers", None, "out"),
        }  # fmt: skip
        views = sketched_linen.matrix_views(new, converted, x)
        assert views["blocks/Dense_0/c"].role == "factor" and views["blocks/Dense_0/c"].stack == (
            3,
        )
        with pytest.raises(ValueError, match="pass the variables that sketchify returned"):
            new.apply(variables, x)


@pytest.mark.slow
def test_linen_weights_are_taken_over(linen: Any) -> None:
    net, variables, x = linen
    views = sketched_linen.matrix_views(net, variables, x)

    def low_rank(path: Any, leaf: Any) -> Any:
        row = views[rj._paths.path_name(path)]
        if row.role != "matrix":
            return leaf
        a = row.view.to_matrices(leaf)
        left, sigma, right = jnp.linalg.svd(a, full_matrices=False)
        low = (left[..., :2] * sigma[:, None, :2]) @ right[:, :2]
        return row.view.from_matrices(low, leaf.shape)

    params = jax.tree_util.tree_map_with_path(low_rank, variables["params"])
    exact = {**variables, "params": params}
    new, converted, report = sketched_linen.sketchify(
        net, exact, [rj.Rule("*", rank=2)], x, rngs=nnx.Rngs(0), from_weights=True
    )
    assert max(row.error for row in report.rows) < 1e-5
    np.testing.assert_allclose(new.apply(converted, x), net.apply(exact, x), atol=2e-5)


def test_a_linen_layer_of_your_own_is_left() -> None:
    class MyDense(nn.Dense):
        pass

    net, x = nn.Sequential([nn.Dense(20), MyDense(20)]), jnp.ones((2, 20))
    variables = net.init(jax.random.key(0), x)
    new, converted, report = sketched_linen.sketchify(
        net, variables, [rj.Rule("*", rank=2)], x, rngs=nnx.Rngs(0)
    )
    assert [row.note for row in report.rows] == ["", "a subclass, which may compute otherwise"]
    assert new.apply(converted, x).shape == (2, 20)
