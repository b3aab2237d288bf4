"""Symmetric per-channel quantisation of weights to 16, 8, 4, 3 and 2 bits.

A weight x of channel j is stored as an integer q and read back as q * s_j, with

    q = clip(round(x / s_j), -L, L),    L = 2**(bits - 1) - 1,

so 2 bits mean {-1, 0, 1}. At 16 and 8 bits s_j = max|x| / L. At 4 bits and below the
largest weights are better clipped: s_j is the best in mean squared error of 16 scales
f * max|x| / L, f = 1, 0.87, ..., 0.125 (a ratio of 2**(-1/5)).

Every scale is rounded *up* to a bfloat16 number, and that number is the one which divides. So a
scale takes two bytes, keeps nearly float32's whole range (float16 ends at 6e-8, which the scales
of 16-bit biases reach), and q * s, 15 bits times 8, is exact in float32: JAX, NumPy and C read the
same weights. Channels whose largest magnitude lies below 2**-100 fade to zero, magnitudes above
2**100 saturate, and a channel with a NaN or an infinity gets the scale NaN, so that it cannot pass
unseen.

Quantisation-aware training calls ``fake_quantize`` on the weights in the forward pass. Its value
is exactly ``dequantize(quantize(x))`` and its gradient is the identity (the straight-through
estimator: Bengio, Leonard, Courville, arXiv:1308.3432).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import tree_util

from rosler_jax._paths import TRAINING_ONLY, path_name, path_names, role_name
from rosler_jax._quantized import (
    FLOAT_BITS,
    INTEGER_BITS,
    Axes,
    QuantizedTensor,
    carrying,
    integer_levels,
    scale_shape,
)
from rosler_jax.views import Seen, Views

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Float32, Int, Integer

    Bits = int | Integer[Array, ""]
    Path = tuple[str, ...]
    BitsRule = Callable[[Path], Bits]

__all__ = [
    "QuantizedTensor",
    "channel_axis",
    "dequantize",
    "dequantize_params",
    "fake_quantize",
    "fake_quantize_params",
    "leaf_bits",
    "quantize",
    "quantize_params",
    "scale_axes",
    "stacked_axes",
]

tree_util.register_dataclass(
    QuantizedTensor, data_fields=["values", "scale"], meta_fields=["bits", "axis"]
)

Tree = TypeVar("Tree")

VECTOR_BITS: Final = 16  # of all that is no matrix: few numbers, whose errors do not average out
_SEARCHED_BITS: Final = 4
_SEARCH_AT_ONCE: Final = 2**16
_SHRINK: Final = np.exp2(-np.arange(16) / 5).astype(np.float32)
_SMALLEST: Final = np.float32(2.0**-100)
_LARGEST: Final = np.float32(2.0**100)

# The rank carries the scales, so that they stay few. Conv factors have the same last two axes as
# dense ones: (..., in, rank), (..., rank, rank), (..., rank, out).
_AXIS_OF_LEAF: Final = {"c": -1, "u": -1, "r": -2}
_STATISTICS: Final = ("mean", "var")
_VECTORS: Final = ("bias", "scale")
_WEIGHTS: Final = ("matrix", "table", "factor")
_SHARING: Final = ("SketchConv",)  # its groups' factors share the scales of the rank
_STAGE_LEAF: Final = "parallel"


def quantize(x: Float[Array, "..."], bits: int, axis: Axes = -1) -> QuantizedTensor:
    """Quantise x to signed integers with one scale per index of ``axis`` (or axes).

    q = clip(round(x / s), -L, L), L = 2**(bits - 1) - 1, with the scales of the module's docstring.

    Args:
        x: any shape and floating dtype; computed in float32.
        bits: 2, 3, 4, 8 or 16; 32 keeps x as float32.
        axis: the axis that carries the scales, or several; None for one scale.

    Returns:
        A QuantizedTensor of x's shape: int8 values (int16 at 16 bits, float32 at 32).

    Raises:
        ValueError: bits is none of these, or axis is not one of x's.

    Example:
        >>> q = quantize(jnp.array([[1.27, 0.5], [-0.3, 2.54]]), bits=8)
        >>> q.values.tolist(), q.scale.shape
        ([[127, 25], [-30, 127]], (2,))
    """
    x = jnp.asarray(x)
    axis = _checked_axis(axis, x.ndim)
    if checked_bits(bits) == FLOAT_BITS:
        return QuantizedTensor(x.astype(jnp.float32), jnp.ones((), jnp.float32), FLOAT_BITS, None)
    integers, scale = _stored(x, int(bits), axis)
    return QuantizedTensor(integers, scale, int(bits), axis)


def dequantize(tensor: QuantizedTensor, dtype: Any = jnp.float32) -> Float[Array, "..."]:
    """The weights that a quantised tensor stands for: values * scale, exact in float32.

    Args:
        tensor: from ``quantize`` or from a model file.
        dtype: of the result; anything narrower than float32 rounds once more.

    Returns:
        An array of the tensor's shape.

    Example:
        >>> dequantize(quantize(jnp.array([1.0, -1.0, 0.1]), bits=2, axis=None)).tolist()
        [1.0, -1.0, 0.0]
    """
    if tensor.bits == FLOAT_BITS:
        return jnp.asarray(tensor.values).astype(jnp.float32).astype(dtype)
    return _represented(tensor.values, tensor.scale, tensor.axis, dtype)


def fake_quantize(x: Float[Array, "..."], bits: Bits, axis: Axes = -1) -> Float[Array, "..."]:
    """Give x as it is after quantisation, with the gradient of the identity.

    Args:
        x: any shape and floating dtype.
        bits: 2, 3, 4, 8, 16 or 32 (32: x itself). An int, or an integer scalar array, which may be
            traced: one compiled program then serves a sweep over bits (an array's value is not
            checked).
        axis: the axis that carries the scales, or several; None for one scale.

    Returns:
        ``dequantize(quantize(x, bits, axis))`` in x's dtype; d(result)/dx = 1 everywhere.

    Raises:
        ValueError: an int bits is none of these, or axis is not one of x's.

    Example:
        >>> w = jnp.array([1.0, -0.5, 0.1])
        >>> jax.grad(lambda w: fake_quantize(w, 2, None) @ jnp.array([1.0, 2.0, 3.0]))(w).tolist()
        [1.0, 2.0, 3.0]
    """
    x = jnp.asarray(x)
    axis = _checked_axis(axis, x.ndim)
    fixed = _is_static(bits)
    if fixed and checked_bits(bits) == FLOAT_BITS:
        return x
    held = jax.lax.stop_gradient(x)
    integers, scale = _integers_and_scale(held, int(bits) if fixed else bits, axis)
    value = (integers * scale).astype(x.dtype)
    if not fixed:
        value = jnp.where(jnp.asarray(bits) >= FLOAT_BITS, held, value)
    # x - held is exactly zero, so the sum is exactly the quantised value; the common
    # x + stop_gradient(value - x) would round it away from what is deployed.
    return value + (x - held)


def stacked_axes(seen: Seen) -> Axes:
    """The axes that carry the scales of a leaf of which it is known what it is.

    The channels of its matrices (the rank, of factors) and every layer, expert or group of a stack;
    of biases and the like the layers of a stack.

    Example:
        >>> from flax import nnx
        >>> from rosler_jax import matrix_views
        >>> layers = nnx.vmap(lambda key: nnx.Linear(8, 4, rngs=nnx.Rngs(key)))
        >>> views = matrix_views(layers(jax.random.split(jax.random.key(0), 3)))
        >>> stacked_axes(views["kernel"]), stacked_axes(views["bias"])
        ((0, 2), 0)
    """
    if seen.view is None or seen.role not in _WEIGHTS:
        axes: tuple[int, ...] = tuple(range(len(seen.stack)))  # layers are stacked in front
    else:
        by_rows = seen.role == "factor" and role_name(seen.name) == "r"
        channel = (seen.view.inputs if by_rows else seen.view.outputs)[-1]
        stack = seen.view.stack[: len(seen.stack) if seen.layer in _SHARING else None]
        axes = (*(k for k in stack if seen.shape[k] > 1), channel)
    return as_axes(tuple(sorted(k % len(seen.shape) for k in axes)))


def scale_axes(path: Sequence[str], shape: Sequence[int], seen: Seen | None = None) -> Axes:
    """The axes that carry the scales of a leaf.

    Where it is known what the leaf is, see :func:`stacked_axes`. By name and shape alone, a leaf of
    three axes or more may be a stack of layers or a window: it has scales along its first axis and
    its channels, which is right for both, and more than a window needs.

    Example:
        >>> scale_axes(("fc", "kernel"), (64, 10)), scale_axes(("layers", "kernel"), (6, 64, 10))
        (1, (0, 2))
    """
    if seen is not None and seen.role != "unknown":
        return stacked_axes(seen)
    if path[-1] in _VECTORS:
        return None
    axis = channel_axis(path, shape)
    return axis if axis is None or len(shape) < 3 else (0, axis)


def channel_axis(path: Sequence[str] | str, shape: Sequence[int]) -> int | None:
    """The axis that carries the scales of a leaf in a network of this library; None for one scale.

    The rank axis of factors (c: last, u: last, r: last but one), the last axis of any other kernel,
    and one scale for vectors (biases, norm scales).

    Args:
        path: the leaf's path or its name alone; only the last part counts.
        shape: the leaf's shape.

    Example:
        >>> channel_axis(("layers", "0", "r"), (8, 1024)), channel_axis("kernel", (64, 10))
        (0, 1)
        >>> channel_axis("bias", (1024,)) is None
        True
    """
    if len(shape) < 2:
        return None
    name = path if isinstance(path, str) else path[-1]
    return len(shape) + _AXIS_OF_LEAF.get(role_name(name), -1)


def leaf_bits(
    path: Sequence[str], shape: Sequence[int], bits: Bits | BitsRule, role: str | None = None
) -> Bits:
    """How many bits a leaf gets when the weights get ``bits``.

    Matrices and kernels get ``bits``; vectors, biases and norm scales (of any number of axes: those
    of attention heads and of stacks) 16, for they are few and their errors are not averaged out;
    scalars and running statistics stay float32, and so does everything where ``bits`` is 32.

    Args:
        path: the leaf's path.
        shape: the leaf's shape.
        bits: for the weights, or a function of the path that gives them.
        role: what the leaf is, of :data:`rosler_jax.views.ROLES`; None to go by its name.

    Example:
        >>> leaf_bits(("fc", "c"), (784, 8), 4), leaf_bits(("fc", "bias"), (8,), 4)
        (4, 16)
    """
    asked = bits(tuple(path)) if callable(bits) else bits
    if not shape or path[-1] in _STATISTICS:
        return FLOAT_BITS
    if role in (None, "unknown"):
        role = "bias" if path[-1] in _VECTORS else "matrix"
    if role in _WEIGHTS and len(shape) >= 2:
        return asked
    if _is_static(asked):
        return FLOAT_BITS if checked_bits(asked) == FLOAT_BITS else VECTOR_BITS
    return jnp.where(jnp.asarray(asked) >= FLOAT_BITS, FLOAT_BITS, VECTOR_BITS)


def fake_quantize_params(params: Tree, bits: Bits | BitsRule, view: Views | None = None) -> Tree:
    """``fake_quantize`` every floating leaf of a parameter tree, for quantisation-aware training.

    Axes follow ``scale_axes``, bits ``leaf_bits``. The leaves of a layer whose ``parallel`` leaf
    is positive (aRes-BP's parallel stage, where u holds the core and not U) pass as they are:
    quantisation begins at that layer's stage switch.

    Args:
        params: nested dicts, an nnx.State, or any other pytree of arrays.
        bits: 2, 3, 4, 8, 16 or 32, an integer scalar array (may be traced), or a function from a
            leaf's path, a tuple of strings, to one of these.
        view: what each leaf is, from :func:`rosler_jax.matrix_views`: then every layer of a stack
            has scales of its own, and biases of any shape are known. None goes by names.

    Returns:
        A tree of the same structure, shapes and dtypes.

    Raises:
        ValueError: an int bits is unknown.

    Example:
        >>> params = {"fc": {"kernel": jnp.array([[0.9], [-0.2]]), "bias": jnp.zeros(1)}}
        >>> jax.tree.map(jnp.shape, fake_quantize_params(params, 4))
        {'fc': {'bias': (1,), 'kernel': (2, 1)}}
    """
    leaves, structure = tree_util.tree_flatten_with_path(params)
    paths = [path_names(keys) for keys, _ in leaves]
    stages = {
        path[:-1]: leaf
        for path, (_, leaf) in zip(paths, leaves, strict=True)
        if path[-1:] == (_STAGE_LEAF,)
    }
    out = []
    for path, (_, leaf) in zip(paths, leaves, strict=True):
        if not _is_quantizable(path, leaf):
            out.append(leaf)
            continue
        width, axes = _width_and_axes(path, leaf.shape, bits, view)
        value = fake_quantize(leaf, width, axes)
        parallel = stages.get(path[:-1])
        if parallel is not None:  # of a stack of layers, a stage for each
            stage = jnp.reshape(parallel, (*parallel.shape, *[1] * (leaf.ndim - parallel.ndim)))
            value = jnp.where(stage > 0, leaf, value)
        out.append(value)
    return tree_util.tree_unflatten(structure, out)


def _width_and_axes(
    path: Path, shape: tuple[int, ...], bits: Bits | BitsRule, view: Views | None
) -> tuple[Bits, Axes]:
    name = "/".join(path)
    if view is not None and name not in view:
        raise ValueError(
            f"no view of {name!r}; make the views with matrix_views of the model of these params"
        )
    seen = None if view is None else view[name]
    role = None if seen is None else seen.role
    return leaf_bits(path, shape, bits, role), scale_axes(path, shape, seen)


def quantize_params(
    params: Any, bits: int | BitsRule, view: Views | None = None
) -> dict[str, QuantizedTensor | Integer[Array, "..."] | Float[Array, "..."]]:
    """Quantise a parameter tree into the named tensors that a model file holds.

    The deployed twin of ``fake_quantize_params``: ``dequantize_params`` of the result has the same
    values.

    Args:
        params: nested dicts, an nnx.State, or any other pytree of arrays.
        bits: 2, 3, 4, 8, 16 or 32, or a function from a leaf's path, a tuple of strings, to one.
        view: what each leaf is, from :func:`rosler_jax.matrix_views`; None goes by names.

    Returns:
        A flat dict from names ("fc1/c") to QuantizedTensors; scalars and leaves that are not
        floating stay arrays, random keys (of dropout, say) become their words. The ``parallel``
        leaf of aRes-BP layers is left out, and the ``fingerprint`` of seeded ones.

    Raises:
        ValueError: bits is unknown, two leaves get one name, or a layer is still in aRes-BP's
            parallel stage (its u is the core, not U).

    Example:
        >>> params = {"fc": {"kernel": jnp.array([[0.9], [-0.2]]), "bias": jnp.zeros(1)}}
        >>> {name: t.bits for name, t in quantize_params(params, 4).items()}
        {'fc/bias': 16, 'fc/kernel': 4}
    """
    out: dict[str, Any] = {}
    for keys, leaf in tree_util.tree_flatten_with_path(params)[0]:
        path, name = path_names(keys), path_name(keys)
        if path[-1:] == (_STAGE_LEAF,):
            _require_successive(name, leaf)
        elif {*TRAINING_ONLY}.intersection(path[-1:]):
            continue
        elif name in out:
            raise ValueError(f"two leaves are named {name!r}; rename one of the layers")
        elif not _is_quantizable(path, leaf):
            out[name] = jax.random.key_data(leaf) if _is_key(leaf) else leaf
        else:
            width, axes = _width_and_axes(path, leaf.shape, bits, view)
            out[name] = quantize(leaf, width, axes)  # type: ignore[arg-type]
    return out


def dequantize_params(tensors: Mapping[str, Any], like: Tree) -> Tree:
    """Put named tensors, from ``quantize_params`` or a model file, into a parameter tree.

    Args:
        tensors: names ("fc1/c") to QuantizedTensors or arrays.
        like: a tree with the wanted structure, shapes and dtypes (jax.ShapeDtypeStruct leaves do).

    Returns:
        The tree, with ``like``'s dtypes; ``parallel`` leaves are zero (successive stage), and
        ``fingerprint`` leaves (of any seeds).

    Raises:
        ValueError: a name is missing or unknown, or a shape differs.

    Example:
        >>> params = {"fc": {"kernel": jnp.array([[0.9], [-0.2]])}}
        >>> restored = dequantize_params(quantize_params(params, 16), like=params)
        >>> bool(jnp.allclose(restored["fc"]["kernel"], params["fc"]["kernel"], atol=1e-4))
        True
    """
    leaves, structure = tree_util.tree_flatten_with_path(like)
    names = [path_name(keys) for keys, _ in leaves]
    stages = {name for name in names if role_name(name) in TRAINING_ONLY}
    missing, unknown = set(names) - stages - set(tensors), set(tensors) - set(names)
    if missing or unknown:
        raise ValueError(
            f"the tensors do not fit the model: missing {sorted(missing)}, unknown "
            f"{sorted(unknown)}; build the model from the same specification as the tensors"
        )
    out = []
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if name not in tensors:
            out.append(jnp.zeros(leaf.shape, leaf.dtype))
            continue
        tensor = tensors[name]
        if _is_key(leaf):
            out.append(_key_of(name, tensor, leaf))
            continue
        if tuple(tensor.shape) != tuple(leaf.shape):
            raise ValueError(
                f"tensor {name!r} has shape {tuple(tensor.shape)}, the model expects "
                f"{tuple(leaf.shape)}"
            )
        is_quantized = isinstance(tensor, QuantizedTensor)
        out.append(
            dequantize(tensor, leaf.dtype) if is_quantized else jnp.asarray(tensor, leaf.dtype)
        )
    return tree_util.tree_unflatten(structure, out)


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _key_of(name: str, words: Any, like: Any) -> Any:
    """A random key of the kind of ``like`` again, from its words."""
    expected = jax.eval_shape(jax.random.key_data, like).shape
    if tuple(words.shape) != expected:
        raise ValueError(f"tensor {name!r} has shape {words.shape}, a key of the model {expected}")
    return jax.random.wrap_key_data(jnp.asarray(words, jnp.uint32), impl=jax.random.key_impl(like))


def _is_static(bits: Any) -> TypeGuard[int]:
    return isinstance(bits, int | np.integer)


def checked_bits(bits: Any) -> int:
    """The bits as an int; raises ValueError for any that no tensor has."""
    if not _is_static(bits) or bits not in (*INTEGER_BITS, FLOAT_BITS):
        raise ValueError(f"bits {bits!r} is not supported; pass one of 2, 3, 4, 8, 16, 32")
    return int(bits)


def _checked_axis(axis: Axes, ndim: int) -> Axes:
    if not all(-ndim <= k < ndim for k in carrying(axis)):
        raise ValueError(
            f"axis {axis} is outside an array of {ndim} dimensions; pass one of its axes, or None "
            f"for one scale"
        )
    return as_axes(tuple(sorted({k % ndim for k in carrying(axis)})))


def as_axes(axes: tuple[int, ...]) -> Axes:
    """Axes as a :class:`QuantizedTensor` says them: None, one number, or several."""
    return axes if len(axes) > 1 else axes[0] if axes else None


def _is_quantizable(path: Path, leaf: Any) -> bool:
    return (
        hasattr(leaf, "dtype")
        and bool(leaf.shape)
        and not {*TRAINING_ONLY}.intersection(path[-1:])
        and jnp.issubdtype(leaf.dtype, jnp.floating)
    )


def _require_successive(name: str, parallel: Any) -> None:
    if not isinstance(parallel, jax.core.Tracer) and np.any(np.asarray(parallel) > 0):
        raise ValueError(
            f"{name} is positive: the layer is still in aRes-BP's parallel stage, where u holds "
            f"the core and not U; train past the stage switch, or fold, before quantising"
        )


@partial(jax.jit, static_argnames=("axis",))
def _traced_bits(
    x: Float[Array, "..."], bits: Integer[Array, ""], axis: Axes
) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
    # Bits of 17 and more are replaced by x in the caller; here they must only not overflow.
    levels = (jnp.left_shift(1, jnp.minimum(jnp.asarray(bits, jnp.int32), 16) - 1) - 1).astype(
        jnp.float32
    )
    largest = _largest_magnitude(x, axis)
    searched = _searched_scale(x, largest, levels, axis)
    scale = jnp.where(bits <= _SEARCHED_BITS, searched, _scale(largest, 1 / levels))
    return _round_to_levels(x, scale, levels), scale


@partial(jax.jit, static_argnames=("bits", "axis"))
def _static_bits(
    x: Float[Array, "..."], bits: int, axis: Axes
) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
    levels = np.float32(integer_levels(bits))
    largest = _largest_magnitude(x, axis)
    if bits <= _SEARCHED_BITS:
        scale = _searched_scale(x, largest, levels, axis)
    else:
        scale = _scale(largest, 1 / levels)
    return _round_to_levels(x, scale, levels), scale


@partial(jax.jit, static_argnames=("bits", "axis"))
def _stored(
    x: Float[Array, "..."], bits: int, axis: Axes
) -> tuple[Int[Array, "..."], Float32[Array, "..."]]:
    """The integers as they are stored, and the scales without the other dimensions."""
    integers, scale = _integers_and_scale(x, bits, axis)
    dtype = jnp.int16 if bits == 16 else jnp.int8
    return integers.astype(dtype), scale.reshape(scale_shape(x.shape, axis))


@partial(jax.jit, static_argnames=("axis", "dtype"))
def _represented(
    values: Int[Array, "..."], scale: Float32[Array, "..."], axis: Axes, dtype: Any
) -> Float[Array, "..."]:
    others = [k for k in range(values.ndim) if k not in carrying(axis)]
    return (values.astype(jnp.float32) * jnp.expand_dims(scale, others)).astype(dtype)


def _integers_and_scale(
    x: Float[Array, "..."], bits: Bits, axis: Axes
) -> tuple[Float32[Array, "..."], Float32[Array, "..."]]:
    """The integers (as float32) and the scales (x's dimensions kept), compiled as one program."""
    x = x.astype(jnp.float32)
    if isinstance(bits, int):
        return _static_bits(x, bits, axis)
    return _traced_bits(x, bits, axis)


def _other_axes(x: Float[Array, "..."], axis: Axes) -> tuple[int, ...]:
    return tuple(k for k in range(x.ndim) if k not in carrying(axis))


def _largest_magnitude(x: Float32[Array, "..."], axis: Axes) -> Float32[Array, "..."]:
    return jnp.max(jnp.abs(x), axis=_other_axes(x, axis), keepdims=True, initial=0.0)


def _scale(largest: Float32[Array, "..."], factor: Any) -> Float32[Array, "..."]:
    """bfloat16, rounded up, of largest * factor; NaN where a magnitude is not finite."""
    scale = jnp.clip(largest, _SMALLEST, _LARGEST) * factor
    bits = jax.lax.bitcast_convert_type(scale, jnp.uint32)
    # Sixteen units in the last place count as "already a bfloat16 number": largest = 7 s must give
    # s / 1 back although largest * (1 / 7) may come out just above it.
    rounded = jax.lax.bitcast_convert_type(
        (bits + jnp.uint32(0xFFF0)) & jnp.uint32(0xFFFF0000), jnp.float32
    )
    return jnp.where(jnp.isfinite(largest), rounded, jnp.nan)


def _round_to_levels(
    x: Float32[Array, "..."], scale: Float32[Array, "..."], levels: Any
) -> Float32[Array, "..."]:
    # Times the reciprocal: a compiler may turn a division into that or not, and then the integers
    # of training and of deployment would differ.
    return jnp.clip(jnp.round(x * (1 / scale)), -levels, levels)


def _searched_scale(
    x: Float32[Array, "..."], largest: Float32[Array, "..."], levels: Any, axis: Axes
) -> Float32[Array, "..."]:
    """Per channel the scale f * largest / levels with the least squared error.

    The errors are summed as integers, in units of largest / unit: an integer sum does not depend on
    its order, so that the choice is the same inside any larger compiled program.
    """
    others = _other_axes(x, axis)
    count = max(1, int(np.prod([x.shape[k] for k in others])))
    unit = np.float32(np.floor(np.sqrt(0xFFFFFFFF / count)) - 1)
    bound = jnp.clip(largest, _SMALLEST, _LARGEST)
    bounded = jnp.minimum(jnp.abs(x), bound)

    def total_error(factor: Float32[Array, ""]) -> tuple[Integer[Array, "..."], Any]:
        scale = _scale(largest, factor)
        error = jnp.abs(bounded - _round_to_levels(bounded, scale, levels) * scale)
        steps = jnp.round(error * (unit / bound)).astype(jnp.uint32)
        return jnp.sum(steps * steps, axis=others, keepdims=True, dtype=jnp.uint32), scale

    factors = jnp.asarray(1 / levels * _SHRINK)
    # All candidates at once are fastest; one after the other bound the memory to x's own size.
    every = (
        jax.vmap(total_error) if x.size <= _SEARCH_AT_ONCE else partial(jax.lax.map, total_error)
    )
    totals, scales = every(factors)
    return jnp.take_along_axis(scales, jnp.argmin(totals, axis=0)[None], axis=0)[0]
