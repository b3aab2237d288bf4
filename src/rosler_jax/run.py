"""A training run in a folder: data in, checkpoints on the way, model file and results out."""

from __future__ import annotations

import csv
import dataclasses
import functools
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rosler_jax import checkpoint, modelfile
from rosler_jax import config as configs
from rosler_jax import data as datasets
from rosler_jax._files import replace_file, replace_json
from rosler_jax._folder import DATA, check_data, locked, tie_data
from rosler_jax._paths import TRAINING_ONLY
from rosler_jax.config import TrainConfig
from rosler_jax.deploy import (
    Trained,
    deploy,
    from_restricted,
    load_file,
    load_network,
    pack,
    save_network,
)
from rosler_jax.fit import (
    Arrays,
    Fit,
    TrainState,
    evaluate,
    is_hidden_kernel,
    make_fit,
    network_specs,
    run_key,
)
from rosler_jax.graph import Graph, run_batch
from rosler_jax.graph.save import MODEL, graph_of_file, model_path
from rosler_jax.optim.extract_factors import extract_factors

Report = Callable[[dict[str, float]], None]
"""Called after every epoch with that epoch's row of the history."""

CONFIG, RESULT, HISTORY = "config.json", "result.json", "history.csv"


class RunError(RuntimeError):
    """A run that cannot start, go on or finish; the message says why and what to do."""


class Prepared(NamedTuple):
    """A run ready to go: its data on the device, its functions compiled on first use."""

    config: TrainConfig
    dataset: Any
    specs: list[dict[str, Any]]
    arrays: Arrays
    functions: Fit
    epoch: Any  # the jitted epoch


def load_data(config: TrainConfig) -> Any:
    """The splits that the config names."""
    options = {} if config.manual_dir is None else {"manual_dir": config.manual_dir}
    return datasets.load(
        config.data,
        validation=config.validation,
        seed=config.seed,
        standardize=config.standardize,
        **options,
    )


def prepare(config: TrainConfig) -> Prepared:
    """Loads the data and builds the functions of a run.

    Raises:
      RunError, ValueError, OSError: if the data cannot be had or does not fit the config.
    """
    dataset = load_data(config)
    x = dataset.train_x
    if (config.shift or config.flip) and x.ndim < 3:
        raise RunError(
            f"shift and flip augment images, but the inputs of {config.data} have shape "
            f"{x.shape[1:]}; leave them out"
        )
    in_features, moments = int(np.prod(x.shape[1:])), filed_moments(dataset.mean, dataset.std)
    specs = network_specs(config, in_features, dataset.num_classes, *moments)
    functions = make_fit(config, specs, x.shape[0], dataset.std)
    arrays = Arrays(
        *map(
            jax.numpy.asarray,
            (dataset.train_x, dataset.train_y, dataset.validation_x, dataset.validation_y),
        )
    )
    return Prepared(config, dataset, specs, arrays, functions, jax.jit(functions.epoch))


def filed_moments(mean: Any, std: Any) -> tuple[Any, Any]:
    """Mean and deviation as the model file has them: to digits that depend on the deviation.

    Six digits of a single deviation, four of each of many (they are text in the file), and the mean
    to as many decimals; at least four decimals of a single one.

    Example:
      >>> filed_moments(33.318421, 78.567553), filed_moments(2e-5, 1.23456789e-6)
      ((33.3184, 78.5676), (2e-05, 1.23457e-06))
      >>> filed_moments(np.array([1.0, 5e5]), np.array([1e-5, 1.23456e5]))
      (array([1.e+00, 5.e+05]), array([1.000e-05, 1.235e+05]))
    """
    if np.ndim(std) == 0:
        decimals = max(4, 5 - math.floor(math.log10(std)))
        return round(float(mean), decimals), round(float(std), decimals)
    decimals = (3 - np.floor(np.log10(std))).astype(int).tolist()
    pairs = ([round(float(v), d) for v, d in zip(vs, decimals, strict=True)] for vs in (mean, std))
    means, stds = map(np.array, pairs)
    return means, stds


def train(
    config: TrainConfig | None,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Trains, and writes model, result, config, history and curves into a folder.

    Interrupted at any moment, the run can be resumed from the last finished epoch, and then ends
    with the very parameters that it would have had undisturbed.

    Args:
      config: the run; None to take it from the folder when resuming.
      out: folder to write into; made if it does not exist.
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
    run = prepare(config)  # first: a folder is made when the data is known to be good
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
        if resume and (found := checkpoint.restore(manager, state)) is not None:
            state, history = found
        state, history = run_epochs(run, state, history, manager, report)
    finally:
        manager.close()
    return finish(run, folder, state, history)


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
) -> tuple[TrainState, list[dict[str, float]]]:
    """Runs the epochs that are left, with a checkpoint after each; stops early if asked to."""
    config = run.config
    file_bytes = model_bytes(run, state)
    if (
        int(state.epoch) < config.epochs
    ):  # ahead of the clock: an epoch's seconds are training alone
        epoch = run.epoch.lower(state, run.arrays).compile()
    while int(state.epoch) < config.epochs and not out_of_patience(config, state, history):
        start = time.perf_counter()
        new, metrics = jax.block_until_ready(epoch(state, run.arrays))
        if not bool(metrics.finite):
            raise RunError(
                f"loss or parameters were no longer finite in epoch {int(state.epoch) + 1}; the "
                f"state after epoch {int(state.epoch)} is kept in {manager.directory}. Lower the "
                f"learning rate (now {config.peak_learning_rate}) or, in ares-bp's parallel stage, "
                f"its own (now {config.parallel_learning_rate})"
            )
        state = new
        row = {
            "epoch": int(state.epoch),
            "loss": float(metrics.loss),
            "train_accuracy": float(metrics.train_accuracy),
            "validation_loss": float(metrics.validation_loss),
            "validation_accuracy": float(metrics.validation_accuracy),
            "seconds": time.perf_counter() - start,
            "bytes": file_bytes,
        }
        history = [*history, row]
        checkpoint.save(manager, int(state.epoch), state, history)
        if report is not None:
            report(row)
    return state, history


def out_of_patience(
    config: TrainConfig, state: TrainState, history: list[dict[str, float]]
) -> bool:
    """Whether validation has not improved for the epochs that the config allows."""
    if config.patience is None or not history or float(state.best_accuracy) < 0:
        return False
    accuracies = [row["validation_accuracy"] for row in history]
    return len(history) - 1 - accuracies.index(max(accuracies)) >= config.patience


def trained_to_ship(
    config: TrainConfig, specs: list[dict[str, Any]], params: Any, buffers: Any
) -> Trained:
    """The network of these parameters in the form that ships."""
    if config.method == "restrict-rank":
        where = is_hidden_kernel(specs)
        return from_restricted(specs, params, extract_factors(params, config.rank, where)[0])
    trained = Trained(specs, params, buffers)
    # What was trained through the quantiser must ship in the very form that the quantiser saw.
    aware = config.quantization_aware and config.bits < 32
    return unfolded(trained) if aware else deploy(trained)


def unfolded(trained: Trained) -> Trained:
    """The network as it is, with the aRes-BP layers as plain chains."""
    layers = {
        i: {k: v for k, v in p.items() if k not in TRAINING_ONLY}
        for i, p in trained.params["layers"].items()
    }
    specs, buffers = [], dict(trained.buffers.get("layers", {}))
    for i, spec in enumerate(trained.specs):
        ares = spec.get("mode") == "ares"
        if ares:
            buffers.pop(i, None)
            p = layers[i]  # without oversampling: the surplus rows and columns are zero
            s = p["c"].shape[1]
            layers[i] = {**p, "u": p["u"][:, :s], "r": p["r"][:s]}
        kept = {k: v for k, v in spec.items() if k not in ("mode", "oversampling", "sketch")}
        specs.append(kept if ares else dict(spec))
    return Trained(specs, {"layers": layers}, {"layers": buffers} if buffers else {})


def model_bytes(run: Prepared, state: TrainState) -> int:
    """Bytes that the model file will have: known before training, since shapes decide."""
    params = jax.tree.map(np.zeros_like, jax.device_get(state.params))
    trained = trained_to_ship(run.config, run.specs, params, state.buffers)
    tensors = pack(trained, run.config.bits)
    return len(modelfile.encode(tensors, {"layers": trained.specs}, {}))


def finish(
    run: Prepared, folder: Path, state: TrainState, history: list[dict[str, float]]
) -> dict[str, Any]:
    """Writes the model file and everything that is known about it."""
    config = run.config
    if float(state.best_accuracy) < 0:
        raise RunError(
            f"no epoch ended with a model that can ship (epochs={config.epochs}, "
            f"method={config.method}); train longer"
        )
    params, buffers = jax.device_get((state.best_params, state.best_buffers))
    trained = trained_to_ship(config, run.specs, params, buffers)
    save_network(folder / MODEL, trained, bits=config.bits)
    shipped = load_network(folder / MODEL)
    loss, accuracy = score(shipped.network, run.dataset.test_x, run.dataset.test_y)
    _, validation = score(shipped.network, run.dataset.validation_x, run.dataset.validation_y)
    dense = dense_parameters(run.specs)
    result = {
        "test_accuracy": accuracy,
        "validation_accuracy": validation,
        "test_loss": loss,
        "parameters": sum(int(np.size(x)) for x in jax.tree.leaves(trained.params)),
        "file_bytes": shipped.file.file_bytes,
        "dense_parameters": dense,
        "dense_bytes": 4 * dense,
        "compression": 4 * dense / shipped.file.file_bytes,
        "bits": config.bits,
        "best_epoch": int(state.best_epoch),
        "epochs": int(state.epoch),
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


def dense_parameters(specs: list[dict[str, Any]]) -> int:
    """Weights and biases of the dense network with the same layer sizes."""
    return sum(
        (spec["in_features"] + 1) * spec["out_features"] for spec in specs if "in_features" in spec
    )


def score(network: Callable[[Any], Any], x: Any, y: Any) -> tuple[float, float]:
    """Cross-entropy and accuracy of a network on data.

    Accuracy is counted exactly, so that it is the same number wherever it is computed again.
    """
    loss, accuracy = jax.jit(lambda a, b: evaluate(network, a, b))(x, y)
    return float(loss), round(float(accuracy) * len(y)) / len(y)


def check_fit(network: Callable[[Any], Any], dataset: Any) -> None:
    """Refuses data that a network was not made for.

    Raises:
      RunError: naming the inputs or the classes of both.
    """
    x = dataset.test_x
    shape, features = x.shape[1:], math.prod(x.shape[1:])
    try:
        out = jax.eval_shape(lambda a: network(a), jax.ShapeDtypeStruct((1, *shape), x.dtype))
    except (TypeError, ValueError) as error:
        raise RunError(
            f"the inputs of {dataset.name} have shape {shape}, {features} numbers, and do not go "
            f"with the model{_wanted(network)}: {str(error).splitlines()[0]}"
        ) from error
    if out.shape[1:] != (out.shape[-1],) or dataset.num_classes > out.shape[-1]:
        raise RunError(
            f"{dataset.name} has {dataset.num_classes} classes, but the model's outputs have shape "
            f"{out.shape[1:]}: they are classes of other data"
        )


def _wanted(network: Any) -> str:
    """The numbers that the first layer with a size takes."""
    sizes = [getattr(layer, "in_features", None) for layer in getattr(network, "layers", ())]
    return next((f", which takes {size} numbers" for size in sizes if size is not None), "")


def load_run_data(model: Path, data: str | None = None) -> Any:
    """The data of a run's model file, or other data; None if none is known.

    Args:
      model: a model file; its folder's config says how the run's data was split.
      data: name or path; None for what the run was trained on.

    Raises:
      RunError: if the run's data has changed since.
      ValueError, OSError: if the data cannot be read.
    """
    stored = model.parent / CONFIG
    if not stored.exists() and data is None:
        return None
    config = TrainConfig()
    if stored.exists():
        config = configs.from_dict(json.loads(stored.read_text(encoding="utf-8")))
    dataset = load_data(config if data is None else dataclasses.replace(config, data=data))
    if data is None and (model.parent / DATA).exists():
        check_data(model.parent, dataset.digest, RunError, f"name it: --data {config.data}")
    return dataset


def evaluate_folder(path: str | os.PathLike[str], data: str | None = None) -> dict[str, Any]:
    """Scores the model of a run's folder (or a model file) on the test split of a data set.

    Args:
      path: folder of a run, or a model file.
      data: name or path of the data; None for what the run was trained on.

    Raises:
      RunError: if there is no model, no data is named and none is known or it has changed, or the
        data's inputs or classes are not the model's.
      ModelFileError, ValueError, OSError: if model or data cannot be read.
    """
    folder = Path(path)
    if not folder.exists():
        raise RunError(f"{folder}: no such file or folder; name what rosler train wrote")
    model = model_path(folder)
    if data is None and not (model.parent / CONFIG).exists():
        raise RunError(f"{model.parent / CONFIG}: no such file, so the data is not known; name it")
    if not model.exists():
        raise RunError(f"{model}: no such file; finish the run first, or resume it")
    file = modelfile.load(model)
    if file.version == 1:
        network: Callable[[Any], Any] = load_file(model, file).network
    else:
        network = predictor(graph_of_file(file, str(model)), str(model))
    scored = score_model(network, load_run_data(model, data), str(model))
    return {**scored, "file_bytes": file.file_bytes}


def predictor(graph: Graph, name: str) -> Callable[[Any], Any]:
    """A graph as a classifier of batches, of examples in any shape of as many numbers.

    Raises:
      RunError: for one that does not make one array of one.
    """
    if graph.structure is not None or len(graph.inputs) != 1:
        raise RunError(f"{name}: only a model of one input and one output has an accuracy")
    return functools.partial(run_batch, graph)


def score_model(network: Callable[[Any], Any], dataset: Any, name: str) -> dict[str, Any]:
    """Loss and accuracy on the test split of a data set, JSON types.

    Raises:
      RunError: if the data are not the model's, or its loss is no number.
    """
    check_fit(network, dataset)
    loss, accuracy = score(network, dataset.test_x, dataset.test_y)
    if not math.isfinite(loss):
        raise RunError(f"{name}: its loss on {dataset.name} is {loss}; it cannot be scored")
    return {
        "data": dataset.name,
        "examples": len(dataset.test_y),
        "test_accuracy": accuracy,
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
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        train_name = "loss" if name == "loss" else "train_accuracy"
        axes.plot(epochs, [row[train_name] for row in history], label="training")
        axes.plot(epochs, [row[f"validation_{name}"] for row in history], label="validation")
        if config.method == "ares-bp":
            axes.axvline(config.parallel_epochs, color="0.7", ls="--", label="switch")
        axes.set_xlabel("epoch")
        axes.set_ylabel(name)
        axes.legend()
    figure.suptitle(f"{config.data}: {config.method}, rank {config.rank}, {config.bits} bits")
    replace_file(path, lambda p: figure.savefig(p, dpi=120, format="png"))
