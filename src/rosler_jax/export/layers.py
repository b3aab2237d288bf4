"""Each kind of layer as plain operations."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

import rosler_kernels as rk
from rosler_jax._quantized import FLOAT_BITS, QuantizedTensor, to_numpy
from rosler_jax.export._errors import ExportError
from rosler_jax.export.graph import (
    Activate,
    Affine,
    Conv,
    Dense,
    Flatten,
    Op,
    Pad,
    PatchProject,
    Pool,
    Project,
    Shape,
    Weight,
    Window,
)
from rosler_jax.network import pool_sides
from rosler_jax.nn import _forward
from rosler_jax.nn._variables import plan_weight
from rosler_jax.quantization import channel_axis

if TYPE_CHECKING:
    from rosler_jax.nn.lifts import ConvLift

Tensors = Mapping[str, Any]


class Layer:
    """One layer's description and its tensors, by role."""

    def __init__(self, index: int, spec: Mapping[str, Any], tensors: Tensors):
        self.index, self.spec, self.tensors = index, spec, tensors
        self.kind = str(spec["kind"])

    def name(self, role: str = "") -> str:
        """Of an operation or a tensor: the layer's place and the role, else its kind."""
        return f"{self.index}/{role or self.kind}"

    def array(self, role: str) -> np.ndarray | None:
        """A vector or seed as NumPy, floats as float32."""
        tensor = self.tensors.get(f"{self.index}/{role}")
        if tensor is None:
            return None
        return to_numpy(tensor) if isinstance(tensor, QuantizedTensor) else np.asarray(tensor)

    def weight(
        self, role: str, shape: Callable[[np.ndarray], np.ndarray], groups: int = 1
    ) -> Weight:
        """A matrix; ``shape`` lays it out, scales are repeated for every group."""
        tensor, name = self.tensors[f"{self.index}/{role}"], self.name(role)
        if not isinstance(tensor, QuantizedTensor) or tensor.bits == FLOAT_BITS:
            values = tensor.values if isinstance(tensor, QuantizedTensor) else tensor
            floats = shape(np.asarray(values, np.float32))
            return Weight(name, floats, None, np.ones((), np.float32), None, FLOAT_BITS)
        integers, scale = np.asarray(tensor.values), np.asarray(tensor.scale, np.float32)
        axis = channel_axis(role, integers.shape)
        if tensor.axis != axis:
            raise ExportError(f"{name}: scales along axis {tensor.axis}; expected {axis}")
        if axis is not None:
            axis -= integers.ndim
            # Filters of a convolution come group by group already; cores and row factors do not.
            repeat = groups if integers.ndim == 3 and role in ("u", "r") else 1
            scale = np.tile(scale, repeat)
        return Weight(name, shape(to_numpy(tensor)), shape(integers), scale, axis, tensor.bits)


def _same(array: np.ndarray) -> np.ndarray:
    return array


def _pointwise(ndim: int) -> Callable[[np.ndarray], np.ndarray]:
    """Cores of all groups ``(g, a, b)`` as the kernel of a 1x1 convolution ``(1, .., a, g b)``."""

    def shape(u: np.ndarray) -> np.ndarray:
        g, a, b = u.shape
        return u.transpose(1, 0, 2).reshape(*(1,) * ndim, a, g * b)

    return shape


def _standardize(layer: Layer, shape: Shape) -> list[Op]:
    with np.errstate(over="ignore"):  # refused below
        mean, std = (np.asarray(layer.spec[name], np.float32) for name in ("mean", "std"))
    if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
        raise ExportError(f"layer {layer.name()}: mean {mean}, std {std}; expected finite, std > 0")
    if any(v.ndim > 1 or v.size not in (1, shape[-1]) for v in (mean, std)):
        raise ExportError(
            f"layer {layer.name()}: a mean of shape {mean.shape} and std of {std.shape} do not go "
            f"with inputs of shape {shape}; expected one number, or one for each of the last axis"
        )
    center, factor = np.broadcast_arrays(mean, np.float32(1.0) / std)
    affine = Affine(
        name=layer.name(), in_shape=shape, out_shape=shape, center=center, factor=factor
    )
    return [affine]


def _flatten(layer: Layer, shape: Shape) -> list[Op]:
    return [Flatten(name=layer.name(), in_shape=shape, out_shape=(math.prod(shape),))]


def _activation(layer: Layer, shape: Shape) -> list[Op]:
    return [Activate(name=layer.name(), in_shape=shape, out_shape=shape, kind=layer.kind)]


def _pool(layer: Layer, shape: Shape) -> list[Op]:
    if len(shape) == 1:  # nothing to pool over
        return [Flatten(name=layer.name(), in_shape=shape, out_shape=shape)]
    window = pool_sides(layer.spec["window"], len(shape) - 1)
    out = (*(n // side for n, side in zip(shape, window, strict=False)), shape[-1])
    kind = "max" if layer.kind == "max_pool" else "mean"
    return [Pool(name=layer.name(), in_shape=shape, out_shape=out, kind=kind, window=window)]


def _batch_norm(layer: Layer, shape: Shape) -> list[Op]:
    epsilon = float(layer.spec.get("epsilon", 1e-5))
    mean, var = layer.array("mean"), layer.array("var")
    assert mean is not None
    assert var is not None
    scale, shift = layer.array("scale"), layer.array("bias")
    factor = np.asarray(1.0 / np.sqrt(var.astype(np.float64) + epsilon), np.float64)
    factor = factor if scale is None else factor * scale
    center = mean if shift is None else mean - shift / factor
    if not (np.isfinite(center).all() and np.isfinite(factor).all()):
        raise ExportError(f"layer {layer.name()}: a scale of 0, or statistics that are not finite")
    return [
        Affine(
            name=layer.name(), in_shape=shape, out_shape=shape,
            center=center.astype(np.float32), factor=factor.astype(np.float32),
        )
    ]  # fmt: skip


def _dense_op(layer: Layer, role: str, m: int, bias: np.ndarray | None = None) -> Dense:
    weight = layer.weight(role, _same)
    n = weight.values.shape[-1]
    return Dense(name=layer.name(role), in_shape=(m,), out_shape=(n,), weight=weight, bias=bias)


def _vector(layer: Layer, shape: Shape) -> int:
    m = int(layer.spec["in_features"])
    if shape != (m,):
        raise ExportError(
            f"layer {layer.name()} takes vectors of {m} numbers, but gets shape {shape}; put a "
            "flatten layer before it"
        )
    return m


def _linear(layer: Layer, shape: Shape) -> list[Op]:
    return [_dense_op(layer, "kernel", _vector(layer, shape), layer.array("bias"))]


def _two_factor(layer: Layer, shape: Shape) -> list[Op]:
    first = _dense_op(layer, "c", _vector(layer, shape))
    return [first, _dense_op(layer, "r", first.out_shape[0], layer.array("bias"))]


def _sketches(layer: Layer, m: int, n: int) -> tuple[rk.Sketch, rk.Sketch]:
    """The two seeded outer factors, concrete."""
    options = {
        name: layer.spec.get(name) for name in ("in_sketch", "oversampling", "sketch", "init")
    }
    plan = plan_weight(m, n, layer.spec["rank"], mode="seeded", gain=1.0, **options)
    return plan.sketches(layer.array("psi_seed"), layer.array("omega_seed"))  # type: ignore[arg-type,return-value]


def _refuse_parallel(layer: Layer) -> None:
    if layer.spec.get("mode") == "ares":
        raise ExportError(
            f"layer {layer.name()} is an aRes-BP layer as it trains; deploy the network first "
            "(rosler train does), which makes plain factors of it"
        )


def _sketch_linear(layer: Layer, shape: Shape) -> list[Op]:
    _refuse_parallel(layer)
    m, n = _vector(layer, shape), int(layer.spec["out_features"])
    if layer.spec.get("mode", "chain") == "chain":
        c = _dense_op(layer, "c", m)
        u = _dense_op(layer, "u", c.out_shape[0])
        return [c, u, _dense_op(layer, "r", u.out_shape[0], layer.array("bias"))]
    psi, omega = _sketches(layer, m, n)
    core = _dense_op(layer, "u", psi.cols)
    return [
        Project(
            name=layer.name("psi"), in_shape=(m,), out_shape=(psi.cols,), sketch=psi,
            scale=math.sqrt(psi.cols / psi.rows), transpose=False,
        ),
        core,
        Project(
            name=layer.name("omega"), in_shape=core.out_shape, out_shape=(n,), sketch=omega,
            scale=1.0, transpose=True, bias=layer.array("bias"),
        ),
    ]  # fmt: skip


CONV_OPTIONS = ("strides", "padding", "input_dilation", "kernel_dilation")


def _window(layer: Layer, spatial: Shape) -> tuple[list[Op], Window, Shape]:
    """A convolution's window with explicit padding; and the padding that goes before, if any."""
    size = layer.spec["kernel_size"]
    size = (size,) if isinstance(size, int) else tuple(size)
    if len(spatial) != len(size):
        raise ExportError(
            f"layer {layer.name()} has a {len(size)}-D window, its input {len(spatial)} spatial "
            f"axes; pass input_shape with {len(size)} spatial axes and the channels"
        )
    options = {k: _tuples(v) for k, v in layer.spec.items() if k in CONV_OPTIONS}
    groups = int(layer.spec.get("feature_group_count", 1))
    padding = options.pop("padding", "SAME")
    lift, mode = _forward.layer_lift(size, padding, groups=groups, **options)
    before, zeros = _padding(lift, mode, spatial)
    ops: list[Op] = []
    if any(w != (0, 0) for w in before):
        channels = int(layer.spec["in_features"])
        out = tuple(n + low + high for n, (low, high) in zip(spatial, before, strict=True))
        pad = "wrap" if mode == "CIRCULAR" else "reflect"
        ops.append(
            Pad(
                name=layer.name("pad"), in_shape=(*spatial, channels), out_shape=(*out, channels),
                mode=pad, widths=before,
            )
        )  # fmt: skip
        spatial = out
    window = Window(
        size=lift.spatial, strides=lift.strides, padding=zeros, dilation=lift.kernel_dilation,
        input_dilation=lift.input_dilation, groups=groups,
    )  # fmt: skip
    if min(min(pair) for pair in zeros) < 0:
        raise ExportError(
            f"layer {layer.name()}: negative padding {zeros}; crop before the network"
        )
    if min(window.outputs(spatial)) < 1:
        raise ExportError(f"layer {layer.name()}: window {size} does not fit inputs of {spatial}")
    return ops, window, spatial


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list | tuple) else value


Pairs = tuple[tuple[int, int], ...]


def _padding(lift: ConvLift, mode: str | None, spatial: Shape) -> tuple[Pairs, Pairs]:
    """Padding that copies the input, and padding with zeros."""
    from jax import lax

    none = ((0, 0),) * len(spatial)
    reach = [(k - 1) * d for k, d in zip(lift.spatial, lift.kernel_dilation, strict=True)]
    if mode == "CAUSAL":
        return none, ((reach[0], 0),)
    if mode is not None:
        return tuple((r // 2, (r + 1) // 2) for r in reach), none
    if isinstance(lift.padding, str):
        pads = lax.padtype_to_pads(spatial, [r + 1 for r in reach], lift.strides, lift.padding)
        return none, tuple((int(low), int(high)) for low, high in pads)
    return none, lift.padding


def _conv_op(
    layer: Layer, role: str, weight: Weight, window: Window, shape: Shape, bias: Any = None
) -> Conv:
    out = (*window.outputs(shape[:-1]), weight.values.shape[-1])
    return Conv(
        name=layer.name(role),
        in_shape=shape,
        out_shape=out,
        weight=weight,
        bias=bias,
        window=window,
    )


def _one_by_one(ndim: int, groups: int) -> Window:
    ones, none = (1,) * ndim, ((0, 0),) * ndim
    return Window(
        size=ones, strides=ones, padding=none, dilation=ones, input_dilation=ones, groups=groups
    )


def _channels(layer: Layer, shape: Shape) -> int:
    if len(shape) < 2 or shape[-1] != int(layer.spec["in_features"]):
        raise ExportError(
            f"layer {layer.name()} takes {layer.spec['in_features']} channels, but gets shape "
            f"{shape}; pass input_shape as (*spatial, channels)"
        )
    return shape[-1]


def _conv(layer: Layer, shape: Shape) -> list[Op]:
    channels = _channels(layer, shape)
    ops, window, spatial = _window(layer, shape[:-1])
    weight = layer.weight("kernel", _same)
    return [
        *ops,
        _conv_op(layer, "kernel", weight, window, (*spatial, channels), layer.array("bias")),
    ]


def _sketch_conv(layer: Layer, shape: Shape) -> list[Op]:
    _refuse_parallel(layer)
    channels = _channels(layer, shape)
    ops, window, spatial = _window(layer, shape[:-1])
    g, ndim, bias = window.groups, len(spatial), layer.array("bias")
    ones = _one_by_one(ndim, g)
    if layer.spec.get("mode", "chain") == "chain":
        c = layer.weight("c", _same)
        first = _conv_op(layer, "c", c, window, (*spatial, channels))
        second = _conv_op(layer, "u", layer.weight("u", _pointwise(ndim), g), ones, first.out_shape)
        r = layer.weight("r", _pointwise(ndim), g)
        return [*ops, first, second, _conv_op(layer, "r", r, ones, second.out_shape, bias)]
    m, n = _forward.conv_matrix_shape(window.size, channels, int(layer.spec["out_features"]), g)
    psi, omega = _sketches(layer, m, n)
    patches = PatchProject(
        name=layer.name("psi"), in_shape=(*spatial, channels),
        out_shape=(*window.outputs(spatial), g * psi.cols), sketch=psi,
        scale=math.sqrt(psi.cols / psi.rows), window=window,
    )  # fmt: skip
    core = _conv_op(layer, "u", layer.weight("u", _pointwise(ndim), g), ones, patches.out_shape)
    spread = Project(
        name=layer.name("omega"), in_shape=core.out_shape, out_shape=(*core.out_shape[:-1], g * n),
        sketch=omega, scale=1.0, transpose=True, bias=bias,
    )  # fmt: skip
    return [*ops, patches, core, spread]


LAYERS: dict[str, Callable[[Layer, Shape], list[Op]]] = {
    "standardize": _standardize,
    "flatten": _flatten,
    "relu": _activation,
    "gelu": _activation,
    "tanh": _activation,
    "max_pool": _pool,
    "avg_pool": _pool,
    "batch_norm": _batch_norm,
    "linear": _linear,
    "two_factor": _two_factor,
    "sketch_linear": _sketch_linear,
    "conv": _conv,
    "sketch_conv": _sketch_conv,
}
"""Every kind of layer as operations: a new kind is one line here."""
