"""Our C code against emlearn, onnx2c and TensorFlow Lite Micro: the same networks, side by side.

    python scripts/bench_edge_peers.py --out runs/peers --onnx2c PATH --emlearn-python PYTHON
        --tflm TREE --quantizer-python PYTHON

Every network is exported once by us and once through every peer that is named, compiled by the
same compiler with the same flags for the same emulated board, with the same driver, and run on the
same test inputs of mnist5k. An engine's bytes are all that its image has more than an image that
does nothing: its own code, what it takes from the C library, constants, and as RAM its variables,
arena and the buffers of inputs and outputs (TFLM has these in its arena). The stack is the most
that start and inference use; instructions are those of an inference, without the start.

A peer that is not named is left out, and the table says why:
  --onnx2c            the program (https://github.com/kraiskil/onnx2c); also found on PATH
  --emlearn-python    a Python that has emlearn
  --tflm              a folder with tflite-micro's tensorflow/ and third_party/{flatbuffers,
                      gemmlowp,ruy,cmsis_nn} at the versions that it pins, flatbuffers with its
                      patch; compiled here with our flags, kept in --out
  --quantizer-python  a Python that has ai-edge-quantizer, which makes the usual int8 files
"""

from __future__ import annotations

import argparse
import concurrent.futures
import datetime
import functools
import json
import math
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx

from rosler_jax import __version__
from rosler_jax import data as datasets
from rosler_jax._files import replace_json, replace_text
from rosler_jax.export import lower
from rosler_jax.export._calibration import draw
from rosler_jax.export.c.source import HEADER, SOURCE, write_c
from rosler_jax.export.firmware import (
    STACK_BYTES,
    FirmwareError,
    ObjectSize,
    Profile,
    find_board,
    find_toolchain,
)
from rosler_jax.export.firmware.build import (
    C_FOLDER,
    FLAGS,
    OWN_SOURCES,
    Image,
    compile_sources,
    link,
)
from rosler_jax.export.firmware.emulate import emulate
from rosler_jax.export.firmware.linkmap import parse_map
from rosler_jax.export.firmware.profile import sum_tables, total
from rosler_jax.export.firmware.symbols import read_symbols
from rosler_jax.export.firmware.toolchain import run_tool, version
from rosler_jax.export.onnx import to_onnx
from rosler_jax.export.tflite import to_tflite
from rosler_jax.graph import Graph, run, trace
from rosler_jax.graph.kinds import Dense, Map
from rosler_jax.learner import split_state
from rosler_jax.nn import SketchLinear

CALIBRATION = 256
FLOATS = ("float", "float")
CXX_FLAGS = ("-std=c++17", "-fno-rtti", "-fno-exceptions", "-fno-threadsafe-statics")
TFLM_MACROS = (
    *("-DNDEBUG", "-DTF_LITE_STATIC_MEMORY", "-DTF_LITE_STRIP_ERROR_STRINGS", "-DCMSIS_NN"),
    *("-DARM_NN_ENABLE_F16=0", "-DARM_NN_ENABLE_F32=0"),
)
TFLM_INCLUDES = (
    *("", "third_party/flatbuffers/include", "third_party/gemmlowp", "third_party/ruy"),
    *("third_party/cmsis_nn", "third_party/cmsis_nn/Include"),
)
TFLM_SOURCES = (
    "tensorflow/lite/micro/*.cc",
    "tensorflow/lite/micro/arena_allocator/*.cc",
    "tensorflow/lite/micro/memory_planner/*.cc",
    "tensorflow/lite/micro/tflite_bridge/*.cc",
    "tensorflow/lite/core/c/common.cc",
    "tensorflow/lite/core/api/*.cc",
    "tensorflow/lite/kernels/*.cc",
    "tensorflow/lite/kernels/internal/*.cc",
    "tensorflow/compiler/mlir/lite/core/api/*.cc",
    "tensorflow/compiler/mlir/lite/schema/*.cc",
    "tensorflow/lite/micro/kernels/*_common.cc",
    "tensorflow/lite/micro/kernels/kernel_util.cc",
    "tensorflow/lite/micro/kernels/dequantize.cc",
    "tensorflow/lite/micro/kernels/quantize.cc",
    "tensorflow/lite/micro/kernels/reshape.cc",
    "tensorflow/lite/micro/kernels/sub.cc",
    "tensorflow/lite/micro/kernels/cmsis_nn/conv.cc",
    "tensorflow/lite/micro/kernels/cmsis_nn/fully_connected.cc",
    "tensorflow/lite/micro/kernels/fully_connected.cc",  # in the other library only
    "tensorflow/lite/micro/kernels/cmsis_nn/mul.cc",
    "third_party/cmsis_nn/Source/BasicMathFunctions/*.c",
    "third_party/cmsis_nn/Source/ConvolutionFunctions/*.c",
    "third_party/cmsis_nn/Source/FullyConnectedFunctions/*.c",
    "third_party/cmsis_nn/Source/NNSupportFunctions/*.c",
)
TFLM_NOT = re.compile(
    r"_test|test_helper|fake_|mock_|recording_|hexdump|micro_time|system_setup|profiler"
    r"|_f16|_f32|_flt|circular_buffer|decompress|detection|lstm|svdf|batch_matmul"
)
TFLM_OPERATIONS = {
    "ADD": "Add",
    "AVERAGE_POOL_2D": "AveragePool2D",
    "CONV_2D": "Conv2D",
    "DEPTHWISE_CONV_2D": "DepthwiseConv2D",
    "DEQUANTIZE": "Dequantize",
    "FULLY_CONNECTED": "FullyConnected",
    "MUL": "Mul",
    "QUANTIZE": "Quantize",
    "RESHAPE": "Reshape",
    "SOFTMAX": "Softmax",
    "SUB": "Sub",
}

DRIVER = """
#include "firmware.h"
#include "peer.h"

int main(void) {
    const int from = firmware_open_to_read("inputs.bin");
    const int to = firmware_open_to_write("outputs.bin");
    const uint32_t count = firmware_length(from) / INPUT_BYTES;
    uint32_t stack, used;
    firmware_paint_stack();
    peer_start();
    stack = firmware_stack_used();
    for (uint32_t i = 0; i < count; i++) {
        if (firmware_read(from, peer_input(), INPUT_BYTES) != INPUT_BYTES)
            firmware_fail("inputs.bin ends within an input\\n");
        if (i < 4) firmware_paint_stack();
        firmware_begin();
        peer_run();
        firmware_end();
        if (i < 4) {
            used = firmware_stack_used();
            if (used > stack) stack = used;
        }
        firmware_write(to, peer_output(), OUTPUT_BYTES);
    }
    firmware_close(to);
    firmware_print_number(stack);
    firmware_print(" ");
    firmware_print_number(peer_note());
    return 0;
}
"""

PEER = """
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif
void peer_start(void);
void *peer_input(void);
void peer_run(void);
const void *peer_output(void);
uint32_t peer_note(void);
#ifdef __cplusplus
}
#endif
"""

ADAPTER = """
#include "peer.h"
@INCLUDE@
static @IN@ x[INPUT_BYTES / sizeof(@IN@)];
static @OUT@ y[OUTPUT_BYTES / sizeof(@OUT@)];
void peer_start(void) {}
void *peer_input(void) { return x; }
const void *peer_output(void) { return y; }
uint32_t peer_note(void) { return 0; }
void peer_run(void) { @RUN@ }
"""

TFLM_ADAPTER = """
#include <cstddef>
#include "peer.h"
#include "tensorflow/lite/micro/micro_interpreter.h"
#include "tensorflow/lite/micro/micro_mutable_op_resolver.h"
#include "tensorflow/lite/schema/schema_generated.h"

extern "C" const unsigned char model_data[];
extern "C" void firmware_fail(const char *text) __attribute__((noreturn));
extern "C" void __cxa_pure_virtual(void) { for (;;) {} }
extern "C" int __cxa_atexit(void (*)(void *), void *, void *) { return 0; }
extern "C" void *__dso_handle = nullptr;
void operator delete(void *) noexcept {}
void operator delete(void *, std::size_t) noexcept {}

alignas(16) static unsigned char arena[ARENA_BYTES];
static tflite::MicroInterpreter *net;

void peer_start(void) {
    static tflite::MicroMutableOpResolver<@COUNT@> operations;
    @ADD@
    static tflite::MicroInterpreter one(
        tflite::GetModel(model_data), operations, arena, sizeof arena);
    net = &one;
    if (net->AllocateTensors() != kTfLiteOk) firmware_fail("TFLM cannot prepare this network");
}
void *peer_input(void) { return net->input(0)->data.raw; }
const void *peer_output(void) { return net->output(0)->data.raw; }
uint32_t peer_note(void) { return net->arena_used_bytes(); }
void peer_run(void) {
    if (net->Invoke() != kTfLiteOk) firmware_fail("TFLM cannot run this network");
}
"""

EMLEARN = """
import sys, numpy, importlib.metadata, emlearn
from emlearn.net import c_generate_net_loadable
source, path = sys.argv[1:]
stored = numpy.load(source)
n = len(stored.files) // 3
layers = [[stored[f"{kind}{i}"] for i in range(n)] for kind in ("a", "w", "b")]
text = c_generate_net_loadable([str(a) for a in layers[0]], layers[1], layers[2], "net")
with open(path, "w") as file:
    file.write(text)
print(emlearn.includedir)
print(importlib.metadata.version("emlearn"))
"""

QUANTIZE = """
import sys, numpy, importlib.metadata
from ai_edge_quantizer import quantizer, recipe
from ai_edge_quantizer.utils import qsv_utils
# Its default follows a moving average of the ranges, which cuts off large inputs.
qsv_utils.moving_average_update.__code__ = qsv_utils.min_max_update.__code__
source, path, inputs = sys.argv[1:]
q = quantizer.Quantizer(source)
q.load_quantization_recipe(recipe.static_wi8_ai8())
rows = [{"input": x[None]} for x in numpy.load(inputs)]
q.quantize(q.calibrate({"serving_default": rows})).export_model(path, overwrite=True)
print(importlib.metadata.version("ai-edge-quantizer"))
"""


class Skip(Exception):
    """Why an engine does not run a network."""


class Net(NamedTuple):
    """A network to compare: its name, layers, one input's shape, and whether inputs are pixels."""

    name: str
    layers: list[Any]
    shape: tuple[int, ...]
    pixels: bool


class Case(NamedTuple):
    """A network with its weights and inputs; ``expected`` is the float reference's answer."""

    net: Net
    graph: Graph
    calibration: np.ndarray
    inputs: np.ndarray
    expected: np.ndarray


class Build(NamedTuple):
    """What an engine wrote.

    Attributes:
      sources: C or C++ files; the adapter among them.
      inputs: as the engine takes them, one a row.
      decode: from its bytes to real outputs.
      output_bytes: of one.
      includes, flags, libraries: for compiler and linker.
      arena: bytes that are more than enough; an image with as many as are used follows.
      remark: for the table.
    """

    sources: list[Path]
    inputs: np.ndarray
    decode: Callable[[bytes], np.ndarray]
    output_bytes: int
    includes: list[Path]
    flags: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    arena: int | None = None
    remark: str = ""


class Ran(NamedTuple):
    """One image on the board."""

    sizes: ObjectSize
    outputs: bytes
    stack: int
    note: int
    profile: Profile


class Tools(NamedTuple):
    """Where the peers are; None for one that is left out, and what was found of versions."""

    board: str
    out: Path
    onnx2c: str | None
    emlearn: str | None
    tflm: Path | None
    quantizer: str | None
    versions: dict[str, str]


Engine = Callable[[Case, Path, Tools], Build]


def networks() -> list[Net]:
    """The networks; the last one spares peers the two operations that standardise."""
    rngs = nnx.Rngs(0)
    linear = functools.partial(nnx.Linear, rngs=rngs)
    conv = functools.partial(nnx.Conv, padding="VALID", rngs=rngs)
    tail = [nnx.relu, linear(300, 100), nnx.relu, linear(100, 10)]
    factors = SketchLinear(784, 300, rank=16, rngs=rngs)
    compact = [
        lambda x: (x - np.float32(33.5)) * np.float32(1 / 78.7),
        conv(1, 8, (5, 5), strides=3), nnx.relu, conv(8, 12, (3, 3), strides=2), nnx.relu,
        lambda x: x.reshape(len(x), -1), linear(108, 10),
    ]  # fmt: skip
    return [
        Net("dense 784-300-100-10", [linear(784, 300), *tail], (784,), False),
        Net("two factors 784-300 (rank 16)-100-10", [factors, *tail], (784,), False),
        Net("compact convolutions 8, 12", compact, (28, 28, 1), True),
        Net("compact convolutions 8, 12, standardised inputs", compact[1:], (28, 28, 1), False),
    ]


def make_case(net: Net, count: int) -> Case:
    """Random weights and biases, real inputs: nothing that is measured depends on training."""
    graphdef, params, buffers = split_state(nnx.Sequential(*net.layers))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: np.asarray(rng.normal(size=a.shape) * 0.1, np.float32) if a.ndim == 1 else a,
        params,
    )
    graph = trace(nnx.merge(graphdef, params, buffers), np.zeros((1, *net.shape), np.float32))
    dataset = datasets.load("mnist5k")
    scale = (0.0, 1.0) if net.pixels else (33.5, 78.7)
    step = max(1, len(dataset.test_x) // count)
    chosen = draw(np.asarray(dataset.validation_y), CALIBRATION, seed=0)
    rows = [
        ((np.asarray(x, np.float32) - scale[0]) / np.float32(scale[1])).reshape(-1, *net.shape)
        for x in (dataset.validation_x[chosen], dataset.test_x[::step][:count])
    ]
    expected = np.asarray(jax.vmap(lambda x: run(graph, [x])[0])(rows[1]))
    return Case(net, graph, rows[0], rows[1], expected.reshape(len(rows[1]), -1))


def floats(data: bytes) -> np.ndarray:
    return np.frombuffer(data, "<f4")


def adapter(folder: Path, include: str, run: str, types: tuple[str, str] = FLOATS) -> Path:
    """Writes the C file between the driver and an engine."""
    text = ADAPTER.replace("@INCLUDE@", include).replace("@RUN@", run)
    path = folder / "adapter.c"
    path.write_text(text.replace("@IN@", types[0]).replace("@OUT@", types[1]))
    return path


def ours(dtype: str) -> Engine:
    """Our C code."""

    def build(case: Case, folder: Path, tools: Tools) -> Build:
        tools.versions["rosler_jax"] = f"{__version__} ({commit(Path(__file__).parent)})"
        return our_build(case.graph, case.calibration, case.inputs, folder, dtype)

    return build


def our_build(
    graph: Graph,
    calibration: np.ndarray,
    inputs: np.ndarray,
    folder: Path,
    dtype: str,
    activations: int = 16,
) -> Build:
    """Our C code of a graph: float32, or integers with activations of 16 or 8 bits."""
    model: Any = graph
    given, scale, kind = inputs.astype("<f4"), 1.0, "<f4"
    if dtype != "float32":
        model = lower(graph, calibration, dtype=dtype, activations=activations)
        given, scale, kind = model.quantize_input(inputs), model.output_scale, "<i2"
    written = write_c(model)
    (folder / HEADER).write_text(written.header)
    (folder / SOURCE).write_text(written.source)
    include = f'#include "{HEADER}"\nstatic rosler_arena arena;'
    types = ("rosler_input", "rosler_output")
    own = adapter(folder, include, "rosler_predict(x, y, &arena);", types)
    remark = f"{dtype} weights, int{activations} activations, {given.dtype} in and int16 out"
    return Build(
        [folder / SOURCE, own],
        given,
        lambda data: np.frombuffer(data, kind) * scale,
        math.prod(model.outputs[0].shape) * np.dtype(kind).itemsize,
        [folder],
        remark=dtype if dtype == "float32" else remark,
    )


def onnx2c(bits: int) -> Engine:
    """C code that onnx2c makes of our ONNX file."""

    def build(case: Case, folder: Path, tools: Tools) -> Build:
        if tools.onnx2c is None:
            raise Skip("onnx2c not found: pass --onnx2c PATH")
        said = subprocess.run([tools.onnx2c, "--version"], capture_output=True, text=True)
        name = (said.stdout + said.stderr).strip().splitlines()
        tools.versions["onnx2c"] = f"{name[0] if name else '?'} ({commit(Path(tools.onnx2c))})"
        to_onnx(case.graph, folder / "net.onnx", bits=bits)
        # Its default pass fold_casts makes wrong numbers of the int16 biases in files with int8
        # weights (ea045cc, checked here); the other default pass stays on.
        passes = [] if bits == 32 else ["-p", "unionize"]
        command = [tools.onnx2c, *passes, "-d", "batch:1", str(folder / "net.onnx")]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise Skip(f"onnx2c refuses: {done.stderr.strip().splitlines()[-1]}")
        (folder / "net.c").write_text(done.stdout)
        include = "void entry(const float *x, float *y);"
        return Build(
            [folder / "net.c", adapter(folder, include, "entry(x, y);")],
            case.inputs.astype("<f4"),
            floats,
            4 * case.expected.shape[1],
            [folder],
            remark="float32" if bits == 32 else "int8 weights made float32 in RAM; -p unionize",
        )

    return build


def emlearn(case: Case, folder: Path, tools: Tools) -> Build:
    """C code of emlearn's multilayer perceptron, the way that it calls loadable."""
    if tools.emlearn is None:
        raise Skip("emlearn not found: pass --emlearn-python PYTHON")
    if any(isinstance(layer, nnx.Conv) for layer in case.net.layers):
        raise Skip("emlearn's networks have dense layers only, no convolutions")
    np.savez(folder / "layers.npz", **perceptron(case.graph))
    command = ["-c", EMLEARN, str(folder / "layers.npz"), str(folder / "net.h")]
    include, found = run_tool([tools.emlearn, *command]).splitlines()[-2:]
    tools.versions["emlearn"] = found
    n = case.expected.shape[1]
    run = f"eml_net_regress(&net, x, {case.inputs[0].size}, y, {n});"
    return Build(
        [adapter(folder, '#include <stdbool.h>\n#include "net.h"', run)],
        case.inputs.astype("<f4"),
        floats,
        4 * n,
        [folder, Path(include)],
        remark="float32, weights to six decimals",
    )


def emlearn_broken(reason: str) -> Engine:
    """What emlearn has and does not work; looked at in 0.23.2."""

    def build(case: Case, folder: Path, tools: Tools) -> Build:
        raise Skip(f"{reason} (as of emlearn 0.23.2)")

    return build


def perceptron(graph: Graph) -> dict[str, Any]:
    """A graph's layers as emlearn takes them: activation, weights and biases of each."""
    out: dict[str, Any] = {}
    n = 0
    for op in graph.ops:
        if isinstance(op, Dense):
            weight = np.asarray(op.weight.values, np.float32)
            bias = np.zeros(weight.shape[1], np.float32) if op.bias is None else op.bias.values
            out |= {f"w{n}": weight, f"b{n}": bias, f"a{n}": "identity"}
            n += 1
        elif isinstance(op, Map) and n:
            out[f"a{n - 1}"] = op.function
        else:
            raise Skip(f"emlearn has no {type(op).__name__}")
    return out


def tflm(kind: str) -> Engine:
    """TensorFlow Lite Micro with CMSIS-NN's kernels."""

    def build(case: Case, folder: Path, tools: Tools) -> Build:
        if tools.tflm is None:
            raise Skip("tflite-micro's sources not found: pass --tflm TREE")
        path = folder / "net.tflite"
        bits, calibration = (8, case.calibration) if kind == "16x8" else (32, None)
        to_tflite(case.graph, path, bits=bits, calibration=calibration)
        if kind == "int8":
            path = quantized(case.calibration, path, tools)
        library = tflm_library(tools.tflm, tools, reference_dense=kind == "16x8")
        ops, encode, decode, size = described(path.read_bytes())
        write_tflm(folder, path.read_bytes(), ops)
        remarks = {
            "float32": "float32",
            "16x8": "int8 weights, int16 activations, float32 in and out; dense layers by TFLM's "
            "reference kernel: CMSIS-NN's refuses int16 with a scale per channel",
            "int8": "int8 weights and activations, int8 in and out; all of the calibration's range",
        }
        return Build(
            [folder / "adapter.cc", folder / "model_data.c"],
            encode(case.inputs),
            decode,
            size,
            [folder, *(tools.tflm / path for path in TFLM_INCLUDES)],
            CXX_FLAGS + TFLM_MACROS,
            (str(library),),
            256 * 1024,
            remarks[kind],
        )

    return build


def write_tflm(
    folder: Path, data: bytes, ops: Sequence[str], kernels: Mapping[str, str] | None = None
) -> None:
    """Writes the model as an array and the adapter that interprets it; all kernels by default."""
    numbers = ",".join(map(str, data))
    text = f"_Alignas(16) const unsigned char model_data[{len(data)}] = {{{numbers}}};\n"
    (folder / "model_data.c").write_text(text)
    add = " ".join(
        f"operations.Add{TFLM_OPERATIONS[op]}({(kernels or {}).get(op, '')});" for op in ops
    )
    text = TFLM_ADAPTER.replace("@ADD@", add).replace("@COUNT@", str(len(ops)))
    (folder / "adapter.cc").write_text(text)


def quantized(calibration: np.ndarray, path: Path, tools: Tools) -> Path:
    """The int8 file that ai-edge-quantizer makes of a float one."""
    if tools.quantizer is None:
        raise Skip("ai-edge-quantizer not found: pass --quantizer-python PYTHON")
    inputs, out = path.with_name("calibration.npy"), path.with_name("int8.tflite")
    np.save(inputs, calibration.astype(np.float32))
    arguments = ["-c", QUANTIZE, str(path), str(out), str(inputs)]
    said = run_tool([tools.quantizer, *arguments])
    tools.versions["ai-edge-quantizer"] = said.strip().splitlines()[-1]
    return out


def described(
    data: bytes,
) -> tuple[list[str], Callable[..., np.ndarray], Callable[..., np.ndarray], int]:
    """A TFLite file's operations, how to write its input and read its output, and its bytes."""
    import tflite

    model = tflite.Model.GetRootAs(data)
    graph = model.Subgraphs(0)
    names = {v: k for k, v in vars(tflite.BuiltinOperator).items() if isinstance(v, int)}
    codes = [graph.Operators(i).OpcodeIndex() for i in range(graph.OperatorsLength())]
    ops = sorted({names[model.OperatorCodes(i).BuiltinCode()] for i in codes})
    ends = [graph.Tensors(graph.Inputs(0)), graph.Tensors(graph.Outputs(0))]
    types = {tflite.TensorType.FLOAT32: "<f4", tflite.TensorType.INT8: "i1"}
    kinds = [np.dtype(types[t.Type()]) for t in ends]
    scales = [(1.0, 0) if k.kind == "f" else scale_of(t) for k, t in zip(kinds, ends, strict=True)]

    def encode(x: np.ndarray) -> np.ndarray:
        if kinds[0].kind == "f":
            return x.astype(kinds[0])
        return np.clip(np.rint(x / scales[0][0]) + scales[0][1], -128, 127).astype(kinds[0])

    def decode(out: bytes) -> np.ndarray:
        return (np.frombuffer(out, kinds[1]).astype(np.float32) - scales[1][1]) * scales[1][0]

    return ops, encode, decode, int(np.prod(ends[1].ShapeAsNumpy())) * kinds[1].itemsize


def scale_of(tensor: Any) -> tuple[float, int]:
    stored = tensor.Quantization()
    return float(stored.Scale(0)), int(stored.ZeroPoint(0))


def tflm_library(tree: Path, tools: Tools, *, reference_dense: bool) -> Path:
    """TFLM and CMSIS-NN as a library, compiled with our flags, once; dense layers by either."""
    tools.versions["tflite-micro"] = commit(tree / "tensorflow")
    tools.versions["CMSIS-NN"] = commit(tree / "third_party" / "cmsis_nn")
    folder = (tools.out / "tflm").resolve()
    names = ("libcmsis_nn.a", "libreference_dense.a")
    library = folder / names[reference_dense]
    if not library.exists():
        folder.mkdir(parents=True, exist_ok=True)
        objects = compile_tflm(tree, tools, folder)
        dense = [o for o in objects if o.endswith("fully_connected.o")]
        if len(dense) != 2:
            raise Skip(f"{tree} is not the tree of tflite-micro that this script knows")
        archiver = find_toolchain().nm.removesuffix("nm") + "ar"
        for name, other in zip(names, reversed(dense), strict=True):
            (folder / name).unlink(missing_ok=True)
            wanted = [o for o in objects if o != other]
            run_tool([archiver, "rcs", f"{name}.partial", *wanted], folder=folder)
            (folder / f"{name}.partial").replace(folder / name)
    return library


def compile_tflm(tree: Path, tools: Tools, folder: Path) -> list[str]:
    """Compiles TFLM's core and the kernels that these networks use, in the order given."""
    toolchain, board = find_toolchain(), find_board(tools.board)
    sources = [
        path
        for pattern in TFLM_SOURCES
        for path in sorted(tree.glob(pattern))
        if not TFLM_NOT.search(path.name)
    ]
    includes = [f"-I{tree / path}" for path in TFLM_INCLUDES]

    def one(item: tuple[int, Path]) -> str:
        name = f"{item[0]}_{item[1].stem}.o"
        flags = CXX_FLAGS if item[1].suffix == ".cc" else FLAGS[:1]
        command = [toolchain.compiler, *board.flags, *FLAGS[1:], *flags, *TFLM_MACROS, *includes]
        run_tool([*command, "-c", str(item[1]), "-o", name], folder=folder)
        return name

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(one, enumerate(dict.fromkeys(sources))))


def commit(path: Path) -> str:
    """The git commit of a path's repository, where it has one."""
    folder = path.resolve() if path.is_dir() else path.resolve().parent
    done = subprocess.run(
        ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"],
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or "commit not known"


def run_image(built: Build, folder: Path, board_name: str) -> Ran:
    """Compiles an engine with the driver, links, and runs."""
    toolchain, board = find_toolchain(), find_board(board_name)
    (folder / "driver.c").write_text(DRIVER)
    (folder / "peer.h").write_text(PEER)
    size = built.inputs[0].nbytes
    defines = {"INPUT_BYTES": f"{size}u", "OUTPUT_BYTES": f"{built.output_bytes}u"}
    defines |= {} if built.arena is None else {"ARENA_BYTES": f"{built.arena}u"}
    own = [folder / "driver.c", *(C_FOLDER / name for name in OWN_SOURCES)]
    objects = compile_sources(toolchain, own, board, folder, include_dirs=[folder], defines=defines)
    for source in built.sources:
        objects += compile_sources(
            toolchain,
            [source],
            board,
            folder,
            include_dirs=built.includes,
            defines=defines,
            flags=built.flags if source.suffix == ".cc" else (),
        )
    (folder / "inputs.bin").write_bytes(np.ascontiguousarray(built.inputs).tobytes())
    external = link(toolchain, [*objects, *built.libraries], board, folder, stack_bytes=STACK_BYTES)
    if external:
        raise Skip(f"does not fit on the chip ({', '.join(external)})")
    sizes = parse_map((folder / "image.map").read_text(encoding="utf-8", errors="replace"))
    path = folder / "image.elf"
    image = Image(path, board, sizes, read_symbols(toolchain.nm, path), external)
    ended = emulate(toolchain, image, seconds=300)
    if ended.exit_code != 0:
        raise Skip(f"the program ended with {ended.exit_code}: {ended.messages.strip()}")
    stack, note = map(int, (folder / "stdout.bin").read_text().split())
    outputs = (folder / "outputs.bin").read_bytes()
    return Ran(sum(sizes.values(), ObjectSize()), outputs, stack, note, ended.profile)


def nothing(folder: Path, tools: Tools) -> Ran:
    """The image that does nothing, which all others are compared with."""
    built = Build([adapter(folder, "", "")], np.zeros((1, 1), "<f4"), floats, 4, [folder])
    return run_image(built, folder, tools.board)


def run_small(built: Build, used: int, folder: Path, tools: Tools) -> Ran:
    """Runs TFLM with the smallest arena that it prepares the network in.

    That is what it says to have used and 16 bytes, as micro_interpreter.h has it; its memory
    planner's temporary tables can take more where the activations are small.
    """
    for extra in range(16, 8192, 256):
        arena = 16 * math.ceil((used + extra) / 16)
        try:
            return run_image(built._replace(arena=arena), folder, tools.board)
        except Skip as reason:
            if "cannot prepare" not in str(reason):
                raise
    raise Skip(f"TFLM cannot prepare this network in {arena} bytes, having used {used}")


def measure(
    built: Build, expected: np.ndarray, folder: Path, tools: Tools, empty: Ran
) -> dict[str, Any]:
    """Runs one engine on one network; ``expected`` has a row of float outputs for each input."""
    ran = run_image(built, folder, tools.board)
    if built.arena is not None:
        ran = run_small(built, ran.note, folder, tools)
    outputs = built.decode(ran.outputs).reshape(expected.shape)
    functions = sum_tables(ran.profile.windows)
    counts = total(functions)
    top = sorted(functions.items(), key=lambda item: -item[1].instructions)[:12]
    n = len(expected)
    # The empty image has a buffer of a float for input and output.
    size, base = ran.sizes, empty.sizes
    return {
        "flash_code_bytes": size.code - base.code,
        "flash_data_bytes": size.constants + size.data - base.constants - base.data,
        "ram_bytes": size.data + size.bss - base.data - base.bss + 8,
        "arena_bytes": ran.note or None,
        "stack_bytes": ran.stack,
        "instructions": counts.instructions / n,
        "loads": counts.loads / n,
        "stores": counts.stores / n,
        "largest_difference": float(np.abs(outputs - expected).max()),
        "largest_output": float(np.abs(expected).max()),
        "most_instructions_in": {name: c.instructions / n for name, c in top},
        "remark": built.remark,
    }


ENGINES: dict[str, Engine] = {
    "ours, float32": ours("float32"),
    "emlearn": emlearn,
    "emlearn, inline": emlearn_broken(
        "c_generate_net_inline stops: it makes an int of the name of an activation"
    ),
    "onnx2c": onnx2c(32),
    "TFLM + CMSIS-NN, float32": tflm("float32"),
    "ours, int16": ours("int16"),
    "ours, int8": ours("int8"),
    "emlearn, fixed point": emlearn_broken(
        "its kernel eml_net_forward_q16 is a stub, all loops under #if 0 with a FIXME"
    ),
    "onnx2c, int8 weights": onnx2c(8),
    "TFLM, 16x8": tflm("16x8"),
    "TFLM + CMSIS-NN, int8": tflm("int8"),
}
"""Every engine by name: a new one is one line here."""


def markdown(results: dict[str, dict[str, dict[str, Any]]]) -> str:
    """A table for every network."""
    lines = []
    for net, rows in results.items():
        lines += [
            net, "",
            "| engine | flash, code | flash, data | RAM | stack | instructions "
            "| largest difference (of largest output) | numbers and arithmetic |",
            "|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        lines += [line(name, row) for name, row in rows.items() if "skipped" not in row]
        lines += ["", *(f"- {k}: {v['skipped']}" for k, v in rows.items() if "skipped" in v), ""]
    return "\n".join(lines)


def line(name: str, row: dict[str, Any]) -> str:
    keys = ("flash_code_bytes", "flash_data_bytes", "ram_bytes", "stack_bytes", "instructions")
    cells = " | ".join(f"{row[key]:,.0f}" for key in keys)
    share = row["largest_difference"] / row["largest_output"]
    return f"| {name} | {cells} | {row['largest_difference']:.2g} ({share:.2g}) | {row['remark']} |"


def tools_of(options: argparse.Namespace) -> Tools:
    """The peers that were named or are found."""
    program = options.onnx2c or shutil.which("onnx2c")
    tree = None if options.tflm is None else options.tflm.resolve()
    return Tools(
        options.board,
        options.out,
        program,
        options.emlearn_python,
        tree,
        options.quantizer_python,
        {},
    )


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for images and tables")
    parser.add_argument("--onnx2c", metavar="PATH", help="the program")
    parser.add_argument("--emlearn-python", metavar="PYTHON", help="a Python with emlearn")
    parser.add_argument("--tflm", type=Path, metavar="TREE", help="sources of tflite-micro")
    parser.add_argument("--quantizer-python", metavar="PYTHON", help="one with ai-edge-quantizer")
    parser.add_argument("--count", type=int, default=10, help="inputs that are emulated")
    parser.add_argument("--board", default="cortex-m4")
    return parser.parse_args(arguments)


def about(tools: Tools, options: argparse.Namespace, arguments: list[str]) -> dict[str, Any]:
    """How and with what the table was made."""
    toolchain = find_toolchain()
    return {
        "date": datetime.date.today().isoformat(),
        "command": shlex.join(["python", *arguments]),
        "board": options.board,
        "flags": [*find_board(options.board).flags, *FLAGS],
        "flags_of_c++": [*CXX_FLAGS, *TFLM_MACROS],
        "inputs": options.count,
        "python": platform.python_version(),
        "compiler": version(toolchain.compiler),
        "emulator": version(toolchain.emulator),
        "versions": tools.versions,
    }


def main(arguments: list[str]) -> int:
    """Measures every engine on every network; writes peers.md and peers.json."""
    options = parse(arguments)
    tools = tools_of(options)
    (options.out / "empty").mkdir(parents=True, exist_ok=True)
    empty = nothing((options.out / "empty").resolve(), tools)
    results: dict[str, dict[str, dict[str, Any]]] = {}
    for net in networks():
        place = (options.out / re.sub(r"\W+", "_", net.name)).resolve()
        place.mkdir(exist_ok=True)
        case = make_case(net, options.count)
        rows = results.setdefault(net.name, {})
        for name, engine in ENGINES.items():
            folder = place / re.sub(r"\W+", "_", name)
            folder.mkdir(exist_ok=True)
            try:
                built = engine(case, folder, tools)
                rows[name] = measure(built, case.expected, folder, tools, empty)
            except (Skip, FirmwareError) as reason:
                rows[name] = {"skipped": str(reason)}
            print(f"{net.name}, {name}: {rows[name]}", flush=True)
    facts = about(tools, options, ["scripts/bench_edge_peers.py", *arguments])
    replace_json(options.out / "peers.json", {"about": facts, "results": results})
    text = markdown(results)
    replace_text(options.out / "peers.md", text)
    print(f"\n{json.dumps(facts, indent=2)}\n\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
