"""One training run as pure functions: what is scanned, vmapped over, checkpointed and resumed.

:func:`make_fit` turns a config, a model and a task into pure functions; a whole run is ``init`` and
then ``epoch`` again and again (:func:`fit` scans it), with all state, the random key included, in
one :class:`TrainState`. What may be traced is data: :class:`rosler_jax.hyper.Hyper` and
:class:`rosler_jax.units.Units`. Nothing here prints, writes, or knows the command line.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rosler_jax import augment
from rosler_jax._convert import Rule
from rosler_jax._convolutions import canonical_convolutions
from rosler_jax._lookup import lookup
from rosler_jax.config import TrainConfig, model_options
from rosler_jax.evaluation import evaluate, statistics, values
from rosler_jax.graph.compute import run_batch
from rosler_jax.graph.save import load, model_path
from rosler_jax.hyper import Hyper, hyper_of
from rosler_jax.learner import KEYS, Learner, make_learner, rate_coded_learner
from rosler_jax.methods import METHODS, Method, Setting, rules
from rosler_jax.models import MODELS
from rosler_jax.optim.after_switch import after_switch
from rosler_jax.quantization import fake_quantize_params
from rosler_jax.rate import RateCoded, decaying, lifted
from rosler_jax.tasks import TASKS, Task, imitated, losses, metric_of
from rosler_jax.units import PLAIN, Units, is_tokens, standardized

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key, PyTree

RAMP = 0.3  # of the epochs, in which the price of a bit grows
AHEAD = 5  # epochs
GAIN = 2.0  # of the controller: logarithms of the price an epoch
ROOM = 0.005  # beyond the least metric, for the price to rise as fast as it may
SHORT = 1e6  # what the score of a model that misses it lies below all others


class Arrays(NamedTuple):
    """Training and validation data on the device; inputs as stored, y of the task or None."""

    train_x: Array
    train_y: Array | None
    validation_x: Array
    validation_y: Array | None


class Metrics(NamedTuple):
    """What one epoch reports."""

    loss: Float[Array, ""]  # mean training loss, label smoothing included
    train: dict[str, Any]  # metrics on the augmented batches, while training
    validation_loss: Float[Array, ""]
    validation: dict[str, Any]
    finite: Array  # whether loss and parameters stayed finite; if not, the epoch was undone


class TrainState(NamedTuple):
    """Everything a run needs to go on, and the best model so far."""

    epoch: Array  # int32 (), epochs done
    key: Array  # uint32 key data
    params: Any
    buffers: Any  # all other model state: seeds, running statistics
    opt_state: Any
    best_params: Any
    best_buffers: Any
    best_score: Array  # the followed metric of best_params, on validation; larger is better
    best_epoch: Array  # 0 where no epoch ended with a model that can ship
    price: Array  # logarithm of what a target has made of the price of a bit; 0 without one
    bits: Array  # of rate-coded parameters after the epoch, by their entropy models; 0 before


class Epoch(NamedTuple):
    """The order of an epoch's examples, ``(steps, batch)``, and a key for each step."""

    order: Array
    keys: Array


class Parts(NamedTuple):
    """The parts of an epoch, for data that do not fit the device.

    Attributes:
      begin: ``state -> Epoch``.
      steps: ``(carry, take, Epoch, state, hyper, units) -> (carry, seen)``: updates of parameters,
        buffers and optimiser; ``take`` gives a batch's ``(x, y)`` for a row of the order.
      project: ``(state, carry, hyper) -> (carry, params)``: the end of the last update, and the
        parameters that validation sees.
      close: ``(state, carry, seen, (loss, metrics), hyper) -> (state, Metrics)``.
    """

    begin: Callable[[TrainState], Epoch]
    steps: Callable[..., tuple[Any, Any]]
    project: Callable[..., tuple[Any, Any]]
    close: Callable[..., tuple[TrainState, Metrics]]


class Fit(NamedTuple):
    """The pure functions of a run."""

    init: Callable[[Any], TrainState]
    epoch: Callable[..., tuple[TrainState, Metrics]]  # state, arrays, hyper, units
    outputs: Callable[..., Any]  # params, buffers, x, units
    parts: Parts


def method_of(config: TrainConfig) -> Method:
    """The row of a run's method."""
    found = lookup(METHODS, config.method, "method")
    assert isinstance(found, Method)
    return found


def task_of(config: TrainConfig) -> Task:
    """The row of a run's task."""
    found = lookup(TASKS, config.task, "task")
    assert isinstance(found, Task)
    return found


def learner_of(config: TrainConfig, dataset: Any, given: Sequence[Rule] | None = None) -> Learner:
    """The model of a run on data; a :class:`rosler_jax.data.Dataset`, or what has its shapes.

    Args:
      config: the run.
      dataset: its data.
      given: rules of the sketch layers, in the place of the config's.

    Raises:
      ValueError: for a model that there is not, or one that these data do not fit.
    """
    method, x = method_of(config), dataset.train_x
    learner = make_learner(
        lookup(MODELS, config.model, "model"),
        x.shape[1:],
        task_of(config).outputs(dataset),
        rules(config, method.mode) if given is None else given,
        thin=rules(config, method.thin),
        dtype=None if config.precision == "float32" else jnp.dtype(config.precision),
        input_dtype=jnp.int32 if is_tokens(x) else jnp.float32,
        options={"vocabulary": getattr(dataset, "vocabulary", None), **model_options(config)},
    )
    coded = config.rate_coded and not method.stages  # else from the switch on
    return rate_coded_learner(learner, config.rate_bits) if coded else learner


def teacher_of(config: TrainConfig) -> Callable[[Any], Array] | None:
    """The outputs of a run's teacher, of a batch in the data's own units.

    Raises:
      ModelFileError, OSError: if it cannot be read.
    """
    if config.teacher is None:
        return None
    graph = load(model_path(config.teacher)).graph
    return lambda x: jax.lax.stop_gradient(run_batch(graph, x))


def make_schedule(config: TrainConfig, peak: Any, steps: int) -> optax.Schedule:
    """The learning-rate schedule over ``steps`` updates."""
    if config.schedule == "one-cycle":
        return optax.cosine_onecycle_schedule(max(steps, 2), peak, pct_start=0.3)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, max(steps, 1))
    return optax.constant_schedule(peak)


def parallel_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Updates of the parallel stage; none for methods without one."""
    if not method_of(config).stages:
        return 0
    return max(1, round(config.parallel_epochs * steps_per_epoch))


def successive_optimizer(config: TrainConfig, hyper: Hyper, steps: int) -> Any:
    """AdamW over the updates that are not of the parallel stage."""
    total = config.epochs * steps - parallel_steps(config, steps)
    schedule = make_schedule(config, hyper.learning_rate, total)
    return optax.adamw(schedule, weight_decay=hyper.weight_decay)


def steps_of(config: TrainConfig, num_examples: int) -> int:
    """Updates of an epoch.

    Raises:
      ValueError: if an epoch has fewer examples than a batch.
    """
    taken = min(num_examples, config.epoch_examples or num_examples)
    steps = taken // config.batch_size
    if steps < 1:
        raise ValueError(
            f"batch_size {config.batch_size} exceeds the {taken} examples of an epoch; "
            f"pass batch_size<={taken}"
        )
    return steps


def make_fit(
    config: TrainConfig, learner: Learner, num_examples: int, *, settled: bool = False
) -> Fit:
    """Builds the pure functions of a run.

    Args:
      config: the run; only what is no :class:`~rosler_jax.hyper.Hyper` is read here.
      learner: its model.
      num_examples: size of the training split.
      settled: for what follows the parallel stage alone, by the successive optimiser; see
        :func:`settle`.

    Returns:
      :class:`Fit`: ``init(key)``, ``epoch(state, arrays, hyper, units)``, ``outputs(params,
      buffers, x, units)``; and the parts of an epoch, for data that do not fit the device.

    Raises:
      ValueError: if the training split is smaller than a batch.

    Example:
      >>> config = TrainConfig(hidden=(16,), rank=2, epochs=2, batch_size=8, method="chain")
      >>> x, y = jnp.ones((32, 12)), jnp.zeros((32,), jnp.int32)
      >>> from types import SimpleNamespace
      >>> learner = learner_of(config, SimpleNamespace(train_x=x, num_classes=3))
      >>> f = make_fit(config, learner, num_examples=32)
      >>> state = f.init(jax.random.key(0))
      >>> state, metrics = f.epoch(state, Arrays(x, y, x, y), hyper_of(config), Units())
      >>> int(state.epoch), bool(metrics.finite)
      (1, True)
    """
    steps = steps_of(config, num_examples)
    run = _Run(
        config, learner, num_examples, settled, task_of(config), method_of(config), steps,
        parallel_steps(config, steps), make_gradient(config, learner, num_examples),
    )  # fmt: skip
    bound = functools.partial
    return Fit(
        init=bound(_init, run),
        epoch=bound(_epoch, run),
        outputs=bound(outputs_of, run.task, learner),
        parts=Parts(
            bound(_begin, run), bound(_steps, run), bound(_project, run), bound(_close, run)
        ),
    )


class _Run(NamedTuple):
    """What the functions of a run have in common; arguments of :func:`make_fit`, and of these."""

    config: TrainConfig
    learner: Learner
    num_examples: int
    settled: bool
    task: Task
    method: Method
    steps: int  # of an epoch
    switch: int  # the update at which the parallel stage ends
    gradient: Callable[..., Any]

    def setting(self, hyper: Hyper) -> Setting:
        """What the method is told."""
        return Setting(self.config, hyper, self.learner, self.switch)

    def optimizer(self, hyper: Hyper) -> optax.GradientTransformationExtraArgs:
        """Of the stage that the run is in."""
        inner = successive_optimizer(self.config, hyper, self.steps)
        whole = inner if self.settled else self.method.optimizer(inner, self.setting(hyper))
        return optax.with_extra_args_support(whole)


def _init(run: _Run, key: Key[Array, ""]) -> TrainState:
    key_model, key_run = jax.random.split(key)
    params, buffers = run.learner.init(key_model)
    return TrainState(
        epoch=jnp.zeros((), jnp.int32),
        key=key_words(key_run),
        params=params,
        buffers=buffers,
        opt_state=run.optimizer(hyper_of(run.config)).init(params),
        best_params=params,
        best_buffers=buffers,
        best_score=jnp.full((), -jnp.inf, jnp.float32),
        best_epoch=jnp.zeros((), jnp.int32),
        price=jnp.zeros((), jnp.float32),
        bits=jnp.zeros((), jnp.float32),
    )


def _begin(run: _Run, state: TrainState) -> Epoch:
    key = jax.random.wrap_key_data(state.key, impl=KEYS)
    _, key_order, key_steps = jax.random.split(key, 3)
    shape = run.steps, run.config.batch_size
    order = jax.random.permutation(key_order, run.num_examples)[: math.prod(shape)]
    return Epoch(order.reshape(shape), jax.random.split(key_steps, run.steps))


def _steps(
    run: _Run, carry: Any, take: Callable[[Any], Any], batches: Epoch, state: TrainState,
    hyper: Hyper, units: Units,
) -> tuple[Any, Any]:  # fmt: skip
    config, task = run.config, run.task

    def one(carry: Any, batch: Epoch) -> tuple[Any, Any]:
        params, buffers, opt_state = carry
        key = batch.keys
        x, y = take(batch.order)
        x, y = augmented(config, task, key, x, y, hyper, units)
        found, grads = run.gradient(params, buffers, x, y, key, state, hyper, units)
        _, (loss, out, buffers) = found
        updates, opt_state = run.optimizer(hyper).update(grads, opt_state, decaying(params))
        params = optax.apply_updates(params, updates)
        return (params, buffers, opt_state), (loss, statistics(task, out, y))

    return jax.lax.scan(one, carry, batches)


def _project(run: _Run, state: TrainState, carry: Any, hyper: Hyper) -> tuple[Any, Any]:
    params, *rest = carry
    params = run.method.project(params, run.setting(hyper))
    return (params, *rest), quantized(run.config, run.learner, params, state.epoch)


def _close(
    run: _Run, state: TrainState, carry: Any, seen: Any, validation: tuple[Any, dict[str, Any]],
    hyper: Hyper,
) -> tuple[TrainState, Metrics]:  # fmt: skip
    (params, buffers, opt_state), (step_losses, stats), (loss, found) = carry, seen, validation
    finite = jnp.isfinite(step_losses).all() & jnp.isfinite(loss) & all_finite(params)
    new = state._replace(
        epoch=state.epoch + 1,
        key=next_key(state.key),
        params=params,
        buffers=buffers,
        opt_state=opt_state,
    )
    followed, metric = metric_of(run.task, run.config.metric)
    score = found[followed] if metric.larger_is_better else -found[followed]
    eligible = may_end_here(run.config, state.epoch, run.steps)
    if isinstance(params, RateCoded):
        new, score, fits = controlled(run.config, new, score, params.bits(), hyper)
        eligible &= fits
    new = keep_best(new, score, eligible)
    new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
    means = jax.tree.map(lambda a: a.mean(0), stats)
    return new, Metrics(step_losses.mean(), values(run.task, means), loss, found, finite)


def _epoch(
    run: _Run, state: TrainState, arrays: Arrays, hyper: Hyper, units: Units
) -> tuple[TrainState, Metrics]:
    def take(index: Array) -> tuple[Array, Any]:
        y = arrays.train_y
        return arrays.train_x[index], None if y is None else y[index]

    carry = state.params, state.buffers, state.opt_state
    carry, seen = _steps(run, carry, take, _begin(run, state), state, hyper, units)
    carry, deployed = _project(run, state, carry, hyper)
    predict = lambda x: outputs_of(run.task, run.learner, deployed, carry[1], x, units)  # noqa: E731
    x, y = arrays.validation_x, arrays.validation_y
    validation = evaluate(predict, x, y, run.task, units=units)
    return _close(run, state, carry, seen, validation, hyper)


def outputs_of(
    task: Task, learner: Learner, params: PyTree, buffers: PyTree, x: Array, units: Units
) -> Array:
    """What a model says of a batch, as it evaluates, both in the data's own units."""
    out, _ = learner.apply(params, buffers, standardized(x, units), False)
    return in_units(task, out, units)


def make_gradient(config: TrainConfig, learner: Learner, num_examples: int) -> Callable[..., Any]:
    """The gradient of a batch's loss, with all that a config adds to it; for a loop's body.

    Args:
      config: the run.
      learner: its model.
      num_examples: size of the training split, over which a rate-coded file's bits are spread.

    Returns:
      ``(params, buffers, x, y, key, state, hyper, units) -> ((paid, (loss, outputs, buffers)),
      gradient)``: the loss with the price of the bits, and without. Of the state, epoch and price
      count.
    """
    task, teacher = task_of(config), teacher_of(config)

    def loss_fn(
        params: PyTree, buffers: PyTree, x: Any, y: Any, key: Any, state: TrainState,
        hyper: Hyper, units: Units,
    ) -> Any:  # fmt: skip
        params = quantized(config, learner, params, state.epoch)
        out, buffers = learner.apply(params, buffers, standardized(x, units), True)
        options = {
            "label_smoothing": hyper.label_smoothing,
            "class_weights": units.class_weights,
            "unit": units.target_std,
        }
        out = in_units(task, out, units)
        loss = losses(task, out, y, options).mean()
        if teacher is not None:
            options = {"temperature": hyper.temperature, "unit": units.target_std}
            apart = imitated(task, out, teacher(x), options).mean()
            loss += hyper.teacher_weight * (apart - loss)
        paid = loss
        if isinstance(params, RateCoded):
            bits = params.bits(jax.random.fold_in(key, 3))
            paid = loss + price_of_a_bit(config, state, hyper, num_examples) * bits
        return paid, (loss, out, buffers)

    gradient = jax.value_and_grad(loss_fn, has_aux=True)
    # Of convolutions in a loop, XLA for CPUs is quick with few layouts only.
    return canonical_convolutions(gradient) if jax.default_backend() == "cpu" else gradient


def is_settled(config: TrainConfig, num_examples: int, epochs: int) -> bool:
    """Whether a run's parallel stage is over after so many epochs."""
    steps = steps_of(config, num_examples)
    return method_of(config).stages and epochs * steps >= parallel_steps(config, steps)


def settle(
    config: TrainConfig, learner: Learner, num_examples: int
) -> tuple[Learner, Fit, Callable[[TrainState], TrainState]]:
    """The successive stage of aRes-BP as a program of its own, at the speed of plain chains.

    One program of both stages holds what only the parallel one needs: flags, seeds, a solve and
    cores with surplus columns, which are zero after the switch. This one holds chains.

    Args:
      config: a run by a method with stages.
      learner: its model.
      num_examples: size of the training split.

    Returns:
      Model and functions from the switch on, and the state that goes with them of one past it;
      training then ends where it would have, but for rounding.
    """
    steps = steps_of(config, num_examples)
    chain, convert = learner.settled()
    if config.rate_coded:
        chain = rate_coded_learner(chain, config.rate_bits)
    optimizer = successive_optimizer(config, hyper_of(config), steps)

    def settled(state: TrainState) -> TrainState:
        params, buffers = convert(state.params, state.buffers)
        best_params, best_buffers = convert(state.best_params, state.best_buffers)
        opt_state = after_switch(state.opt_state, optimizer, params)
        if config.rate_coded:
            plain, (params, best_params) = params, map(chain.coded, (params, best_params))
            opt_state = lifted(opt_state, plain, params)
        return state._replace(
            params=params,
            buffers=buffers,
            opt_state=opt_state,
            best_params=best_params,
            best_buffers=best_buffers,
        )

    return chain, make_fit(config, chain, num_examples, settled=True), jax.jit(settled)


def in_units(task: Task, out: Array, units: Units) -> Array:
    """Outputs in the units of the targets, where a task has any."""
    return out * units.target_std + units.target_mean if task.scaled else out


def quantized(config: TrainConfig, learner: Learner, params: PyTree, epoch: Array) -> PyTree:
    """The parameters as the model file would hold them, in quantisation-aware training."""
    if not config.quantization_aware or config.bits == 32:
        return params
    return jax.lax.cond(
        epoch >= math.ceil(config.quantize_from * config.epochs),
        lambda p: fake_quantize_params(p, config.bits, learner.views),
        lambda p: p,
        params,
    )


def next_key(key: Array) -> Array:
    """The key data of the epoch after the one that begins with ``key``."""
    return jax.random.key_data(jax.random.split(jax.random.wrap_key_data(key, impl=KEYS), 3)[0])


def run_key(seed: int) -> Key[Array, ""]:
    """The key of a run of that seed, whatever kind of key JAX makes by default."""
    return jax.random.key(seed, impl=KEYS)


def key_words(key: Key[Array, ""]) -> Array:
    """A key as what a run's state holds: the two words of one of the kind :data:`KEYS`."""
    plain = str(jax.random.key_impl(key)) == KEYS
    return jax.random.key_data(key) if plain else jax.random.bits(key, (2,), jnp.uint32)


def may_end_here(config: TrainConfig, epoch: Array, steps: int) -> Array:
    """Whether the model after this epoch could be shipped, so that it may become the best one.

    Not while aRes-BP is in its parallel stage, nor before quantisation-aware training begins, nor
    while the price of a bit still grows or the learning rate is high.
    """
    first = max(0, math.ceil(parallel_steps(config, steps) / steps) - 1)
    if config.rate_coded:
        first = max(first, coded_from(config))
    if config.quantization_aware and config.bits < 32:
        first = max(first, math.ceil(config.quantize_from * config.epochs))
    return epoch >= first


def coded_from(config: TrainConfig) -> int:
    """The epochs that a rate-coded run has behind it before one may be the best: 70 % of them."""
    return min(config.epochs - 1, math.ceil(0.7 * config.epochs))


def price_of_a_bit(
    config: TrainConfig, state: TrainState, hyper: Hyper, num_examples: int
) -> Array:
    """In nats of loss, whose mean is over examples; it grows over the first epochs.

    A target changes it as it goes. That begins at half of ``ln 2 / examples``: a bit of the model
    costs half of what a bit more costs in which all labels, given the inputs, are coded.
    """
    grown = jnp.minimum((state.epoch + 1) / max(1.0, RAMP * config.epochs), 1.0)
    price = hyper.rate_lambda / 1000 if config.rate_lambda else 0.5 * math.log(2) / num_examples
    return price * grown * jnp.exp(state.price)


def controlled(
    config: TrainConfig, state: TrainState, score: Array, bits: Array, hyper: Hyper
) -> tuple[TrainState, Array, Array]:
    """The price of a bit after an epoch, the epoch's score, and whether it may be the best.

    For a budget of bits the price follows what they will exceed it by in a few epochs, if they go
    on as they do, and the best of what fits is wanted; for a least metric it rises while there is
    room, and the smallest of what reaches it is.
    """
    change, fits = jnp.zeros(()), jnp.array(True)
    if config.budget_bytes is not None:
        over = jnp.log(jnp.maximum(bits, 1.0) / hyper.budget_bits)
        over += AHEAD * jnp.where(state.bits > 0, jnp.log(jnp.maximum(bits, 1.0) / state.bits), 0)
        change, fits = jnp.clip(GAIN * over, -1.0, 1.0), bits <= hyper.budget_bits
    elif config.min_metric is not None:
        least = hyper.min_metric
        larger = metric_of(task_of(config), config.metric)[1].larger_is_better
        room = score - (least if larger else -least)
        change = jnp.clip(room / ROOM, -1.0, 1.0) * GAIN
        score = jnp.where(room >= 0, 1 / jnp.maximum(bits, 1.0), score - SHORT)
    moving = state.epoch > RAMP * config.epochs / 2
    price = state.price + jnp.where(moving, change, 0.0)
    return state._replace(price=price, bits=bits), score, fits


def keep_best(state: TrainState, score: Array, eligible: Array) -> TrainState:
    """Remembers the parameters if this is the best validation score so far (ties: the later)."""
    better = eligible & (score >= state.best_score)

    def pick(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)

    return state._replace(
        best_params=pick(state.params, state.best_params),
        best_buffers=pick(state.buffers, state.best_buffers),
        best_score=pick(score, state.best_score),
        best_epoch=pick(state.epoch, state.best_epoch),
    )


def augmented(
    config: TrainConfig, task: Task, key: Key[Array, ""], x: Array, y: Any, hyper: Hyper,
    units: Units,
) -> tuple[Array, Any]:  # fmt: skip
    """A batch with the augmentations that the config asks for, and what it is to give.

    An input that is its own target is the one without noise.
    """
    key_shift, key_flip, key_noise = jax.random.split(key, 3)
    if config.shift:
        x = augment.shift(key_shift, x, config.shift)
    if config.flip:
        x = augment.flip(key_flip, x)
    if config.warps:
        how = {"rotate": config.rotate, "zoom": config.zoom, "elastic": config.elastic}
        x = augment.warp(jax.random.fold_in(key, 4), x, **how)
    y = task.target(x, y)
    if config.noise:
        x = augment.noise(key_noise, x, hyper.noise * units.std)
    return x, y


def all_finite(tree: PyTree) -> Array:
    """Whether every floating-point leaf is finite throughout."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()


def fit(
    config: TrainConfig,
    learner: Learner,
    arrays: Arrays,
    key: Key[Array, ""],
    units: Units = PLAIN,
    hyper: Hyper | None = None,
) -> tuple[TrainState, Metrics]:
    """A whole run as one pure function: jit it, or vmap it over keys, numbers and units.

    Returns:
      The final state and the metrics of every epoch, each of shape ``(epochs,)``.

    Example:
      >>> config = TrainConfig(hidden=(16,), rank=2, epochs=3, batch_size=8, method="seeded")
      >>> x, y = jnp.ones((32, 12)), jnp.zeros((32,), jnp.int32)
      >>> from types import SimpleNamespace
      >>> learner = learner_of(config, SimpleNamespace(train_x=x, num_classes=3))
      >>> run = lambda key: fit(config, learner, Arrays(x, y, x, y), key)
      >>> jax.vmap(run)(jax.random.split(jax.random.key(0), 2))[1].loss.shape
      (2, 3)
    """
    functions = make_fit(config, learner, arrays.train_x.shape[0])
    numbers = hyper_of(config) if hyper is None else hyper
    step = lambda state, _: functions.epoch(state, arrays, numbers, units)  # noqa: E731
    return jax.lax.scan(step, functions.init(key), None, length=config.epochs)
