"""The one training loop of the baselines, and the library's own, both with the same selection.

Whatever a method trains (weights under a mask, centroids, factors) a :class:`Rule` says how it
begins, what an update is, and which weights the model then has. Data, order of examples,
augmentation, units, loss and evaluation are the library's; the epoch is chosen by validation.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from rosler_jax._convolutions import canonical_convolutions
from rosler_jax.config import TrainConfig
from rosler_jax.fit import (
    Arrays,
    augmented,
    evaluate,
    learner_of,
    make_fit,
    outputs_of,
    run_key,
    steps_of,
    successive_optimizer,
    task_of,
)
from rosler_jax.hyper import hyper_of
from rosler_jax.run import Prepared, config_units, load_data
from rosler_jax.tasks import losses
from rosler_jax.units import Units, standardized


class Rule(NamedTuple):
    """How a method trains.

    Attributes:
      begin: ``(trained, fixed) -> state``.
      step: ``(state, fixed, x, y, units) -> state``, of a batch.
      weights: ``(state, fixed) -> params`` of the model.
    """

    begin: Callable[[Any, Any], Any]
    step: Callable[..., Any]
    weights: Callable[[Any, Any], Any]


class Trained(NamedTuple):
    """The model of the best epoch.

    Attributes:
      params, buffers: of the model.
      state: of the rule, after that epoch.
      validation: accuracy.
      epoch: counted from 1.
    """

    params: Any
    buffers: Any
    state: Any
    validation: float
    epoch: int


def prepared(config: TrainConfig) -> Prepared:
    """Data and model of a run."""
    dataset, arrays = _data(config.data, config.seed)
    learner = learner_of(config, dataset)
    functions, units = (
        make_fit(config, learner, len(dataset.train_x)),
        config_units(config, dataset),
    )
    task, hyper = task_of(config), hyper_of(config)
    return Prepared(config, dataset, task, learner, units, hyper, arrays, functions)


@functools.lru_cache(maxsize=1)
def _data(data: str, seed: int) -> tuple[Any, Arrays]:
    """The splits of a seed, once for all nets."""
    dataset = load_data(TrainConfig(data=data, seed=seed))
    splits = dataset.train_x, dataset.train_y, dataset.validation_x, dataset.validation_y
    return dataset, Arrays(*map(jax.numpy.asarray, splits))


def initial(problem: Prepared) -> Any:
    """The parameters that the library's runs of this seed begin with."""
    return problem.functions.init(run_key(problem.config.seed)).params


def loss_of(problem: Prepared) -> Callable[..., Any]:
    """``(params, x, y, units) -> `` mean loss of a batch in the units of the model."""
    task, learner = problem.task, problem.learner

    def loss(params: Any, x: Any, y: Any, units: Units) -> Any:
        out, _ = learner.apply(params, {}, standardized(x, units), True)
        return losses(task, out, y, {"label_smoothing": problem.config.label_smoothing}).mean()

    return loss


def descent(problem: Prepared, weights: Callable[[Any, Any], Any]) -> Rule:
    """AdamW, one cycle, of all that a function of it makes the weights of."""
    loss, steps = loss_of(problem), steps_of(problem.config, len(problem.dataset.train_x))
    optimizer = successive_optimizer(problem.config, problem.hyper, steps)

    def paid(trained: Any, fixed: Any, x: Any, y: Any, units: Units) -> Any:
        return loss(weights(trained, fixed), x, y, units)

    gradient = jax.grad(paid)
    if jax.default_backend() == "cpu":  # as the library's own loop
        gradient = canonical_convolutions(gradient)

    def step(state: Any, fixed: Any, x: Any, y: Any, units: Units) -> Any:
        trained, moments = state
        grads = gradient(trained, fixed, x, y, units)
        updates, moments = optimizer.update(grads, moments, trained)
        return optax.apply_updates(trained, updates), moments

    return Rule(
        lambda trained, fixed: (trained, optimizer.init(trained)),
        step,
        lambda state, fixed: weights(state[0], fixed),
    )


def plain(problem: Prepared) -> Rule:
    """Descent of the model's own parameters."""
    return descent(problem, lambda params, fixed: params)


_PROGRAMS: dict[Any, Any] = {}


def _program(problem: Prepared, make: Callable[[Prepared], Any], compiled: Any) -> Any:
    """What is made of a setting, once for all its seeds and prices: these are data."""
    config = dataclasses.replace(
        problem.config, seed=0, rate_lambda=float(problem.config.rate_coded)
    )
    if (make, config) not in _PROGRAMS:
        _PROGRAMS[make, config] = compiled(problem, make(problem))
    return _PROGRAMS[make, config]


def train(
    problem: Prepared, make: Callable[[Prepared], Rule], trained: Any, fixed: Any = None
) -> Trained:
    """Trains for the epochs of the config.

    Args:
      problem: data, model and config.
      make: gives the rule; a function of a module, for which one program serves all seeds.
      trained: what is trained, as it begins.
      fixed: data of the rule: masks, codes, tolerances.

    Returns:
      The model of the best epoch by validation; the later one of equals.
    """
    begin, epoch = _program(problem, make, _epoch_of)
    state = begin(trained, fixed)
    assert problem.arrays is not None
    best, key = None, jax.random.fold_in(run_key(problem.config.seed), 1)
    for k in range(problem.config.epochs):
        done = epoch(state, fixed, problem.arrays, problem.units, jax.random.fold_in(key, k))
        state, params, accuracy = done
        if best is None or float(accuracy) >= best.validation:
            best = Trained(params, {}, state, float(accuracy), k + 1)
    assert best is not None
    return jax.tree.map(np.asarray, best)._replace(validation=best.validation, epoch=best.epoch)


def _epoch_of(problem: Prepared, rule: Rule) -> Any:
    config, task, learner = problem.config, problem.task, problem.learner
    steps = steps_of(config, len(problem.dataset.train_x))

    def epoch(state: Any, fixed: Any, arrays: Any, units: Units, key: Any) -> Any:
        order_key, key = jax.random.split(key)
        order = jax.random.permutation(order_key, arrays.train_x.shape[0])
        batches = order[: steps * config.batch_size].reshape(steps, config.batch_size)

        def one(state: Any, batch: Any) -> Any:
            index, key = batch
            x, y = arrays.train_x[index], arrays.train_y[index]
            x, y = augmented(config, task, key, x, y, problem.hyper, units)
            return rule.step(state, fixed, x, y, units), None

        state, _ = jax.lax.scan(one, state, (batches, jax.random.split(key, steps)))
        params = rule.weights(state, fixed)
        predict = lambda x: outputs_of(task, learner, params, {}, x, units)  # noqa: E731
        x, y = arrays.validation_x, arrays.validation_y
        return state, params, evaluate(predict, x, y, task)[1]["accuracy"]

    return jax.jit(rule.begin), jax.jit(epoch)


def train_as_library(problem: Prepared) -> Trained:
    """A run of the library as its config says, the method of it too."""
    init, epoch = _program(problem, _functions, lambda _, made: made)
    state = init(run_key(problem.config.seed))
    for _ in range(problem.config.epochs):
        state, metrics = epoch(state, problem.arrays, problem.hyper, problem.units)
        if not bool(metrics.finite):
            raise RuntimeError(f"the loss is no longer finite: {problem.config}")
    params, buffers = jax.device_get((state.best_params, state.best_buffers))
    return Trained(params, buffers, None, float(state.best_score), int(state.best_epoch))


def _functions(problem: Prepared) -> Any:
    return jax.jit(problem.functions.init), jax.jit(problem.functions.epoch)
