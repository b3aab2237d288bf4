"""Turning the layers of an existing NNX model into sketch layers, by path rule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from flax import nnx

from rosler_jax import _convert, _replace, _table
from rosler_jax._convert import Rule
from rosler_jax._paths import TRAINING_ONLY

if TYPE_CHECKING:
    from rosler_jax._convert import Method


@dataclasses.dataclass(frozen=True)
class Row:
    """What became of one layer.

    Attributes:
      path: dotted path; the first in alphabetical order where the layer is shared.
      kind: class of the layer, and the mode of the sketch layer in its place.
      in_features: ``m`` of the unfolded weight of one group; None where it is not known.
      out_features: ``n``.
      rank: ``s``; None if the layer was left alone.
      before: parameters of the layer, bias included.
      after: parameters that are stored now.
      error: ``||W - C U R||_F / ||W||_F`` if made from the weights, else None.
      note: why the layer was left alone, and where else it is used.
    """

    path: str
    kind: str
    in_features: int | None
    out_features: int | None
    rank: int | None
    before: int
    after: int
    error: float | None = None
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Report:
    """What :func:`sketchify` did; prints as a table.

    Attributes:
      rows: one per layer that is or could have been sketched.
      before: parameters of the whole model, before.
      after: and after.
      unused: patterns of rules that decided about no layer.
    """

    rows: tuple[Row, ...]
    before: int
    after: int
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        """The table, as plain text."""
        head = ("path", "kind", "in", "out", "rank", "before", "after", "error", "note")
        total = ("model", "", "", "", "", f"{self.before:,}", f"{self.after:,}", "", "")
        table = _table.draw(head, [*map(_cells, self.rows)], total, left=(0, 1, 8))
        idle = [f"rule {pattern!r} decided about no layer" for pattern in self.unused]
        return "\n".join([table, *idle])


def _cells(row: Row) -> tuple[str, ...]:
    sizes = ("" if v is None else str(v) for v in (row.in_features, row.out_features, row.rank))
    error = "" if row.error is None else f"{row.error:.4f}"
    path = row.path or "(model)"
    return (path, row.kind, *sizes, f"{row.before:,}", f"{row.after:,}", error, row.note)


def sketchify(
    model: Any,
    rules: Sequence[Rule],
    *,
    rngs: nnx.Rngs,
    from_weights: bool = False,
    method: Method = "svd",
    adapters: Mapping[type, Callable[[Any], Any]] = MappingProxyType({}),
) -> tuple[Any, Report]:
    r"""Replaces layers of an NNX model by sketch layers, by path rule.

    ``nnx.Linear`` becomes :class:`rosler_jax.SketchLinear`, ``nnx.Conv`` and ``nnx.ConvTranspose``
    :class:`rosler_jax.SketchConv`, ``nnx.LinearGeneral`` (the four of ``nnx.MultiHeadAttention``)
    :class:`rosler_jax.SketchLinearGeneral`, ``nnx.Einsum`` :class:`rosler_jax.SketchEinsum`; of
    ``nnx.LoRALinear`` and ``nnx.LoRA`` the base. A stack of layers, as ``nnx.vmap`` makes it to be
    scanned over, becomes a stack of sketch layers with sketches of their own. For a Linen module
    see :func:`rosler_jax.linen.sketchify`.

    The first rule whose pattern matches the path of a layer decides; a layer that no rule matches
    stays. So does one whose sketch would not be smaller, ``s (m + n) >= m n`` (``s_in s >= m n``
    for a seeded one), and one that a sketch layer cannot stand for (a subclass, a masked kernel, a
    kernel tied to another layer); the report says why. Bias, dtypes, strides, padding, dilation and
    groups are kept, and so are the kernel's metadata, its names of axes and its sharding (of the
    factors' axes that come from them), and shared layers: they are shared afterwards.

    Args:
      model: any NNX model (or a single layer); it is not changed.
      rules: tried in order.
      rngs: its ``params`` stream draws the new weights and the seeds of the sketches.
      from_weights: start from the weights of ``model`` instead of anew. Chain layers take the
        factors of :func:`rosler_jax.initializers.from_dense`; ares layers the sketches of the best
        rank-s approximation; seeded layers the least-squares core.
      method: of ``from_dense``: ``"svd"``, ``"nystrom"`` or ``"cur"``.
      adapters: your own layer classes to functions that give the Flax layer which computes the
        same from the same variables: ``{MyEinsum: lambda layer: as_nnx_einsum(layer)}``.

    Returns:
      The new model, and a :class:`Report` whose ``print`` is a table.

    Raises:
      TypeError: if ``rules`` is no sequence of :class:`Rule`, or the model is no NNX model.
      ValueError: for an unknown method.

    Example:
      >>> from flax import nnx
      >>> rngs = nnx.Rngs(0)
      >>> model = nnx.Sequential(
      ...     nnx.Linear(64, 128, rngs=rngs), nnx.relu, nnx.Linear(128, 10, rngs=rngs)
      ... )
      >>> small, report = sketchify(model, [Rule("layers.0", rank=4)], rngs=rngs)
      >>> print(report)
      path      kind              in  out  rank  before  after  error  note
      --------------------------------------------------------------------------------
      layers.0  Linear -> chain   64  128     4   8,320    912
      layers.2  Linear           128   10         1,290  1,290         no rule matches
      --------------------------------------------------------------------------------
      model                                       9,610  2,202
    """
    check_arguments(rules, method)
    if not isinstance(model, nnx.Pytree):
        raise TypeError(
            f"sketchify takes an NNX model, got {type(model).__name__}; for a Linen module call "
            "rosler_jax.linen.sketchify(module, variables, rules, *inputs, rngs=...)"
        )
    copy = nnx.clone(model)

    def is_layer(node: Any) -> bool:
        return _convert.is_candidate(node) or type(node) in adapters

    uses, tied = _replace.survey(copy, is_layer)
    rows: list[Row] = []
    used: set[Rule] = set()

    def decide(node: Any, path: str) -> Any:
        layer = adapters.get(type(node), lambda node: node)(node)
        rule = first_match(rules, path)
        if rule is not None:
            used.add(rule)
        new, row = apply_rule(
            layer, path, rule, rngs, method if from_weights else None, tied=id(node) in tied
        )
        also = ", ".join(uses[id(node)][1:])
        notes = (row.note, also and f"shared with {also}")
        rows.append(dataclasses.replace(row, note="; ".join(filter(None, notes))))
        return node if new is layer else new

    before = parameters(copy)
    new = _replace.replace(copy, is_layer, decide)
    return new, make_report(rows, before, rules, used)


def check_arguments(rules: Sequence[Rule], method: str) -> None:
    """Refuses rules that are none, and an unknown method."""
    if isinstance(rules, Rule) or not all(isinstance(rule, Rule) for rule in rules):
        raise TypeError(f"rules must be a sequence of Rule, got {rules!r}")
    if method not in _convert.METHODS:
        raise ValueError(f"unknown method {method!r}; pass one of {_convert.METHODS}")


def first_match(rules: Sequence[Rule], path: str) -> Rule | None:
    """The rule that decides about the layer of that path."""
    return next((rule for rule in rules if fnmatchcase(path, rule.pattern)), None)


def make_report(
    rows: Sequence[Row], before: int, rules: Sequence[Rule], used: Collection[Rule]
) -> Report:
    """The report of a model that had ``before`` parameters."""
    after = before + sum(row.after - row.before for row in rows)
    unused = tuple(rule.pattern for rule in rules if rule not in used)
    return Report(rows=tuple(rows), before=before, after=after, unused=unused)


def apply_rule(
    layer: Any, path: str, rule: Rule | None, rngs: nnx.Rngs, method: Method | None, *, tied: bool,
    share_seeds: bool = False,
) -> tuple[Any, Row]:  # fmt: skip
    """The layer that takes the place of ``layer`` (maybe itself), and its line of the report."""
    before = parameters(layer)
    shape = _convert.matrix_shape(layer)
    m, n = (None, None) if shape is None else shape
    kind = type(layer).__name__

    def stay(note: str) -> tuple[Any, Row]:
        return layer, Row(path, kind, m, n, None, before, before, note=note)

    if rule is None:
        return stay("no rule matches")
    if rule.skip:
        return stay(f"skipped by rule {rule.pattern!r}")
    reason = "its kernel is tied to another layer's" if tied else _convert.unsupported(layer)
    if reason or m is None or n is None:
        return stay(reason or "its kernel has no matrix view")
    rank = rule.rank_of(m, n)
    if rank > min(m, n):
        return stay(f"rank {rank} exceeds min(in={m}, out={n})={min(m, n)}")
    inner = (rule.in_sketch or min(8 * rank, m)) if rule.mode == "seeded" else m + n
    if rank * inner >= m * n:
        return stay(f"a sketch of rank {rank} would not be smaller")
    new, error = _convert.convert(layer, rule, rank, rngs, method, share_seeds=share_seeds)
    kind = f"{kind} -> {rule.mode}"
    count = _convert.matrix_count(layer)
    note = f"{count} matrices" if count > 1 else ""
    return new, Row(path, kind, m, n, rank, before, parameters(new), error, note)


def parameters(node: Any) -> int:
    """Number of trainable parameters; what only training needs is none."""
    flat = nnx.to_flat_state(nnx.state(node, nnx.Param))
    return sum(v[...].size for path, v in flat if path[-1] not in TRAINING_ONLY)
