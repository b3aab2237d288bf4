"""Turning the layers of an existing NNX model into sketch layers, by path rule."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import jax
from flax import nnx

from rosler_jax import _convert
from rosler_jax._convert import Rule

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
        table = [head, *map(_cells, self.rows), total]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [_line(cells, widths) for cells in table]
        rule = "-" * max(map(len, lines))
        lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
        lines += [f"rule {pattern!r} decided about no layer" for pattern in self.unused]
        return "\n".join(lines)


def _cells(row: Row) -> tuple[str, ...]:
    sizes = ("" if v is None else str(v) for v in (row.in_features, row.out_features, row.rank))
    error = "" if row.error is None else f"{row.error:.4f}"
    path = row.path or "(model)"
    return (path, row.kind, *sizes, f"{row.before:,}", f"{row.after:,}", error, row.note)


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    """Text to the left, numbers to the right."""
    left = (0, 1, 8)
    pairs = zip(cells, widths, strict=True)
    padded = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(pairs)]
    return "  ".join(padded).rstrip()


def sketchify(
    model: Any,
    rules: Sequence[Rule],
    *,
    rngs: nnx.Rngs,
    from_weights: bool = False,
    method: Method = "svd",
) -> tuple[Any, Report]:
    r"""Replaces layers of an NNX model by sketch layers, by path rule.

    ``nnx.Linear`` becomes :class:`rosler_jax.SketchLinear`, ``nnx.Conv``
    :class:`rosler_jax.SketchConv`. The first rule whose pattern matches the path of a layer
    decides; a layer that no rule matches stays. So does one whose sketch would not be smaller,
    ``s (m + n) >= m n`` (``s_in s >= m n`` for a seeded one), and one that a sketch layer cannot
    stand for (a subclass, a masked kernel, a kernel tied to another layer); the report says why.
    Bias, dtypes, strides, padding, dilation and groups are kept, and so are shared layers: they are
    shared afterwards.

    Args:
      model: any NNX model (or a single layer); it is not changed.
      rules: tried in order.
      rngs: its ``params`` stream draws the new weights and the seeds of the sketches.
      from_weights: start from the weights of ``model`` instead of anew. Chain layers take the
        factors of :func:`rosler_jax.initializers.from_dense`; ares layers the sketches of the best
        rank-s approximation; seeded layers the least-squares core.
      method: of ``from_dense``: ``"svd"``, ``"nystrom"`` or ``"cur"``.

    Returns:
      The new model, and a :class:`Report` whose ``print`` is a table.

    Raises:
      TypeError: if ``rules`` is no sequence of :class:`Rule`.
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
    if isinstance(rules, Rule) or not all(isinstance(rule, Rule) for rule in rules):
        raise TypeError(f"rules must be a sequence of Rule, got {rules!r}")
    if method not in _convert.METHODS:
        raise ValueError(f"unknown method {method!r}; pass one of {_convert.METHODS}")
    copy = nnx.clone(model)
    uses, tied = _survey(copy)
    rows: list[Row] = []
    used: set[int] = set()

    def decide(layer: Any, path: str) -> Any:
        i = next((i for i, rule in enumerate(rules) if fnmatchcase(path, rule.pattern)), None)
        if i is not None:
            used.add(i)
        new, row = _apply_rule(
            layer, path, None if i is None else rules[i], rngs, method if from_weights else None,
            tied=id(layer) in tied,
        )  # fmt: skip
        also = ", ".join(uses[id(layer)][1:])
        notes = (row.note, also and f"shared with {also}")
        rows.append(dataclasses.replace(row, note="; ".join(filter(None, notes))))
        return new

    before = _parameters(copy)
    new = _replace(copy, "", decide, {})
    after = before + sum(row.after - row.before for row in rows)
    unused = tuple(rule.pattern for i, rule in enumerate(rules) if i not in used)
    return new, Report(rows=tuple(rows), before=before, after=after, unused=unused)


def _apply_rule(
    layer: Any, path: str, rule: Rule | None, rngs: nnx.Rngs, method: Method | None, *, tied: bool
) -> tuple[Any, Row]:
    """The layer that takes the place of ``layer`` (maybe itself), and its line of the report."""
    before = _parameters(layer)
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
        return stay(reason or "no sketch layer for it")
    rank = rule.rank_of(m, n)
    if rank > min(m, n):
        return stay(f"rank {rank} exceeds min(in={m}, out={n})={min(m, n)}")
    inner = (rule.in_sketch or min(8 * rank, m)) if rule.mode == "seeded" else m + n
    if rank * inner >= m * n:
        return stay(f"a sketch of rank {rank} would not be smaller")
    new, error = _convert.convert(layer, rule, rank, rngs, method)
    kind = f"{kind} -> {rule.mode}"
    return new, Row(path, kind, m, n, rank, before, _parameters(new), error)


def _parameters(node: Any) -> int:
    """Number of trainable parameters; the flag of aRes-BP's parallel stage is none."""
    flat = nnx.to_flat_state(nnx.state(node, nnx.Param))
    return sum(v[...].size for path, v in flat if path[-1] != "parallel")


def _children(node: Any) -> list[tuple[Any, Any]]:
    """``(key, child)`` of a container, lists in order; nothing for a leaf."""
    if isinstance(node, nnx.Variable | jax.Array):
        return []
    if isinstance(node, nnx.Pytree):
        items = [kv for kv in vars(node).items() if not kv[0].startswith("_pytree__")]
        return sorted(items, key=lambda kv: _natural(kv[0]))
    if isinstance(node, dict):
        return list(node.items())
    return list(enumerate(node)) if isinstance(node, list | tuple) else []


def _natural(name: str) -> list[tuple[int, int | str]]:
    """Sort key that puts ``layer10`` after ``layer9``."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part)) if part.isdigit() else (1, part) for part in parts]


def _join(path: str, key: Any) -> str:
    return f"{path}.{key}" if path else str(key)


def _survey(model: Any) -> tuple[dict[int, list[str]], set[int]]:
    """All paths of every candidate layer by id, and the candidates whose kernel has other users."""
    uses: dict[int, list[str]] = {}
    owners: dict[int, set[int]] = {}
    layers: dict[int, Any] = {}
    open_nodes: set[int] = set()

    def walk(node: Any, path: str) -> None:
        if _convert.is_candidate(node):
            uses.setdefault(id(node), []).append(path)
            layers[id(node)] = node
        if id(node) in open_nodes:  # a cycle
            return
        open_nodes.add(id(node))
        for key, child in _children(node):
            if isinstance(child, nnx.Variable):
                owners.setdefault(id(child), set()).add(id(node))
            walk(child, _join(path, key))
        open_nodes.discard(id(node))

    walk(model, "")
    tied = {i for i, layer in layers.items() if len(owners[id(layer.kernel)]) > 1}
    return uses, tied


def _replace(
    node: Any, path: str, decide: Callable[[Any, str], Any], done: dict[int, tuple[Any, Any]]
) -> Any:
    """Rebuilds containers around the layers that ``decide`` returns; each shared node once."""
    if id(node) in done:
        return done[id(node)][1]
    if _convert.is_candidate(node):
        new = decide(node, path)
        done[id(node)] = (node, new)  # holds the old node too, so that its id stays its own
        return new
    children = _children(node)
    if not children:
        return node
    if isinstance(node, nnx.Pytree):
        done[id(node)] = (node, node)
    changed = [(key, _replace(child, _join(path, key), decide, done)) for key, child in children]
    if all(new is old for (_, new), (_, old) in zip(changed, children, strict=True)):
        return node
    return _rebuilt(node, dict(changed))


def _rebuilt(node: Any, children: dict[Any, Any]) -> Any:
    """The container with these children: an NNX object in place, plain Python containers anew."""
    if isinstance(node, nnx.Pytree):
        for key, child in children.items():
            if child is not getattr(node, key):
                wrap = nnx.data if isinstance(child, dict | list | tuple) else (lambda x: x)
                setattr(node, key, wrap(child))
        return node
    if isinstance(node, dict):
        return type(node)(children)
    values = list(children.values())
    return type(node)(*values) if hasattr(node, "_fields") else type(node)(values)
