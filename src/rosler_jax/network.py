"""Networks described by plain data: a list of layers that trains, ships in a file, and exports.

A layer is a dict with a ``kind`` of :data:`LAYERS` and that kind's arguments. The same description
builds the network for training and again from a model file, so that neither the file nor an
exporter needs the training code.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax.nn import SketchConv, SketchLinear, TwoFactorLinear
from rosler_jax.nn._thin import linear_dot_general

if TYPE_CHECKING:
    from jaxtyping import Array, Float

Spec = Mapping[str, Any]


class Standardize(nnx.Module):
    """Turns stored inputs (pixels 0..255, say) into float32 ``(x - mean) / std``.

    Args:
      mean, std: one number each, or one for each feature (the last axis).
      dtype: of the result.

    Raises:
      ValueError: for numbers that are not finite, or a std that is not positive.
    """

    def __init__(self, mean: Any, std: Any, dtype: Any = jnp.float32):
        self.mean, self.std, self.dtype = plain_moment(mean), plain_moment(std), dtype
        with np.errstate(over="ignore"):  # refused below
            mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
        if not (np.isfinite(mean).all() and np.isfinite(std).all() and (std > 0).all()):
            raise ValueError(f"mean {self.mean}, std {self.std}; expected finite, std > 0")
        np.broadcast_shapes(mean.shape, std.shape)

    def __call__(self, x: Array) -> Float[Array, "..."]:
        """Computes ``(x - mean) / std``."""
        mean, factor = (
            np.asarray(v, np.float32).reshape((1,) * (x.ndim - 1) + (-1,) if np.ndim(v) else ())
            for v in (self.mean, 1.0 / np.asarray(self.std, np.float64))
        )
        return ((x.astype(jnp.float32) - mean) * factor).astype(self.dtype)


def plain_moment(value: Any) -> float | tuple[float, ...]:
    """A mean or a deviation as JSON types, which belong to a model's graph, not to its state.

    Example:
      >>> plain_moment(np.float32(0.5)), plain_moment(np.array([1.0, 2.0]))
      (0.5, (1.0, 2.0))
    """
    return tuple(map(float, value)) if np.ndim(value) else float(value)


class Pool(nnx.Module):
    """Max or average pooling over windows that do not overlap.

    Args:
      window: side of square windows, or a side for each spatial axis.
      reduce: ``"max"`` or ``"mean"``.

    Raises:
      ValueError: for anything but positive whole numbers.
    """

    def __init__(self, window: int | Sequence[int], reduce: str):
        sides = tuple(window) if isinstance(window, list | tuple) else window
        each = sides if isinstance(sides, tuple) else (sides,)
        whole = (isinstance(n, int) and n is not True and n >= 1 for n in each)
        if not each or not all(whole):
            raise ValueError(
                f"a pool's window is {window!r}; pass a positive whole number, or one an axis"
            )
        self.window, self.reduce = sides, reduce

    def __call__(self, x: Array) -> Array:
        """Pools all spatial axes of ``(batch, *spatial, channels)``."""
        shape = pool_sides(self.window, x.ndim - 2)
        pool = nnx.max_pool if self.reduce == "max" else nnx.avg_pool
        return pool(x, shape, strides=shape)


def pool_sides(window: int | Sequence[int], axes: int) -> tuple[int, ...]:
    """The sides of a pool's window.

    Raises:
      ValueError: if it is for another number of axes.

    Example:
      >>> pool_sides(2, 3), pool_sides([25, 5], 2)
      ((2, 2, 2), (25, 5))
    """
    sides = (window,) * axes if isinstance(window, int) else tuple(window)
    if len(sides) != axes:
        raise ValueError(f"a pool's window {sides} has {len(sides)} sides for {axes} spatial axes")
    return sides


def flatten(x: Array) -> Array:
    """Flattens all but the batch axis."""
    return x.reshape(x.shape[0], -1)


def _drop(spec: Spec, *names: str) -> dict[str, Any]:
    return {k: v for k, v in spec.items() if k not in ("kind", *names)}


def _window(spec: Spec) -> dict[str, Any]:
    """JSON lists back to the tuples that convolutions want, pairs of padding among them."""

    def tuples(value: Any) -> Any:
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    return {k: tuples(v) for k, v in _drop(spec).items()}


Builder = Callable[[Spec, Any, nnx.Rngs], Any]

LAYERS: dict[str, Builder] = {
    "standardize": lambda spec, dtype, rngs: Standardize(**_drop(spec), dtype=dtype or jnp.float32),
    "flatten": lambda spec, dtype, rngs: flatten,
    "relu": lambda spec, dtype, rngs: jax.nn.relu,
    "gelu": lambda spec, dtype, rngs: jax.nn.gelu,
    "tanh": lambda spec, dtype, rngs: jnp.tanh,
    "max_pool": lambda spec, dtype, rngs: Pool(spec["window"], "max"),
    "avg_pool": lambda spec, dtype, rngs: Pool(spec["window"], "mean"),
    "batch_norm": lambda spec, dtype, rngs: nnx.BatchNorm(**_drop(spec), dtype=dtype, rngs=rngs),
    "linear": lambda spec, dtype, rngs: nnx.Linear(
        **_drop(spec), dtype=dtype, dot_general=linear_dot_general, rngs=rngs
    ),
    "conv": lambda spec, dtype, rngs: nnx.Conv(**_window(spec), dtype=dtype, rngs=rngs),
    "sketch_linear": lambda spec, dtype, rngs: SketchLinear(**_drop(spec), dtype=dtype, rngs=rngs),
    "sketch_conv": lambda spec, dtype, rngs: SketchConv(**_window(spec), dtype=dtype, rngs=rngs),
    "two_factor": lambda spec, dtype, rngs: TwoFactorLinear(**_drop(spec), dtype=dtype, rngs=rngs),
}
"""Every kind of layer, by name: a new kind is one line here."""


class Network(nnx.Module):
    """A chain of layers built from their descriptions.

    Args:
      specs: layers, first to last.
      dtype: dtype of the computation; None for that of the parameters.
      rngs: draws the initial parameters.

    Raises:
      ValueError: for an unknown kind, or arguments that the kind does not take.

    Example:
      >>> specs = [{"kind": "linear", "in_features": 4, "out_features": 2}, {"kind": "relu"}]
      >>> Network(specs, rngs=nnx.Rngs(0))(jnp.ones((3, 4))).shape
      (3, 2)
    """

    def __init__(self, specs: Sequence[Spec], *, dtype: Any = None, rngs: nnx.Rngs):
        self.layers = nnx.List([build_layer(spec, dtype, rngs) for spec in specs])

    def __call__(self, x: Array) -> Array:
        """Applies the layers in order to ``x (batch, *features)``."""
        for layer in self.layers:
            x = layer(x)
        return x


def evaluating(network: nnx.Module) -> nnx.Module:
    """The same network, normalising by running statistics instead of those of the batch.

    Example:
      >>> specs = [{"kind": "batch_norm", "num_features": 2}]
      >>> network = evaluating(Network(specs, rngs=nnx.Rngs(0)))
      >>> bool(jnp.allclose(network(jnp.full((3, 2), 5.0)), 5.0, atol=1e-3))
      True
    """
    network.eval()
    return network


def split_state(model: nnx.Module) -> tuple[Any, Any, Any]:
    """Splits a model into its graph, its parameters and all other state, the latter two as dicts.

    ``nnx.merge(graphdef, params, buffers)`` puts it together again.

    Example:
      >>> specs = [{"kind": "linear", "in_features": 4, "out_features": 2}]
      >>> _, params, buffers = split_state(Network(specs, rngs=nnx.Rngs(0)))
      >>> sorted(params["layers"][0]), buffers
      (['bias', 'kernel'], {})
    """
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    params, buffers = map(nnx.to_pure_dict, states)
    return graphdef, params, buffers


def build_layer(spec: Spec, dtype: Any, rngs: nnx.Rngs) -> Any:
    """Builds one layer from its description; refuses what :data:`LAYERS` does not know."""
    kind = spec.get("kind")
    if not isinstance(kind, str) or kind not in LAYERS:
        raise ValueError(f"unknown layer kind {kind!r}; expected one of {', '.join(LAYERS)}")
    if spec.get("mode") == "two-factor":
        raise ValueError(
            f"{kind} of mode 'two-factor' has no description; use kind 'two_factor' for a linear "
            "layer, mode 'chain' for a convolution"
        )
    try:
        plain = {name: _plain(value) for name, value in spec.items()}
        return LAYERS[kind](plain, dtype, rngs)
    except (TypeError, KeyError, IndexError, ArithmeticError, AttributeError) as error:
        raise ValueError(f"layer {dict(spec)!r} cannot be built: {error}") from error


def _plain(value: Any) -> Any:
    """Numbers of NumPy, which arithmetic on sizes gives, as Python's: what a file gives back."""
    if isinstance(value, list | tuple):
        return type(value)(map(_plain, value))
    return value.item() if isinstance(value, np.generic) else value


def _listed(value: Any) -> float | list[float]:
    """As JSON gives it back."""
    plain = plain_moment(value)
    return list(plain) if isinstance(plain, tuple) else plain


def mlp_specs(
    in_features: int,
    hidden: Sequence[int],
    num_classes: int,
    sketch: Mapping[str, Any] | None,
    *,
    mean: Any = 0.0,
    std: Any = 1.0,
    activation: str = "relu",
) -> list[dict[str, Any]]:
    """Describes a multi-layer perceptron with a dense head.

    Args:
      in_features: number of inputs.
      hidden: widths of the hidden layers, each sketched (or dense, if ``sketch`` is None).
      num_classes: number of outputs.
      sketch: description of a hidden layer without its sizes, as ``{"kind": "sketch_linear",
        "rank": 8}``; a rank that does not fit a layer is lowered to what fits.
      mean: subtracted from the inputs; one number, or one for each feature.
      std: divides the inputs; the same.
      activation: a kind of :data:`LAYERS`.

    Returns:
      Descriptions for :class:`Network`.

    Example:
      >>> [
      ...     spec["kind"]
      ...     for spec in mlp_specs(784, [1024], 10, {"kind": "sketch_linear", "rank": 8})
      ... ]
      ['standardize', 'flatten', 'sketch_linear', 'relu', 'linear']
    """
    specs: list[dict[str, Any]] = [
        {"kind": "standardize", "mean": _listed(mean), "std": _listed(std)},
        {"kind": "flatten"},
    ]
    width = in_features
    for size in hidden:
        layer: dict[str, Any] = {"kind": "linear"} if sketch is None else dict(sketch)
        sizes = {"in_features": width, "out_features": size}
        if "rank" in layer:
            layer["rank"] = min(layer["rank"], width, size)
        specs += [{**layer, **sizes}, {"kind": activation}]
        width = size
    return [*specs, {"kind": "linear", "in_features": width, "out_features": num_classes}]
