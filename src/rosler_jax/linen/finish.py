"""``finish`` for Linen: trained sketch layers of a module in their smallest form."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from flax import linen as nn
from flax import nnx
from flax.core import meta

from rosler_jax.finish import finish as finish_nnx
from rosler_jax.linen._adapt import Path, layers_met
from rosler_jax.linen.conv import SketchConv
from rosler_jax.linen.dense import SketchDense
from rosler_jax.linen.sketchify import Sketched, SketchedLayers, at, put, split_off

_WRITTEN = (SketchDense.__name__, SketchConv.__name__)


def finish(
    module: nn.Module,
    variables: Mapping[str, Any],
    *args: Any,
    fold: bool = True,
    apply_rngs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[Sketched, dict[str, Any]]:
    """Folds every chain and ares layer of a trained Linen module to its smallest form.

    The Linen counterpart of :func:`rosler_jax.finish`, inside ``nn.scan`` and ``nn.vmap``, too.

    Args:
      module: a module that :func:`sketchify` made, or one with ``SketchDense`` and ``SketchConv``
        of your own; subclasses of these stay.
      variables: trained; not changed.
      args, kwargs: of one call of the module, which is traced, not computed; a module without
        layers of your own needs none.
      fold: False makes plain chains of ares layers, and leaves chains as they are.
      apply_rngs: random keys of that call by name; by default ``params`` and ``dropout``.

    Returns:
      The new module and its variables, without the seeds of the ares layers. Factors keep their
      boxes (names of axes); the kernel of a layer that is dense again has none.

    Raises:
      ValueError: as :func:`rosler_jax.finish`, or if the call is missing.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> x = jnp.ones((2, 20))
      >>> model = nn.Sequential([SketchDense(30, rank=4), nn.relu, nn.Dense(3)])
      >>> variables = model.init(jax.random.key(0), x)
      >>> small, variables = finish(model, variables, x)
      >>> jax.tree.map(jnp.shape, variables["params"]["layers_0"])
      {'bias': (30,), 'c': (20, 4), 'r': (4, 30)}
      >>> small.apply(variables, x).shape
      (2, 3)
    """
    known = dict(module.layers.items) if isinstance(module, Sketched) else {}
    found = dict(layers_of(module, variables, args, kwargs, apply_rngs))
    modes = ("chain", "ares") if fold else ("ares",)
    named = {".".join(path): layer for path, layer in found.items() if layer.mode in modes}
    small = finish_nnx(nnx.Dict(named), fold=fold)
    params, seeds = variables["params"], variables.get("sketch", {})
    for path in found:
        if ".".join(path) in named:
            known[path], values, _ = split_off(small[".".join(path)], at(params, path))
            params, seeds = put(params, path, values), _without(seeds, path)
    rest = {name: value for name, value in variables.items() if name not in ("params", "sketch")}
    dense = module.dense_module if isinstance(module, Sketched) else module
    new = Sketched(dense, SketchedLayers(tuple(known.items())))
    return new, {"params": params, **rest, **({"sketch": seeds} if seeds else {})}


def layers_of(
    module: nn.Module,
    variables: Mapping[str, Any],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] = MappingProxyType({}),
    rngs: Mapping[str, Any] | None = None,
) -> Iterator[tuple[Path, Any]]:
    """The sketch layers of a module as NNX layers, by path: those known, and those of a call."""
    known = dict(module.layers.items) if isinstance(module, Sketched) else {}
    params, seeds = variables["params"], variables.get("sketch", {})
    for path, layer in known.items():
        yield path, layer.merged(at(params, path), at(seeds, path))
    if not args and not kwargs:
        _refuse_others(params, (), known)
        return
    for path, found in layers_met(module, variables, args, kwargs, rngs).items():
        if found.kind in _WRITTEN and found.twin is not None and path not in known:
            state = meta.unbox({**at(params, path), **at(seeds, path)})
            yield path, nnx.merge(nnx.graphdef(found.twin), state)


def _refuse_others(params: Mapping[str, Any], path: Path, known: Container[Path]) -> None:
    """Refuses parameters of a sketch layer that is not known."""
    if path not in known and {"c", "u", "r"} <= set(params):
        raise ValueError(
            f"{'/'.join(path) or 'the module'} holds c, u, r of a sketch layer; which one shows in "
            "a call of the module: pass its inputs (shapes will do) behind the variables"
        )
    for key, value in params.items():
        if isinstance(value, Mapping):
            _refuse_others(value, (*path, key), known)


def _without(tree: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The tree without what lies at the path, and without what is empty then."""
    if not path or path[0] not in tree:
        return {} if not path else dict(tree)
    inner = _without(tree[path[0]], path[1:])
    return {k: v for k, v in tree.items() if k != path[0]} | ({path[0]: inner} if inner else {})
