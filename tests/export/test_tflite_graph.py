"""Any model as a TFLite file, in LiteRT and in the interpreter of TFLite Micro."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from public_models import MODELS
from test_tflite import FLOAT, litert
from tiny_models import BUILDERS, INPUTS, randomise

from rosler_jax.export._errors import ExportError
from rosler_jax.export.tflite import tflite_model
from rosler_jax.graph import Graph, run, trace

Arrays = list[np.ndarray]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def whole(high: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, high, shape).astype(np.int32)


def in_litert(data: bytes, graph: Graph, xs: Arrays) -> Arrays:
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
    assert error(in_litert(data, graph, xs), want) <= tolerance
    ones = [x[:1] for x in xs]
    assert error(in_litert(data, graph, ones), [y[:1] for y in want]) <= tolerance
    if micro:
        pytest.importorskip("tflite_micro")
        twos = [x[:2] for x in xs]
        assert error(in_micro(data, twos), [y[:2] for y in want]) <= tolerance


# --- every kind, in floats ----------------------------------------------------------------------

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
        lambda i: (i * 3 - 7, (i == 2) | (i != 5), jnp.abs(4 - i), jnp.clip(i, 2, 5), jnp.sign(i - 3)),
        (whole(9, 4, 5),),
    ),
    "select_whole": (
        lambda i: (jnp.where(i > 4, i, 7), jnp.where(i > 4, i > 6, i < 2)), (whole(9, 4, 5),)
    ),
    "rem_whole": (lambda i: jax.lax.rem(i - 4, jnp.int32(3)), (whole(9, 4, 5),)),
    "pow": (lambda x: jnp.abs(x) ** 1.7, (normal(4, 5),)),
    "atan2": (jnp.arctan2, (normal(4, 5), normal(4, 5, seed=1))),
    "prod": (lambda x: jnp.prod(x, 1), (normal(4, 5),)),
    "linear": (nnx.Linear(5, 3, rngs=nnx.Rngs(0)), (normal(4, 2, 5),)),
    "conv": (nnx.Conv(3, 4, (3, 2), strides=2, rngs=nnx.Rngs(0)), (normal(4, 7, 8, 3),)),
    "conv_of_a_series": (nnx.Conv(3, 4, (3,), padding="CAUSAL", rngs=nnx.Rngs(0)), (normal(4, 7, 3),)),
    "conv_groups": (nnx.Conv(4, 6, (3, 3), feature_group_count=2, rngs=nnx.Rngs(0)), (normal(4, 5, 6, 4),)),
    "depthwise": (
        nnx.Conv(3, 6, (3, 3), strides=(2, 1), feature_group_count=3, rngs=nnx.Rngs(0)),
        (normal(4, 5, 6, 3),),
    ),
    "depthwise_spread": (
        nnx.Conv(3, 3, (3, 3), kernel_dilation=2, feature_group_count=3, rngs=nnx.Rngs(0)),
        (normal(4, 8, 9, 3),),
    ),
    "conv_transpose": (nnx.ConvTranspose(3, 4, (3, 3), strides=(2, 2), rngs=nnx.Rngs(0)), (normal(4, 4, 5, 3),)),
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
    "embed_one": (lambda i: jnp.asarray(normal(9, 4))[i], (whole(9, 4),)),
    "cumsum": (lambda x: jnp.cumsum(x, 1), (normal(4, 5, 3),)),
    "cumsum_back": (lambda x: jax.lax.cumsum(x, 2, reverse=True), (normal(4, 5, 3),)),
    "cummax": (lambda x: jax.lax.cummax(x, 1), (normal(4, 5, 3),)),
    "cumprod_back": (lambda x: jax.lax.cumprod(x, 1, reverse=True), (normal(4, 5, 3),)),
    "max_pool": (lambda x: nnx.max_pool(x, (2, 3), (2, 1), "VALID"), (normal(4, 7, 8, 3),)),
    "max_pool_same": (lambda x: nnx.max_pool(x, (3, 3), (2, 2), "SAME"), (-normal(4, 7, 8, 3) ** 2,)),
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

NOT_IN_MICRO = {"rem_whole", "pow", "atan2", "prod", "conv_of_volumes"}
"""For which TFLite Micro has no operator."""


@pytest.mark.parametrize("name", LAYERS)
def test_layers_in_floats(name: str) -> None:
    f, xs = LAYERS[name]
    check(trace(f, *xs), list(xs), micro=name not in NOT_IN_MICRO)


def test_a_slice_from_a_computed_start() -> None:
    xs = [normal(6, 7, 3), np.int32([-9, -2, 0, 2, 5, 9])]
    for f in (
        lambda x, i: jax.lax.dynamic_slice_in_dim(x, i, 2),
        lambda x, i: jax.lax.dynamic_slice_in_dim(jnp.arange(14.0).reshape(7, 2), i, 3),
    ):
        check(trace(f, xs[0][0], xs[1][0], batch_axes=None, out_axes=None), xs)
