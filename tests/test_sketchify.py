"""Layers of an existing NNX model become sketch layers, and the report says what happened."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import rosler_kernels as rk
from rosler_jax import matrix_views
from rosler_jax.factors import SeededFactors, SketchFactors, core_from_sketch, reconstruct
from rosler_jax.nn import SketchConv, SketchEinsum, SketchLinear
from rosler_jax.sketchify import Rule, sketchify

MODES = ("chain", "ares", "seeded")


class Block(nnx.Module):
    def __init__(self, width: int, *, rngs: nnx.Rngs):
        self.up = nnx.Linear(width, 2 * width, rngs=rngs)
        self.down = nnx.Linear(2 * width, width, use_bias=False, rngs=rngs)

    def __call__(self, x):
        return x + self.down(nnx.relu(self.up(x)))


class Net(nnx.Module):
    """A list of blocks, a plain dict, a plain tuple, a layer used twice."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.blocks = nnx.List([Block(24, rngs=rngs) for _ in range(2)])
        self.heads = nnx.data({"a": nnx.Linear(24, 20, rngs=rngs)})
        self.pair = nnx.data((nnx.Linear(20, 20, rngs=rngs), 3))
        self.twice = nnx.Linear(20, 20, rngs=rngs)
        self.again = self.twice
        self.dropout = nnx.Dropout(0.1, deterministic=True)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        x = self.pair[0](self.dropout(self.heads["a"](x)))
        return self.again(nnx.relu(self.twice(x)))


def _values(model):
    return jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(model, nnx.Param)))


def _matrix(layer):
    """The dense matrices, one per group, that the parameters of a sketch layer stand for."""
    psi, omega = layer.sketches()
    if layer.mode == "seeded":
        u = layer.u[...] if layer.u[...].ndim == 3 else layer.u[...][None]
        return [reconstruct(SeededFactors(u=core, psi=psi, omega=omega)) for core in u]
    r = layer.r[...] if layer.r[...].ndim == 3 else layer.r[...][None]
    g, s = r.shape[0], layer.rank
    c = layer.c[...]
    if type(layer) is SketchConv or c.ndim == 2:
        c = c.reshape(-1, g, s).transpose(1, 0, 2)
    if layer.mode == "two-factor":
        return list(c @ r)
    u = layer.u[...].reshape(g, s, -1)
    core = [core_from_sketch(a.T) for a in u] if layer.mode == "ares" else u
    return [reconstruct(SketchFactors(c=c[i], u=core[i], r=r[i])) for i in range(g)]


@pytest.mark.slow
@pytest.mark.parametrize("mode", MODES)
def test_all_containers_are_reached_and_the_given_model_is_not_changed(mode):
    model = Net(rngs=nnx.Rngs(0))
    before = _values(model)
    new, report = sketchify(model, [Rule("*", rank=2, mode=mode)], rngs=nnx.Rngs(1))
    layers = [b for block in new.blocks for b in (block.up, block.down)]
    layers += [new.heads["a"], new.pair[0], new.twice]
    assert all(type(layer) is SketchLinear and layer.mode == mode for layer in layers)
    assert new.pair[1] == 3
    assert [row.path for row in report.rows] == [
        "again", "blocks.0.down", "blocks.0.up", "blocks.1.down", "blocks.1.up",
        "heads.a", "pair.0",
    ]  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, before, _values(model))
    assert type(model.blocks[0].up) is nnx.Linear and type(model.pair[0]) is nnx.Linear
    x = jnp.ones((3, 24))
    assert nnx.jit(lambda m, x: m(x))(new, x).shape == model(x).shape
    # The new model is a whole NNX model: it splits, merges and has gradients.
    grads = nnx.grad(lambda m: (m(x) ** 2).mean())(nnx.merge(*nnx.split(new)))
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def test_a_shared_layer_stays_shared_and_is_counted_once():
    new, report = sketchify(Net(rngs=nnx.Rngs(0)), [Rule("*", rank=2)], rngs=nnx.Rngs(1))
    assert new.twice is new.again
    row = report.rows[0]
    assert (row.path, row.note) == ("again", "shared with twice")
    count = sum(np.size(v) for v in jax.tree.leaves(_values(new)))
    assert report.after == count < report.before


def test_a_shared_submodule_is_walked_once():
    class Siamese(nnx.Module):
        def __init__(self, *, rngs):
            self.left = Block(24, rngs=rngs)
            self.right = self.left

    new, report = sketchify(Siamese(rngs=nnx.Rngs(0)), [Rule("*", rank=2)], rngs=nnx.Rngs(1))
    assert new.left is new.right and type(new.left.up) is SketchLinear
    assert [row.note for row in report.rows] == ["shared with right.down", "shared with right.up"]


def test_the_first_matching_rule_decides_and_the_rest_is_left():
    rules = [
        Rule("blocks.0.*", skip=True),
        Rule("blocks.*.up", rank=0.25, mode="seeded"),
        Rule("blocks.*", rank=3),
        Rule("nothing.*", rank=1),
    ]
    new, report = sketchify(Net(rngs=nnx.Rngs(0)), rules, rngs=nnx.Rngs(1))
    assert type(new.blocks[0].up) is nnx.Linear
    assert (new.blocks[1].up.mode, new.blocks[1].up.rank) == ("seeded", 6)  # a quarter of 24
    assert (new.blocks[1].down.mode, new.blocks[1].down.rank) == ("chain", 3)
    assert type(new.twice) is nnx.Linear
    notes = {row.path: row.note for row in report.rows}
    assert notes["blocks.0.up"] == "skipped by rule 'blocks.0.*'"
    assert notes["heads.a"] == "no rule matches"
    assert report.unused == ("nothing.*",)
    assert str(report).endswith("rule 'nothing.*' decided about no layer")


def test_a_sketch_that_is_not_smaller_is_not_made():
    rngs = nnx.Rngs(0)
    # 8 x 24: rank 6 has 6 * 32 = 192 = 8 * 24 numbers, rank 5 has 160.
    model = nnx.Linear(8, 24, rngs=rngs)
    same, report = sketchify(model, [Rule("*", rank=6)], rngs=rngs)
    assert type(same) is nnx.Linear
    assert report.rows[0].note == "a sketch of rank 6 would not be smaller"
    assert report.before == report.after == 8 * 24 + 24
    less, report = sketchify(model, [Rule("*", rank=5)], rngs=rngs)
    assert type(less) is SketchLinear and report.rows[0].rank == 5
    same, report = sketchify(model, [Rule("*", rank=6, mode="seeded", in_sketch=32)], rngs=rngs)
    assert "not be smaller" in report.rows[0].note
    same, report = sketchify(model, [Rule("*", rank=9)], rngs=rngs)
    assert report.rows[0].note == "rank 9 exceeds min(in=8, out=24)=8"


def test_layers_that_no_sketch_can_stand_for_are_left_with_the_reason():
    class MyLinear(nnx.Linear):
        pass

    class Odd(nnx.Module):
        def __init__(self, *, rngs):
            self.mine = MyLinear(20, 20, rngs=rngs)
            self.masked = nnx.Conv(4, 20, (3, 3), mask=jnp.ones((3, 3, 4, 20)), rngs=rngs)
            self.wrapped = nnx.ConvTranspose(4, 20, (3, 3), padding="CIRCULAR", rngs=rngs)
            self.scaled = nnx.Einsum("...ab,ab->...ab", (20, 20), rngs=rngs)
            self.dot = nnx.Linear(20, 20, dot_general=lambda *a, **k: None, rngs=rngs)
            self.tied_1 = nnx.Linear(20, 20, rngs=rngs)
            self.tied_2 = nnx.Linear(20, 20, rngs=rngs)
            self.tied_2.kernel = self.tied_1.kernel
            make = nnx.vmap(lambda key: nnx.Linear(20, 30, rngs=nnx.Rngs(key)), out_axes=1)
            self.stacked = make(jax.random.split(jax.random.key(0), 3))

    new, report = sketchify(Odd(rngs=nnx.Rngs(0)), [Rule("*", rank=2)], rngs=nnx.Rngs(1))
    notes = {row.path: row.note for row in report.rows}
    assert all(row.rank is None for row in report.rows)
    assert notes["mine"] == "a subclass, which may compute otherwise"
    assert notes["masked"] == "its kernel is masked"
    assert notes["wrapped"] == "a transposed convolution with circular padding"
    assert notes["scaled"] == "its kernel of shape (20, 20) has no matrix view"
    assert notes["dot"] == "it has its own dot_general"
    assert notes["tied_1"] == notes["tied_2"] == "its kernel is tied to another layer's"
    stacked = "its kernel of shape (20, 3, 30) stacks layers along axis (1,), not in front"
    assert notes["stacked"] == stacked
    assert new.tied_1.kernel is new.tied_2.kernel


@pytest.mark.parametrize("mode", MODES)
def test_bias_and_dtypes_are_kept(mode):
    model = nnx.Linear(20, 30, dtype=jnp.bfloat16, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    model.bias[...] = jnp.arange(30, dtype=jnp.bfloat16)
    for from_weights in (False, True):
        new, _ = sketchify(
            model, [Rule("*", rank=2, mode=mode)], rngs=nnx.Rngs(1), from_weights=from_weights
        )
        assert new.dtype == new.param_dtype == new.u[...].dtype == jnp.bfloat16
        assert new(jnp.ones((2, 20))).dtype == jnp.bfloat16
        np.testing.assert_array_equal(new.bias[...], model.bias[...])
        new.bias[...] = jnp.zeros(30, jnp.bfloat16)
        assert float(model.bias[...][-1]) == 29  # the copy's bias is its own


CONVS = [
    dict(strides=2, padding="VALID"),
    dict(padding="CIRCULAR", kernel_dilation=2),
    dict(padding=((1, 0), (2, 1)), input_dilation=2, use_bias=False),
    dict(feature_group_count=4, strides=(1, 2)),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", CONVS)
def test_a_convolution_computes_with_the_matrix_that_it_stands_for(mode, options):
    """nnx.Conv with the reconstructed kernel in it, all else as given, is the reference."""
    model = nnx.Conv(16, 32, (3, 3), rngs=nnx.Rngs(0), **options)
    rule = Rule("*", rank=2, mode=mode, oversampling=1)
    new, report = sketchify(model, [rule], rngs=nnx.Rngs(1), from_weights=True)
    assert type(new) is SketchConv
    g = model.feature_group_count
    approx = jnp.stack(_matrix(new))  # (g, m, n)
    kernel = jnp.moveaxis(approx, 0, 1).reshape(model.kernel[...].shape)
    error = jnp.linalg.norm(kernel - model.kernel[...]) / jnp.linalg.norm(model.kernel[...])
    assert float(error) == pytest.approx(report.rows[0].error, rel=1e-3)
    assert (report.rows[0].in_features, report.rows[0].out_features) == (9 * 16 // g, 32 // g)
    x = jax.random.normal(jax.random.key(2), (2, 9, 8, 16))
    reference = nnx.clone(model)
    reference.kernel[...] = kernel
    np.testing.assert_allclose(new(x), reference(x), atol=2e-4)


@pytest.mark.parametrize("mode", ("chain", "ares"))
@pytest.mark.parametrize("groups", (1, 2))
def test_weights_of_low_rank_are_taken_over_exactly(mode, groups):
    """W of rank s: both forms hold it, up to the core's ridge (1e-6 relative, cond(A) of tens)."""
    key = jax.random.key(3)
    model = nnx.Conv(8, 24, (3, 3), feature_group_count=groups, rngs=nnx.Rngs(0))
    m, n = 72 // groups, 24 // groups
    left, right = jax.random.normal(key, (groups, m, 3)), jax.random.normal(key, (groups, 3, n))
    model.kernel[...] = jnp.moveaxis(left @ right, 0, 1).reshape(model.kernel[...].shape)
    new, report = sketchify(
        model, [Rule("*", rank=3, mode=mode)], rngs=nnx.Rngs(1), from_weights=True
    )
    assert report.rows[0].error < 1e-2
    x = jax.random.normal(key, (2, 6, 6, 8))
    assert jnp.linalg.norm(new(x) - model(x)) < 1e-2 * jnp.linalg.norm(model(x))


@pytest.mark.parametrize("method", ("svd", "nystrom", "cur"))
def test_the_error_of_every_method_is_at_least_the_optimum(method):
    model = nnx.Linear(40, 30, rngs=nnx.Rngs(0))
    w = np.array(model.kernel[...], np.float64)
    sigma = np.linalg.svd(w, compute_uv=False)
    best = np.linalg.norm(sigma[5:]) / np.linalg.norm(sigma)
    new, report = sketchify(
        model, [Rule("*", rank=5)], rngs=nnx.Rngs(1), from_weights=True, method=method
    )
    error = np.linalg.norm(np.array(_matrix(new)[0], np.float64) - w) / np.linalg.norm(w)
    assert report.rows[0].error == pytest.approx(error, rel=1e-4)
    assert error >= best * (1 - 1e-5)
    if method == "svd":  # flat spectrum: two power iterations come close, not there
        assert error <= 1.02 * best


def test_the_sketches_of_an_ares_layer_are_those_of_one_matrix():
    model = nnx.Linear(40, 30, rngs=nnx.Rngs(0))
    rule = Rule("*", rank=4, mode="ares", oversampling=2)
    new, _ = sketchify(model, [rule], rngs=nnx.Rngs(1), from_weights=True)
    psi, omega = (np.array(rk.materialize(s), np.float64) for s in new.sketches())
    assert psi.shape == (40, 6)
    np.testing.assert_allclose(psi.T @ new.c[...], new.u[...].T, atol=1e-5)
    np.testing.assert_allclose(new.r[...] @ omega, new.u[...].T, atol=1e-5)
    assert float(new.parallel[...]) == 1.0


def test_the_seeded_core_is_the_least_squares_one():
    model = nnx.Linear(40, 30, rngs=nnx.Rngs(0))
    rule = Rule("*", rank=6, mode="seeded", in_sketch=12, sketch="gaussian")
    new, report = sketchify(model, [rule], rngs=nnx.Rngs(1), from_weights=True)
    psi, omega = (np.array(rk.materialize(s), np.float64) for s in new.sketches())
    w = np.array(model.kernel[...], np.float64)
    a = np.sqrt(12 / 40)
    u = np.linalg.pinv(psi) @ w @ np.linalg.pinv(omega.T) / a
    np.testing.assert_allclose(new.u[...], u, atol=1e-4 * np.abs(u).max())
    error = np.linalg.norm(w - a * psi @ u @ omega.T) / np.linalg.norm(w)
    assert report.rows[0].error == pytest.approx(error, rel=1e-4)
    # The residual is orthogonal to every change of the core.
    residual = w - np.array(_matrix(new)[0], np.float64)
    assert np.abs(psi.T @ residual @ omega).max() < 1e-4 * np.linalg.norm(w)


@pytest.mark.slow
def test_the_report_prints_a_plain_table():
    rngs = nnx.Rngs(0)
    model = nnx.Sequential(nnx.Conv(3, 64, (3, 3), rngs=rngs), nnx.Linear(2000, 500, rngs=rngs))
    _, report = sketchify(model, [Rule("*", rank=4)], rngs=rngs, from_weights=True)
    lines = str(report).splitlines()
    head = ["path", "kind", "in", "out", "rank", "before", "after", "error", "note"]
    assert lines[0].split() == head
    assert lines[2].split()[:8] == ["layers.0", "Conv", "->", "chain", "27", "64", "4", "1,792"]
    after = 4 * (2000 + 500) + 16 + 500
    assert lines[3].split()[7:9] == ["1,000,500", f"{after:,}"]
    assert lines[-1].split() == ["model", "1,002,292", f"{after + 4 * 91 + 16 + 64:,}"]
    assert str(report).isascii() and max(map(len, lines)) == len(lines[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Rule("*"), r"rule '\*' has rank None; pass rank= or skip=True"),
        (lambda: Rule("*", rank=0), "has rank 0; pass rank >= 1"),
        (lambda: Rule("*", rank=1.5), "has rank 1.5; a float is a fraction"),
        (lambda: Rule("*", rank=0.0), "has rank 0.0; a float is a fraction"),
        (lambda: Rule("*", rank=1, mode="dense"), "unknown mode 'dense'"),
    ],
)
def test_bad_rules_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_bad_arguments_are_refused():
    model = nnx.Linear(20, 20, rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="sequence of Rule"):
        sketchify(model, Rule("*", rank=1), rngs=nnx.Rngs(0))
    with pytest.raises(TypeError, match="sequence of Rule"):
        sketchify(model, ["*"], rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="unknown method 'qr'"):
        sketchify(model, [Rule("*", rank=1)], rngs=nnx.Rngs(0), method="qr")


class Everything(nnx.Module):
    """One layer of each kind that a sketch layer can stand for, each at an interface of its own."""

    def __init__(self, rngs):
        self.attention = nnx.MultiHeadAttention(4, 32, decode=False, rngs=rngs)
        self.heads = nnx.Einsum("BTD,NDH->BTNH", (4, 32, 8), bias_shape=(4, 8), rngs=rngs)
        self.experts = nnx.Einsum("BTNH,NHF->BTNF", (4, 8, 12), rngs=rngs)
        self.lora = nnx.LoRALinear(32, 32, lora_rank=2, rngs=rngs)
        self.up = nnx.ConvTranspose(32, 24, (3,), strides=2, rngs=rngs)
        self.back = nnx.ConvTranspose(
            32, 24, (4,), strides=3, padding="VALID", transpose_kernel=True, rngs=rngs
        )
        make = nnx.vmap(lambda key: nnx.Linear(32, 32, precision="highest", rngs=nnx.Rngs(key)))
        self.stack = make(jax.random.split(rngs.params(), 3))

    def __call__(self, x):
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(layer, x):
            return jnp.tanh(layer(x))

        h = run(self.stack, self.lora(self.attention(x)))
        return self.up(h), self.back(h), self.experts(self.heads(h))


@pytest.fixture(scope="module")
def everything():
    return Everything(nnx.Rngs(0)), jax.random.normal(jax.random.key(1), (2, 6, 32))


@pytest.mark.slow
@pytest.mark.parametrize("mode", (*MODES, "two-factor"))
def test_every_kind_of_layer_is_reached_and_computes_what_its_factors_say(everything, mode):
    model, x = everything
    rules = [Rule("*", rank=3, mode=mode)]
    new, report = sketchify(model, rules, rngs=nnx.Rngs(2), from_weights=True)
    assert all(row.rank == 3 for row in report.rows) and len(report.rows) == 10
    # The dense model with the represented matrices in its kernels is the reference.
    reference, views = nnx.clone(model), matrix_views(model)
    modules = {"/".join(map(str, path)): module for path, module in nnx.iter_modules(new)}
    errors = {row.path.replace(".", "/"): row.error for row in report.rows}
    for path, module in nnx.iter_modules(reference):
        name = "/".join(map(str, path))
        if name not in errors:
            continue
        kernel, row = module.kernel[...], views[f"{name}/kernel"]
        layer = modules["lora/base_module" if name == "lora" else name]
        matrices = jnp.concatenate([jnp.stack(_matrix(one)) for one in _layers_of(layer)])
        if name == "back":  # as a convolution that is not flipped
            matrices = jnp.flip(matrices.reshape(4, 32, 24), 0).swapaxes(0, 1)
            rebuilt = matrices.transpose(1, 2, 0)
        else:
            rebuilt = row.view.from_matrices(matrices, kernel.shape)
        module.kernel[...] = rebuilt
        error = jnp.linalg.norm(rebuilt - kernel) / jnp.linalg.norm(kernel)
        assert float(error) == pytest.approx(errors[name], rel=1e-3), name
    for a, b in zip(new(x), reference(x), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)
    grads = nnx.grad(lambda m: sum((y**2).mean() for y in m(x)))(new)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))


def _layers_of(layer):
    """The layers of a stack, or the one."""
    held = layer.u if layer.r is None else layer.r
    if type(layer) is not SketchLinear or held[...].ndim == 2:
        return [layer]
    graphdef, state = nnx.split(layer)
    depth = held[...].shape[0]
    return [nnx.merge(graphdef, jax.tree.map(lambda v, i=i: v[i], state)) for i in range(depth)]


def test_your_own_layers_come_in_by_an_adapter():
    class MyEinsum(nnx.Module):
        def __init__(self, rngs):
            self.w = nnx.Param(jax.random.normal(rngs.params(), (20, 4, 8)))

        def __call__(self, x):
            return jnp.einsum("td,dnh->tnh", x, self.w[...])

    def adapt(layer):
        known = nnx.Einsum("td,dnh->tnh", (20, 4, 8), rngs=nnx.Rngs(0))
        known.kernel = layer.w
        return known

    model = nnx.List([MyEinsum(nnx.Rngs(0))])
    same, report = sketchify(model, [Rule("*", rank=3)], rngs=nnx.Rngs(1))
    assert type(same[0]) is MyEinsum and not report.rows
    rules, adapters = [Rule("*", rank=20)], {MyEinsum: adapt}
    same, report = sketchify(model, rules, rngs=nnx.Rngs(1), adapters=adapters)
    assert type(same[0]) is MyEinsum and "not be smaller" in report.rows[0].note
    new, _ = sketchify(
        model, [Rule("*", rank=12)], rngs=nnx.Rngs(1), adapters=adapters, from_weights=True
    )
    x = jnp.ones((5, 20))
    error = jnp.linalg.norm(new[0](x) - model[0](x)) / jnp.linalg.norm(model[0](x))
    assert type(new[0]) is SketchEinsum and float(error) < 0.9


def test_metadata_names_of_axes_and_placement_are_kept():
    mesh = jax.make_mesh((1, 1), ("rows", "columns"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("rows", "columns"))
        model = nnx.Linear(20, 30, kernel_init=init, kernel_metadata={"tag": 7}, rngs=nnx.Rngs(0))
    new, _ = sketchify(model, [Rule("*", rank=3, mode="ares")], rngs=nnx.Rngs(1))
    names = {k: tuple(getattr(new, k).get_metadata()["out_sharding"]) for k in "cur"}
    assert names == {"c": ("rows", None), "u": (None, None), "r": (None, "columns")}
    assert {getattr(new, k).get_metadata()["tag"] for k in "cur"} == {7}
    assert new.c[...].sharding.spec == P("rows", None)
    assert new.bias.get_metadata() == model.bias.get_metadata()


def test_a_zero_kernel_has_no_error():
    model = nnx.Linear(20, 30, kernel_init=nnx.initializers.zeros_init(), rngs=nnx.Rngs(0))
    for mode in MODES:
        rules = [Rule("*", rank=3, mode=mode)]
        new, report = sketchify(model, rules, rngs=nnx.Rngs(1), from_weights=True)
        assert report.rows[0].error == 0.0
        assert not jnp.any(new(jnp.ones(20)))
