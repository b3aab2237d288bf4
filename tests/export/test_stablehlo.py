"""StableHLO files: the same outputs after loading, small, for every platform and batch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import public_models
import pytest
import tiny_models
from flax import nnx
from small_networks import graph_of, inputs_of, network_of

from rosler_jax.export._errors import ExportError
from rosler_jax.export.stablehlo import exported, load_stablehlo, to_stablehlo
from rosler_jax.graph import run, trace

pytest.importorskip("flatbuffers", reason="the extra export is not installed")

SOME = (
    "images", "factors", "seeded_srht", "seeded_dct_images", "seeded_pool_images", "seeded_groups",
    "gaps", "wrap", "norms",
)  # fmt: skip


@pytest.mark.parametrize("name", SOME)
def test_a_loaded_file_gives_the_same_outputs(name: str, tmp_path: Path) -> None:
    graph, path = graph_of(name), tmp_path / "m.stablehlo"
    assert to_stablehlo(graph, path) == path.stat().st_size
    loaded = load_stablehlo(path)
    for batch in (1, 5):
        x = inputs_of(name, batch)
        got = np.asarray(loaded(x))
        want = np.asarray(jax.vmap(lambda x: run(graph, [x])[0])(x))
        assert np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max())


@pytest.mark.parametrize("bits", [16, 8, 4])
@pytest.mark.parametrize("name", ["factors", "groups", "seeded_srht"])
def test_integers_give_the_network_of_the_model_file(name: str, bits: int, tmp_path: Path) -> None:
    to_stablehlo(graph_of(name, bits), tmp_path / "m", bits=bits)
    x = inputs_of(name, 3)
    want = np.asarray(network_of(name, bits)(x))
    got = np.asarray(load_stablehlo(tmp_path / "m")(x))
    assert np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max())


def test_integer_weights_take_their_bits_in_the_file() -> None:
    graph = trace(nnx.Linear(101, 99, use_bias=False, rngs=nnx.Rngs(0)), jnp.ones((1, 101)))
    size = {bits: len(exported(graph, bits).serialize()) for bits in (32, 16, 8, 4)}
    for bits in (16, 8, 4):  # less the scales, and what the unpacking takes in instructions
        assert size[32] - size[bits] == pytest.approx(101 * 99 * (32 - bits) / 8, abs=1600)


def test_one_file_is_for_all_platforms() -> None:
    program = exported(graph_of("factors"))
    assert program.platforms == ("cpu", "cuda", "tpu")
    assert not program.disabled_safety_checks
    assert str(program.in_avals[0].shape) == "(batch, 41)"


@pytest.mark.slow
def test_jax_alone_loads_a_file(tmp_path: Path) -> None:
    graph = graph_of("seeded_groups")
    to_stablehlo(graph, tmp_path / "m")
    x = inputs_of("seeded_groups", 2)
    np.save(tmp_path / "x.npy", x)
    code = (
        "import jax, numpy, pathlib, sys\n"
        "data = bytearray(pathlib.Path('m').read_bytes())\n"
        "numpy.save('y.npy', jax.export.deserialize(data).call(numpy.load('x.npy')))\n"
        "assert not any(name.startswith('rosler') for name in sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=120)
    want = np.asarray(load_stablehlo(tmp_path / "m")(x))
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), want)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5])
def test_a_damaged_file_is_refused(keep: float, tmp_path: Path) -> None:
    path = tmp_path / "m"
    to_stablehlo(graph_of("factors"), path)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(ExportError, match="export the model again"):
        load_stablehlo(path)(inputs_of("factors", 1))


def test_unknown_bits_name_the_others(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="use one of 32, 16, 8, 4"):
        to_stablehlo(graph_of("factors"), tmp_path / "m", bits=3)
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flatbuffers", None)
    with pytest.raises(ImportError, match=r"rosler-jax\[export\]"):
        exported(graph_of("factors"))


def image(key: Any) -> Any:
    return (jax.random.normal(key, (3, 32, 32, 3)),)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encoder-decoder", "gemma", "lstm", "resnet8"])
def test_any_model_at_any_batch(name: str, tmp_path: Path) -> None:
    resnet8 = (tiny_models.BUILDERS["resnet8"], image)
    build, args = {**public_models.MODELS, "resnet8": resnet8}[name]
    model, examples = build(), args(jax.random.key(0))
    graph = trace(model, *examples)
    size = to_stablehlo(graph, tmp_path / "m")
    stored = {id(w.stored): w.stored.size for w in graph.weights()}
    assert size < 4 * sum(stored.values()) + 16000  # each tensor once, and the instructions
    loaded = load_stablehlo(tmp_path / "m")
    for batch in (1, 3):
        xs = [x[:batch] for x in examples]
        want = np.asarray(model(*xs))
        got = np.asarray(loaded(*xs))
        assert got.shape == want.shape
        assert np.abs(got - want).max() <= 1e-5 * max(1.0, np.abs(want).max())


def test_what_the_model_returns_comes_back_as_it_was(tmp_path: Path) -> None:
    def model(x: Any, ids: Any) -> Any:
        return {"sum": x.sum(-1), "rest": [x, ids + 1]}

    x, ids = jnp.arange(6.0).reshape(2, 3), jnp.arange(2)
    to_stablehlo(trace(model, x, ids), tmp_path / "m")
    got = load_stablehlo(tmp_path / "m")(x, ids)
    jax.tree.map(np.testing.assert_array_equal, got, model(x, ids))
    assert got["rest"][1].dtype == jnp.int32
