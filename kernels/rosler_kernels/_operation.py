"""Linear operations as JAX primitives: their rules, and what runs them, once for all of them.

An operation acts on every example alike, is linear in its first operand and constant in the others
(seeds, factors), through which nothing is differentiated. Its primitive differentiates to itself
and transposes to its partner, exactly. Mapped over inputs it has one leading axis more; mapped over
the others too, it is the same operation under ``maps``, a tuple of ``in_axes`` from the outermost.
Which implementation runs is settled when it is lowered, see ``rosler_kernels.selection``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, no_effects
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import PartitionSpec as P

from . import selection
from ._problem import Problem
from .selection import IMPLEMENTATIONS, Choice, Device
from .sharding import by_example

if TYPE_CHECKING:
    from jaxtyping import Array

    Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """What tells an operation from the others; functions of its operands and named parameters.

    Attributes:
      primitive: bound to (x, *others), with a list of results.
      package: of its implementations.
      describe: (examples, x, *others) -> the problem to choose for, and the arguments of a back
        end's ``unsupported``; operands as their shapes and dtypes.
      shapes: (x, *others) -> shape of each result, without the axes of the examples.
      run: (back end, x, *others, **options) -> each result; examples along the first axis.
      partner: () -> the parameters that change in the transpose; None: derivatives are another's.
      axes: () -> how many axes of x belong to an example.
      kernels: package of its kernels, where it has none of its own.
    """

    primitive: Primitive
    package: str
    describe: Callable[..., tuple[Problem, tuple[Any, ...]]]
    shapes: Callable[..., tuple[tuple[int, ...], ...]]
    run: Callable[..., tuple[Array, ...]]
    partner: Callable[..., Params] | None = None
    axes: Callable[..., int] = lambda **_: 1
    kernels: str | None = None


class Asked(NamedTuple):
    """What lowering has to know of the trace: what was asked for, assumed, and set."""

    name: str | None
    device: Device | None
    precision: str | None


def define(name: str, package: str, **functions: Any) -> Operation:
    """An operation whose primitive, ``rosler_<name>``, has all its rules."""
    primitive = Primitive(f"rosler_{name}")
    primitive.multiple_results = True
    operation = Operation(primitive, package, **functions)
    primitive.def_impl(functools.partial(xla.apply_primitive, primitive))
    primitive.def_effectful_abstract_eval(functools.partial(_types, operation))
    batching.primitive_batchers[primitive] = functools.partial(_map, primitive)
    mlir.register_lowering(primitive, functools.partial(_lower, operation), inline=False)
    if operation.partner is not None:
        ad.primitive_jvps[primitive] = functools.partial(_jvp, primitive)
        ad.primitive_transposes[primitive] = functools.partial(_transpose, operation)
    return operation


def floating(name: str, x: Any) -> Array:
    """x as an array; raises TypeError unless its dtype is floating."""
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"{name}: dtype {x.dtype}; expected a floating array, e.g. float32")
    return x


def apply(
    operation: Operation, implementation: str | None, x: Array, *others: Any, **params: Any
) -> Any:
    """The results of an operation on arrays; only x has examples.

    Raises:
      ValueError: an explicit, forced or environment's choice is unknown or cannot run.
    """
    choice = explain(operation, implementation, x, *others, **params)
    precision = jax.config.jax_default_matmul_precision  # type: ignore[attr-defined]
    asked = Asked(choice.name if choice.asked else None, selection.assumed(), precision)

    def bind(*operands: Array) -> tuple[Array, ...]:
        # Varying over the same manual axes of a mesh; the transpose of that is their sum.
        vary = [jax.typeof(a).mat.varying for a in operands]
        axes = [tuple(frozenset().union(*vary) - v) for v in vary]
        alike = [jax.lax.pcast(a, v, to="varying") for a, v in zip(operands, axes, strict=True)]
        return tuple(operation.primitive.bind(*alike, implementation=asked, maps=(), **params))

    return by_example(bind, x, *others, axes=x.ndim - operation.axes(**params))


def explain(operation: Operation, implementation: str | None, *types: Any, **params: Any) -> Choice:
    """What would run on the device here or assumed, and why; operands may be shapes and dtypes."""
    return selection.choose(*_question(operation, types, params), implementation)


def _module(operation: Operation, name: str) -> Any:
    # On first use: Pallas' back ends take a second to import.
    kernels = operation.kernels if name.startswith("mosaic") else None
    return importlib.import_module(f"{kernels or operation.package}.{name}")


def _question(
    operation: Operation, types: tuple[Any, ...], params: Params
) -> tuple[Problem, Callable[[str], str | None]]:
    """The problem, and why a back end cannot run it."""
    examples = math.prod(types[0].shape[: len(types[0].shape) - operation.axes(**params)])
    problem, limits = operation.describe(examples, *types, **params)

    def unsupported(name: str) -> str | None:
        check = getattr(_module(operation, name), "unsupported", None)
        return None if check is None else check(*limits)

    return problem, unsupported


def _unmapped(types: tuple[Any, ...], maps: Any) -> tuple[list[int], list[Any]]:
    """The sizes of the maps, and the types of the operands inside them."""
    sizes, shapes = [], [t.shape for t in types]
    for axes in maps:
        sizes.append(next(s[0] for s, axis in zip(shapes, axes, strict=True) if axis is not None))
        shapes = [s if axis is None else s[1:] for s, axis in zip(shapes, axes, strict=True)]
    return sizes, [jax.ShapeDtypeStruct(s, t.dtype) for s, t in zip(shapes, types, strict=True)]


def _types(
    operation: Operation, *types: Any, implementation: Asked, maps: Any, **params: Any
) -> tuple[list[Any], Any]:
    """Types of the results, and effects: an interpreter calls back."""
    sizes, inner = _unmapped(types, maps)
    name, effects = implementation.name, no_effects
    if name is not None and IMPLEMENTATIONS[name].interpret:
        choice = Choice(name, "")
        options = _options(operation, choice, "cpu")
        run = functools.partial(_run, operation, choice, None, (), params, options)
        effects = jax.make_jaxpr(run)(*inner).effects
    examples = inner[0].shape[: len(inner[0].shape) - operation.axes(**params)]
    shapes = [(*sizes, *examples, *shape) for shape in operation.shapes(*inner, **params)]
    lies = [types[0].sharding.update(spec=P(*(None for _ in shape))) for shape in shapes]
    return [
        types[0].update(shape=shape, weak_type=False, sharding=sharding)
        for shape, sharding in zip(shapes, lies, strict=True)
    ], effects


def _map(primitive: Primitive, operands: Any, dims: Any, *, maps: Any, **params: Any) -> Any:
    if all(dim is None for dim in dims[1:]):  # one more axis of examples, behind the mapped ones
        x = jnp.moveaxis(operands[0], dims[0], sum(axes[0] is not None for axes in maps))
        out = primitive.bind(x, *operands[1:], maps=maps, **params)
        return out, [len(maps)] * len(out)
    axes = tuple(None if dim is None else 0 for dim in dims)
    pairs = zip(operands, dims, strict=True)
    operands = [a if dim is None else jnp.moveaxis(a, dim, 0) for a, dim in pairs]
    out = primitive.bind(*operands, maps=(axes, *maps), **params)
    return out, [0] * len(out)


def _jvp(primitive: Primitive, primals: Any, tangents: Any, **params: Any) -> Any:
    out = primitive.bind(*primals, **params)
    if isinstance(tangents[0], ad.Zero):
        return out, [jnp.zeros_like(a) for a in out]
    return out, primitive.bind(tangents[0], *primals[1:], **params)


def _transpose(
    operation: Operation, cotangents: Any, x: Any, *others: Any, maps: Any, **params: Any
) -> list[Any]:
    changed = {**params, **operation.partner(**params)}  # type: ignore[misc]
    whole = tuple((0, *axes[1:]) for axes in maps)
    cotangent = ad.instantiate_zeros(cotangents[0])
    (out,) = operation.primitive.bind(cotangent, *others, maps=whole, **changed)
    shared = tuple(i for i, axes in enumerate(maps) if axes[0] is None)
    return [jnp.sum(out, shared) if shared else out, *(None for _ in others)]


def _lower(
    operation: Operation, ctx: Any, *operands: Any, implementation: Asked, maps: Any, **params: Any
) -> Any:
    question = _question(operation, tuple(_unmapped(ctx.avals_in, maps)[1]), params)
    platforms = tuple(ctx.platforms or ctx.module_context.platforms)
    choices, runs = set(), {}
    for platform, here in selection.targets(platforms, implementation.device).items():
        choice = selection.on_device(*question, implementation.name, here)
        options = _options(operation, choice, here.platform)
        choices.add((choice.name, tuple(sorted(options.items()))))
        runs[platform] = functools.partial(
            _run, operation, choice, implementation.precision, maps, params, options
        )
    each = functools.partial(_EACH.bind, runs=tuple(runs.items()), types=tuple(ctx.avals_out))
    run = next(iter(runs.values())) if len(choices) == 1 else each
    return mlir.lower_fun(run, multiple_results=True)(ctx, *operands)


# In one program for several platforms: what `jax.lax.platform_dependent` does, whose branches do
# not say what they are lowered for, which kernels ask.
_EACH = Primitive("rosler_each")
_EACH.multiple_results = True
_EACH.def_abstract_eval(lambda *_, types, **__: types)


def _lower_each(ctx: Any, *operands: Any, runs: Any, **_: Any) -> Any:
    return mlir.lower_fun(dict(runs)[ctx.platforms[0]], multiple_results=True)(ctx, *operands)


for _platform in (None, "gpu", "tpu"):
    mlir.register_lowering(_EACH, _lower_each, platform=_platform)


def _options(operation: Operation, choice: Choice, platform: str) -> Params:
    """What the functions of a back end take besides the operands."""
    module = _module(operation, IMPLEMENTATIONS[choice.name].module)
    options = selection.backend_options(choice, getattr(module, "Blocks", None))
    if getattr(module, "BY_PLATFORM", False):
        options["platform"] = platform
    return options


def _run(
    operation: Operation, choice: Choice, precision: Any, maps: Any, params: Params,
    options: Params, *operands: Any,
) -> tuple[Array, ...]:  # fmt: skip
    module = _module(operation, IMPLEMENTATIONS[choice.name].module)

    def run(x: Array, *others: Array) -> tuple[Array, ...]:
        lead = x.shape[: x.ndim - operation.axes(**params)]
        flat = x.reshape(math.prod(lead), *x.shape[len(lead) :])
        out = operation.run(module, flat, *others, **params, **options)
        return tuple(a.reshape(*lead, *a.shape[1:]) for a in out)

    for axes in reversed(maps):
        run = jax.vmap(run, axes)
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        return run(*operands)
