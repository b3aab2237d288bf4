"""A kernel's metadata and sharding, carried over to the factors in its place."""

from __future__ import annotations

from typing import Any

import jax
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rosler_jax.nn import SketchConv, SketchLinear
from rosler_jax.views import MatrixView

_OF_VARIABLES = ("eager_sharding", "hijax", "ref", "out_sharding")
Names = tuple[Any, ...]


def lay_out(new: Any, kernel: nnx.Variable[Any], view: MatrixView) -> None:
    """Gives the factors of ``new`` the kernel's metadata, names of axes and placement.

    A factor's axes keep the names of the kernel's axes that they come from; of several axes in one
    the first, along which the flattened axis is laid out in blocks. Axes of the rank have none.

    Args:
      new: the sketch layer, or a stack of them.
      kernel: of the layer it replaces, of the same stack.
      view: of the kernel of one layer.
    """
    metadata = {
        name: value
        for name, value in kernel.get_metadata().items()
        if name not in _OF_VARIABLES and not name.startswith("on_")  # hooks are for the kernel
    }
    names = kernel.get_metadata().get("out_sharding")
    placed = getattr(kernel[...], "sharding", None)
    for name in new.plan.shapes():
        factor = getattr(new, name)
        for key, value in metadata.items():
            factor.set_metadata(key, value)
        if names is not None:
            factor.set_metadata("out_sharding", P(*_axes(new, name, tuple(names), kernel, view)))
        if isinstance(placed, NamedSharding):
            spec = P(*_axes(new, name, tuple(placed.spec), kernel, view))
            value = jax.device_put(factor[...], NamedSharding(placed.mesh, spec))
            setattr(new, name, factor.replace(value))


def _axes(
    new: Any, factor: str, names: Names, kernel: nnx.Variable[Any], view: MatrixView
) -> Names:
    """Names of a factor's axes, from those of the kernel's."""
    names = (*names, *[None] * (kernel[...].ndim - len(names)))
    depth = len(names) - len(view.axes)
    stack, single = names[:depth], names[depth:]
    m, n = single[view.inputs[0]], single[view.outputs[0]] if view.groups == 1 else None
    if isinstance(new, SketchLinear):
        return (*stack, *{"c": (m, None), "u": (None, None), "r": (None, n)}[factor])
    if isinstance(new, SketchConv) and factor == "c":
        return (*stack, *(single[axis] for axis in view.inputs), None)
    g = single[view.stack[0]] if view.stack else None
    return (*stack, g, *{"c": (m, None), "u": (None, None), "r": (None, n)}[factor])
