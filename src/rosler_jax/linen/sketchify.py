"""Turning the layers of an existing Linen module into sketch layers, by path rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import nnx
from flax.core import meta

from rosler_jax._convert import Rule
from rosler_jax._layer_views import Part, parts_of, ruled, seen
from rosler_jax._paths import path_names
from rosler_jax.linen._adapt import TWINS, Found, Path, layers_met
from rosler_jax.linen._variables import SEEDS
from rosler_jax.sketchify import (
    Report,
    Row,
    apply_rule,
    check_arguments,
    first_match,
    make_report,
)
from rosler_jax.views import MatrixView, Seen, Views

if TYPE_CHECKING:
    from jaxtyping import Array

    from rosler_jax._convert import Method

_SKETCHABLE = tuple(cls.__name__ for cls in TWINS)


@dataclasses.dataclass(frozen=True)
class SketchedLayer:
    """A sketch layer in the place of a Linen layer.

    Attributes:
      graphdef: of the NNX layer that computes it; its parameters are among the Linen variables.
      seeds: name and two words of each of its sketches; none where they were traced.
      kind: class of the NNX layer.
      parts: what its parameters are, by name.
    """

    graphdef: Any
    seeds: tuple[tuple[str, tuple[int, ...]], ...]
    kind: str
    parts: tuple[tuple[str, Part], ...]

    def merged(self, params: Mapping[str, Any], seeds: Mapping[str, Any]) -> Any:
        """The NNX layer with these parameters, and with its own seeds where none are given."""
        state = {name: meta.unbox(value) for name, value in params.items()}
        words = seeds or {name: jnp.asarray(words, jnp.uint32) for name, words in self.seeds}
        return nnx.merge(self.graphdef, {**state, **words})


@dataclasses.dataclass(frozen=True)
class SketchedLayers:
    """Sketch layers by the path of the Linen layer in whose place each is."""

    items: tuple[tuple[Path, SketchedLayer], ...]

    def at(self, path: Path) -> SketchedLayer | None:
        """The sketch layer at that path, if there is one."""
        return next((layer for key, layer in self.items if key == path), None)


class Sketched(nn.Module):
    """A Linen module with sketch layers in the place of some of its own; from :func:`sketchify`.

    Its variables have the paths that the module's have. Call it as the module; other methods by
    :meth:`run`. It has no ``init``: its variables come with it.

    Attributes:
      dense_module: the module as it was.
      layers: the sketch layers in it.

    Example:
      >>> x = jnp.ones((2, 20))
      >>> dense = nn.Sequential([nn.Dense(30), nn.relu, nn.Dense(3)])
      >>> variables = dense.init(jax.random.key(0), x)
      >>> rules = [Rule("layers_0", rank=4)]
      >>> small, variables, _ = sketchify(dense, variables, rules, x, rngs=nnx.Rngs(0))
      >>> small.layers.at(("layers_0",)).kind, small.layers.at(("layers_2",))
      ('SketchLinear', None)
      >>> small.apply(variables, "__call__", x, method="run").shape
      (2, 3)
    """

    dense_module: nn.Module
    layers: SketchedLayers

    def setup(self) -> None:
        """Shares the module's scope, so that variables keep their paths."""
        nn.share_scope(self, self.dense_module)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Calls the module."""
        return self.run("__call__", *args, **kwargs)

    def run(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Calls a method of the module by name: ``apply(variables, "encode", x, method="run")``."""
        root, seeds = self.path, self.variables.get("sketch", {})

        def sketch(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
            layer, found = context.module, None
            if context.method_name == "__call__" and layer is not self:
                path = layer.path[len(root) :]
                # What the module was given, not made, keeps the name of this field in its path.
                path = path[1:] if path[:1] == ("dense_module",) else path
                found = self.layers.at(path)
            if found is None:
                return next_fun(*args, **kwargs)
            params = layer.variables.get("params", {})
            if set(params) != {name for name, _ in found.parts}:
                raise ValueError(
                    f"{'/'.join(layer.path)} has parameters {sorted(params)}, its sketch layer "
                    f"{sorted(name for name, _ in found.parts)}; pass the variables that sketchify "
                    "returned (init makes those of the dense module)"
                )
            sketch_layer = found.merged(params, at(seeds, path))
            return sketch_layer(args[0] if args else kwargs["inputs"])

        with nn.intercept_methods(sketch):
            return getattr(self.dense_module, method)(*args, **kwargs)


def sketchify(
    module: nn.Module,
    variables: Mapping[str, Any],
    rules: Sequence[Rule],
    *args: Any,
    rngs: nnx.Rngs,
    from_weights: bool = False,
    method: Method = "svd",
    apply_rngs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> tuple[Sketched, dict[str, Any], Report]:
    """Replaces layers of a Linen module by sketch layers, by path rule.

    The Linen counterpart of :func:`rosler_jax.sketchify`: Dense, DenseGeneral (those of attention),
    Einsum, Conv and ConvTranspose, inside ``nn.scan`` and ``nn.vmap``, too. Which layers there are
    shows in one call of the module, which is traced, not computed. The seeds of sketches are in the
    collection ``"sketch"``, shared by the layers of a stack; those that the new module itself holds
    serve where it is left out. Under ``jit`` and ``vmap`` the collection alone has them.

    Args:
      module: any Linen module.
      variables: what its ``init`` gave; not changed.
      rules: patterns are globs on the dotted paths of layers: ``"encoder.*.Dense_0"``.
      args, kwargs: of one call of the module: inputs, ``train=False``; arrays or shapes.
      rngs: its ``params`` stream draws the new weights and the seeds of the sketches.
      from_weights, method: as in :func:`rosler_jax.sketchify`.
      apply_rngs: random keys of that call by name; by default ``params`` and ``dropout``.

    Returns:
      The new module, its variables, with the boxes (names of axes) that the kernels have, and a
      report whose ``print`` is a table.

    Raises:
      TypeError: if ``rules`` is no sequence of :class:`Rule`, or the call does not fit.
      ValueError: for an unknown method.

    Example:
      >>> x = jnp.ones((2, 20))
      >>> dense = nn.Sequential([nn.Dense(30), nn.relu, nn.Dense(3)])
      >>> variables = dense.init(jax.random.key(0), x)
      >>> rule = Rule("layers_0", rank=4)
      >>> small, variables, report = sketchify(dense, variables, [rule], x, rngs=nnx.Rngs(0))
      >>> jax.tree.map(jnp.shape, variables["params"]["layers_0"])
      {'bias': (30,), 'c': (20, 4), 'r': (4, 30), 'u': (4, 4)}
      >>> small.apply(variables, x).shape
      (2, 3)
    """
    check_arguments(rules, method)
    met = layers_met(module, variables, args, kwargs, apply_rngs)
    rows: list[Row] = []
    used: set[Rule] = set()
    layers: list[tuple[Path, SketchedLayer]] = []
    params, seeds = variables["params"], variables.get("sketch", {})
    for path, found in sorted(met.items()):
        if found.kind not in _SKETCHABLE and found.twin is not None:
            continue
        rule = first_match(rules, ".".join(path))
        used |= set() if rule is None else {rule}
        here = at(params, path)
        given = method if from_weights else None
        new, row = _converted(found, here, ".".join(path), rule, rngs, given)
        rows.append(row)
        if new is not None:
            layer, values, words = split_off(new, here)
            layers.append((path, layer))
            params, seeds = put(params, path, values), put(seeds, path, words) if words else seeds
    before = sum(x.size for x in jax.tree.leaves(meta.unbox(variables["params"])))
    report = make_report(rows, before, rules, used)
    made = {**variables, "params": params, **({"sketch": seeds} if seeds else {})}
    return Sketched(module, SketchedLayers(tuple(layers))), made, report


def _converted(
    found: Found,
    params: Mapping[str, Any],
    path: str,
    rule: Rule | None,
    rngs: nnx.Rngs,
    method: Method | None,
) -> tuple[Any, Row]:
    """The NNX sketch layer for a Linen layer, or None, and its line of the report."""
    if found.twin is None:
        size = sum(x.size for x in jax.tree.leaves(meta.unbox(params)))
        note = "a subclass, which may compute otherwise"
        return None, Row(path, found.kind, None, None, None, size, size, note=note)
    layer = found.twin
    layer.kernel = _variable(params["kernel"])
    layer.bias = _variable(params["bias"]) if "bias" in params else nnx.data(None)
    new, row = apply_rule(layer, path, rule, rngs, method, tied=False, share_seeds=True)
    row = dataclasses.replace(row, kind=row.kind.replace(type(layer).__name__, found.kind))
    return (None if new is layer else new), row


def _variable(value: Any) -> nnx.Param[Any]:
    """A Linen parameter as an NNX one, a box's names of axes as metadata."""
    names = getattr(value, "names", None)
    if names is None:
        return nnx.Param(meta.unbox(value))
    return nnx.Param(meta.unbox(value), out_sharding=names, eager_sharding=False)


def split_off(
    new: Any, params: Mapping[str, Any]
) -> tuple[SketchedLayer, dict[str, Any], dict[str, Array]]:
    """A layer as what computes it, its parameters, boxed as those they replace, and its seeds."""
    values: dict[str, Any] = {}
    for path, variable in nnx.to_flat_state(nnx.state(new, nnx.Param)):
        name, value = str(path[0]), variable[...]
        names = variable.get_metadata().get("out_sharding")
        box = params.get(name, params.get("kernel") if names is not None else None)
        boxed = isinstance(box, meta.AxisMetadata)
        if boxed:
            named = {} if names is None or name in params else {"names": tuple(names)}
            value = dataclasses.replace(box, value=value, **named)
        values[name] = value
    variables = {name: getattr(new, name, None) for name in SEEDS}
    seeds = {k: v[...].reshape(-1, 2)[0] for k, v in variables.items() if v is not None}
    known = {k: v for k, v in seeds.items() if not isinstance(v, jax.core.Tracer)}
    words = tuple((name, tuple(map(int, value))) for name, value in known.items())
    parts = tuple((name, part) for name, part in parts_of(new).items() if name in values)
    return SketchedLayer(nnx.graphdef(new), words, type(new).__name__, parts), values, seeds


def at(tree: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """What lies at the path, if anything."""
    for key in path:
        tree = tree.get(key, {})
    return tree


def put(tree: Mapping[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """The tree with another value at the path."""
    if not path:
        return dict(value)
    return {**tree, path[0]: put(tree.get(path[0], {}), path[1:], value)}


def matrix_views(
    module: nn.Module,
    variables: Mapping[str, Any],
    *args: Any,
    rules: Mapping[str, MatrixView | None] | None = None,
    apply_rngs: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Views:
    """What each parameter of a Linen module is: see :func:`rosler_jax.matrix_views`.

    Args:
      module: any Linen module, sketched ones included.
      variables: its variables, arrays or shapes; names are those of the collection ``"params"``.
      args, kwargs: of one call of the module, which is traced, not computed.
      rules, apply_rngs: as there, and as in :func:`sketchify`.

    Example:
      >>> x = jnp.ones((2, 5, 16))
      >>> attention = nn.MultiHeadDotProductAttention(num_heads=4)
      >>> variables = attention.init(jax.random.key(0), x, x)
      >>> matrix_views(attention, variables, x, x)["out/kernel"].view
      MatrixView(inputs=(0, 1), outputs=(2,), stack=(), groups=1)
    """
    met = layers_met(module, variables, args, kwargs, apply_rngs)
    layers = module.layers if isinstance(module, Sketched) else SketchedLayers(())

    def row(names: Path, leaf: Any) -> Seen:
        path, last = names[:-1], names[-1]
        sketched, found = layers.at(path), met.get(path)
        if sketched is not None:
            kind, part = sketched.kind, dict(sketched.parts).get(last)
        else:
            kind = "" if found is None else found.kind
            twin = None if found is None else found.twin
            part = None if twin is None else parts_of(twin).get(last)
        return seen("/".join(names), tuple(leaf.shape), kind, part)

    leaves = jax.tree_util.tree_leaves_with_path(meta.unbox(variables["params"]))
    return ruled([row(path_names(path), leaf) for path, leaf in leaves], rules or {})
