"""Products of arrays whose types name a sharding (JAX's explicit mode, that of ``jax.make_mesh``).

In that mode every product says how its result lies on the mesh. Ours act on an example at a time,
so that each device can multiply the examples it holds: kernels run there as they do on one device,
and only the cotangents of the factors are summed over the mesh.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import jax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

if TYPE_CHECKING:
    from jaxtyping import Array, Float

T = TypeVar("T")


def by_example(
    function: Callable[..., T],
    x: Float[Array, "*examples m"],
    *operands: Any,
    axes: int | None = None,
) -> T:
    """function(x, *operands), in explicit mode on each device for the examples that it holds.

    Where other axes of x are sharded, or an operand at all, the compiler divides the work in place
    of this (it cannot divide a Pallas kernel); the result is then sharded along x's leading axes
    only. Outside explicit mode this is the plain call.

    Args:
      function: acts on every example of x alike, and keeps their axes.
      x: array; its leading axes may be sharded.
      operands: pytrees of arrays, the same for all examples.
      axes: how many of x's leading axes count examples; by default all but the last.

    Returns:
      the function's result, its leading axes sharded as x's.

    >>> import jax.numpy as jnp
    >>> from jax.sharding import NamedSharding
    >>> mesh = jax.make_mesh((jax.device_count(),), ("data",))
    >>> with jax.set_mesh(mesh):
    ...     x = jax.device_put(jnp.ones((8, 5)), NamedSharding(mesh, P("data")))
    ...     y = by_example(jnp.dot, x, jnp.ones((5, 3)))
    >>> jax.typeof(y)
    ShapedArray(float32[8@data,3])
    """
    mesh = jax.typeof(x).sharding.mesh
    explicit = _explicit(mesh)
    if not explicit:
        return function(x, *operands)
    leaves, tree = jax.tree.flatten((x, *operands))
    specs = [jax.typeof(leaf).sharding.spec for leaf in leaves]
    axes = x.ndim - 1 if axes is None else axes
    out = P(*specs[0][:axes])

    def call(*leaves: Array) -> T:
        return function(*jax.tree.unflatten(tree, leaves))

    held = (*specs[0][axes:], *(name for spec in specs[1:] for name in spec))
    if all(name is None for name in held):
        # The cotangents say nothing of the axes they vary over; the sum over the mesh is
        # shard_map's own, of every operand.
        divided = jax.shard_map(
            call, in_specs=tuple(specs), out_specs=out, axis_names=set(explicit), check_vma=False
        )
    else:
        divided = jax.sharding.auto_axes(call, axes=explicit, out_sharding=out)
    with _inside(mesh):
        return divided(*leaves)


def automatically(function: Callable[..., T], out: P, *operands: Any) -> T:
    """function(*operands), in explicit mode divided by the compiler; its result lies as ``out``.

    Outside explicit mode this is the plain call.

    Args:
      function: of arrays.
      out: how its one result lies on the mesh.
      operands: arrays.

    Returns:
      the function's result.

    >>> import jax.numpy as jnp
    >>> automatically(jnp.dot, P(), jnp.ones((2, 3)), jnp.ones(3)).shape
    (2,)
    """
    meshes = [jax.typeof(operand).sharding.mesh for operand in operands]
    mesh = next(filter(_explicit, meshes), None)
    if mesh is None:
        return function(*operands)
    with _inside(mesh):
        divided = jax.sharding.auto_axes(function, axes=_explicit(mesh), out_sharding=out)
        return divided(*operands)


def _explicit(mesh: Any) -> tuple[Any, ...]:
    """Names of a mesh's explicit axes."""
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return tuple(name for name, kind in kinds if kind == AxisType.Explicit)


def _inside(mesh: Any) -> contextlib.AbstractContextManager[Any]:
    """The mesh as the one in use, where none is."""
    outside = jax.sharding.get_abstract_mesh().empty
    return jax.sharding.use_abstract_mesh(mesh) if outside else contextlib.nullcontext()
