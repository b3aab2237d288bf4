"""Which members of a sweep share a whole training, and which a compiled program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax._convert import Rule
from rosler_jax._ranks import live, mask_key, plans
from rosler_jax.config import TrainConfig
from rosler_jax.fit import TrainState, learner_of, make_fit, method_of, run_key
from rosler_jax.hyper import Hyper
from rosler_jax.learner import Learner
from rosler_jax.methods import Method, rules
from rosler_jax.run import example_of
from rosler_jax.sweep.examples import Examples, batches_key
from rosler_jax.sweep.population import placed

Key = tuple[Any, ...]


class Form(NamedTuple):
    """A model at certain ranks, and how its training begins.

    Attributes:
      learner: the model.
      init: jitted, from a run's key to its state.
      like: shapes of the state.
      ranks: of its sketch layers by path: the rule that gives them just these ranks.
      kind: what forms have in common that differ in rank, if rank is a mask; of others all.
    """

    learner: Learner
    init: Callable[[Any], TrainState]
    like: TrainState
    ranks: dict[str, Rule]
    kind: Key

    @property
    def shapes(self) -> Key:
        """Of the state's arrays."""
        return tuple(tuple(leaf.shape) for leaf in jax.tree.leaves(self.like))


class Group(NamedTuple):
    """Trainings that run as one population.

    Attributes:
      config: what they share.
      key: what tells their program from others.
      form: the model at the largest of their ranks, its state with :func:`rosler_jax._ranks.live`
        seeds where they differ.
      trainings: the config of each training, with the bits of its first member.
      members: for each training, the indices of the sweep's members that it serves.

    Example:
      >>> from rosler_jax.sweep.examples import load_examples
      >>> base = TrainConfig(hidden=(8,), rank=2, batch_size=4)
      >>> members = [dataclasses.replace(base, seed=s, bits=b) for s in (0, 1) for b in (4, 8)]
      >>> (group,) = make_plan(members, Built(load_examples(base, (np.eye(20), np.arange(20) % 2))))
      >>> [config.seed for config in group.trainings], group.members
      ([0, 1], ((0, 1), (2, 3)))
    """

    config: TrainConfig
    key: Key
    form: Form
    trainings: tuple[TrainConfig, ...]
    members: tuple[tuple[int, ...], ...]


@dataclasses.dataclass
class Built:
    """What a sweep has built, or found out, and need not again.

    Attributes:
      examples: the data.
      forms: of models.
      costs: of programs, by their key.
      populations: by program, width and blocks.
      initial: the last initial state of each form, and its seed: neighbours share it.
      scorers: programs that score trained models.

    Example:
      >>> from rosler_jax.sweep.examples import load_examples
      >>> built = Built(load_examples(TrainConfig(), (np.eye(20), np.arange(20) % 2)))
      >>> x, y = built.data
      >>> x.shape, y.shape, built.forms
      ((20, 20), (20,), {})
    """

    examples: Examples
    forms: dict[Key, Form] = dataclasses.field(default_factory=dict)
    costs: dict[Key, Any] = dataclasses.field(default_factory=dict)
    populations: dict[Key, Any] = dataclasses.field(default_factory=dict)
    initial: dict[Any, Any] = dataclasses.field(default_factory=dict)
    scorers: dict[Any, Any] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def data(self) -> Any:
        """All inputs and targets, those of test behind the others, whole on every device."""
        known = self.examples.dataset
        x = np.concatenate([np.asarray(known.train_x), np.asarray(known.test_x)])
        if known.train_y is None or known.test_y is None:
            return placed((x, None))
        return placed((x, np.concatenate([known.train_y, known.test_y])))


# What is the same to a training, and to a program.


@functools.lru_cache(maxsize=4096)
def training_key(config: TrainConfig) -> Key:
    """The config without what only changes the file: members of one key share a training."""
    same: dict[str, Any] = {} if config.trains_quantized else {"bits": 16}
    return _with_rules(dataclasses.replace(config, **same))


@functools.lru_cache(maxsize=4096)
def program_key(config: TrainConfig) -> TrainConfig:
    """The config without what is data to a program, and without ranks."""
    neutral: dict[str, Any] = {k: _DEFAULTS[k] for k in Hyper._fields if k in _DEFAULTS}
    neutral |= {"learning_rate": 1.0, "noise": 1.0 if config.noise else 0.0, "standardize": "auto"}
    neutral["rate_lambda"] = 1.0 if config.rate_lambda else 0.0
    neutral["budget_bytes"] = None if config.budget_bytes is None else 1
    neutral["min_metric"] = None if config.min_metric is None else 0.0
    neutral["class_weights"] = None if config.class_weights is None else "balanced"
    if not config.trains_quantized:
        neutral["bits"] = 16
    if not method_of(config).seeds:
        neutral["seed"] = _DEFAULTS["seed"]
    plain, *_ = _with_rules(dataclasses.replace(config, **neutral))
    return plain


_DEFAULTS: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
_RANKS = ("rank", "rules", "in_sketch", "sketch", "oversampling")


def _with_rules(config: TrainConfig) -> tuple[TrainConfig, Key, Key]:
    """The config without its ranks, and the rules that they make; as it is where none are made."""
    row = method_of(config)
    if row.mode is None and row.thin is None and row._replace(rate=0.0) != Method(rate=0.0):
        return config, (), ()  # who knows what a method of the user's own takes a rank for
    plain = dataclasses.replace(config, **{name: _DEFAULTS[name] for name in _RANKS})
    return plain, rules(config, row.mode), rules(config, row.thin)


@functools.lru_cache(maxsize=4096)
def _model_key(config: TrainConfig) -> Key:
    """The config without what a model and its initial state do not depend on, and its rules."""
    plain = program_key(config)
    if not method_of(config).stages:  # else the state depends on how long the run is
        plain = dataclasses.replace(plain, epochs=1, quantize_from=0.0)
    return plain, *_with_rules(config)[1:]


# Models.


def form_of(config: TrainConfig, built: Built) -> Form:
    """The form of a config's model, at its own ranks."""
    count = len(built.examples.part(config).train)
    key = *_model_key(config), count
    if key not in built.forms:
        learner = learner_of(config, built.examples.dataset)
        own = {name: getattr(config, name) for name in _RANKS}
        built.forms[key] = _form(dataclasses.replace(key[0], **own), learner, count, built)
    return built.forms[key]


def _form(config: TrainConfig, learner: Learner, count: int, built: Built) -> Form:
    init = make_fit(config, learner, count).init
    found: list[tuple[Any, Any]] = []

    def seen(key: Any) -> TrainState:
        state = init(key)
        model = learner.model(state.params, state.buffers)
        x = example_of(built.examples.x)
        given = (jnp.zeros(x.shape, x.dtype),)
        linen = isinstance(model, tuple)
        args, kwargs = (given, dict(learner.call)) if linen else ((), {})
        found.append((mask_key(model, *args, **kwargs), dict(plans(model, *args, **kwargs))))
        return state

    like = jax.eval_shape(seen, run_key(0))
    masks, layers = found[0]
    row = method_of(config)
    masked = row.masks and row.thin is None and not config.rate_coded  # zeros have a rate
    kind = (masks, jax.tree.structure(like)) if masked else (
        tuple(learner.ranks.items()), jax.tree.structure(like),
        *(tuple(leaf.shape) for leaf in jax.tree.leaves(like)),
    )  # fmt: skip
    ranks = {path: _exact(path.replace("/", "."), plan) for path, plan in layers.items()}
    return Form(learner, jax.jit(init, compiler_options=_quick_compilation()), like, ranks, kind)


def _quick_compilation() -> dict[str, Any] | None:
    """Options of the compiler for what runs once or so: quick, and the same but for last bits."""
    if jax.default_backend() != "cpu":
        return None
    options: dict[str, Any] = {"xla_backend_optimization_level": 1}
    if jax.__version_info__[:2] == (0, 10):  # others may refuse options that they do not know
        options |= {"xla_cpu_use_fusion_emitters": False, "xla_cpu_parallel_codegen_split_count": 1}
    return options


def _exact(path: str, plan: Any) -> Rule:
    """The rule that makes a layer of that plan."""
    more = {"seeded": {"in_sketch": plan.inner}, "ares": {"oversampling": plan.inner - plan.rank}}
    sketch = plan.sketch if plan.sketched else None
    return Rule(path, plan.rank, plan.mode, sketch=sketch, **more.get(plan.mode, {}))


def _largest(found: Sequence[Rule]) -> Rule:
    """The rule of a layer that is as large as in any of these."""
    rank = max(int(rule.rank or 0) for rule in found)
    names = [name for name in ("in_sketch", "oversampling") if getattr(found[0], name) is not None]
    return dataclasses.replace(
        found[0], rank=rank, **{name: max(getattr(rule, name) for rule in found) for name in names}
    )


def widest(config: TrainConfig, forms: Sequence[Form], built: Built) -> Form | None:
    """The form whose ranks are the largest of several of one kind; None if there can be none.

    Its state has seeds that say how many columns are live: as those of the smaller ones must.
    """
    shapes = {form.shapes for form in forms}
    if len(shapes) == 1:
        return forms[0]
    largest = {path: _largest([form.ranks[path] for form in forms]) for path in forms[0].ranks}
    key = "widest", program_key(config), tuple(largest.items())
    if key not in built.forms:
        form = next((form for form in forms if form.ranks == largest), None)
        if form is None:
            learner = learner_of(config, built.examples.dataset, tuple(largest.values()))
            form = _form(config, learner, len(built.examples.part(config).train), built)
        built.forms[key] = form._replace(like=jax.eval_shape(with_live, form.like))
    form = built.forms[key]
    fits = form.kind == forms[0].kind and form.ranks == largest
    return form if fits else None


def with_live(state: TrainState) -> TrainState:
    """A state whose seeds say how many columns of their sketches are live."""
    return state._replace(
        buffers=live(state.params, state.buffers),
        best_buffers=live(state.best_params, state.best_buffers),
    )


# Plans.


def make_plan(
    configs: Sequence[TrainConfig], built: Built, wide: Iterable[TrainConfig] = ()
) -> list[Group]:
    """Groups the members of a sweep into as few programs as their differences allow.

    Args:
      configs: the members.
      built: the data, and models that are known.
      wide: others, that are not trained, but that programs have room for.

    Example:
      >>> from rosler_jax.sweep.examples import load_examples
      >>> base = TrainConfig(method="chain", hidden=(32,))
      >>> members = [
      ...     dataclasses.replace(base, rank=r, bits=b, seed=s)
      ...     for r in (2, 4)
      ...     for b in (8, 16)
      ...     for s in (0, 1, 2)
      ... ]
      >>> plan = make_plan(members, Built(load_examples(base)))
      >>> [(len(g.trainings), len(sum(g.members, ()))) for g in plan]
      [(6, 12)]
    """
    trainings: dict[Key, list[int]] = {}
    for i, config in enumerate(configs):
        trainings.setdefault(training_key(config), []).append(i)
    programs: dict[Key, list[list[int]]] = {}
    for served in trainings.values():
        programs.setdefault(_kind_key(configs[served[0]], built), []).append(served)
    room: dict[Key, list[Form]] = {}
    for config in wide:
        room.setdefault(_kind_key(config, built), []).append(form_of(config, built))
    return [
        group
        for key, found in programs.items()
        for group in _groups(key, configs, found, room.get(key, []), built)
    ]


def _kind_key(config: TrainConfig, built: Built) -> Key:
    return program_key(config), form_of(config, built).kind


def _groups(
    key: Key, configs: Sequence[TrainConfig], found: list[list[int]], room: list[Form],
    built: Built,
) -> list[Group]:  # fmt: skip
    """One group of trainings of a kind; one for each form where no program has room for all."""
    found = sorted(found, key=lambda served: batches_key(configs[served[0]]))
    first = [configs[served[0]] for served in found]
    forms = [form_of(config, built) for config in first]
    form = widest(first[0], [*forms, *room], built) or widest(first[0], forms, built)
    if form is not None:
        return [Group(key[0], key, form, tuple(first), tuple(map(tuple, found)))]
    shapes = list(dict.fromkeys(form.shapes for form in forms))
    groups = []
    for one in shapes:
        some = [i for i, form in enumerate(forms) if form.shapes == one]
        served = [found[i] for i in some]
        groups += _groups((*key, one), configs, served, [], built)
    return groups
