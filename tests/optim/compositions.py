"""Compositions of optax transformations as plain data, built twice: by optax, and here by hand.

A description is a tuple, kind first. The hand-written side updates dicts of NumPy arrays by name;
the two transformations of this library only *mark* an update there, and :func:`apply` does what
they promise once all links have had their say: so it is what a composition means.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from hypothesis import strategies as st

from rosler_jax.optim import ares_bp, restrict_rank
from rosler_jax.optim._groups import FACTORS, NAMES
from rosler_jax.optim.ares_bp import solve_and_balance

RANK = 2


def name_of(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def labels(names: tuple[str, ...]) -> Any:
    return lambda tree: jax.tree_util.tree_map_with_path(
        lambda path, _: "in" if name_of(path) in names else "out", tree
    )


def mask(names: tuple[str, ...]) -> Any:
    return lambda tree: jax.tree.map(lambda label: label == "in", labels(names)(tree))


def matrices(tree: Any) -> Any:
    return jax.tree.map(lambda p: jnp.ndim(p) > 1, tree)


def build(d: tuple[Any, ...]) -> optax.GradientTransformation:
    """The composition by optax."""
    kind, *args = d
    match kind:
        case "sgd":
            return optax.sgd(args[0])
        case "momentum":
            return optax.sgd(args[0], momentum=0.9)
        case "adam":
            return optax.adam(args[0])
        case "scale":
            return optax.scale(args[0])
        case "clip":
            return optax.clip(args[0])
        case "norm":
            return optax.clip_by_global_norm(args[0])
        case "decay":
            return optax.add_decayed_weights(args[0], matrices if args[1] else None)
        case "zero":
            return optax.masked(optax.set_to_zero(), mask(args[0]))
        case "freeze":
            inner = {"in": optax.set_to_zero(), "out": build(args[1])}
            return optax.partition(inner, labels(args[0]))
        case "multi":
            return optax.MultiSteps(build(args[0]), args[1]).gradient_transformation()
        case "chain":
            return optax.chain(*map(build, args))
        case "finite":
            return optax.apply_if_finite(build(args[0]), 3)
        case "inject":
            return optax.inject_hyperparams(lambda unused: build(args[0]))(unused=1.0)
        case "restrict":
            return restrict_rank(build(args[0]), RANK, every=args[1])
        case "ares":
            return ares_bp(build(args[1]), switch_step=args[2], parallel=build(args[0]))
        case "labelled":
            inner = {"in": build(args[1]), "out": optax.sgd(args[2])}
            return optax.partition(inner, labels(args[0]))
    raise AssertionError(kind)


class ByHand:
    """The composition by hand: ``update`` gives updates by name, and marks by name.

    A mark is ``"restrict"``, or ``"switch"`` for a factor at the end of its parallel stage.
    """

    def __init__(self, d: tuple[Any, ...]):
        self.kind, *self.args = d
        self.inner = [ByHand(a) for a in self.args if isinstance(a, tuple) and a and is_kind(a[0])]
        self.count, self.memory, self.moved = 0, {}, set()

    def update(self, grads: Any, params: Any) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        self.count += 1
        return getattr(self, f"_{self.kind}")(grads, params)

    def _remember(self, key: str, name: str, zero: Any) -> np.ndarray:
        return self.memory.get((key, name), np.zeros_like(zero))

    def _sgd(self, g, p):
        return {k: -self.args[0] * v for k, v in g.items()}, {}

    def _momentum(self, g, p):
        for k, v in g.items():
            self.memory["m", k] = v + 0.9 * self._remember("m", k, v)
        return {k: -self.args[0] * self.memory["m", k] for k in g}, {}

    def _adam(self, g, p):
        steps = {}
        for k, v in g.items():
            self.memory["m", k] = m = 0.1 * v + 0.9 * self._remember("m", k, v)
            self.memory["v", k] = s = 0.001 * v * v + 0.999 * self._remember("v", k, v)
            hat = np.sqrt(s / (1 - 0.999**self.count)) + 1e-8
            steps[k] = -self.args[0] * m / (1 - 0.9**self.count) / hat
        return steps, {}

    def _scale(self, g, p):
        return {k: self.args[0] * v for k, v in g.items()}, {}

    def _clip(self, g, p):
        return {k: np.clip(v, -self.args[0], self.args[0]) for k, v in g.items()}, {}

    def _norm(self, g, p):
        norm = np.sqrt(sum(np.sum(v * v) for v in g.values()))
        return {k: v * min(1.0, self.args[0] / norm) for k, v in g.items()}, {}

    def _decay(self, g, p):
        rate, only_matrices = self.args
        return {k: v + rate * p[k] * (v.ndim > 1 or not only_matrices) for k, v in g.items()}, {}

    def _zero(self, g, p):
        return {k: np.zeros_like(v) if k in self.args[0] else v for k, v in g.items()}, {}

    def _freeze(self, g, p):
        names = self.args[0]
        rest = {k: v for k, v in g.items() if k not in names}
        steps, marks = self.inner[0].update(rest, {k: p[k] for k in rest})
        return {k: steps.get(k, np.zeros_like(v)) for k, v in g.items()}, marks

    def _labelled(self, g, p):
        names, _, rate = self.args
        rest = {k: v for k, v in g.items() if k in names}
        steps, marks = self.inner[0].update(rest, {k: p[k] for k in rest})
        return {k: steps.get(k, -rate * v) for k, v in g.items()}, marks

    def _multi(self, g, p):
        n = (self.count - 1) % self.args[1]
        for k, v in g.items():
            old = self._remember("sum", k, v) if n else np.zeros_like(v)
            self.memory["sum", k] = old + v
        if n + 1 < self.args[1]:
            return {k: np.zeros_like(v) for k, v in g.items()}, {}
        return self.inner[0].update({k: self.memory["sum", k] / (n + 1) for k in g}, p)

    def _chain(self, g, p):
        marks = {}
        for link in self.inner:
            g, new = link.update(g, p)
            marks = {k: m for k, m in (marks | new).items() if k not in link.frozen()}
        return g, marks

    def frozen(self) -> tuple[str, ...]:
        """Weights that this link freezes: what was to happen to them does not."""
        return self.args[0] if self.kind == "zero" else ()

    def _finite(self, g, p):
        return self.inner[0].update(g, p)

    _inject = _finite

    def _restrict(self, g, p):
        steps, _ = self.inner[0].update(g, p)
        self.moved |= {k for k, v in steps.items() if np.any(v)}
        due = self.count % self.args[1] == 0
        return steps, {k: "restrict" for k in self.moved if due and p[k].ndim == 2}

    def _ares(self, g, p):
        *_, switch = self.args
        steps, _ = self.inner[self.count > switch].update(g, p)
        flags = {k: np.zeros_like(v) for k, v in steps.items() if k.endswith("parallel")}
        marks = {k: "switch" for k in steps if self.count == switch and is_factor(k)}
        return steps | flags, marks


def is_kind(name: Any) -> bool:
    return hasattr(ByHand, f"_{name}")


def is_factor(name: str) -> bool:
    return name.rsplit("/", 1)[-1] in NAMES


def apply(
    params: dict[str, np.ndarray], steps: dict[str, np.ndarray], marks: dict[str, str]
) -> dict[str, np.ndarray]:
    """Adds the updates, and then does what was marked."""
    new = {k: (p + steps[k]).astype(np.float32) for k, p in params.items()}
    for k in (k for k, mark in marks.items() if mark == "restrict"):
        left, sigma, right = np.linalg.svd(new[k], full_matrices=False)
        new[k] = (left[:, :RANK] * sigma[:RANK]) @ right[:RANK]
    for layer in {k.rsplit("/", 1)[0] for k, mark in marks.items() if mark == "switch"}:
        end = solve_and_balance({n: jnp.asarray(new[f"{layer}/{n}"]) for n in NAMES})
        if any(f"{layer}/{n}" not in marks for n in FACTORS):
            raise NotImplementedError(
                "a part of a layer is frozen at the switch: it has no meaning"
            )
        new |= {f"{layer}/{n}": np.asarray(v) for n, v in end.items()}
    return new


# What hypothesis draws.

RATES = st.sampled_from([0.05, 0.2])
PLAIN = st.one_of(
    st.tuples(st.just("sgd"), RATES),
    st.tuples(st.just("momentum"), st.just(0.05)),
    st.tuples(st.just("adam"), RATES),
)


def links(names: list[tuple[str, ...]]) -> st.SearchStrategy[tuple[Any, ...]]:
    """One link of a chain: harmless ones among them."""
    return st.one_of(
        st.tuples(st.just("scale"), st.sampled_from([1.0, 0.5])),
        st.tuples(st.just("clip"), st.sampled_from([1e-3, 1e3])),
        st.tuples(st.just("norm"), st.sampled_from([0.1, 1e3])),
        st.tuples(st.just("decay"), st.just(0.05), st.booleans()),
        st.tuples(st.just("zero"), st.sampled_from(names)),
    )


def inner(names: list[tuple[str, ...]]) -> st.SearchStrategy[tuple[Any, ...]]:
    """What stands inside: an optimiser, with links before it, collecting, freezing."""
    return st.one_of(
        PLAIN,
        PLAIN,
        st.tuples(st.just("freeze"), st.sampled_from(names), PLAIN),
        st.tuples(st.just("multi"), PLAIN, st.integers(2, 3)),
        st.tuples(st.just("chain"), links(names), PLAIN),
    )


def around(
    core: st.SearchStrategy[tuple[Any, ...]], names: list[tuple[str, ...]]
) -> st.SearchStrategy[tuple[Any, ...]]:
    """Links before and after it, and wrappers around all of that."""
    link = links(names)
    chained = st.one_of(
        core,
        st.tuples(st.just("chain"), link, core),
        st.tuples(st.just("chain"), core, link),
    )
    return st.one_of(
        chained,
        st.tuples(st.just("multi"), chained, st.just(2)),
        st.tuples(st.just("finite"), chained),
        st.tuples(st.just("inject"), chained),
    )
