"""``export``: from a trained model's folder or file to the files of a target."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from rosler_jax._files import replace_file, replace_text
from rosler_jax.deploy import LoadedNetwork, load_network
from rosler_jax.export import reference, report
from rosler_jax.export._errors import ExportError
from rosler_jax.export.build import build_graph
from rosler_jax.export.graph import Graph
from rosler_jax.export.lowering import WEIGHT_BITS

MODEL, CONFIG = "model.rosler", "config.json"
DTYPES = ("float32", *WEIGHT_BITS)
EXAMPLES = 16  # inputs and outputs that are written beside a C model


class Training(NamedTuple):
    """How the network goes on learning on the device; see ``write_training``.

    Attributes:
      dtype: ``"float32"`` or ``"fixed"``.
      loss: ``"cross_entropy"`` or ``"mse"``.
      stage: ``"successive"`` or ``"parallel"``.
      parts: what trains: ``"all"``, ``"cores"``, ``"head"`` or ``"biases"``.
      batch: most examples in a step.
      momentum: of SGD.
      clip: norm that gradients are scaled down to; None for none.
    """

    dtype: str = "float32"
    loss: str = "cross_entropy"
    stage: str = "successive"
    parts: str = "all"
    batch: int = 16
    momentum: float = 0.9
    clip: float | None = None


class Options(NamedTuple):
    """What an export is told.

    Attributes:
      dtype: ``"float32"``, ``"int16"``, ``"int8"`` or ``"int4"``: of the weights; integer exports
        have activations of 16 bits in C.
      input_shape: of one example; needed for convolutions.
      calibration: representative inputs, for integers.
      limits: of the target's flash and RAM, in bytes.
      board: whose instructions are counted where an emulator is installed; None for no count.
      probabilities: whether C code has ``rosler_softmax``, too.
      train: C code that trains is written beside it; None for none.
    """

    dtype: str = "float32"
    input_shape: tuple[int, ...] | None = None
    calibration: Any = None
    limits: report.Limits = report.Limits()
    board: str | None = "cortex-m4"
    probabilities: bool = False
    train: Training | None = None


class Exported(NamedTuple):
    """What an export wrote.

    Attributes:
      files: paths.
      report: sizes, JSON types.
      text: the same for people.
    """

    files: tuple[Path, ...]
    report: dict[str, Any]
    text: str


def export(
    model: str | os.PathLike[str] | LoadedNetwork,
    out: str | os.PathLike[str],
    *,
    target: str = "c",
    dtype: str = "float32",
    input_shape: Sequence[int] | None = None,
    calibration: Any = None,
    flash: int | None = None,
    ram: int | None = None,
    board: str | None = "cortex-m4",
    probabilities: bool = False,
    train: Training | None = None,
) -> Exported:
    """Exports a trained model.

    Args:
      model: a model file, the folder of a run, or what ``load_network`` gave.
      out: folder to write into; made if it does not exist.
      target: a key of :data:`TARGETS`.
      dtype: of the weights: ``"float32"``, ``"int16"``, ``"int8"`` or ``"int4"``.
      input_shape: of one example; needed where convolutions come before any linear layer.
      calibration: representative inputs, some hundreds, as the network is trained on; needed for
        integers.
      flash, ram: bytes that the target has; a model that takes more is refused. C only.
      board: whose instructions are counted where an emulator is installed; None to count none.
      probabilities: whether C code has ``rosler_softmax``, too.
      train: how the network goes on learning on the device: writes ``rosler_train.h`` and ``.c``.

    Returns:
      The files and the report.

    Raises:
      ExportError: for an unknown target or dtype, a layer that the target does not have, or a model
        that is too large; the message says what would do.
      ModelFileError: for a damaged model file.
      OSError: if files cannot be read or written; nothing is left half-written.

    Example:
      >>> import jax, tempfile
      >>> from flax import nnx
      >>> from rosler_jax.deploy import Trained, save_network
      >>> from rosler_jax.network import Network, split_state
      >>> specs = [{"kind": "linear", "in_features": 4, "out_features": 2}]
      >>> _, params, buffers = split_state(Network(specs, rngs=nnx.Rngs(0)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     _ = save_network(f"{folder}/m.rosler", Trained(specs, params, buffers), bits=16)
      ...     done = export(f"{folder}/m.rosler", f"{folder}/edge", board=None)
      ...     [path.name for path in done.files]
      ['rosler_model.h', 'rosler_model.c', 'examples.npz', 'size_report.json']
    """
    if target not in TARGETS:
        raise ExportError(f"unknown target {target!r}; use one of {', '.join(TARGETS)}")
    if dtype not in DTYPES:
        raise ExportError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    loaded = load_network(_model_path(model)) if not isinstance(model, LoadedNetwork) else model
    shape = loaded.file.spec.get("input_shape") if input_shape is None else input_shape
    graph = build_graph(loaded.specs, loaded.file.tensors, shape)
    options = Options(
        dtype,
        graph.in_shape if shape is not None else None,
        calibration,
        report.Limits(flash, ram),
        board,
        probabilities,
        train,
    )
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    return TARGETS[target](loaded, graph, folder, options)


def _model_path(model: str | os.PathLike[str]) -> Path:
    path = Path(model)
    return path / MODEL if path.is_dir() else path


def _write(folder: Path, texts: dict[str, str]) -> list[Path]:
    paths = []
    for name, text in texts.items():
        replace_text(folder / name, text)
        paths.append(folder / name)
    return paths


def _to_c(loaded: LoadedNetwork, graph: Graph, folder: Path, options: Options) -> Exported:
    from rosler_jax.export.c.source import HEADER, SOURCE, write_c

    model, inputs, outputs = _with_examples(graph, options)
    source = write_c(model, probabilities=options.probabilities)
    texts = {HEADER: source.header, SOURCE: source.source}
    training = None if options.train is None else _training(graph, options, texts)
    counted, missing = None, None if options.board is None else "no inputs to count with"
    if options.board is not None:
        with tempfile.TemporaryDirectory() as work:
            _write(Path(work), texts)
            counted, missing = report.count(work, inputs, options.board)
    sizes = _sizes(loaded, options.input_shape)
    found = report.edge_report(source, sizes, loaded.specs, graph, options.dtype, counted, missing)
    found["training"] = training
    refused = report.shortfall(found, options.limits, graph)
    if refused is not None:
        raise ExportError(refused)
    paths = _write(folder, texts)
    examples = folder / "examples.npz"

    def write(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, inputs=inputs, outputs=outputs)

    replace_file(examples, write)
    paths += [examples, *_write(folder, {"size_report.json": json.dumps(found, indent=2) + "\n"})]
    return Exported(tuple(paths), found, report.table(found))


def _training(graph: Graph, options: Options, texts: dict[str, str]) -> dict[str, Any]:
    """Adds the files that train; gives what they take."""
    from rosler_jax.export.c import train

    assert options.train is not None
    how = options.train._asdict()
    source = train.write_training(graph, calibration=options.calibration, **how)
    texts |= {train.HEADER: source.header, train.SOURCE: source.source}
    return {
        **how,
        "state_bytes": source.state_bytes,
        "arena_bytes": source.arena_bytes,
        "data_bytes": sum(source.constant_bytes.values()),
    }


def _sizes(loaded: LoadedNetwork, input_shape: tuple[int, ...] | None) -> Any:
    from rosler_jax.size import size_report

    try:
        return size_report(loaded, input_shape=input_shape)
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ExportError(f"the network cannot be run on its own inputs: {error}") from error


def _with_examples(graph: Graph, options: Options) -> tuple[Any, np.ndarray, np.ndarray]:
    """The graph or its integer program, some inputs of its type, and the outputs for them."""
    from rosler_jax.export.integer import run_integer
    from rosler_jax.export.lowering import lower

    x = None if options.calibration is None else np.asarray(options.calibration)
    if options.dtype == "float32":
        if x is None:  # none are needed; these only show that C computes what Python does
            x = np.random.default_rng(0).normal(size=(EXAMPLES, *graph.in_shape))
        inputs = x[:EXAMPLES].reshape(-1, *graph.in_shape).astype(np.float32)
        return graph, inputs, np.asarray(reference.run(graph, jax.numpy.asarray(inputs)))
    if x is None:
        raise ExportError(
            f"dtype {options.dtype} needs calibration inputs to choose scales by; pass "
            "calibration= (--calibration FILE.npy), or export the folder of a run, whose data is "
            "known"
        )
    program = lower(graph, x, dtype=options.dtype)
    inputs = program.quantize_input(x[:EXAMPLES])
    return program, inputs, run_integer(program, inputs)


def _to_file(
    write: Callable[[Graph, Path, Options], int], suffix: str
) -> Callable[[LoadedNetwork, Graph, Path, Options], Exported]:
    """A target that is one file."""

    def to(loaded: LoadedNetwork, graph: Graph, folder: Path, options: Options) -> Exported:
        if options.limits != report.Limits() or options.train is not None:
            raise ExportError(f"flash, ram and training are for the target c, not {suffix}")
        path = folder / f"model.{suffix}"
        size = write(graph, path, options)
        dense = _sizes(loaded, options.input_shape).total("dense_bytes")
        found = {"dtype": options.dtype, "file_bytes": size, "dense_bytes": dense}
        rows = f"{options.dtype}: {size:,} bytes; the dense float32 network has {dense:,}"
        return Exported((path,), found, rows)

    return to


def _onnx(graph: Graph, path: Path, options: Options) -> int:
    from rosler_jax.export.onnx import to_onnx

    return to_onnx(graph, path, bits=report.BITS[options.dtype])


def _tflite(graph: Graph, path: Path, options: Options) -> int:
    from rosler_jax.export.tflite import to_tflite

    bits = report.BITS[options.dtype]
    # Integer activations go with weights of a byte; other weights are computed with in float32.
    calibration = options.calibration if bits == 8 else None
    return to_tflite(graph, path, bits=bits, calibration=calibration)


def _stablehlo(graph: Graph, path: Path, options: Options) -> int:
    from rosler_jax.export.stablehlo import to_stablehlo

    return to_stablehlo(graph, path, bits=report.BITS[options.dtype])


Target = Callable[[LoadedNetwork, Graph, Path, Options], Exported]

TARGETS: dict[str, Target] = {
    "c": _to_c,
    "onnx": _to_file(_onnx, "onnx"),
    "tflite": _to_file(_tflite, "tflite"),
    "stablehlo": _to_file(_stablehlo, "stablehlo"),
}
"""Every target by name: a new one is one line here."""


def calibration_of(run: str | os.PathLike[str], data: str | None = None, count: int = 512) -> Any:
    """Validation inputs of a run's data, to calibrate with; None where no data is known.

    Args:
      run: the folder of a run, or a model file in it.
      data: name or path of the data; by default what the run was trained on.
      count: how many inputs at most.

    Raises:
      ValueError, OSError: if the data cannot be read.
    """
    from rosler_jax import config as configs
    from rosler_jax.config import TrainConfig
    from rosler_jax.run import load_data

    stored = _model_path(run).parent / CONFIG
    if not stored.exists() and data is None:
        return None
    config = TrainConfig()
    if stored.exists():
        config = configs.from_dict(json.loads(stored.read_text(encoding="utf-8")))
    config = config if data is None else dataclasses.replace(config, data=data)
    return load_data(config).validation_x[:count]
