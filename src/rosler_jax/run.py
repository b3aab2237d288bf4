"""A training run in a folder: data in, checkpoints on the way, model file and results out."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rosler_jax import checkpoint, modelfile
from rosler_jax import config as configs
from rosler_jax import data as datasets
from rosler_jax._files import replace_file, replace_json
from rosler_jax._folder import DATA, check_data, locked, tie_data
from rosler_jax.config import TrainConfig
from rosler_jax.fit import (
    Arrays,
    Fit,
    TrainState,
    coded_from,
    is_settled,
    learner_of,
    make_fit,
    method_of,
    run_key,
    settle,
    task_of,
)
from rosler_jax.graph import Graph, run_batch, trace
from rosler_jax.graph.prune import pruned
from rosler_jax.graph.quantize import with_integers
from rosler_jax.graph.save import MODEL, encoded, graph_of_file, load, model_path, save
from rosler_jax.hyper import Hyper, hyper_of
from rosler_jax.learner import Learner
from rosler_jax.modelfile import ModelFileError
from rosler_jax.rate import RateCoded
from rosler_jax.streaming import make_epoch, score
from rosler_jax.tasks import Task, metric_of
from rosler_jax.units import Units, in_units, units_of

Report = Callable[[dict[str, float]], None]
"""Called after every epoch with that epoch's row of the history."""

MARGIN = 0.99  # of a budget, that training aims at

CONFIG, RESULT, HISTORY = "config.json", "result.json", "history.csv"


class RunError(RuntimeError):
    """A run that cannot start, go on or finish; the message says why and what to do."""


class Prepared(NamedTuple):
    """A run ready to go: its data on the device (None: they stream), its epoch ready to compile."""

    config: TrainConfig
    dataset: Any
    task: Task
    learner: Learner
    units: Units
    hyper: Hyper
    arrays: Arrays | None
    functions: Fit
    settled: bool = False  # whether only the successive stage is left


def load_data(config: TrainConfig, given: Any = None) -> Any:
    """The splits that the config names, or given arrays."""
    return datasets.load(
        config.data if given is None else given,
        validation=config.validation,
        seed=config.seed,
        standardize=config.standardize,
        targets=task_of(config).targets,
        tokens=task_of(config).tokens,
        stream={"auto": None, "always": True, "never": False}[config.stream],
        **source_options(config),
    )


def source_options(config: TrainConfig) -> dict[str, Any]:
    """Options of the source of a run's data."""
    named = {"manual_dir": config.manual_dir, "target": ",".join(config.target)}
    named["image_size"] = ",".join(map(str, config.image_size))
    given = {name: value for name, value in named.items() if value}
    return {**given, **configs.named_values(config.data_options, "data")}


def prepare(config: TrainConfig, data: Any = None) -> Prepared:
    """Loads the data and builds the functions of a run.

    Raises:
      RunError, ValueError, OSError: if the data cannot be had or does not fit the config.
    """
    dataset, task = load_data(config, data), task_of(config)
    metric_of(task, config.metric)
    x = dataset.train_x
    if (config.shift or config.flip or config.warps) and x.ndim < 3:
        raise RunError(
            f"shift, flip, rotate, zoom and elastic augment images, but the inputs of "
            f"{dataset.name} have shape {x.shape[1:]}; leave them out"
        )
    learner = learner_of(config, dataset)
    functions = make_fit(config, learner, x.shape[0])
    splits = dataset.train_x, dataset.train_y, dataset.validation_x, dataset.validation_y
    arrays = None if dataset.streams else Arrays(*jax.tree.map(jax.numpy.asarray, splits))
    units = config_units(config, dataset)
    return Prepared(config, dataset, task, learner, units, hyper_of(config), arrays, functions)


def compiled_epoch(run: Prepared, state: TrainState) -> Callable[[TrainState, Hyper], Any]:
    """The epoch of a run, compiled where its data are on the device."""
    if run.arrays is None:
        streamed = make_epoch(run.functions, run.task, run.dataset)
        return lambda state, hyper: streamed(state, hyper, run.units)
    arrays, units = run.arrays, run.units
    compiled = jax.jit(run.functions.epoch).lower(state, arrays, run.hyper, units).compile()
    return lambda state, hyper: compiled(state, arrays, hyper, units)


def config_units(config: TrainConfig, dataset: Any) -> Units:
    """What a run's data are standardised by."""
    task = task_of(config)
    return units_of(dataset, scaled=task.scaled, weights=config.class_weights, targets=task.targets)


def train(
    config: TrainConfig | None,
    out: str | os.PathLike[str],
    *,
    data: Any = None,
    resume: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Trains, and writes model, result, config, history and curves into a folder.

    Interrupted at any moment, the run can be resumed from the last finished epoch, and then ends
    with the very parameters that it would have had undisturbed.

    Args:
      config: the run; None to take it from the folder when resuming.
      out: folder to write into; made if it does not exist.
      data: arrays in the place of the data that the config names, as
        :func:`rosler_jax.data.load` takes them; the same again to resume.
      resume: go on with the run in the folder.
      report: called after every epoch.

    Returns:
      What ``result.json`` holds: accuracies, sizes, seconds, versions.

    Raises:
      RunError: if the folder holds another run, another process is at it, there is nothing to
        resume, the data is no longer the same, or the loss is no longer finite (the folder then
        holds the last good state).
      ValueError, OSError: for bad data or a folder that cannot be written.
    """
    folder = Path(out)
    config = agreed_config(folder, config, resume)
    run = prepare(config, data)  # first: a folder is made when the data is known to be good
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "run", RunError):
        # Once more: a run that began a moment earlier may have come and gone.
        agreed_config(folder, config, resume)
        if resume:
            check_data(folder, run.dataset.digest, RunError, "start anew in another folder")
        else:  # the config last: a folder with a config is a run
            tie_data(folder, config.data, run.dataset.digest)
            replace_json(folder / CONFIG, configs.to_dict(config))
        return _trained(run, folder, resume, report)


def _trained(run: Prepared, folder: Path, resume: bool, report: Report | None) -> dict[str, Any]:
    state = jax.jit(run.functions.init)(run_key(run.config.seed))
    history: list[dict[str, float]] = []
    manager = checkpoint.open_manager(folder / "checkpoints")
    try:
        done = manager.latest_step() if resume else None
        if done is not None:
            after, convert = settled_after(run, done)
            like = jax.eval_shape(convert, state)
            restored = checkpoint.restore(manager, like)
            assert restored is not None
            (state, history), run = restored, after
        run, state, history = run_epochs(run, state, history, manager, report)
    finally:
        manager.close()
    return finish(run, folder, state, history)


def settled_after(
    run: Prepared, epochs: int
) -> tuple[Prepared, Callable[[TrainState], TrainState]]:
    """The run as it goes on after so many epochs, and its state: in chains, past the switch."""
    count = len(run.dataset.train_x)
    if run.settled or not is_settled(run.config, count, epochs):
        return run, lambda state: state
    learner, functions, convert = settle(run.config, run.learner, count)
    return run._replace(learner=learner, functions=functions, settled=True), convert


def agreed_config(folder: Path, config: TrainConfig | None, resume: bool) -> TrainConfig:
    """The config of the run, from the caller or the folder; refuses a folder of another run."""
    path = folder / CONFIG
    if resume:
        try:
            stored = configs.from_dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise RunError(f"{path}: no such file; there is no run to resume in {folder}") from None
        except (ValueError, TypeError) as error:
            raise RunError(f"{path}: not a config of rosler train: {error}") from error
        if config is not None and config != stored:
            changed = [
                f"{k}: {v!r} -> {configs.to_dict(config)[k]!r}"
                for k, v in configs.to_dict(stored).items()
                if configs.to_dict(config)[k] != v
            ]
            raise RunError(f"{folder} holds a run with another config ({'; '.join(changed)})")
        return stored
    if config is None:
        raise RunError("a new run needs a config; pass one, or resume=True")
    if path.exists():
        raise RunError(f"{folder} already holds a run; resume it, or choose another folder")
    return config


def run_epochs(
    run: Prepared,
    state: TrainState,
    history: list[dict[str, float]],
    manager: Any,
    report: Report | None,
) -> tuple[Prepared, TrainState, list[dict[str, float]]]:
    """Runs the epochs that are left, with a checkpoint after each; stops early if asked to."""
    config = run.config
    header = file_bytes = model_bytes(run, state)  # of rate-coded models all but the integers
    epoch = None
    while int(state.epoch) < config.epochs and not out_of_patience(config, state, history):
        if epoch is None:  # ahead of the clock: an epoch's seconds are training alone
            epoch = compiled_epoch(run, state)
        hyper = run.hyper
        if float(state.bits):
            hyper = within_budget(run, state, history[-1]["bytes"], header)
        start = time.perf_counter()
        new, metrics = jax.block_until_ready(epoch(state, hyper))
        if not bool(metrics.finite):
            raise RunError(
                f"loss or parameters were no longer finite in epoch {int(state.epoch) + 1}; the "
                f"state after epoch {int(state.epoch)} is kept in {manager.directory}. Lower the "
                f"learning rate (now {config.peak_learning_rate}) or, in ares-bp's parallel stage, "
                f"its own (now {config.parallel_learning_rate})"
            )
        if isinstance(new.params, RateCoded):
            file_bytes = header + round(float(new.bits) / 8)
            if config.budget_bytes is not None:
                file_bytes = model_bytes(run, new, zeros=False)
                new = best_within(config.budget_bytes, new, state, file_bytes)
        state = new
        row = {
            "epoch": int(state.epoch),
            "loss": float(metrics.loss),
            **_prefixed("train", metrics.train),
            "validation_loss": float(metrics.validation_loss),
            **_prefixed("validation", metrics.validation),
            "seconds": time.perf_counter() - start,
            "bytes": file_bytes,
        }
        history = [*history, row]
        if not run.settled:
            run, convert = settled_after(run, int(state.epoch))
            state, epoch = (convert(state), None) if run.settled else (state, epoch)
        checkpoint.save(manager, int(state.epoch), state, history)
        if report is not None:
            report(row)
    return run, state, history


def _prefixed(split: str, metrics: Mapping[str, Any]) -> dict[str, float]:
    return {f"{split}_{name}": float(value) for name, value in metrics.items()}


def out_of_patience(
    config: TrainConfig, state: TrainState, history: list[dict[str, float]]
) -> bool:
    """Whether validation has not improved for the epochs that the config allows."""
    if config.patience is None or not history or int(state.best_epoch) == 0:
        return False
    name, metric = metric_of(task_of(config), config.metric)
    scores = [row[f"validation_{name}"] for row in history]
    best = scores.index(max(scores) if metric.larger_is_better else min(scores))
    return len(history) - 1 - best >= config.patience


def shipped_graph(
    config: TrainConfig, learner: Learner, x: Any, params: Any, buffers: Any, units: Units
) -> Graph:
    """The graph of trained parameters in the form that ships, inputs and outputs in their units."""
    model = shipped_model(config, learner, params, buffers)
    graph = trace(model, example_of(x), **learner.call)
    if isinstance(params, RateCoded):
        graph = pruned(with_integers(graph, params.tensors))
    return in_units(graph, units, task_of(config).scaled)


def example_of(x: Any) -> jax.ShapeDtypeStruct:
    """One example of standardised inputs, or of tokens."""
    return jax.ShapeDtypeStruct((1, *x.shape[1:]), np.int32 if x.dtype == np.int32 else "f4")


def shipped_model(config: TrainConfig, learner: Learner, params: Any, buffers: Any) -> Any:
    """The model of trained parameters in the form that ships; traceable.

    What was trained through the quantiser ships in the very form that the quantiser saw.
    """
    aware = (config.quantization_aware and config.bits < 32) or config.rate_coded
    return method_of(config).ship(learner, params, buffers, not aware)


def model_bytes(run: Prepared, state: TrainState, *, zeros: bool = True) -> int:
    """Bytes of the model file: with zeros for weights, since of most models shapes decide."""
    params, buffers = jax.device_get((state.params, state.buffers))
    if zeros:
        params, buffers = jax.tree.map(np.zeros_like, (params, buffers))
    x = run.dataset.train_x
    graph = shipped_graph(run.config, run.learner, x, params, buffers, run.units)
    return len(encoded(graph, run.config.bits, coded=run.config.rate_coded))


def within_budget(run: Prepared, state: TrainState, file_bytes: float, header: int) -> Hyper:
    """The numbers of an epoch, with the bits that the file's budget leaves to the parameters.

    The entropy models count bits a little differently than the coder: by as much as they do now.

    Args:
      run: a rate-coded run.
      state: before the epoch, and after another.
      file_bytes: of its model.
      header: bytes of the file of a model of zeros.
    """
    if run.config.budget_bytes is None:
        return run.hyper
    left = max(run.config.budget_bytes - header, 1) / max(file_bytes - header, 1)
    return run.hyper._replace(budget_bits=np.float32(MARGIN * left * float(state.bits)))


def best_within(budget: int, new: TrainState, old: TrainState, file_bytes: int) -> TrainState:
    """The state after an epoch; what was best before stays so where the file exceeds the budget."""
    if file_bytes <= budget:
        return new
    kept = ("best_params", "best_buffers", "best_score", "best_epoch")
    return new._replace(**{name: getattr(old, name) for name in kept})


def finish(
    run: Prepared, folder: Path, state: TrainState, history: list[dict[str, float]]
) -> dict[str, Any]:
    """Writes the model file and everything that is known about it."""
    config, dataset = run.config, run.dataset
    if int(state.best_epoch) == 0:
        _over_budget(config, history)
        raise RunError(
            f"no epoch ended with a model that can ship (epochs={config.epochs}, "
            f"method={config.method}); train longer"
        )
    params, buffers = jax.device_get((state.best_params, state.best_buffers))
    graph = shipped_graph(config, run.learner, dataset.train_x, params, buffers, run.units)
    size = save(folder / MODEL, graph, bits=config.bits, coded=config.rate_coded)
    model = load(folder / MODEL)
    loss, test = score(model, dataset.test_x, dataset.test_y, run.task, run.units)
    _, validation = score(model, dataset.validation_x, dataset.validation_y, run.task, run.units)
    dense = run.learner.report.before
    result = {
        "task": config.task,
        "metric": metric_of(run.task, config.metric)[0],
        **_prefixed("test", test),
        **_prefixed("validation", validation),
        "test_loss": loss,
        "parameters": parameters(graph),
        "file_bytes": size,
        "dense_parameters": dense,
        "dense_bytes": 4 * dense,
        "compression": 4 * dense / size,
        "bits": config.bits,
        "best_epoch": int(state.best_epoch),
        "epochs": int(state.epoch),
        "data_on": "host" if run.arrays is None else "device",
        "train_seconds": sum(row["seconds"] for row in history),
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "method": config.method,
        "seed": config.seed,
    }
    write_history(folder / HISTORY, history)
    draw_curves(folder / "curves.png", history, config)
    replace_json(folder / RESULT, result)
    return result


def _over_budget(config: TrainConfig, history: list[dict[str, float]]) -> None:
    """Raises for a run whose file was never within its budget."""
    if config.budget_bytes is None or not history:
        return
    late = [row for row in history if row["epoch"] > coded_from(config)] or history[-1:]
    smallest = min(int(row["bytes"]) for row in late)
    if smallest > config.budget_bytes:
        raise RunError(
            f"the smallest file of the last epochs has {smallest} bytes, "
            f"{smallest - config.budget_bytes} more than the budget of {config.budget_bytes}; pass "
            f"--budget {smallest}, more --epochs, or a narrower net"
        )


def parameters(graph: Graph) -> int:
    """Numbers in the stored arrays of floats."""
    stored = {id(w.stored): w for w in graph.weights() if w.dtype == "float32"}
    return sum(math.prod(w.stored.shape) for w in stored.values())


def check_fit(predict: Callable[[Any], Any], dataset: Any, config: TrainConfig) -> None:
    """Refuses data that a model was not made for.

    Raises:
      RunError: naming the inputs or the outputs of both.
    """
    x = dataset.test_x
    shape, features = x.shape[1:], math.prod(x.shape[1:])
    try:
        out = jax.eval_shape(predict, jax.ShapeDtypeStruct((1, *shape), x.dtype))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"the inputs of {dataset.name} have shape {shape}, {features} numbers, and do not go "
            f"with the model: {str(error).splitlines()[0]}"
        ) from error
    wanted, classes = task_of(config).outputs(dataset), dataset.num_classes is not None
    got = out.shape[-1] if classes else math.prod(out.shape[1:])
    fits = got >= wanted if classes else wanted in (got, out.shape[-1])
    if not fits or (classes and len(out.shape) != 2):
        what = "classes" if classes else "outputs"
        raise RunError(
            f"{dataset.name} has {wanted} {what}, but the model's outputs have shape "
            f"{out.shape[1:]}: they are {what} of other data"
        )


def run_config(model: Path, **changes: Any) -> TrainConfig | None:
    """The config beside a run's model file, with changes; None if no data is known."""
    stored = model.parent / CONFIG
    if stored.exists():
        config = configs.from_dict(json.loads(stored.read_text(encoding="utf-8")))
        return dataclasses.replace(config, **changes)
    return TrainConfig(**changes) if "data" in changes else None


def load_run_data(model: Path, **changes: Any) -> tuple[Any, TrainConfig] | None:
    """The data of a run's model file, or other data, and their config; None if none is known.

    Args:
      model: a model file; its folder's config says how the run's data was split.
      **changes: fields of the config in the place of the run's own, ``data`` above all.

    Raises:
      RunError: if the run's data has changed since.
      ValueError, OSError: if the data cannot be read.
    """
    config = run_config(model, **changes)
    if config is None:
        return None
    dataset = load_data(config)
    if "data" not in changes and (model.parent / DATA).exists():
        check_data(model.parent, dataset.digest, RunError, f"name it: --data {config.data}")
    return dataset, config


def evaluate_folder(path: str | os.PathLike[str], **changes: Any) -> dict[str, Any]:
    """Scores the model of a run's folder (or a model file) on the test split of a data set.

    Args:
      path: folder of a run, or a model file.
      **changes: fields of :class:`rosler_jax.config.TrainConfig` in the place of what the run was
        trained on: ``data``, ``target``, ``task``.

    Raises:
      RunError: if there is no model, no data is named and none is known or it has changed, or the
        data's inputs or classes are not the model's.
      ModelFileError, ValueError, OSError: if model or data cannot be read.
    """
    folder = Path(path)
    if not folder.exists():
        raise RunError(f"{folder}: no such file or folder; name what rosler train wrote")
    model = model_path(folder)
    if run_config(model, **changes) is None:
        raise RunError(f"{model.parent / CONFIG}: no such file, so the data is not known; name it")
    if not model.exists():
        raise RunError(f"{model}: no such file; finish the run first, or resume it")
    found = load_run_data(model, **changes)
    assert found is not None
    graph, file_bytes = graph_for(model, found[0])
    return {**score_model(graph, *found, str(model)), "file_bytes": file_bytes}


def graph_for(model: Path, dataset: Any) -> tuple[Graph, int]:
    """The graph of a file, and its bytes.

    Layers of version 1 that do not tell the shape of their inputs get the data's.
    """
    file = modelfile.load(model)
    try:
        return graph_of_file(file, str(model)), file.file_bytes
    except ModelFileError:
        if file.version != 1:
            raise
        try:
            found = graph_of_file(file, str(model), dataset.test_x.shape[1:])
        except ModelFileError as error:
            raise RunError(f"{dataset.name} does not go with the model: {error}") from error
        return found, file.file_bytes


def score_model(graph: Graph, dataset: Any, config: TrainConfig, name: str) -> dict[str, Any]:
    """Loss and metrics on the test split of a data set, JSON types.

    Raises:
      RunError: if the model is not one of the data, or its loss is no number.
    """
    if graph.structure is not None or len(graph.inputs) != 1:
        raise RunError(f"{name}: only a model of one input and one output can be scored")
    predict, task = functools.partial(run_batch, graph), task_of(config)
    check_fit(predict, dataset, config)
    units = config_units(config, dataset)
    loss, metrics = score(predict, dataset.test_x, dataset.test_y, task, units)
    if not math.isfinite(loss):
        raise RunError(f"{name}: its loss on {dataset.name} is {loss}; it cannot be scored")
    return {
        "data": dataset.name,
        "examples": len(dataset.test_x),
        **_prefixed("test", metrics),
        "test_loss": loss,
    }


def write_history(path: Path, history: list[dict[str, float]]) -> None:
    """Writes one row an epoch as CSV."""

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, fieldnames=list(history[0]))
            writer.writeheader()
            writer.writerows(history)

    replace_file(path, write)


def draw_curves(path: Path, history: list[dict[str, float]], config: TrainConfig) -> None:
    """Draws loss and accuracy over the epochs; the end of the parallel stage is marked."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    epochs = [row["epoch"] for row in history]
    followed, _ = metric_of(task_of(config), config.metric)
    for axes, name in zip(figure.subplots(1, 2), ("loss", followed), strict=True):
        train_name = "loss" if name == "loss" else f"train_{name}"
        axes.plot(epochs, [row[train_name] for row in history], label="training")
        axes.plot(epochs, [row[f"validation_{name}"] for row in history], label="validation")
        if method_of(config).stages:
            axes.axvline(config.parallel_epochs, color="0.7", ls="--", label="switch")
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.legend()
    figure.suptitle(f"{config.data}: {config.method}, rank {config.rank}, {config.bits} bits")
    replace_file(path, lambda p: figure.savefig(p, dpi=120, format="png"))
