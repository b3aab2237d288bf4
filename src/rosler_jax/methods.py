"""How weights are held, trained and shipped: each method is one row of :data:`METHODS`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import optax

from rosler_jax import linen
from rosler_jax._convert import Rule
from rosler_jax.finish import finish
from rosler_jax.optim.ares_bp import ares_bp, default_parallel
from rosler_jax.optim.extract_factors import LowRank, extract_factors, merge_factors
from rosler_jax.optim.restrict_rank import restrict_rank

if TYPE_CHECKING:
    from jaxtyping import PyTree

    from rosler_jax.hyper import Hyper
    from rosler_jax.learner import Learner


class Ruled(Protocol):
    """What says which layers are sketched: :class:`rosler_jax.config.TrainConfig`."""

    @property
    def rules(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def rank(self) -> int | float: ...  # noqa: D102
    @property
    def oversampling(self) -> int | None: ...  # noqa: D102
    @property
    def in_sketch(self) -> int | None: ...  # noqa: D102
    @property
    def sketch(self) -> str | None: ...  # noqa: D102


class Setting(NamedTuple):
    """What an optimiser is made for.

    Attributes:
      config: the run, a :class:`rosler_jax.config.TrainConfig`.
      hyper: its numbers, which may be traced.
      learner: the model.
      switch: updates of aRes-BP's parallel stage.
    """

    config: Any
    hyper: Hyper
    learner: Learner
    switch: int


Optimizer = Callable[[optax.GradientTransformation, Setting], optax.GradientTransformation]


def smallest(learner: Learner, params: PyTree, buffers: PyTree, fold: bool) -> Any:
    """The model of trained sketch layers without what only training needed."""
    model = learner.model(params, buffers)
    if isinstance(model, tuple):
        return linen.finish(*model, fold=fold)
    return finish(model, fold=fold)


class Method(NamedTuple):
    """How weights are held, trained and shipped.

    Attributes:
      mode: of the sketch layers that hold them, as of :class:`rosler_jax.Rule`; None for dense.
      rate: the peak learning rate that worked.
      optimizer: around the successive (or only) optimiser.
      project: applied to the parameters when an epoch ends, of parameters and setting.
      ship: ``(learner, params, buffers, fold)`` to the model that ships; ``fold``: in its smallest
        form, else in that in which a quantiser has seen it.
      thin: for dense weights: the mode of the layers that the rules say they are shipped as.
      stages: whether there is a parallel stage before, of ``config.parallel_epochs``.
      seeds: whether ``config.seed`` fixes more than the data of a run (then members of a sweep that
        differ in it have programs of their own).
      masks: whether zeros behind the factors of a small rank stay zeros under the optimiser, so
        that members of a sweep that differ in rank share a program.
    """

    mode: str | None = None
    rate: float = 3e-3
    optimizer: Optimizer = lambda inner, setting: inner
    project: Callable[[PyTree, Setting], PyTree] = lambda params, setting: params
    ship: Callable[..., Any] = smallest
    thin: str | None = None
    stages: bool = False
    seeds: bool = False
    masks: bool = True


def _ares_bp(inner: optax.GradientTransformation, setting: Setting) -> Any:
    hyper = setting.hyper
    parallel = default_parallel(hyper.parallel_learning_rate, hyper.momentum, hyper.clip_norm)
    return ares_bp(inner, switch_step=setting.switch, parallel=parallel)


def ranks(learner: Learner) -> dict[int, set[str]]:
    """Names of the dense kernels that the rules give a rank, by that rank."""
    found: dict[int, set[str]] = {}
    for name, rank in learner.ranks.items():
        found.setdefault(rank, set()).add(name)
    return dict(sorted(found.items()))


def _restrict_rank(inner: optax.GradientTransformation, setting: Setting) -> Any:
    for rank, names in ranks(setting.learner).items():
        inner = restrict_rank(
            inner, rank, every=setting.config.restrict_every, where=names.__contains__,
            view=setting.learner.views, seed=setting.config.seed,
        )  # fmt: skip
    return inner


def _restricted(params: PyTree, setting: Setting) -> PyTree:
    """Weights that truly have their ranks."""
    for rank, names in ranks(setting.learner).items():
        where, view = names.__contains__, setting.learner.views
        params = merge_factors(extract_factors(params, rank, where, view=view)[0])
    return params


def _thinned(learner: Learner, params: PyTree, buffers: PyTree, fold: bool) -> Any:
    """The model with thin factors in the place of dense weights of some rank."""
    del fold
    assert learner.thin is not None
    for rank, names in ranks(learner).items():
        where = names.__contains__
        params = extract_factors(params, rank, where, view=learner.views)[0]
    return learner.thin.model(_unboxed(params), buffers)


def _unboxed(tree: Any) -> Any:
    """Layers with ``c`` and ``r`` for a kernel that holds both."""
    if not isinstance(tree, Mapping):
        return tree
    kernel = tree.get("kernel")
    if isinstance(kernel, LowRank):
        rest = {name: value for name, value in tree.items() if name != "kernel"}
        return {"c": kernel.c, "r": kernel.r, **rest}
    return {name: _unboxed(value) for name, value in tree.items()}


METHODS: dict[str, Method] = {
    "ares-bp": Method("ares", optimizer=_ares_bp, stages=True),
    "chain": Method("chain"),
    "seeded": Method("seeded"),
    "restrict-rank": Method(
        rate=1e-3, optimizer=_restrict_rank, project=_restricted, ship=_thinned,
        thin="two-factor", seeds=True,
    ),
    "low-rank": Method("two-factor"),
    "dense": Method(rate=1e-3),
}  # fmt: skip
"""Every method by name: a new one is one line here, or a reference to one of your own."""

HEAD = (Rule("head", skip=True), Rule("*.head", skip=True))
"""The output layer of a model, by its name, stays dense unless rules are given."""


def rules(config: Ruled, mode: str | None) -> tuple[Rule, ...]:
    """The rules of a run: which layers are held as sketches, at which rank.

    Example:
      >>> from rosler_jax.config import TrainConfig
      >>> found = rules(TrainConfig(rules=("conv1=skip", "*=0.25")), "chain")
      >>> [(rule.pattern, rule.skip, rule.rank) for rule in found]
      [('conv1', True, None), ('*', False, 0.25)]
    """
    if mode is None:
        return ()
    if not config.rules:
        return (*HEAD, _rule("*", config.rank, config, mode))
    return tuple(_parsed(text, config, mode) for text in config.rules)


def _parsed(text: str, config: Ruled, mode: str) -> Rule:
    pattern, _, said = text.partition("=")
    if said == "skip":
        return Rule(pattern, skip=True)
    return _rule(pattern, rank_of(said) if said else config.rank, config, mode)


def _rule(pattern: str, rank: Any, config: Ruled, mode: Any) -> Rule:
    oversampling = config.oversampling if mode == "ares" else None
    in_sketch = config.in_sketch if mode == "seeded" else None
    sketch = config.sketch if mode in ("ares", "seeded") else None
    return Rule(pattern, rank, mode, oversampling=oversampling, in_sketch=in_sketch, sketch=sketch)


def rank_of(text: str) -> int | float:
    """A rank: a whole number, or a fraction of a layer's smaller side.

    Example:
      >>> rank_of("16"), rank_of("0.25"), rank_of("1.0")
      (16, 0.25, 1.0)
    """
    try:
        return int(text)
    except ValueError:
        return float(text)
