"""``rosler info``: what a run would run with, or what a model is."""

from __future__ import annotations

import argparse
import math
import platform
from collections import Counter
from collections.abc import Iterator
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rosler_jax.cli._command import Command, Outcome, table
from rosler_jax.cli._model_argument import ModelArgument, add_model_argument, model_argument

if TYPE_CHECKING:
    from rosler_jax.graph import Graph, Value

PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "numpy", "orbax-checkpoint")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """A model, if that is asked for."""
    add_model_argument(parser, optional=True)


def run(args: argparse.Namespace) -> Outcome:
    """Describes a model, or what there is to run it."""
    return _installed() if args.path is None else _described(model_argument(args))


def _described(given: ModelArgument) -> Outcome:
    """What a model takes and gives, its operations by kind and its tensors by their bits."""
    from rosler_jax.graph.save import graph_of_file
    from rosler_jax.modelfile import load

    file = None if given.path is None else load(given.path)
    graph = given.graph() if file is None else graph_of_file(file, given.name, given.input_shape)
    ops, tensors = Counter(_kinds(graph)), Counter[str]()
    for weight in {id(weight.stored): weight for weight in graph.weights()}.values():
        dtype = weight.dtype
        name = f"{weight.bits} bits" if dtype == "float32" else dtype
        tensors[name] += math.prod(weight.stored.shape)
    data: dict[str, Any] = {
        "inputs": [_value(value) for value in graph.inputs],
        "outputs": [_value(value) for value in graph.outputs],
        "operations": dict(ops.most_common()),
        "numbers": dict(tensors.most_common()),
    }
    if file is not None:
        data |= {
            "version": file.version,
            "file_bytes": file.file_bytes,
            "metadata": file.metadata,
        }
    shown: list[tuple[str, object]] = [
        (f"{side[:-1]} {value['name']}".strip(), f"{value['dtype']} {value['shape']}")
        for side in ("inputs", "outputs")
        for value in data[side]
    ]
    shown += [("operations", sum(ops.values()))]
    shown += [(f"  {kind}", n) for kind, n in ops.most_common()]
    shown += [(f"numbers of {name}", n) for name, n in tensors.most_common()]
    if file is not None:
        shown += [("file bytes", data["file_bytes"]), ("format version", data["version"])]
        shown += [(str(key), value) for key, value in data["metadata"].items()]
    return Outcome(f"{table(shown)}\n\nread from\n{given.name}", {**data, "path": given.name})


def _kinds(graph: Graph) -> Iterator[str]:
    """The kind of every operation, those of bodies among them."""
    from rosler_jax.graph.kinds import Scan

    for op in graph.ops:
        yield type(op).__name__
        if isinstance(op, Scan):
            yield from _kinds(op.body)


def _value(value: Value) -> dict[str, Any]:
    return {"name": value.name, "shape": list(value.shape), "dtype": value.dtype}


def _installed() -> Outcome:
    """Gathers versions, devices and kernels."""
    from rosler_jax import __version__

    versions: dict[str, str | None] = {
        "rosler-jax": __version__,
        "python": platform.python_version(),
    }
    versions |= {name: _version(name) for name in PACKAGES}
    backend, devices = _devices()
    chosen, known, reason = _projection()
    data: dict[str, Any] = {
        "versions": versions,
        "platform": platform.platform(),
        "backend": backend,
        "devices": devices,
        "projection": chosen,
        "projection_reason": reason,
        "projection_implementations": known,
    }
    shown: list[tuple[str, object]] = [
        (name, version or "not installed") for name, version in versions.items()
    ]
    shown += [
        ("platform", data["platform"]),
        ("backend", backend),
        *((f"device {i}", device) for i, device in enumerate(devices)),
        ("projection kernel", f"{chosen} (of {', '.join(known)})"),
        ("because", reason),
    ]
    return Outcome(table(shown), data)


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> tuple[str, list[str]]:
    """JAX's backend and the kinds of its devices; the reason, where JAX finds none."""
    import jax

    try:
        return jax.default_backend(), [device.device_kind for device in jax.devices()]
    except RuntimeError as error:
        return f"none: {error}", []


def _projection() -> tuple[str, list[str], str]:
    """The implementation that a projection runs by default, all there are, and the reason."""
    import rosler_kernels

    known = list(rosler_kernels.IMPLEMENTATIONS)
    try:
        choice = rosler_kernels.explain(rosler_kernels.rademacher(0, 1024, 64), (1024, 1024))
    except (RuntimeError, ValueError) as error:
        return "none", known, str(error)
    return choice.name, known, choice.reason


COMMAND = Command(
    summary="versions, devices and kernels; or what a model takes, gives and is made of",
    description=(
        "Shows versions, devices, and the implementation that projections would run with; of a "
        "model its inputs and outputs, its operations by kind, and its numbers by their bits."
    ),
    examples=(
        "rosler info",
        "rosler info --json",
        "rosler info model.rosler",
        "rosler info my_model.py:build --input-shape 28,28,1",
    ),
    add_arguments=add_arguments,
    run=run,
)
