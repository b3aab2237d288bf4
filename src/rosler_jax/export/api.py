"""``export``: from a trained model's folder or file to the files of a target."""

from __future__ import annotations

import functools
import io
import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np

from rosler_jax._files import json_text
from rosler_jax.export import _calibration, _forms, report
from rosler_jax.export._errors import ExportError
from rosler_jax.export._place import put
from rosler_jax.export.c.coded import FORMS, mostly_zeros
from rosler_jax.export.c.naming import DEFAULT, check_name, renamed
from rosler_jax.export.c.source import HEADER, SOURCE, CSource, write_c
from rosler_jax.export.c.train.options import Training
from rosler_jax.export.inputs import calibration_inputs
from rosler_jax.export.lowering import WEIGHT_BITS
from rosler_jax.graph import Graph, run_batch
from rosler_jax.graph._source import TraceError
from rosler_jax.graph.kinds import Gather
from rosler_jax.graph.save import Model, load, model_path

if TYPE_CHECKING:
    from rosler_jax.delta import SeededDelta

DTYPES = ("float32", *WEIGHT_BITS)
EXAMPLES = 16  # inputs and outputs that are written beside a C model


class Options(NamedTuple):
    """What an export is told.

    Attributes:
      dtype: ``"float32"``, ``"int16"``, ``"int8"`` or ``"int4"``: of the weights.
      activations: bits of the values between operations of an integer export in C: 16 or 8.
      calibration: representative inputs, for integers; a sequence of them for several inputs.
      limits: of the target's flash and RAM, in bytes.
      board: whose instructions are counted where an emulator is installed; None for no count.
      probabilities: whether C code has ``rosler_softmax``, too.
      train: C code that trains is written beside it; None for none.
      others: inputs of the same kind as the calibration's, to see how many saturate.
      name: what all names in C code begin with.
      weights: how they lie in the flash of C code.
      delta: changes weights of C code on the device.
    """

    dtype: str = "float32"
    activations: int = 16
    calibration: Any = None
    limits: report.Limits = report.Limits()
    board: str | None = "cortex-m4"
    probabilities: bool = False
    train: Training | None = None
    others: Any = None
    name: str = DEFAULT
    weights: str = "packed"
    delta: SeededDelta | None = None


class Exported(NamedTuple):
    """What an export wrote.

    Attributes:
      files: paths.
      report: sizes, JSON types.
      text: the same for people.

    Example:
      >>> from flax import nnx
      >>> from rosler_jax.graph import trace
      >>> graph = trace(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), np.ones((1, 4), np.float32))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     done = export(graph, folder, board=None)
      >>> done.files[0].name, done.report["flash"]["data_bytes"], done.report["work"]
      ('rosler_model.h', 32, {'multiplications': 8, 'additions': 8})
    """

    files: tuple[Path, ...]
    report: dict[str, Any]
    text: str


def export(
    model: str | os.PathLike[str] | Model | Graph,
    out: str | os.PathLike[str],
    *,
    target: str = "c",
    dtype: str = "float32",
    activations: int = 16,
    input_shape: Sequence[int] | None = None,
    calibration: Any = None,
    flash: int | None = None,
    ram: int | None = None,
    board: str | None = "cortex-m4",
    probabilities: bool = False,
    train: Training | None = None,
    others: Any = None,
    name: str = DEFAULT,
    weights: str = "packed",
    delta: SeededDelta | None = None,
) -> Exported:
    """Exports a trained model.

    Args:
      model: a model file, the folder of a run, or what :func:`rosler_jax.load` or
        :func:`rosler_jax.trace` gave.
      out: folder to write into; made if it does not exist.
      target: a key of :data:`TARGETS`.
      dtype: of the weights: ``"float32"``, ``"int16"``, ``"int8"`` or ``"int4"``.
      activations: bits of the values between operations of integers in C: 16, or 8 with weights
        of 8 or 4 bits, which halves the arena.
      input_shape: of one example; needed for convolutions in a file of version 1.
      calibration: representative inputs, some hundreds, as the network is trained on; needed for
        integers; a sequence of them for a model with several inputs.
      flash, ram: bytes that the target has; a model that takes more is refused. C only.
      board: whose instructions are counted where an emulator is installed; None to count none.
      probabilities: whether C code has ``rosler_softmax``, too.
      train: how the network goes on learning on the device: writes ``rosler_train.h`` and ``.c``.
      others: inputs that do not calibrate: the report of integers in C then says how many of them
        saturate.
      name: what all names in C code, and of its files, begin with, as in ``rosler_predict``:
        several models in one program want several.
      weights: how they lie in the flash of C code, each matrix so if that is smaller than packed:
        ``"packed"``; ``"coded"``, decoded to RAM by ``rosler_init``; ``"streamed"``, decoded row by
        row in products with one vector; ``"sparse"``, those that are not zero alone. The outputs
        are the same. The report compares them where most weights are zero.
      delta: made for the model's parameters (``load(...).params``, say): C code in float32 then
        has ``rosler_tune``, which takes the model to any numbers of it; the weights that it changes
        take RAM as well as flash.

    Returns:
      The files and the report.

    Raises:
      ExportError: for an unknown target or dtype, a layer that the target does not have, a model
        that is too large, or a C file in the folder that no export wrote; the message says what
        would do. Nothing is made then.
      ModelFileError: for a damaged model file.
      OSError: if files cannot be read or written; nothing is left half-written.

    Example:
      >>> import tempfile
      >>> from flax import nnx
      >>> from rosler_jax.graph import trace
      >>> graph = trace(nnx.Linear(4, 2, rngs=nnx.Rngs(0)), np.ones((1, 4), np.float32))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     done = export(graph, f"{folder}/edge", board=None)
      ...     [path.name for path in done.files]
      ['rosler_model.h', 'rosler_model.c', 'examples.npz', 'size_report.json']
    """
    if target not in TARGETS:
        raise ExportError(f"unknown target {target!r}; use one of {', '.join(TARGETS)}")
    if dtype not in DTYPES:
        raise ExportError(f"unknown dtype {dtype!r}; use one of {', '.join(DTYPES)}")
    if weights not in FORMS:
        raise ExportError(f"unknown weights {weights!r}; use one of {', '.join(FORMS)}")
    if weights != "packed" and train is not None:
        raise ExportError(
            f"weights {weights!r} cannot train on the device, which stores them anew: export with "
            "weights 'packed', or without training"
        )
    if delta is not None and (target, dtype, weights, train) != ("c", "float32", "packed", None):
        raise ExportError(
            "delta= is for C code in float32, with packed weights, that does not train; else apply "
            "the delta before the export"
        )
    check_name(name)
    graph = _graph(model, input_shape)
    options = Options(
        dtype,
        activations,
        calibration,
        report.Limits(flash, ram),
        board,
        probabilities,
        train,
        others,
        name,
        weights,
        delta,
    )
    done = TARGETS[target](graph, options)
    return Exported(put(Path(out), done.files, done.stale), done.report, done.text)


def _graph(model: Any, input_shape: Sequence[int] | None) -> Graph:
    if isinstance(model, Graph | Model):
        return model if isinstance(model, Graph) else model.graph
    if not isinstance(model, str | os.PathLike):
        raise ExportError(
            f"a model of type {type(model).__name__}; trace it first: export(rosler_jax.trace("
            "model, examples), ...)"
        )
    try:
        return load(model, input_shape=input_shape).graph
    except TraceError as error:
        raise ExportError(f"{model}: {error}") from error


class _Written(NamedTuple):
    """What a target wrote: contents by name, a report, and C files that would be of another."""

    files: dict[str, bytes]
    report: dict[str, Any]
    text: str
    stale: tuple[str, ...] = ()


def _to_c(graph: Graph, options: Options) -> _Written:
    from rosler_jax.export.c import train

    model, inputs, outputs = _with_examples(graph, options)
    source, counted, missing = _form(model, inputs, options, options.weights)
    texts = {HEADER: source.header, SOURCE: source.source}
    training = None if options.train is None else _training(graph, options, texts)
    found = report.edge_report(source, graph, options.dtype, counted, missing)
    if options.weights != "packed" or mostly_zeros(model):
        forms = {
            name: (source, counted) if name == options.weights
            else _form(model, inputs, options, name)[:2]
            for name in FORMS
        }  # fmt: skip
        found["weights"] = _forms.compared(forms, options.weights)
    found["training"] = training
    limits = None
    if options.dtype != "float32" and len(graph.inputs) == 1:
        info = np.iinfo(model.input_dtype)
        limits = model.input_scale, int(info.min), int(info.max)
    warnings = _saturation(limits, options, found)
    refused = report.shortfall(found, options.limits, graph)
    if refused is not None:
        raise ExportError(refused)
    name = options.name
    files = {renamed(file, name): renamed(text, name).encode() for file, text in texts.items()}
    own = "" if name == DEFAULT else f"{name}_"
    examples = io.BytesIO()
    arrays: dict[str, Any] = {**_named("inputs", inputs), **_named("outputs", outputs)}
    np.savez(examples, **arrays)
    files[f"{own}examples.npz"] = examples.getvalue()
    files[f"{own}size_report.json"] = (json_text(found) + "\n").encode()
    stale = [renamed(file, name) for file in (train.HEADER, train.SOURCE)]
    text = "\n".join([report.table(found), *warnings])
    return _Written(files, found, text, tuple(file for file in stale if file not in files))


def _form(
    model: Any, inputs: Any, options: Options, weights: str
) -> tuple[CSource, report.Counted | None, str | None]:
    """The C code with weights of some form, and what an emulated inference takes, or why not."""
    source = write_c(
        model, probabilities=options.probabilities, weights=weights, delta=options.delta
    )
    if options.board is None:
        return source, None, None
    with tempfile.TemporaryDirectory() as work:
        put(Path(work), {HEADER: source.header.encode(), SOURCE: source.source.encode()})
        return source, *report.count(work, inputs, options.board)


def _saturation(
    limits: tuple[float, int, int] | None, options: Options, found: dict[str, Any]
) -> list[str]:
    """Adds to the report what of other inputs saturates; gives it in words."""
    if limits is None or options.others is None or not len(options.others):
        return []
    found["calibration"] = _calibration.saturation(options.others, options.calibration, *limits)
    return _calibration.warnings(found["calibration"])


def _training(graph: Graph, options: Options, texts: dict[str, str]) -> dict[str, Any]:
    """Adds the files that train; gives what they take."""
    from rosler_jax.export.c import train

    assert options.train is not None
    training = options.train
    source = train.write_training(graph, training, calibration=options.calibration)
    texts |= {train.HEADER: source.header, train.SOURCE: source.source}
    return {
        **training._asdict(),
        "state_bytes": source.state_bytes,
        "arena_bytes": source.arena_bytes,
        "data_bytes": sum(source.constant_bytes.values()),
    }


def _named(kind: str, arrays: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Arrays of a file by name: ``inputs``, or ``inputs_0``, ``inputs_1`` if there are several."""
    if len(arrays) == 1:
        return {kind: arrays[0]}
    return {f"{kind}_{i}": array for i, array in enumerate(arrays)}


def _with_examples(graph: Graph, options: Options) -> tuple[Any, Any, Any]:
    """The graph or its integer program, some inputs of its types, and the outputs for them."""
    from rosler_jax.export.integer import run_integer
    from rosler_jax.export.lowering import lower

    given = options.calibration
    if given is None and options.dtype != "float32":
        raise ExportError(
            f"dtype {options.dtype} needs calibration inputs to choose scales by; pass "
            "calibration= (--calibration FILE.npy), or export the folder of a run, whose data is "
            "known"
        )
    # None are needed for floats; these only show that C computes what Python does.
    single = len(graph.inputs) == 1
    given = _made(graph) if given is None else [given] if single else list(given)
    if len(given) != len(graph.inputs):
        raise ExportError(
            f"calibration inputs for {len(given)} inputs; the model takes {len(graph.inputs)}"
        )
    xs = [calibration_inputs(x, v.shape, v.dtype) for x, v in zip(given, graph.inputs, strict=True)]
    some = [_some(x) for x in xs]
    if options.dtype == "float32":
        outputs = run_batch(graph, *some)
        return graph, some, [np.asarray(y) for y in jax.tree.leaves(outputs)]
    whole = xs[0] if single else xs
    program = lower(graph, whole, dtype=options.dtype, activations=options.activations)
    inputs = [
        program.quantize_input(x, i) if v.dtype == "float32" else x
        for i, (x, v) in enumerate(zip(some, graph.inputs, strict=True))
    ]
    got = run_integer(program, *inputs)
    return program, inputs, [got] if len(graph.outputs) == 1 else list(got)


def _made(graph: Graph) -> list[np.ndarray]:
    """Random inputs: real numbers, or whole ones below the size of every table."""
    rng = np.random.default_rng(0)
    sizes = [op.in_shapes[0][0] for op in graph.ops if isinstance(op, Gather)]
    return [
        rng.normal(size=(EXAMPLES, *v.shape))
        if v.dtype == "float32"
        else rng.integers(0, min(sizes, default=2), (EXAMPLES, *v.shape))
        for v in graph.inputs
    ]


def _some(x: np.ndarray) -> np.ndarray:
    """Examples from end to end: a file may be sorted."""
    return x[np.linspace(0, len(x) - 1, min(EXAMPLES, len(x))).round().astype(int)]


def _to_file(
    write: Callable[[Graph, Options], bytes],
    suffix: str,
    limits: Callable[[Options], tuple[float, int, int] | None] = lambda options: None,
) -> Callable[[Graph, Options], _Written]:
    """A target that is one file."""

    def to(graph: Graph, options: Options) -> _Written:
        from rosler_jax.size import size_report

        for_c = (options.limits, options.train, options.name, options.weights)
        if for_c != (report.Limits(), None, DEFAULT, "packed"):
            raise ExportError(
                f"flash, ram, training, name and weights are for the target c, not {suffix}"
            )
        data = write(graph, options)
        dense = size_report(graph).total("dense_bytes")
        found = {"dtype": options.dtype, "file_bytes": len(data), "dense_bytes": dense}
        rows = f"{options.dtype}: {len(data):,} bytes; the dense float32 network has {dense:,}"
        warnings = _saturation(limits(options), options, found)
        return _Written({f"model.{suffix}": data}, found, "\n".join([rows, *warnings]))

    return to


def _onnx(graph: Graph, options: Options) -> bytes:
    from rosler_jax.export.onnx import onnx_bytes

    return onnx_bytes(graph, report.BITS[options.dtype])


def _tflite(graph: Graph, options: Options) -> bytes:
    from rosler_jax.export.tflite import tflite_model

    bits = report.BITS[options.dtype]
    # Integer activations go with weights of a byte; other weights are computed with in float32.
    calibration = options.calibration if bits == 8 else None
    return tflite_model(graph, bits, calibration, options.activations)


def _stablehlo(graph: Graph, options: Options) -> bytes:
    from rosler_jax.export.stablehlo import exported

    return bytes(exported(graph, report.BITS[options.dtype]).serialize())


def _tflite_limits(options: Options) -> tuple[float, int, int] | None:
    """The scale of a file's inputs, and their least and greatest integer, where they have them."""
    from rosler_jax.export._tflite_builder import HIGH, Builder, steps_of

    if report.BITS[options.dtype] != 8 or not hasattr(options.calibration, "max"):
        return None
    steps = steps_of(Builder(8, options.activations), np.asarray(options.calibration))
    low, high = (-HIGH, HIGH) if options.activations == 16 else (-128, 127)
    return float(steps.scale), low - steps.zero, high - steps.zero


Target = Callable[[Graph, Options], _Written]

TARGETS: dict[str, Target] = {
    "c": _to_c,
    "onnx": _to_file(_onnx, "onnx"),
    "tflite": _to_file(_tflite, "tflite", _tflite_limits),
    "stablehlo": _to_file(_stablehlo, "stablehlo"),
}
"""Every target by name: a new one is one line here."""


def calibration_of(
    run: str | os.PathLike[str], data: str | None = None, count: int = 512, seed: int = 0
) -> Any:
    """Validation inputs of a run's data, to calibrate with; None where no data is known.

    They are drawn at random, class by class: data may be sorted, and a prefix is no sample.

    Args:
      run: the folder of a run, or a model file in it.
      data: name or path of the data; by default what the run was trained on.
      count: how many inputs at most.
      seed: of the draw.

    Raises:
      RunError: if the data has changed since, or does not go with the model.
      ValueError, OSError: if the data cannot be read.

    Example:
      >>> from flax import nnx
      >>> from rosler_jax.graph.save import save
      >>> layer, x = nnx.Linear(40, 2, rngs=nnx.Rngs(0)), np.eye(40)
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(f"{folder}/toy.npz", x=x, y=np.arange(40) % 2)
      ...     size = save(f"{folder}/model.rosler", layer, x)
      ...     calibration_of(folder, f"{folder}/toy.npz", count=2).shape
      (2, 40)
    """
    return calibration_and_others(run, data, count, seed)[0]


def calibration_and_others(
    run: str | os.PathLike[str], data: str | None = None, count: int = 512, seed: int = 0,
    graph: Graph | None = None,
) -> tuple[Any, Any]:  # fmt: skip
    """What :func:`calibration_of` draws, and the rest of the validation inputs.

    A graph that the model was loaded to already is not loaded again.
    """
    from rosler_jax.run import check_fit, graph_for, load_run_data

    model = model_path(run)
    found = load_run_data(model, **({} if data is None else {"data": data}))
    if found is None:
        return None, None
    dataset, config = found
    graph = graph_for(model, dataset)[0] if graph is None else graph
    check_fit(functools.partial(run_batch, graph), dataset, config)
    y = dataset.validation_y
    labels = dataset.validation_x if y is None else y
    chosen = _calibration.draw(np.asarray(labels), count, seed)
    return dataset.validation_x[chosen], np.delete(dataset.validation_x, chosen, axis=0)
