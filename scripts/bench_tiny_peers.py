"""The four MLPerf Tiny networks in other engines on an emulated Cortex-M4.

    python scripts/bench_tiny_peers.py --out runs/tiny --tflm TREE --tflm-library FILE
        --quantizer-python PYTHON --onnx2c PATH --reference FOLDER

Every engine runs the same network (``tests/tiny_models.py``, random weights and statistics) on the
same random inputs: ours from the traced module, peers from a file that ``bench_tiny_files.py``
writes and that has nothing of our exporter in it. The same compiler, flags, driver and counts as in
``bench_edge_peers.py``, which says what the columns hold and where the peers come from. The engines
named by --layers also run each distinct layer as a network of its own, for instructions by product.

  --tflm, --tflm-library  tflite-micro's sources, for their headers, and a library of them with
                          CMSIS-NN's kernels, compiled for the board with our flags
  --reference             a folder with the .tflite files that MLCommons publishes
                          (https://github.com/mlcommons/tiny, benchmark/training), which end
                          with a softmax: these have trained weights, get random inputs, and are
                          compared with LiteRT on this machine
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from bench_edge_peers import (
    CALIBRATION,
    CXX_FLAGS,
    TFLM_INCLUDES,
    TFLM_MACROS,
    Build,
    Ran,
    Skip,
    Tools,
    about,
    adapter,
    commit,
    described,
    floats,
    markdown,
    measure,
    nothing,
    our_build,
    quantized,
    write_tflm,
)
from bench_tiny_files import (
    Layer,
    input_scale,
    layers_of,
    macs,
    module_of,
    put_inline,
    quantize_onnx,
    run_onnx,
    run_tflite,
    write_onnx,
    write_tflite,
)
from flax import nnx

from rosler_jax import __version__
from rosler_jax._files import replace_json, replace_text
from rosler_jax.export.firmware import FirmwareError
from rosler_jax.graph import trace

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from tiny_models import BUILDERS, INPUTS, randomise

REFERENCES = {
    "resnet8": "pretrainedResnet_quant",
    "ds_cnn": "kws_ref_model",
    "mobilenet": "vww_96_int8",
    "autoencoder": "ad01_int8",
}
"""MLCommons's int8 file of each network."""
INTEGER_KERNELS = {
    op: f"tflite::Register_{op}_INT8()"
    for op in (
        *("ADD", "AVERAGE_POOL_2D", "CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"),
        "SOFTMAX",
    )
}
"""Kernels of TFLM without those of other types, which would only take flash."""
ARENA = 1024 * 1024


class Tiny(NamedTuple):
    """A network with inputs.

    Attributes:
      name: of the network.
      model: the Flax module.
      layers: what is written for peers.
      calibration, inputs: one a row.
      expected: the module's outputs, one a row.
    """

    name: str
    model: nnx.Module
    layers: Sequence[Layer]
    calibration: np.ndarray
    inputs: np.ndarray
    expected: np.ndarray


class Peers(NamedTuple):
    """What was named: the tools, TFLM's library, and MLCommons's files."""

    tools: Tools
    library: Path | None
    reference: Path | None


Engine = Callable[[Tiny, Path, Peers], tuple[Build, np.ndarray]]
"""From a network to what an engine wrote, and the float outputs that it is compared with."""


def make_case(name: str, count: int) -> Tiny:
    """The network with random weights, statistics and inputs."""
    model = BUILDERS[name]()
    randomise(model, jax.random.key(1))
    keys = jax.random.split(jax.random.key(2))
    x, calibration = (
        np.asarray(jax.random.normal(key, (n, *INPUTS[name])))
        for key, n in zip(keys, (count, CALIBRATION), strict=True)
    )
    layers = layers_of(name, model, INPUTS[name])
    return Tiny(name, model, layers, calibration, x, np.asarray(model(x)).reshape(count, -1))


def single_layers(cases: Sequence[Tiny]) -> list[Tiny]:
    """Each distinct layer of the networks as a network of its own."""
    found: dict[str, Tiny] = {}
    rng = np.random.default_rng(0)
    for case in cases:
        shapes = [case.inputs.shape[1:], *(layer.shape for layer in case.layers)]
        for layer in case.layers:
            if layer.weight is None:
                continue
            at = shapes[layer.inputs[0]]
            size = "" if layer.kind == "dense" else "{}x{} ".format(*layer.weight.shape[:2])
            name = f"{layer.kind} {size}{at} -> {layer.shape}, stride {layer.stride}"
            x = np.abs(rng.normal(size=(16, *at))).astype(np.float32)
            alone = [layer._replace(inputs=(0,))]
            if name not in found:
                model = module_of(layer, at)
                expected = np.asarray(model(x[:1])).reshape(1, -1)
                found[name] = Tiny(name, model, alone, x, x[:1], expected)
    return list(found.values())


def check_outputs(what: str, outputs: np.ndarray, expected: np.ndarray) -> None:
    """Raises if a file for peers is not the network."""
    error, largest = np.abs(outputs - expected).max(), np.abs(expected).max()
    if error > 1e-5 * max(largest, 1.0):
        raise ValueError(f"{what} is off by {error:.2g}, where outputs reach {largest:.2g}")


def onnx2c(dtype: str) -> Engine:
    """C code that onnx2c makes of an ONNX file, float32 or int8."""

    def build(case: Tiny, folder: Path, peers: Peers) -> tuple[Build, np.ndarray]:
        program, path = peers.tools.onnx2c, folder / "net.onnx"
        if program is None:
            raise Skip("onnx2c not found: pass --onnx2c PATH")
        inputs, calibration = map(images_first, (case.inputs, case.calibration))
        write_onnx(case.layers, case.inputs.shape[1:], path, gemm=dtype == "float32")
        check_outputs("the ONNX file", run_onnx(path, inputs), case.expected)
        if dtype == "int8":
            quantize_onnx(path, calibration)
        done = subprocess.run([program, str(path)], capture_output=True, text=True)
        if done.returncode:
            raise Skip(f"onnx2c refuses: {done.stderr.strip().splitlines()[-1]}")
        peers.tools.versions["onnx2c"] = commit(Path(program))
        (folder / "net.c").write_text(done.stdout)
        include = "void entry(const float *x, float *y);"
        sources = [folder / "net.c", adapter(folder, include, "entry(x, y);")]
        size = 4 * case.expected.shape[1]
        remarks = {
            "float32": "float32",
            # It rounds to int8 without saturating (ea045cc), where onnxruntime does.
            "int8": "int8, float32 in and out, a scale for each tensor; by onnxruntime",
        }
        return Build(
            sources, inputs, floats, size, [folder], remark=remarks[dtype]
        ), case.expected  # fmt: skip

    return build


def images_first(x: np.ndarray) -> np.ndarray:
    """Channels before height and width, as ONNX has them."""
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if x.ndim == 4 else x


def tflm(kind: str) -> Engine:
    """TensorFlow Lite Micro with CMSIS-NN: "float32", "int8" or MLCommons's "reference"."""

    def build(case: Tiny, folder: Path, peers: Peers) -> tuple[Build, np.ndarray]:
        path, inputs, expected = folder / "net.tflite", case.inputs, case.expected
        if kind == "reference":
            path, inputs, expected = reference(case, peers)
        else:
            write_tflite(case.layers, inputs.shape[1:], path)
            outputs = run_tflite(path, inputs)
            check_outputs("the TFLite file", outputs, case.expected)
            if kind == "int8":
                path = quantized(case.calibration, path, peers.tools)
                put_inline(path)
        remarks = {
            "float32": "float32",
            "int8": "int8, in and out; by ai-edge-quantizer",
            "reference": "int8, in and out; MLCommons's file; difference from LiteRT's int8",
        }
        kernels = {} if kind == "float32" else INTEGER_KERNELS
        built = interpreted(path, inputs, folder, peers, kernels)
        if len(case.layers) == 1:  # nobody asks for the arena of a layer of its own
            arena = f"-DARENA_BYTES={ARENA}"
            built = built._replace(arena=None, flags=(*built.flags, arena))
        return built._replace(remark=remarks[kind]), expected

    return build


def interpreted(
    path: Path, inputs: np.ndarray, folder: Path, peers: Peers, kernels: dict[str, str]
) -> Build:
    """A TFLite file with the interpreter."""
    tree = peers.tools.tflm
    if tree is None or peers.library is None:
        raise Skip("tflite-micro not found: pass --tflm TREE --tflm-library FILE")
    peers.tools.versions["tflite-micro"] = commit(tree / "tensorflow")
    ops, encode, decode, size = described(path.read_bytes())
    write_tflm(folder, path.read_bytes(), ops, kernels)
    includes = [folder, *(tree / name for name in TFLM_INCLUDES)]
    sources = [folder / "adapter.cc", folder / "model_data.c"]
    flags = CXX_FLAGS + TFLM_MACROS
    libraries = (str(peers.library.resolve()),)
    return Build(
        sources, encode(inputs), decode, size, includes, flags, libraries, ARENA
    )  # fmt: skip


def reference(case: Tiny, peers: Peers) -> tuple[Path, np.ndarray, np.ndarray]:
    """MLCommons's int8 file, inputs over its whole range, and LiteRT's outputs on this machine."""
    if peers.reference is None:
        raise Skip("MLCommons's files not found: pass --reference FOLDER")
    path = peers.reference / f"{REFERENCES[case.name]}.tflite"
    shape = case.inputs.shape
    scale, zero = input_scale(path)
    stored = np.random.default_rng(0).integers(-128, 128, shape)
    inputs = ((stored - zero) * scale).astype(np.float32)
    return path, inputs, run_tflite(path, inputs)


def ours(dtype: str, activations: int = 16) -> Engine:
    """Our C code of the traced module."""

    def build(case: Tiny, folder: Path, peers: Peers) -> tuple[Build, np.ndarray]:
        peers.tools.versions["rosler_jax"] = f"{__version__} ({commit(Path(__file__).parent)})"
        graph = trace(case.model, case.inputs)
        built = our_build(graph, case.calibration, case.inputs, folder, dtype, activations)
        return built, case.expected

    return build


ENGINES: dict[str, Engine] = {
    "ours, float32": ours("float32"),
    "ours, int8 weights": ours("int8"),
    "ours, int8": ours("int8", 8),
    "onnx2c, float32": onnx2c("float32"),
    "onnx2c, int8": onnx2c("int8"),
    "TFLM + CMSIS-NN, float32": tflm("float32"),
    "TFLM + CMSIS-NN, int8": tflm("int8"),
    "TFLM + CMSIS-NN, int8, MLCommons's file": tflm("reference"),
}
"""Every engine by name: a new one is one line here."""


def run(case: Tiny, name: str, place: Path, peers: Peers, empty: Ran) -> dict[str, Any]:
    """One engine on one network; what it does not run is said with its reason."""
    folder = place / re.sub(r"\W+", "_", case.name) / re.sub(r"\W+", "_", name)
    folder.mkdir(parents=True, exist_ok=True)
    try:
        built, expected = ENGINES[name](case, folder, peers)
        row = measure(built, expected, folder, peers.tools, empty)
    except (Skip, FirmwareError) as reason:
        row = {"skipped": str(reason)}
    print(f"{case.name}, {name}: {row}", flush=True)
    return row


def layer_rows(
    cases: Sequence[Tiny], engines: Sequence[str], place: Path, peers: Peers, empty: Ran
) -> dict[str, dict[str, Any]]:
    """Each distinct layer in some engines, and its products."""
    return {
        case.name: {"macs": macs(case.layers[0])}
        | {name: run(case, name, place, peers, empty) for name in engines}
        for case in single_layers(cases)
    }


def layer_table(rows: dict[str, dict[str, Any]], engines: Sequence[str]) -> str:
    """Instructions of each layer, and by product."""
    lines = ["| layer | products | " + " | ".join(engines) + " |"]
    lines += ["|---" * (2 + len(engines)) + "|"]
    for name, row in rows.items():
        counts = [row[engine].get("instructions") for engine in engines]
        cells = ["" if n is None else f"{n:,.0f} ({n / row['macs']:.2f})" for n in counts]
        lines.append(f"| {name} | {row['macs']:,} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for images and tables")
    parser.add_argument("--onnx2c", metavar="PATH", help="the program")
    parser.add_argument("--tflm", type=Path, metavar="TREE", help="sources of tflite-micro")
    parser.add_argument("--tflm-library", type=Path, metavar="FILE", help="compiled from it")
    parser.add_argument("--quantizer-python", metavar="PYTHON", help="one with ai-edge-quantizer")
    parser.add_argument("--reference", type=Path, metavar="FOLDER", help="MLCommons's files")
    parser.add_argument("--networks", nargs="+", default=list(BUILDERS), choices=list(BUILDERS))
    parser.add_argument("--engines", nargs="*", default=list(ENGINES), choices=list(ENGINES))
    parser.add_argument(
        "--layers", nargs="*", default=[], choices=list(ENGINES), help="engines for single layers"
    )
    parser.add_argument("--count", type=int, default=4, help="inputs that are emulated")
    parser.add_argument("--board", default="cortex-m4")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    """Measures the engines on the networks; writes tiny.md and tiny.json."""
    options = parse(arguments)
    tree = None if options.tflm is None else options.tflm.resolve()
    named = (options.onnx2c, None, tree, options.quantizer_python)
    tools = Tools(options.board, options.out, *named, {})
    peers = Peers(tools, options.tflm_library, options.reference)
    place = options.out.resolve()
    (place / "empty").mkdir(parents=True, exist_ok=True)
    empty = nothing(place / "empty", tools)
    cases = [make_case(name, options.count) for name in options.networks]
    results = {
        case.name: {name: run(case, name, place, peers, empty) for name in options.engines}
        for case in cases
    }
    layers = layer_rows(cases, options.layers, place, peers, empty) if options.layers else {}
    facts = about(tools, options, ["scripts/bench_tiny_peers.py", *arguments])
    facts["macs"] = {case.name: sum(map(macs, case.layers)) for case in cases}
    contents = {"about": facts, "results": results, "layers": layers}
    replace_json(options.out / "tiny.json", contents)
    text = markdown(results) + (layer_table(layers, options.layers) if layers else "")
    replace_text(options.out / "tiny.md", text)
    print(f"\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
