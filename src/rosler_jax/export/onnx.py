"""ONNX, written straight from the graph: learnt factors stay factors, sketches stay small.

Values have a batch axis in front. Float files and files of 8-bit weights take opset 18, in which
reductions and layer norms have their present form; files of 16-bit and 4-bit weights take opset
21, the first whose ``DequantizeLinear`` reads them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from rosler_jax._files import replace_bytes
from rosler_jax._version import __version__
from rosler_jax.export import _onnx_ops as ops
from rosler_jax.export import _onnx_windows as windows
from rosler_jax.export._errors import ExportError
from rosler_jax.export._onnx_builder import (
    Builder,
    Tensor,
    as_type,
    expanded,
    read,
    stored,
    type_of,
)
from rosler_jax.export._stored import read_whole
from rosler_jax.graph import Graph, Op, Value
from rosler_jax.graph.kinds import (
    Affine,
    Concat,
    Conv,
    Convolve,
    Cumulative,
    Dense,
    Gather,
    KernelGrad,
    Map,
    MatMul,
    Norm,
    PatchProject,
    Pool,
    Project,
    Reduce,
    Scan,
    Scatter,
    Slice,
    Softmax,
    Take,
    Transpose,
    Unpool,
)

OPSETS = {32: 18, 16: 21, 8: 18, 4: 21}
"""The opset for weights of so many bits."""
INPUT, OUTPUT = "input", "output"
LARGEST = 2**31 - 1  # bytes of one protocol buffer


def to_onnx(graph: Graph, path: str | os.PathLike[str], *, bits: int = 32) -> int:
    """Writes a graph as an ONNX file with a batch of any size.

    Input ``"input"`` is ``(batch, *in_shape)``, channels last as in JAX; output ``"output"`` is
    ``(batch, *out_shape)``. Where there are several they have their places behind: ``"input/0"``,
    ``"output/1/h"``.

    Args:
      graph: the model.
      path: file to write.
      bits: of the stored weights: 32 (floats), 16, 8 or 4. Integers of the model file are kept
        where they have no more bits; arithmetic is in float32 throughout.

    Returns:
      Bytes of the file.

    Raises:
      ExportError: for unknown bits, or a model of 2 GB and more.
      ImportError: if the extra is not installed.
      OSError: if the file cannot be written.

    Example:
      >>> import tempfile
      >>> from pathlib import Path
      >>> import jax.numpy as jnp
      >>> from rosler_jax.graph import trace
      >>> graph = trace(lambda x: jnp.tanh(x).sum(-1), jnp.ones((1, 3)))
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     to_onnx(graph, f"{folder}/m.onnx") == Path(f"{folder}/m.onnx").stat().st_size
      True
    """
    data = onnx_bytes(graph, bits)
    replace_bytes(path, data)
    return len(data)


def onnx_bytes(graph: Graph, bits: int = 32) -> bytes:
    """The file's contents; see :func:`to_onnx`."""
    model = onnx_model(graph, bits)
    if model.ByteSize() > LARGEST:
        raise ExportError(
            f"the model takes {model.ByteSize()} bytes, more than an ONNX file's {LARGEST}; use "
            "fewer bits or a sketch that is stored as signs (srht, rademacher)"
        )
    return bytes(model.SerializeToString())


def onnx_model(graph: Graph, bits: int = 32) -> Any:
    """The ``onnx.ModelProto`` of a graph; see :func:`to_onnx`."""
    if bits not in OPSETS:
        known = ", ".join(map(str, OPSETS))
        raise ExportError(f"bits {bits!r} cannot be written to ONNX; use one of {known}")
    helper = _helper()
    body, uses = _written(graph, bits, frozenset())
    if whole := read_whole(uses):
        body, _ = _written(graph, bits, whole)
    opsets = [helper.make_opsetid("", OPSETS[bits])]
    return helper.make_model(
        body,
        opset_imports=opsets,
        ir_version=helper.find_min_ir_version_for(opsets),
        producer_name="rosler_jax",
        producer_version=__version__,
    )


def _helper() -> Any:
    try:
        from onnx import helper
    except ImportError as error:
        raise ImportError(
            "writing ONNX needs the onnx package; install it with pip install rosler-jax[export]"
        ) from error
    return helper


def _written(graph: Graph, bits: int, whole: frozenset[int]) -> tuple[Any, list[Any]]:
    """The graph in ONNX, and the stored arrays that it reads."""
    inputs, outputs = _names(graph.inputs, INPUT), _names(graph.outputs, OUTPUT)
    b = Builder(bits, inputs[0], whole, names={*inputs, *outputs})
    given = [
        Tensor(name, value.shape, dtype=value.dtype)
        for name, value in zip(inputs, graph.inputs, strict=True)
    ]
    batched = [True] * len(outputs)
    _run(b, graph, given, outputs, batched)
    signatures = (
        [_signature(name, value, True) for name, value in zip(names, values, strict=True)]
        for names, values in ((inputs, graph.inputs), (outputs, graph.outputs))
    )
    return _helper().make_graph(b.nodes, "rosler", *signatures, b.initializers), b.uses


def _names(values: Sequence[Value], kind: str) -> list[str]:
    if len(values) == 1:
        return [kind]
    names: list[str] = []
    for value in values:
        name = f"{kind}/{value.name}"
        names.append(name if name not in names else f"{name}:{len(names)}")
    return names


def _signature(name: str, value: Value, batched: bool) -> Any:
    shape = ["batch" if batched else 1, *value.shape]
    return _helper().make_tensor_value_info(name, type_of(value.dtype), shape)


def _run(
    b: Builder, graph: Graph, given: Sequence[Tensor], names: Sequence[str], batched: Sequence[bool]
) -> None:
    """Adds the nodes of a graph, from its inputs to outputs of these names."""
    values = {k: stored(weight) for k, weight in graph.constants.items()}
    values |= {value.id: x for value, x in zip(graph.inputs, given, strict=True)}
    for op in graph.ops:
        made = EMIT[type(op)](b, op, *(values[k] for k in op.inputs))
        values |= zip(op.outputs, made if isinstance(op, Scan) else [made], strict=True)
    for name, value, many in zip(names, graph.outputs, batched, strict=True):
        y = _whole(b, values[value.id], value, many)
        b.nodes.append(_helper().make_node("Identity", [y.name], [name]))


def _whole(b: Builder, x: Tensor, value: Value, batched: bool) -> Tensor:
    """A value as the graph has it, one for each example where there is to be a batch."""
    x = read(b, as_type(b, x, value.dtype), value.shape)
    return expanded(b, x) if batched else x


def _scan(b: Builder, op: Scan, *xs: Tensor) -> list[Tensor]:
    """A loop: positions lie behind the batch."""
    shared, rest, inputs = xs[: op.shared], xs[op.shared :], op.body.inputs[op.shared :]
    inner = b.body()
    flags = _scanned(op, [x.batched for x in xs])
    held = [*flags[: op.carries], *(x.batched for x in rest[op.carries :])]
    outer, names, given = [], [], []
    for k, (x, value, many) in enumerate(zip(rest, inputs, held, strict=True)):
        stack = (op.length,) * (k >= op.carries)
        outer.append(_whole(b, x, value._replace(shape=(*stack, *value.shape)), many).name)
        names.append(b.fresh())
        given.append(Tensor(names[-1], value.shape, batched=many, dtype=value.dtype))
    outputs = [b.fresh() for _ in op.body.outputs]
    _run(inner, op.body, [*shared, *given], outputs, flags)
    infos = [_signature(*each) for each in zip(names, inputs, held, strict=True)]
    if len(rest) == op.carries:  # ONNX counts positions by what it scans
        outer.append(b.constant(np.zeros((1, op.length), bool)))
        names.append(b.fresh())
        infos.append(_signature(names[-1], Value(0, "", (), "bool"), False))
    results = [b.fresh() for _ in outputs]
    scanned, stacked = len(outer) - op.carries, len(outputs) - op.carries
    axes = {
        "scan_output_axes": [1] * stacked,
        "scan_output_directions": [int(op.reverse)] * stacked,
    }
    body = _helper().make_graph(
        inner.nodes,
        results[0],
        infos,
        [_signature(*each) for each in zip(outputs, op.body.outputs, flags, strict=True)],
    )
    node = _helper().make_node(
        "Scan",
        outer,
        results,
        body=body,
        num_scan_inputs=scanned,
        scan_input_axes=[1] * scanned,
        scan_input_directions=[int(op.reverse)] * scanned,
        **(axes if stacked else {}),  # an empty list has no type
    )
    b.nodes.append(node)
    return [
        Tensor(name, (*(op.length,) * (k >= op.carries), *value.shape), False, many, value.dtype)
        for k, (name, value, many) in enumerate(zip(results, op.body.outputs, flags, strict=True))
    ]


def _scanned(op: Scan, given: Sequence[bool]) -> list[bool]:
    """Which outputs of a loop have a batch axis; a state has one if any run gives it one."""
    shared, rest = list(given[: op.shared]), list(given[op.shared :])
    while True:
        out = _batched(op.body, [*shared, *rest])
        state = [a or b for a, b in zip(rest, out[: op.carries], strict=False)][: op.carries]
        if state == rest[: op.carries]:
            return [*state, *out[op.carries :]]
        rest[: op.carries] = state


def _batched(graph: Graph, given: Sequence[bool]) -> list[bool]:
    known = dict.fromkeys(graph.constants, False)
    known |= {value.id: flag for value, flag in zip(graph.inputs, given, strict=True)}
    for op in graph.ops:
        flags = [known[k] for k in op.inputs]
        made = _scanned(op, flags) if isinstance(op, Scan) else [any(flags)]
        known |= zip(op.outputs, made, strict=True)
    return [known[value.id] for value in graph.outputs]


EMIT: dict[type[Op], Callable[..., Any]] = {
    Dense: ops.dense,
    Conv: windows.conv,
    Project: ops.project,
    PatchProject: windows.patches,
    MatMul: ops.matmul,
    Affine: ops.affine,
    Map: ops.elementwise,
    Reduce: ops.reduce,
    Pool: windows.pool,
    Take: ops.take,
    Transpose: ops.transpose,
    Concat: ops.concat,
    Softmax: ops.softmax,
    Norm: ops.norm,
    Gather: ops.gather,
    Cumulative: ops.cumulative,
    Slice: ops.dynamic_slice,
    Scan: _scan,
    Scatter: ops.scatter,
    Convolve: windows.convolve,
    KernelGrad: ops.refused,
    Unpool: ops.refused,
}
"""How each operation becomes ONNX nodes: a new one is one line here."""
