"""A model as pure functions, from its factory and sketch rules: the same for NNX and Linen."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen, nnx

import rosler_jax.linen as sketched_linen
from rosler_jax._convert import Rule
from rosler_jax._layer_views import matrix_views
from rosler_jax._lookup import call_named
from rosler_jax.finish import finish
from rosler_jax.rate import RateCoded, rate_coded
from rosler_jax.sketchify import Report, sketchify
from rosler_jax.views import Views

if TYPE_CHECKING:
    from jaxtyping import Array, Key, PyTree

KEYS = "threefry2x32"
"""The kind of a run's random keys: its state is resumed under any default of JAX's."""


class Learner(NamedTuple):
    """A model as pure functions of its parameters and buffers (all other state).

    Attributes:
      init: ``key -> (params, buffers)``; random keys among the buffers as their words.
      apply: ``(params, buffers, x, train) -> (outputs, buffers)``, outputs float32.
      model: ``(params, buffers) ->`` the model that these are, as it evaluates: an NNX module, or a
        Linen ``(module, variables)``.
      views: what each parameter is.
      report: what became of each layer.
      call: keyword arguments of the model as it evaluates.
      settled: the same model with plain chains for aRes-BP's layers, and ``(params, buffers)`` to
        its own; for after the switch.
      thin: the same model with thin factors, where the weights stay dense and are given ranks.
      coded: plain parameters as rate-coded ones.
    """

    init: Callable[[Any], tuple[PyTree, PyTree]]
    apply: Callable[..., tuple[Any, PyTree]]
    model: Callable[[PyTree, PyTree], Any]
    views: Views
    report: Report
    call: Mapping[str, Any]
    settled: Callable[[], tuple[Learner, Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]]]
    thin: Learner | None = None
    coded: Callable[[PyTree], PyTree] = lambda params: params

    @property
    def ranks(self) -> dict[str, int]:
        """Of dense kernels that are given one, by name."""
        rows = () if self.thin is None else self.thin.report.rows
        kept = {row.path.replace(".", "/"): row.rank for row in rows if row.rank is not None}
        return {f"{path}/kernel": rank for path, rank in kept.items()}


def make_learner(
    factory: Callable[..., Any],
    input_shape: Sequence[int],
    outputs: int,
    rules: Sequence[Rule] = (),
    *,
    thin: Sequence[Rule] = (),
    dtype: Any = None,
    input_dtype: Any = jnp.float32,
    options: Mapping[str, Any] | None = None,
) -> Learner:
    """Builds the functions of a model.

    Args:
      factory: gives an ordinary dense NNX model or a Linen module; called with those of
        ``input_shape``, ``outputs``, ``dtype``, ``rngs`` and the options that it names.
      input_shape: of one example.
      outputs: how many the model has.
      rules: which layers become sketch layers; see :func:`rosler_jax.sketchify`.
      thin: rules of the thin factors that dense weights will be shipped as.
      dtype: of the computation; None for that of the parameters.
      input_dtype: of the inputs, int32 for tokens.
      options: of the model.

    Returns:
      The functions.

    Raises:
      TypeError: if the factory gives no model.
      ValueError: from the factory.

    Example:
      >>> from rosler_jax.models import mlp
      >>> rule = Rule("hidden.*", rank=2)
      >>> learner = make_learner(mlp, (8,), 3, [rule], options={"hidden": (16,)})
      >>> params, buffers = learner.init(jax.random.key(0))
      >>> learner.apply(params, buffers, jnp.ones((4, 8)), False)[0].shape
      (4, 3)
    """
    shape = tuple(input_shape)
    given = {"input_shape": shape, "outputs": outputs, "dtype": dtype, **(options or {})}

    def build(rngs: nnx.Rngs) -> Any:
        return call_named(factory, rngs=rngs, **given)

    found: list[Any] = []
    jax.eval_shape(lambda key: found.append(build(nnx.Rngs(key))), jax.random.key(0))
    x = jax.ShapeDtypeStruct((1, *shape), input_dtype)
    if not isinstance(found[0], linen.Module | nnx.Module):
        raise TypeError(
            f"the factory of the model gives a {type(found[0]).__name__}; expected an nnx.Module "
            "or a linen.Module"
        )

    def of(rules: Sequence[Rule]) -> Learner:
        flax = isinstance(found[0], linen.Module)
        return _linen(found[0], x, rules) if flax else _nnx(build, rules)

    return of(rules)._replace(thin=of(thin) if thin else None)


def rate_coded_learner(learner: Learner, bits: int) -> Learner:
    """The same model of parameters that are :class:`rosler_jax.rate.RateCoded`.

    Matrices, tables, factors and biases are coded; what normalises is not.

    Args:
      learner: of plain parameters.
      bits: of the integers at most.
    """

    def where(name: str, leaf: Any) -> bool:
        seen = learner.views[name]
        normalises = seen.role == "bias" and "Norm" in seen.layer
        return seen.role in ("matrix", "table", "factor", "bias") and not normalises

    def coded(params: PyTree) -> RateCoded:
        return rate_coded(params, bits=bits, where=where)

    def init(key: Key[Array, ""]) -> tuple[RateCoded, PyTree]:
        params, buffers = learner.init(key)
        return coded(params), buffers

    def apply(params: RateCoded, buffers: PyTree, x: Array, train: bool) -> tuple[Any, PyTree]:
        return learner.apply(params.weights, buffers, x, train)

    return learner._replace(
        init=init,
        apply=apply,
        model=lambda params, buffers: learner.model(params.weights, buffers),
        coded=coded,
    )


# NNX.


def _nnx(build: Callable[[nnx.Rngs], Any], rules: Sequence[Rule]) -> Learner:
    reports: list[Report] = []

    def made(key: Key[Array, ""]) -> Any:
        rngs = nnx.Rngs(key)
        new, report = sketchify(build(rngs), rules, rngs=rngs)
        reports.append(report)
        return new

    like = nnx.eval_shape(lambda: made(jax.random.key(0, impl=KEYS)))
    return _nnx_learner(like, made, reports[0])


def _nnx_learner(like: Any, made: Callable[[Any], Any], report: Report) -> Learner:
    """The functions of an abstract model, and of what makes it from a key."""
    like.train()
    graphdefs = {True: split_state(like)[0]}
    like.eval()
    graphdefs[False], _, buffers_like = split_state(like)

    def state(model: Any) -> tuple[PyTree, PyTree]:
        _, params, buffers = split_state(model)
        return params, _words(buffers)

    def merged(params: PyTree, buffers: PyTree, train: bool = False) -> Any:
        return nnx.merge(graphdefs[train], params, _keys(buffers, buffers_like))

    def apply(params: PyTree, buffers: PyTree, x: Array, train: bool) -> tuple[Any, PyTree]:
        model = merged(params, buffers, train)
        out = model(x).astype(jnp.float32)
        return out, state(model)[1] if train else buffers

    def settled() -> tuple[Learner, Any]:
        chain = lambda key: finish(made(key), fold=False)  # noqa: E731
        new = nnx.eval_shape(lambda: chain(jax.random.key(0, impl=KEYS)))
        convert = lambda params, buffers: state(finish(merged(params, buffers), fold=False))  # noqa: E731
        return _nnx_learner(new, chain, report), convert

    return Learner(
        lambda key: state(made(key)), apply, merged, matrix_views(like), report, {}, settled
    )


def split_state(model: nnx.Module) -> tuple[Any, Any, Any]:
    """Splits a model into its graph, its parameters and all other state, the latter two as dicts.

    ``nnx.merge(graphdef, params, buffers)`` puts it together again.

    Example:
      >>> _, params, buffers = split_state(nnx.Linear(4, 2, rngs=nnx.Rngs(0)))
      >>> sorted(params), buffers
      (['bias', 'kernel'], {})
    """
    graphdef, *states = nnx.split(model, nnx.Param, ...)
    params, buffers = map(nnx.to_pure_dict, states)
    return graphdef, params, buffers


def _is_key(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key))


def _words(buffers: PyTree) -> PyTree:
    """Keys as their words: what a checkpoint, a stack of members and ``jnp.where`` can hold."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, buffers)


def _keys(buffers: PyTree, like: PyTree) -> PyTree:
    def typed(x: Any, shape: Any) -> Any:
        return jax.random.wrap_key_data(x, impl=KEYS) if _is_key(shape) else x

    return jax.tree.map(typed, buffers, like)


# Linen.

_FLAGS = {
    "train": True, "training": True, "is_training": True,
    "deterministic": False, "use_running_average": False, "eval": False,
}  # fmt: skip
"""Arguments of Linen modules that say whether they train, and what says so."""


def _linen(module: linen.Module, x: jax.ShapeDtypeStruct, rules: Sequence[Rule]) -> Learner:
    names = inspect.signature(type(module).__call__).parameters
    flags = {
        train: {name: value == train for name, value in _FLAGS.items() if name in names}
        for train in (True, False)
    }
    given: dict[str, Any] = dict(flags[False])
    zeros = jnp.zeros(x.shape, x.dtype)

    def made(key: Key[Array, ""]) -> tuple[Any, Any, Report]:
        first, second, third = jax.random.split(key, 3)
        variables = module.init({"params": first, "dropout": second}, zeros, **given)
        rngs = nnx.Rngs(third)
        return sketched_linen.sketchify(module, variables, rules, zeros, rngs=rngs, **given)

    small, variables, report = made(jax.random.key(0, impl=KEYS))
    return _linen_learner(small, variables, lambda key: made(key)[1], report, zeros, flags)


def _linen_learner(
    module: Any, variables: Any, made: Callable[[Any], Any], report: Report, zeros: Array,
    flags: Mapping[bool, Mapping[str, bool]],
) -> Learner:  # fmt: skip
    """The functions of a sketched module, and of what makes its variables from a key."""
    given: dict[str, Any] = dict(flags[False])
    mutable = [name for name in variables if name not in ("params", "sketch")]

    def init(key: Key[Array, ""]) -> tuple[PyTree, PyTree]:
        key, dropout = jax.random.split(key)
        drawn = dict(made(key))
        return drawn.pop("params"), {**drawn, "dropout": jax.random.key_data(dropout)}

    def held(params: PyTree, buffers: PyTree) -> dict[str, Any]:
        return {"params": params, **{k: v for k, v in buffers.items() if k != "dropout"}}

    def apply(params: PyTree, buffers: PyTree, x: Array, train: bool) -> tuple[Any, PyTree]:
        if not train:
            return module.apply(held(params, buffers), x, **given).astype(jnp.float32), buffers
        key = jax.random.wrap_key_data(buffers["dropout"], impl=KEYS)
        dropout, key = jax.random.split(key)
        out, changed = module.apply(
            held(params, buffers), x, **flags[True], rngs={"dropout": dropout}, mutable=mutable
        )
        return out.astype(jnp.float32), {
            **buffers, **changed, "dropout": jax.random.key_data(key)
        }  # fmt: skip

    def settled() -> tuple[Learner, Any]:
        def chain(variables: Any) -> tuple[Any, dict[str, Any]]:
            return sketched_linen.finish(module, variables, zeros, fold=False, **given)

        def convert(params: PyTree, buffers: PyTree) -> tuple[PyTree, PyTree]:
            new = chain(held(params, buffers))[1]
            return new.pop("params"), {**new, "dropout": buffers["dropout"]}

        new, like = chain(jax.tree.map(jnp.zeros_like, variables))
        made_chain = lambda key: chain(made(key))[1]  # noqa: E731
        return _linen_learner(new, like, made_chain, report, zeros, flags), convert

    views = sketched_linen.matrix_views(module, variables, zeros, **given)
    model = lambda params, buffers: (module, held(params, buffers))  # noqa: E731
    return Learner(init, apply, model, views, report, flags[False], settled)
