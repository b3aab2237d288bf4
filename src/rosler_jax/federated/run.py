"""A federated run in a folder: checkpoints on the way, model file, bytes and results at its end."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from rosler_jax import checkpoint
from rosler_jax import config as configs
from rosler_jax._files import replace_file, replace_json
from rosler_jax._folder import check_data, locked, tie_data
from rosler_jax.federated import config as federated_configs
from rosler_jax.federated.config import FederatedConfig
from rosler_jax.federated.prepare import (
    Prepared,
    Progress,
    after_switch,
    begin_progress,
    clients_config,
    is_scored,
    is_settled,
    on_host,
    prepare_federated,
    programs,
    settled,
)
from rosler_jax.federated.privacy import privacy_spent
from rosler_jax.federated.simulate import Report, Row, play_round
from rosler_jax.federated.trips import Refused
from rosler_jax.fit import method_of
from rosler_jax.graph.save import MODEL, load, save
from rosler_jax.methods import Setting
from rosler_jax.run import (
    CONFIG,
    HISTORY,
    RESULT,
    RunError,
    agreed_config,
    parameters,
    shipped_graph,
    write_history,
)
from rosler_jax.streaming import score
from rosler_jax.tasks import metric_of

if TYPE_CHECKING:
    from rosler_jax.config import TrainConfig

FEDERATED, REFUSED, CURVES = "federated.json", "refused.csv", "curves.png"


def federate(
    config: TrainConfig | None,
    federated: FederatedConfig | None,
    out: str | os.PathLike[str],
    *,
    data: Any = None,
    resume: bool = False,
    report: Report | None = None,
) -> dict[str, Any]:
    """Trains a model at simulated clients, and writes it and all that was sent into a folder.

    Interrupted at any moment, the run can be resumed from the last finished round, and then ends
    with the very model that it would have had undisturbed.

    Args:
      config: what a client trains; None to take it from the folder when resuming.
      federated: how; None to take it from the folder.
      out: folder to write into; made if it does not exist.
      data: arrays in the place of the data that the config names; the same again to resume.
      resume: go on with the run in the folder.
      report: called after every round.

    Returns:
      What ``result.json`` holds.

    Raises:
      RunError: if the folder holds another run, another process is at it, there is nothing to
        resume, or the data is no longer the same.
      ValueError, OSError: for bad data, what does not go together, or a folder that cannot be
        written.

    Example:
      >>> federate(None, None, "no/such/run", resume=True)
      Traceback (most recent call last):
      rosler_jax.run.RunError: ...federated.json: no such file; ... holds no federated run
    """
    folder = Path(out)
    config, federated = agreed(folder, config, federated, resume)
    run = prepare_federated(config, federated, data)
    with opened(run, folder, resume):
        return _trained(run, folder, resume, report)


def agreed(
    folder: Path, config: TrainConfig | None, federated: FederatedConfig | None, resume: bool
) -> tuple[TrainConfig, FederatedConfig]:
    """Both configs of a run, from the caller or the folder; refuses a folder of another run."""
    federated = agreed_federated(folder, federated, resume)
    if config is not None:  # as the folder has it
        config = clients_config(config, federated)
    return agreed_config(folder, config, resume), federated


@contextlib.contextmanager
def opened(run: Prepared, folder: Path, resume: bool) -> Iterator[None]:
    """Holds the folder of a run, which then says what run it is and what its data are."""
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder, "run", RunError):
        # Once more: a run that began a moment earlier may have come and gone.
        agreed_config(folder, None if resume else run.config, resume)
        if resume:
            check_data(folder, run.dataset.digest, RunError, "start anew in another folder")
        else:  # the config last: a folder with a config is a run
            tie_data(folder, run.config.data, run.dataset.digest)
            replace_json(folder / FEDERATED, federated_configs.to_dict(run.federated))
            replace_json(folder / CONFIG, configs.to_dict(run.config))
        yield


def save_round(
    manager: Any, progress: Progress, history: list[Row], refused: list[Refused]
) -> None:
    """Saves where a run is after a round; see :func:`rosler_jax.checkpoint.save`."""
    rows = [*history, *(one._asdict() for one in refused)]
    checkpoint.save(manager, len(history), progress, rows)  # type: ignore[arg-type]


def restore_round(manager: Any, like: Progress) -> tuple[Progress, list[Row], list[Refused]] | None:
    """What :func:`save_round` saved last; None if it never did."""
    found = checkpoint.restore(manager, like)  # type: ignore[arg-type]
    if found is None:
        return None
    progress, rows = found
    history = [row for row in rows if "reason" not in row]
    refused = [Refused(**row) for row in rows if "reason" in row]  # type: ignore[arg-type]
    return on_host(progress), history, refused  # type: ignore[arg-type]


def agreed_federated(
    folder: Path, federated: FederatedConfig | None, resume: bool
) -> FederatedConfig:
    """The federated config of the run, from the caller or the folder."""
    path = folder / FEDERATED
    if not resume:
        if federated is None:
            raise RunError("a new run needs a FederatedConfig; pass one, or resume=True")
        return federated
    try:
        stored = federated_configs.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise RunError(f"{path}: no such file; {folder} holds no federated run") from None
    except (ValueError, TypeError) as error:
        raise RunError(f"{path}: not a config of rosler federate: {error}") from error
    if federated is not None and federated != stored:
        raise RunError(f"{folder} holds a federated run with another config")
    return stored


def _trained(run: Prepared, folder: Path, resume: bool, report: Report | None) -> dict[str, Any]:
    progress, history, refused = begin_progress(run), list[Row](), list[Refused]()
    manager = checkpoint.open_manager(folder / "checkpoints")
    try:
        done = manager.latest_step() if resume else None
        if done is not None:
            like: Any = progress
            if is_settled(run, done):
                run, converted = settled(run)
                like = jax.eval_shape(converted, progress)
            found = restore_round(manager, like)
            assert found is not None
            progress, history, refused = found
        parts = programs(run)
        while len(history) < run.federated.rounds:
            progress, row, more = play_round(run, parts, progress, history)
            scored = is_scored(run.federated, len(history) + 1)  # before the first, it is NaN
            lost = scored and not np.isfinite(row["validation_loss"])
            if lost or not np.isfinite(row["loss"]):
                raise RunError(
                    f"the loss was no longer finite in round {len(history) + 1}; the state before "
                    f"it is kept in {manager.directory}. Lower the learning rate (now "
                    f"{run.config.peak_learning_rate})"
                )
            history, refused = [*history, row], [*refused, *more]
            run, progress, parts = after_switch(run, progress, parts)
            save_round(manager, progress, history, refused)
            if report is not None:
                report(row)
    finally:
        manager.close()
    return finish(run, folder, progress, history, refused)


def finish(
    run: Prepared, folder: Path, progress: Progress, history: list[Row], refused: list[Refused]
) -> dict[str, Any]:
    """Writes the best model's file and everything that is known about the run."""
    config, dataset, federated = run.config, run.dataset, run.federated
    method = method_of(config)
    setting = Setting(config, run.hyper, run.learner, 0)
    params = method.project(progress.best_params, setting)
    params, buffers = jax.device_get((params, progress.best_buffers))
    graph = shipped_graph(config, run.learner, dataset.train_x, params, buffers, run.units)
    size = save(folder / MODEL, graph, bits=config.bits)
    model = load(folder / MODEL)
    test_loss, test = score(model, dataset.test_x, dataset.test_y, run.task, run.units)
    x, y = dataset.validation_x, dataset.validation_y
    _, validation = score(model, x, y, run.task, run.units)
    up, down = (sum(row[name] for row in history) for name in ("up_bytes", "down_bytes"))
    dense = 4 * run.learner.report.before
    plain = dense * sum(row["asked"] + row["answered"] for row in history)
    result = {
        "task": config.task,
        "metric": metric_of(run.task, config.metric)[0],
        **{f"test_{name}": float(value) for name, value in test.items()},
        **{f"validation_{name}": float(value) for name, value in validation.items()},
        "test_loss": float(test_loss),
        "parameters": parameters(graph),
        "numbers_sent": sum(leaf.size for leaf in jax.tree.leaves(run.rounds.up_like)),
        "file_bytes": size,
        "dense_bytes": dense,
        "clients": federated.clients,
        "rounds": len(history),
        "best_round": int(progress.best_round),
        "up_bytes": up,
        "down_bytes": down,
        "dense_fedavg_bytes": plain,
        "times_fewer_bytes": plain / max(up + down, 1),
        "refused": dict(Counter(one.reason for one in refused)),
        "epsilon": _epsilon(federated, len(history)),
        "train_seconds": sum(row["seconds"] for row in history),
        "jax_version": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "method": config.method,
        "seed": config.seed,
    }
    write_history(folder / HISTORY, history)
    _write_refused(folder / REFUSED, refused)
    draw_curves(folder / CURVES, history, run)
    replace_json(folder / RESULT, result)
    return result


def _epsilon(federated: FederatedConfig, rounds: int) -> float | None:
    """What the rounds say of a client at most; None where no noise is added."""
    return privacy_spent(federated, rounds) if federated.noise else None


def _write_refused(path: Path, refused: Sequence[Refused]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(Refused._fields)
            writer.writerows(refused)

    replace_file(path, write)


def draw_curves(path: Path, history: Sequence[Row], run: Prepared) -> None:
    """Draws the followed metric against rounds, and against all bytes that were sent."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    followed, _ = metric_of(run.task, run.config.metric)
    values = [row[f"validation_{followed}"] for row in history]
    sent = np.cumsum([row["up_bytes"] + row["down_bytes"] for row in history]) / 1e6
    figure = Figure(figsize=(9, 3.5), layout="constrained")
    FigureCanvasAgg(figure)
    rounds, megabytes = figure.subplots(1, 2, sharey=True)
    rounds.plot([row["round"] for row in history], values)
    rounds.set_xlabel("round")
    rounds.set_ylabel(f"validation {followed}")
    megabytes.plot(sent, values)
    megabytes.set_xscale("log")
    megabytes.set_xlabel("megabytes sent, up and down, all clients")
    federated = run.federated
    figure.suptitle(
        f"{run.config.data}: {run.config.method}, {federated.clients} clients, {federated.split}"
    )
    replace_file(path, lambda p: figure.savefig(p, dpi=120, format="png"))
