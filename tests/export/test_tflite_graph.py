"""Any model as a TFLite file, in LiteRT and in the interpreter of TFLite Micro."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from made_once import outputs_of
from public_models import MODELS
from test_tflite import FLOAT, litert
from tiny_models import BUILDERS, INPUTS, randomise

from rosler_jax.export._errors import ExportError
from rosler_jax.export.tflite import tflite_model
from rosler_jax.graph import Graph, Value, Window, run, trace
from rosler_jax.graph.kinds import KernelGrad, Unpool

Arrays = list[np.ndarray]

SIXTEEN = 5e-4  # activations of 16 bits
EIGHT = 3e-2  # activations of 8 bits, a few operations deep


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(high: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, high, shape).astype(np.int32)


def in_litert(data: bytes, xs: Arrays) -> Arrays:
    interpreter = litert.Interpreter(model_content=data, num_threads=1)
    details = interpreter.get_input_details()
    for detail, x in zip(details, xs, strict=True):
        if len(x) != 1:
            interpreter.resize_tensor_input(detail["index"], x.shape)
    interpreter.allocate_tensors()
    for detail, x in zip(details, xs, strict=True):
        interpreter.set_tensor(detail["index"], x)
    interpreter.invoke()
    return [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]


def in_micro(data: bytes, xs: Arrays, arena: int = 1 << 21) -> Arrays:
    from tflite_micro.python.tflite_micro import runtime

    interpreter = runtime.Interpreter.from_bytes(data, arena_size=arena)
    out: list[list[np.ndarray]] = []
    for example in zip(*xs, strict=True):
        for i, x in enumerate(example):
            interpreter.set_input(x[None], i)
        interpreter.invoke()
        count = len(out[0]) if out else _outputs(interpreter)
        out.append([np.array(interpreter.get_output(i)) for i in range(count)])
    return [np.concatenate(column) for column in zip(*out, strict=True)]


def _outputs(interpreter: Any) -> int:
    count = 0
    while True:
        try:
            interpreter.get_output(count)
        except IndexError:
            return count
        count += 1


def expected(graph: Graph, xs: Arrays) -> Arrays:
    return [np.asarray(y) for y in jax.vmap(lambda *x: run(graph, x))(*xs)]


def error(got: Arrays, want: Arrays) -> float:
    """The largest error, beside the largest number of each output (at least 1)."""
    assert len(got) == len(want)
    worst = 0.0
    for y, z in zip(got, want, strict=True):
        assert y.shape == z.shape
        assert y.dtype == z.dtype
        if z.dtype != np.float32:
            assert np.array_equal(y, z)
            continue
        assert np.array_equal(np.isfinite(y), np.isfinite(z))
        finite = np.isfinite(z)
        size = max(1.0, np.abs(z[finite]).max(initial=0.0))
        worst = max(worst, float(np.abs(y - z)[finite].max(initial=0.0) / size))
    return worst


def check(
    graph: Graph, xs: Arrays, tolerance: float = FLOAT, micro: bool = True, **options: Any
) -> None:
    data, want = tflite_model(graph, **options), expected(graph, xs)
    assert error(in_litert(data, xs), want) <= tolerance
    ones = [x[:1] for x in xs]
    assert error(in_litert(data, ones), [y[:1] for y in want]) <= tolerance
    if micro:
        pytest.importorskip("tflite_micro")
        twos = [x[:2] for x in xs]
        assert error(in_micro(data, twos), [y[:2] for y in want]) <= tolerance


def options_of(xs: Arrays, activations: int) -> dict[str, Any]:
    """Of a file of integers that these inputs calibrate."""
    calibration = xs if len(xs) > 1 else xs[0]
    return {"bits": 8, "calibration": calibration, "activations": activations}


def operators_of(data: bytes) -> list[str]:
    interpreter = litert.Interpreter(model_content=data)
    return [op["op_name"] for op in interpreter._get_ops_details()]


# --- every kind ----------------------------------------------------------------------


def causal(x: Any) -> Any:
    attention = nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0))
    return attention(x, mask=nnx.make_causal_mask(x[..., 0]))


LAYERS: dict[str, tuple[Callable[..., Any], tuple[np.ndarray, ...]]] = {
    "relu": (nnx.relu, (normal(4, 7),)),
    "relu6": (nnx.relu6, (4 * normal(4, 7),)),
    "clamp": (lambda x: jnp.clip(x, -0.5, 0.7), (normal(4, 7),)),
    "gelu": (nnx.gelu, (normal(4, 7),)),
    "gelu_exact": (lambda x: nnx.gelu(x, approximate=False), (2 * normal(4, 7),)),
    "tanh": (jnp.tanh, (normal(4, 7),)),
    "sigmoid": (nnx.sigmoid, (normal(4, 7),)),
    "silu": (nnx.silu, (normal(4, 7),)),
    "hard_sigmoid": (nnx.hard_sigmoid, (3 * normal(4, 7),)),
    "hard_swish": (nnx.hard_silu, (3 * normal(4, 7),)),
    "softplus": (nnx.softplus, (9 * normal(4, 7),)),
    "elu": (nnx.elu, (normal(4, 7),)),
    "neg": (lambda x: -x, (normal(4, 7),)),
    "abs": (jnp.abs, (normal(4, 7),)),
    "sign": (jnp.sign, (np.float32([[1, -2, 0]] * 2),)),
    "floor": (jnp.floor, (3 * normal(4, 7),)),
    "ceil": (jnp.ceil, (3 * normal(4, 7),)),
    "round": (jnp.round, (np.float32([[0.5, 1.5, -0.5, 2.4]] * 2),)),
    "exp": (jnp.exp, (normal(4, 7),)),
    "expm1": (jnp.expm1, (normal(4, 7),)),
    "log": (jnp.log, (np.abs(normal(4, 7)) + 0.1,)),
    "log1p": (jnp.log1p, (np.abs(normal(4, 7)),)),
    "sqrt": (jnp.sqrt, (np.abs(normal(4, 7)),)),
    "rsqrt": (jax.lax.rsqrt, (np.abs(normal(4, 7)) + 0.1,)),
    "cbrt": (jnp.cbrt, (normal(4, 7),)),
    "sin": (jnp.sin, (normal(4, 7),)),
    "cos": (jnp.cos, (normal(4, 7),)),
    "erf": (jax.lax.erf, (normal(4, 7),)),
    "square": (lambda x: x**2, (normal(4, 7),)),
    "power": (lambda x: x**-5, (np.abs(normal(4, 7)) + 1,)),
    "isfinite": (jnp.isfinite, (np.float32([[1, np.inf, np.nan, -np.inf]] * 2),)),
    "add": (jnp.add, (normal(4, 3, 5), normal(4, 3, 5, seed=1))),
    "sub": (lambda x: 1.5 - x, (normal(4, 3, 5),)),
    "mul": (lambda x, y: x * y[:, :, None], (normal(4, 3, 5), normal(4, 3, seed=1))),
    "outer": (lambda x, y: x[:, :, None] * y[:, None], (normal(4, 3), normal(4, 5, seed=1))),
    "div": (lambda x, y: x / (1 + y * y), (normal(4, 3, 5), normal(4, 3, 5, seed=1))),
    "rem": (lambda x: jax.lax.rem(x, jnp.float32(0.7)), (normal(4, 5),)),
    "max": (jnp.maximum, (normal(4, 5), normal(4, 5, seed=1))),
    "min": (lambda x: jnp.minimum(x, 0.2), (normal(4, 5),)),
    "select": (lambda x, y: jnp.where(x > y, x, -1.0), (normal(4, 5), normal(4, 5, seed=1))),
    "logic": (
        lambda x, y: jnp.where(((x > 0) & ~(y < 0)) | (x >= y) ^ (y <= 1), x, y),
        (normal(4, 5), normal(4, 5, seed=1)),
    ),
    "whole": (
        lambda i: (i * 3 - 7, (i == 2) | (i != 5), abs(4 - i), jnp.clip(i, 2, 5), jnp.sign(i - 3)),
        (whole(9, 4, 5),),
    ),
    "select_whole": (
        lambda i: (jnp.where(i > 4, i, 7), jnp.where(i > 4, i > 6, i < 2)), (whole(9, 4, 5),)
    ),
    "rem_whole": (
        lambda i: (
            jax.lax.rem(i - 4, jnp.int32(3)), jax.lax.rem(i, i - 4), jax.lax.div(i - 9, i - 4)
        ),
        (whole(9, 4, 5),),
    ),
    "pow": (lambda x: jnp.abs(x) ** 1.7, (normal(4, 5),)),
    "atan2": (jnp.arctan2, (normal(4, 5), normal(4, 5, seed=1))),
    "atan2_rows": (
        lambda y, x: jnp.arctan2(jnp.arctan2(y[:, None], x), 0.5), (normal(4, 5), normal(4, 3, 5))
    ),
    "prod": (lambda x: jnp.prod(x, 1), (normal(4, 5),)),
    "linear": (nnx.Linear(5, 3, rngs=nnx.Rngs(0)), (normal(4, 2, 5),)),
    "conv": (nnx.Conv(3, 4, (3, 2), strides=2, rngs=nnx.Rngs(0)), (normal(4, 7, 8, 3),)),
    "conv_of_a_series": (
        nnx.Conv(3, 4, (3,), padding="CAUSAL", rngs=nnx.Rngs(0)), (normal(4, 7, 3),)
    ),
    "conv_groups": (
        nnx.Conv(4, 6, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0)), (normal(4, 5, 6, 4),)
    ),
    "depthwise": (
        nnx.Conv(3, 6, (3, 3), strides=(2, 1), feature_group_count=3, rngs=nnx.Rngs(0)),
        (normal(4, 5, 6, 3),),
    ),
    "depthwise_spread": (
        nnx.Conv(3, 3, (3, 3), kernel_dilation=2, feature_group_count=3, rngs=nnx.Rngs(0)),
        (normal(4, 8, 9, 3),),
    ),
    "conv_transpose": (
        nnx.ConvTranspose(3, 4, (3, 3), strides=(2, 2), rngs=nnx.Rngs(0)), (normal(4, 4, 5, 3),)
    ),
    "layer_norm": (nnx.LayerNorm(5, rngs=nnx.Rngs(0)), (normal(4, 2, 5),)),
    "rms_norm": (nnx.RMSNorm(5, rngs=nnx.Rngs(0)), (normal(4, 2, 5),)),
    "conv_of_volumes": (nnx.Conv(2, 3, (2, 3, 2), rngs=nnx.Rngs(0)), (normal(2, 4, 5, 3, 2),)),
    "to_float": (lambda i: i.astype(jnp.float32) / 2, (whole(9, 4, 5),)),
    "to_whole": (lambda x: (3 * x).astype(jnp.int32), (normal(4, 5),)),
    "rows": (lambda x: x + jnp.arange(15.0).reshape(3, 5), (normal(4, 3, 5),)),
    "mean": (lambda x: x.mean((1, 2)), (normal(4, 3, 5, 2),)),
    "mean_of_all": (lambda x: x.mean((1, 2, 3)), (normal(4, 3, 5, 2),)),
    "sum": (lambda x: x.sum(1) * 2, (normal(4, 3, 5),)),
    "sum_apart": (lambda x: x.sum((1, 3)), (normal(4, 3, 5, 2),)),
    "largest": (lambda x: x.max(2), (normal(4, 3, 5),)),
    "least": (lambda x: x.min(1), (normal(4, 3, 5),)),
    "all": (lambda x: jnp.all(x > -1, 1), (normal(4, 5),)),
    "any": (lambda x: jnp.any(x > 1, 1), (normal(4, 5),)),
    "argmax": (lambda x: jnp.argmax(x, 2), (normal(4, 3, 5),)),
    "argmin": (lambda x: jnp.argmin(x, 1), (normal(4, 3, 5),)),
    "softmax": (nnx.softmax, (normal(4, 3, 5),)),
    "log_softmax": (nnx.log_softmax, (normal(4, 3, 5),)),
    "masked": (
        lambda x: nnx.softmax(jnp.where(jnp.tril(jnp.ones((5, 5), bool)), x, -1e9)),
        (normal(4, 5, 5),),
    ),
    "unit_rows": (
        lambda x: x / jnp.linalg.norm(x, axis=-1, keepdims=True), (normal(4, 3, 5),)
    ),
    "deviation": (lambda x: x.std(1), (normal(4, 9, 5),)),
    "causal_attention": (causal, (normal(4, 5, 6),)),
    "group_norm": (nnx.GroupNorm(8, num_groups=2, rngs=nnx.Rngs(0)), (normal(4, 3, 5, 8),)),
    "gru": (nnx.RNN(nnx.GRUCell(5, 7, rngs=nnx.Rngs(0))), (normal(4, 6, 5),)),
    "resize": (lambda x: jax.image.resize(x, (len(x), 8, 6, 2), "bilinear"), (normal(4, 4, 3, 2),)),
    "depth_to_space": (
        lambda x: x.reshape(-1, 3, 4, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 6, 8, 2),
        (normal(4, 3, 4, 8),),
    ),
    "matmul": (lambda x, y: x @ y, (normal(4, 3, 5), normal(4, 5, 2, seed=1))),
    "scores": (
        lambda x, y: jnp.einsum("bqhd,bkhd->bhqk", x, y),
        (normal(4, 3, 2, 5), normal(4, 6, 2, 5, seed=1)),
    ),
    "heads": (
        lambda x: jnp.einsum("bhd,hde->bhe", x, normal(3, 5, 2, seed=1)),
        (normal(4, 3, 5),),
    ),
    "transpose": (lambda x: x.transpose(0, 2, 3, 1), (normal(4, 3, 5, 2),)),
    "transpose_apart": (lambda x: x.transpose(0, 3, 2, 1), (normal(4, 3, 5, 2),)),
    "concat": (lambda x, y: jnp.concatenate([x, y], 2), (normal(4, 3, 5), normal(4, 3, 2))),
    "concat_many": (lambda x: jnp.concatenate([x * i for i in range(1, 13)], 1), (normal(4, 3),)),
    "concat_volumes": (
        lambda x, y: jnp.concatenate([x, y], 2),
        (normal(4, 3, 5, 2, 2), normal(4, 3, 1, 2, 2)),
    ),
    "token": (
        lambda x: jnp.concatenate([jnp.ones((len(x), 1, 5)), x], 1), (normal(4, 3, 5),)
    ),
    "slice": (lambda x: x[:, 1:3, 2:], (normal(4, 5, 6),)),
    "stride": (lambda x: x[:, ::2, 1::3], (normal(4, 5, 7),)),
    "reverse": (lambda x: x[:, ::-1], (normal(4, 5, 3),)),
    "pad": (lambda x: jnp.pad(x, ((0, 0), (1, 2), (0, 3))), (normal(4, 5, 3),)),
    "pad_with": (
        lambda x: jnp.pad(x, ((0, 0), (1, 0), (0, 1)), constant_values=2.5), (normal(4, 5, 3),)
    ),
    "wrap": (lambda x: jnp.pad(x, ((0, 0), (2, 1)), mode="wrap"), (normal(4, 5),)),
    "repeat": (lambda x: jnp.repeat(x, 3, 1), (normal(4, 5),)),
    "embed": (lambda i: jnp.asarray(normal(9, 4))[i], (whole(9, 4, 5),)),
    "embed_from_the_end": (lambda i: jnp.asarray(normal(9, 4))[i - 4], (whole(9, 4, 5),)),
    "conv_of_many": (
        lambda x: jax.vmap(nnx.Conv(2, 3, (3, 3), rngs=nnx.Rngs(0)))(x), (normal(4, 2, 5, 6, 2),)
    ),
    "scanned_convs": (
        lambda x: jax.lax.scan(
            lambda h, k: (nnx.relu(
                jax.lax.conv_general_dilated(
                    h, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
                )
            ), None), x, jnp.asarray(0.3 * normal(3, 3, 3, 2, 2)),
        )[0],
        (normal(4, 5, 6, 2),),
    ),
    "embed_one": (lambda i: jnp.asarray(normal(9, 4))[i], (whole(9, 4),)),
    "cumsum": (lambda x: jnp.cumsum(x, 1), (normal(4, 5, 3),)),
    "cumsum_back": (lambda x: jax.lax.cumsum(x, 2, reverse=True), (normal(4, 5, 3),)),
    "cummax": (lambda x: jax.lax.cummax(x, 1), (normal(4, 5, 3),)),
    "cumprod_back": (lambda x: jax.lax.cumprod(x, 1, reverse=True), (normal(4, 5, 3),)),
    "max_pool": (lambda x: nnx.max_pool(x, (2, 3), (2, 1), "VALID"), (normal(4, 7, 8, 3),)),
    "max_pool_same": (
        lambda x: nnx.max_pool(x, (3, 3), (2, 2), "SAME"), (-normal(4, 7, 8, 3) ** 2,)
    ),
    "max_pool_padded": (
        lambda x: nnx.max_pool(x, (3, 3), (2, 2), ((1, 1), (2, 0))), (-normal(4, 7, 8, 3) ** 2,)
    ),
    "avg_pool": (lambda x: nnx.avg_pool(x, (2, 2), (2, 2)), (normal(4, 7, 8, 3),)),
    "avg_pool_same": (lambda x: nnx.avg_pool(x, (3, 3), (2, 2), "SAME"), (normal(4, 7, 8, 3),)),
    "pool_of_a_series": (lambda x: nnx.max_pool(x, (3,), (2,)), (normal(4, 9, 3),)),
    "pool_of_volumes": (lambda x: nnx.max_pool(x, (2, 2, 2), (1, 2, 1)), (normal(4, 4, 5, 3, 2),)),
    "mean_of_volumes": (lambda x: nnx.avg_pool(x, (2, 2, 2), (2, 2, 2)), (normal(4, 4, 5, 3, 2),)),
    "nothing": (lambda x: x, (normal(4, 5),)),
    "reshape": (lambda x: x.reshape(len(x), -1), (normal(4, 5, 3),)),
    "constant": (lambda x: (x, jnp.ones((len(x), 3)), x, x * 2), (normal(4, 5),)),
    "pick": (
        lambda x, i: jnp.take_along_axis(x, i[:, None], 1), (normal(4, 6), np.int32([0, 2, 3, 5]))
    ),
    "scan": (
        lambda x: jax.lax.scan(
            lambda h, u: (jnp.tanh(h * 0.5 + u), h * 2), jnp.zeros(x[:, 0].shape), x.swapaxes(0, 1)
        )[1].swapaxes(0, 1),
        (normal(4, 6, 3),),
    ),
    "scan_back": (
        lambda x: jax.lax.scan(
            lambda h, u: (h * 0.5 + u, None), x[:, 0], x.swapaxes(0, 1), reverse=True
        )[0],
        (normal(4, 6, 3),),
    ),
}  # fmt: skip

NOT_IN_MICRO = {"pow", "atan2", "atan2_rows", "prod", "conv_of_volumes"}
"""For which TFLite Micro has no operator."""


@pytest.mark.parametrize("name", LAYERS)
def test_layers_in_floats(name: str) -> None:
    f, xs = LAYERS[name]
    check(trace(f, *xs), list(xs), micro=name not in NOT_IN_MICRO)


STORED = {
    "linear": 1e-2, "conv": 1e-2, "depthwise": 1e-2, "embed": 1e-2, "heads": 1e-2, "gru": 1e-2,
    "resize": 1e-2, "causal_attention": 6e-2, "scanned_convs": 3e-2,
}  # fmt: skip
"""Error of weights of 8 bits that the model has as floats, by what names begin with."""
NOT_REAL = {
    "isfinite", "all", "any", "argmax", "argmin", "to_whole", "whole", "select_whole", "rem_whole",
    "round", "conv_of_volumes",
}  # fmt: skip
"""What gives whole numbers, which steps of integers may change, or has no integers at all."""


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in NOT_REAL])
@pytest.mark.parametrize(("activations", "tolerance"), [(16, SIXTEEN), (8, EIGHT)])
def test_layers_in_integers(name: str, activations: int, tolerance: float) -> None:
    f, xs = LAYERS[name]
    stored = max((t for kind, t in STORED.items() if name.startswith(kind)), default=0.0)
    tolerance = max(tolerance, stored)
    micro = name not in NOT_IN_MICRO
    check(trace(f, *xs), list(xs), tolerance, micro, **options_of(list(xs), activations))


def test_a_slice_from_a_computed_start() -> None:
    xs = [normal(6, 7, 3), np.int32([-9, -2, 0, 2, 5, 9])]
    for f in (
        lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, 2),
        lambda x, i: jax.lax.dynamic_slice_in_dim(jnp.arange(14.0).reshape(7, 2), i, 3),
    ):
        check(trace(f, xs[0][0], xs[1][0], batch_axes=None, out_axes=None), xs)


def test_rows_are_added_where_they_go() -> None:
    def f(i: Any, x: Any) -> Any:
        return jnp.zeros((6, 3)).at[i].add(x, mode="drop")

    xs = [whole(9, 4, 5), normal(4, 5, 3)]
    graph = trace(f, *(x[0] for x in xs), batch_axes=None, out_axes=None)
    check(graph, xs)
    check(graph, xs, 0.0, **options_of(xs, 8))


# --- products in integers -----------------------------------------------------------------------


def test_eight_bits_are_integers_from_end_to_end() -> None:
    model = nnx.Sequential(
        nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)),
        nnx.relu6,
        nnx.Conv(8, 8, (3, 3), feature_group_count=8, rngs=nnx.Rngs(1)),
        nnx.relu,
        lambda x: x.mean((1, 2)),
        nnx.Linear(8, 4, rngs=nnx.Rngs(2)),
    )
    x = normal(32, 6, 7, 3)
    graph = trace(model, x)
    data = tflite_model(graph, **options_of([x], 8))
    assert operators_of(data) == [
        "QUANTIZE", "CONV_2D", "DEPTHWISE_CONV_2D", "MEAN", "FULLY_CONNECTED", "DEQUANTIZE"
    ]  # fmt: skip
    details = litert.Interpreter(model_content=data).get_tensor_details()
    kinds = {
        d["dtype"] for d in details if d["shape"].size and d["name"] not in ("input", "output")
    }
    assert kinds == {np.int8, np.int32}
    scales = [d["quantization_parameters"]["scales"].size for d in details]
    assert scales.count(8) == 4  # two weights and two biases with one scale for each channel
    check(graph, [x], EIGHT, **options_of([x], 8))


def test_versions_are_those_that_know_the_types() -> None:
    import tflite

    x = normal(8, 5, 5, 4)
    graph = trace(nnx.Conv(4, 4, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0)), x)
    graphs = {
        "groups": (tflite_model(graph), {"CONV_2D": 6}),
        "floats": (tflite_model(trace(lambda x: x * x, x)), {"MUL": 1}),
        "bytes": (
            tflite_model(trace(lambda x: nnx.softmax(x.mean(1)), x), **options_of([x], 8)),
            {"QUANTIZE": 1, "MEAN": 2, "SOFTMAX": 2, "DEQUANTIZE": 2},
        ),
    }
    names = {v: k for k, v in vars(tflite.BuiltinOperator).items() if isinstance(v, int)}
    for data, expected in graphs.values():
        model = tflite.Model.GetRootAs(data, 0)
        codes = [model.OperatorCodes(i) for i in range(model.OperatorCodesLength())]
        found = {names[code.BuiltinCode()]: code.Version() for code in codes}
        assert found.items() >= expected.items()


# --- inputs, outputs, weights -------------------------------------------------------------------


def test_several_inputs_and_outputs_have_names() -> None:
    xs = [normal(2, 3), whole(5, 2, 3)]
    graph = trace(lambda x, i: {"sum": x + i, "ids": i}, *xs)
    interpreter = litert.Interpreter(model_content=tflite_model(graph))
    runner = interpreter.get_signature_runner("serving_default")
    assert set(runner.get_input_details()) == {"input_0", "input_1"}
    assert set(runner.get_output_details()) == {"output_sum", "output_ids"}
    check(graph, xs)


def test_a_tied_table_is_stored_once() -> None:
    class Tied(nnx.Module):
        def __init__(self) -> None:
            self.embed = nnx.Embed(50, 200, rngs=nnx.Rngs(0))

        def __call__(self, i: Any) -> Any:
            return self.embed.attend(jnp.tanh(self.embed(i)))

    ids = whole(50, 8, 3)
    graph = trace(Tied(), ids)
    for size, how in ((4, {}), (1, {"bits": 8}), (1, options_of([ids], 8))):
        assert 10000 * size < len(tflite_model(graph, **how)) < 10000 * size + 5000
    check(graph, [ids])
    check(graph, [ids], STORED["embed"], bits=8)


def test_a_batch_may_be_of_any_size() -> None:
    model = nnx.MultiHeadAttention(2, 6, decode=False, rngs=nnx.Rngs(0))
    x = normal(7, 5, 6)
    graph = trace(model, x)
    for n in (1, 3, 7):
        data = tflite_model(graph)
        assert error(in_litert(data, [x[:n]]), expected(graph, [x[:n]])) <= FLOAT


# --- whole models -------------------------------------------------------------------------------

TINY = {"resnet8": 2e-2, "ds_cnn": 3e-2, "mobilenet": 8e-2, "autoencoder": 3e-2}
"""Error of 8 bits throughout with random weights, beside the largest output."""


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_tiny_models(name: str) -> None:
    model = BUILDERS[name]()
    randomise(model, jax.random.key(1))
    x = normal(64, *INPUTS[name])
    graph = trace(model, x[:1])
    want = [np.asarray(model(x[:2]))]
    for tolerance, how in ((FLOAT, {}), (TINY[name], options_of([x], 8))):
        data = tflite_model(graph, **how)
        assert "PAD" not in operators_of(data)  # padding is SAME, inside the operators
        for got in (in_litert(data, [x[:2]]), in_micro(data, [x[:2]])):
            assert error(got, want) <= tolerance


PUBLIC = {
    "vit": (2e-2, None),  # 8 bits: a fresh class token is smaller than a step beside the patches
    "gemma": (4e-2, 8e-2),
    "encoder-decoder": (2e-2, 5e-2),
    "lstm": (2e-2, 5e-2),
    "scanned stack": (2e-2, 8e-2),
}
"""Error of 8-bit weights with activations of 16 and of 8 bits."""


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLIC)
def test_public_models(name: str) -> None:
    build, arguments = MODELS[name]
    model = build()
    xs = [np.asarray(x) for x in arguments(jax.random.key(0))]
    draws = [[np.asarray(x) for x in arguments(jax.random.key(k))] for k in range(1, 16)]
    calibration = [np.concatenate(column) for column in zip(*draws, strict=True)]
    graph, want = trace(model, *xs), [np.asarray(outputs_of(model, *xs))]
    hows: list[tuple[float, dict[str, Any]]] = [(FLOAT, {})]
    for bits, tolerance in zip((16, 8), PUBLIC[name], strict=True):
        hows += [] if tolerance is None else [(tolerance, options_of(calibration, bits))]
    for tolerance, how in hows:
        data = tflite_model(graph, **how)
        assert error(in_litert(data, xs), want) <= tolerance
        assert error(in_micro(data, [x[:1] for x in xs]), [want[0][:1]]) <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize("bits", [16, 8, 4])
def test_stored_bits_of_a_public_model(bits: int) -> None:
    xs = [np.asarray(x) for x in MODELS["gemma"][1](jax.random.key(0))]
    graph = trace(MODELS["gemma"][0](), *xs)
    got = in_litert(tflite_model(graph, bits), xs)
    assert error(got, expected(graph, xs)) <= {16: 2e-3, 8: 4e-2, 4: 0.6}[bits]


# --- what is refused ----------------------------------------------------------------------------


def test_a_long_scan_is_refused_by_name() -> None:
    def sums(x: Any) -> Any:
        return jax.lax.scan(lambda h, u: (h * 0.5 + u, None), jnp.zeros(()), x)[0]

    with pytest.raises(ExportError, match=r"a scan of 129 steps; .* 128 .*\(c, onnx, stablehlo\)"):
        tflite_model(trace(sums, normal(129), batch_axes=None, out_axes=None))


def test_bitwise_functions_are_refused_by_name() -> None:
    graph = trace(lambda i: i & 3, whole(9, 2, 3))
    with pytest.raises(ExportError, match=rf"{graph.ops[-1].name}: .*bitwise.*stablehlo"):
        tflite_model(graph)


def test_calibration_has_an_array_for_each_input() -> None:
    xs = [normal(4, 3), normal(4, 3, seed=1)]
    graph = trace(jnp.add, *xs)
    with pytest.raises(ExportError, match="3 arrays of calibration inputs for 2 inputs"):
        tflite_model(graph, 8, [*xs, xs[0]])
    with pytest.raises(ExportError, match=r"\[4, 2\] examples"):
        tflite_model(graph, 8, [xs[0], xs[1][:2]])
    with pytest.raises(ExportError, match="activations of 4 bits; use 16 or 8"):
        tflite_model(graph, 8, xs, 4)


@pytest.mark.parametrize("kind", [KernelGrad, Unpool])
def test_what_only_gradients_have_is_refused_by_name(kind: type[Any]) -> None:
    values = [Value(k, str(k), shape) for k, shape in enumerate([(4, 4, 2), (2, 2, 2), (4, 4, 2)])]
    pairs = {name: (2, 2) for name in ("size", "strides")}
    ones = {name: (1, 1) for name in ("dilation", "input_dilation")}
    window = Window(**pairs, **ones, padding=((0, 0), (0, 0)))
    shapes = {"in_shapes": (values[0].shape, values[1].shape), "out_shapes": (values[2].shape,)}
    op = kind(name="grad", inputs=(0, 1), outputs=(2,), window=window, **shapes)
    graph = Graph(tuple(values[:2]), (op,), (values[2],))
    with pytest.raises(ExportError, match=f"grad: .* no {kind.__name__}, which is a gradient's"):
        tflite_model(graph)


def test_computed_kernels_are_refused_by_name() -> None:
    def f(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(
            x[None], kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )[0]

    graph = trace(f, normal(4, 4, 2), normal(3, 3, 2, 5), batch_axes=None, out_axes=None)
    with pytest.raises(ExportError, match="a kernel that is computed"):
        tflite_model(graph)
