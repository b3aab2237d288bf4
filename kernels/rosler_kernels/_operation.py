"""Linear operations as JAX primitives: their rules, and what runs them, once for all of them.

An operation acts on every example alike, is linear in its first operand and constant in the others
(seeds, factors), through which nothing is differentiated. Its primitive differentiates to itself
and transposes to its partner, exactly. Mapped over inputs it has one leading axis more; mapped over
the others too, it is the same operation under ``maps``, a tuple of ``in_axes`` from the outermost.

Which implementation runs is settled when the primitive is lowered, for each platform by itself,
unless one was asked for when it was traced.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive, no_effects
from jax.interpreters import ad, batching, mlir, xla
from jax.sharding import PartitionSpec as P

from . import selection
from .selection import IMPLEMENTATIONS, Choice, Problem
from .sharding import by_example

if TYPE_CHECKING:
    from jaxtyping import Array

    Params = dict[str, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class Operation:
    """What tells an operation from the others; functions of its static parameters by name.

    Attributes:
      primitive: bound to (x, *others), with a list of results.
      package: of its implementations.
      describe: (examples, x, *others) -> the problem to choose for, and the arguments of a back
        end's ``unsupported``; operands as their shapes and dtypes.
      shapes: (x, *others) -> shape of each result, without the axes of the examples.
      run: (back end, x, *others, **options) -> each result; examples along the first axis.
      partner: () -> the parameters that change in the transpose; None: derivatives are another's.
      axes: () -> how many axes of x belong to an example.
    """

    primitive: Primitive
    package: str
    describe: Callable[..., tuple[Problem, tuple[Any, ...]]]
    shapes: Callable[..., tuple[tuple[int, ...], ...]]
    run: Callable[..., tuple[Array, ...]]
    partner: Callable[..., Params] | None = None
    axes: Callable[..., int] = lambda **_: 1


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


def apply(
    operation: Operation, x: Array, *others: Any, implementation: str | None, **params: Any
) -> Any:
    """The results of an operation.

    Args:
      operation: as ``define`` returns it.
      x: array, linear.
      others: arrays, the same for all examples.
      implementation: an explicit choice, or None.
      **params: static.

    Raises:
      ValueError: an explicit, forced or environment's choice is unknown or cannot run.
    """
    asked = selection.ask(*_question(operation, (x, *others), params), implementation)
    bind = functools.partial(
        operation.primitive.bind,
        implementation=None if asked is None else asked.name,
        device=selection.assumed(),
        precision=jax.config.jax_default_matmul_precision,  # type: ignore[attr-defined]
        maps=(),
        **params,
    )
    axes = x.ndim - operation.axes(**params)
    return by_example(lambda *operands: tuple(bind(*_vary(operands))), x, *others, axes=axes)


def ask(
    operation: Operation, x: Any, *others: Any, implementation: str | None = None, **params: Any
) -> tuple[Problem, Choice | None]:
    """The problem, and the implementation that was asked for, if any."""
    question = _question(operation, (x, *others), params)
    return question[0], selection.ask(*question, implementation)


def explain(
    operation: Operation, x: Any, *others: Any, implementation: str | None = None, **params: Any
) -> Choice:
    """What ``apply`` would run with on this device, and why; operands may be shapes and dtypes."""
    question = _question(operation, (x, *others), params)
    asked = selection.ask(*question, implementation)
    choice = selection.choose(*question, asked and asked.name, selection.device())
    return choice if asked is None else choice._replace(reason=asked.reason)


def _module(operation: Operation, name: str) -> Any:
    # On first use: Pallas' back ends take a second to import.
    return importlib.import_module(f"{operation.package}.{name}")


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


def _vary(operands: tuple[Any, ...]) -> list[Any]:
    """The operands, varying over the same manual axes of a mesh."""
    vary = [jax.typeof(a).mat.varying for a in operands]
    union = frozenset().union(*vary)
    return [
        jax.lax.pcast(a, tuple(union - v), to="varying")
        for a, v in zip(operands, vary, strict=True)
    ]


def _unmapped(types: tuple[Any, ...], maps: tuple[Any, ...]) -> tuple[Any, ...]:
    """Types of the operands inside the maps."""
    levels = [sum(axes[i] is not None for axes in maps) for i in range(len(types))]
    return tuple(
        jax.ShapeDtypeStruct(t.shape[k:], t.dtype) for t, k in zip(types, levels, strict=True)
    )


def _types(operation: Operation, *types: Any, maps: Any, **params: Any) -> tuple[list[Any], Any]:
    """Types of the results, and effects: an interpreter calls back."""
    name, _, precision, params = _split(params)
    effects: Any = no_effects
    if name is not None and IMPLEMENTATIONS[name].interpret:
        run = functools.partial(_run, operation, Choice(name, ""), maps, precision, params)
        effects = jax.make_jaxpr(run)(*_unmapped(types, ())).effects
    inner = _unmapped(types, maps)
    sizes, left = [], [t.shape for t in types]
    for axes in maps:
        sizes.append(next(s[0] for s, axis in zip(left, axes, strict=True) if axis is not None))
        left = [s if axis is None else s[1:] for s, axis in zip(left, axes, strict=True)]
    examples = inner[0].shape[: len(inner[0].shape) - operation.axes(**params)]
    x, out = types[0], []
    for shape in operation.shapes(*inner, **params):
        whole = (*sizes, *examples, *shape)
        sharding = x.sharding.update(spec=P(*(None for _ in whole)))
        out.append(x.update(shape=whole, weak_type=False, sharding=sharding))
    return out, effects


def _split(params: Params) -> tuple[Any, Any, Any, Params]:
    rest = dict(params)
    return rest.pop("implementation"), rest.pop("device"), rest.pop("precision"), rest


def _map(primitive: Primitive, operands: Any, dims: Any, *, maps: Any, **params: Any) -> Any:
    front = lambda a, dim, to: a if dim is None else jnp.moveaxis(a, dim, to)  # noqa: E731
    if all(dim is None for dim in dims[1:]):  # one more axis of examples, behind the mapped ones
        x = front(operands[0], dims[0], sum(axes[0] is not None for axes in maps))
        out = primitive.bind(x, *operands[1:], maps=maps, **params)
        return out, [len(maps)] * len(out)
    axes = tuple(None if dim is None else 0 for dim in dims)
    operands = [front(a, dim, 0) for a, dim in zip(operands, dims, strict=True)]
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
    assert operation.partner is not None
    whole = tuple((0, *axes[1:]) for axes in maps)
    summed = tuple(i for i, axes in enumerate(maps) if axes[0] is None)
    changed = operation.partner(**_split(params)[-1])
    (out,) = operation.primitive.bind(
        ad.instantiate_zeros(cotangents[0]), *others, maps=whole, **{**params, **changed}
    )
    return [jnp.sum(out, summed) if summed else out, *(None for _ in others)]


def _lower(operation: Operation, ctx: Any, *operands: Any, maps: Any, **params: Any) -> Any:
    name, device, precision, params = _split(params)
    question = _question(operation, _unmapped(ctx.avals_in, maps), params)
    platforms = tuple(ctx.platforms or ctx.module_context.platforms)
    choices = {
        platform: selection.choose(*question, name, here)
        for platform, here in selection.targets(platforms, device).items()
    }
    runs = {
        platform: functools.partial(_run, operation, choice, maps, precision, params)
        for platform, choice in choices.items()
    }
    if len({(choice.name, choice.blocks) for choice in choices.values()}) == 1:
        run = next(iter(runs.values()))
    else:
        run = functools.partial(jax.lax.platform_dependent, **runs)
    return mlir.lower_fun(run, multiple_results=True)(ctx, *operands)


def _run(
    operation: Operation, choice: Choice, maps: Any, precision: Any, params: Params, *operands: Any
) -> tuple[Array, ...]:
    module = _module(operation, IMPLEMENTATIONS[choice.name].module)
    options = selection.backend_options(choice, getattr(module, "Blocks", None))

    def run(x: Array, *others: Array) -> tuple[Array, ...]:
        lead = x.shape[: x.ndim - operation.axes(**params)]
        flat = x.reshape(math.prod(lead), *x.shape[len(lead) :])
        out = operation.run(module, flat, *others, **params, **options)
        return tuple(a.reshape(*lead, *a.shape[1:]) for a in out)

    for axes in reversed(maps):
        run = jax.vmap(run, axes)
    with jax.default_matmul_precision(precision) if precision else contextlib.nullcontext():
        return run(*operands)
