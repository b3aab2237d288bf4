"""Several exported models in one program: names of their own, nothing else global, data placed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from exported_models import linear, make_model, mlp, of, reals

from rosler_jax.cli import main as command
from rosler_jax.export import ExportError, Training, export
from rosler_jax.export.c.naming import renamed
from rosler_jax.export.firmware import read_header, run_firmware, run_host
from rosler_jax.export.firmware.host import FLAGS
from rosler_jax.graph.save import save

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
CALIBRATION = reals((6,), 40)


def saved(path: Path, classes: int, seed: int) -> Path:
    specs = [linear(6, 9), of("relu"), linear(9, classes)]
    save(path, make_model(specs, bits=32, seed=seed).graph, bits=8)
    return path


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two exports that train: floats by the name "swing", integers by "Step2"."""
    folder = tmp_path_factory.mktemp("two")
    options = {"calibration": CALIBRATION, "board": None}
    first = saved(folder / "a.rosler", 3, 0)
    export(first, folder / "edge", name="swing", train=Training(), **options)
    second = saved(folder / "b.rosler", 4, 1)
    train = Training(dtype="fixed", parts="head", loss="mse")
    export(second, folder / "edge", name="Step2", dtype="int8", train=train, **options)
    return folder / "edge"


BOTH = """
#include <stdio.h>
#include "Step2_model.h"
#include "Step2_train.h"
#include "swing_model.h"
#include "swing_train.h"
int main(void)
{
    static swing_arena a;
    static swing_train_arena at;
    static swing_state as;
    static Step2_arena b;
    static Step2_train_arena bt;
    static Step2_state bs;
    float x[SWING_INPUT_SIZE], y[SWING_OUTPUT_SIZE], z[SWING_OUTPUT_SIZE];
    Step2_input q[STEP2_INPUT_SIZE];
    Step2_output p[STEP2_OUTPUT_SIZE], t[STEP2_OUTPUT_SIZE];
    swing_train_begin(&as);
    Step2_train_begin(&bs);
    while (fread(x, sizeof x, 1, stdin) == 1) {
        swing_predict(x, y, &a);
        swing_train_predict(&as, &at, x, z);
        if (Step2_quantize(x, q)) return 2;
        Step2_predict(q, p, &b);
        if (Step2_train_quantize(x, q)) return 3;
        Step2_train_predict(&bs, &bt, q, t);
        fwrite(y, sizeof y, 1, stdout);
        fwrite(z, sizeof z, 1, stdout);
        fwrite(p, sizeof p, 1, stdout);
        if (swing_argmax(y) > 2 || Step2_argmax(p) > 3) return 4;
    }
    return 0;
}
"""
SOURCES = ("swing_model.c", "swing_train.c", "Step2_model.c", "Step2_train.c")


@pytest.mark.slow
@needs_gcc
@pytest.mark.parametrize("libraries", [False, True])
def test_two_models_in_one_program_both_answer(two: Path, libraries: bool, tmp_path: Path) -> None:
    (tmp_path / "main.c").write_text(BOTH)
    objects = []
    for source in SOURCES:
        compile_it = ["gcc", *FLAGS, "-c", str(two / source), "-o", f"{source}.o"]
        subprocess.run(compile_it, cwd=tmp_path, check=True, timeout=60)
        objects.append(f"{source}.o")
        if libraries:
            objects[-1] = f"lib{source}.a"
            subprocess.run(["ar", "rcs", objects[-1], f"{source}.o"], cwd=tmp_path, check=True)
    link = ["gcc", *FLAGS, f"-I{two}", "main.c", *objects, "-o", "main", "-lm"]
    subprocess.run(link, cwd=tmp_path, check=True, timeout=60)
    x = CALIBRATION[:7]
    found = subprocess.run([tmp_path / "main"], input=x.tobytes(), capture_output=True)
    assert found.returncode == 0, found.stderr
    rows = np.frombuffer(found.stdout, [("y", "<f4", 3), ("z", "<f4", 3), ("p", "<i2", 4)])
    folders = []
    for name in ("swing", "Step2"):  # scripts take one model a folder
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        for part in ("model.c", "model.h"):
            shutil.copy(two / f"{name}_{part}", folders[-1])
    np.testing.assert_array_equal(rows["y"], run_host(folders[0], x))
    np.testing.assert_array_equal(rows["z"], rows["y"])
    header = read_header(folders[1])
    q = np.rint(x / header.input_scale).astype(np.int16)
    np.testing.assert_array_equal(rows["p"], run_host(folders[1], q))
    with np.load(two / "Step2_examples.npz") as examples:
        np.testing.assert_array_equal(
            run_host(folders[1], examples["inputs"]), examples["outputs"].reshape(-1, 4)
        )
    with pytest.raises(ValueError, match=r"several models \(Step2, swing\)"):
        read_header(two)


@needs_gcc
def test_only_the_interface_is_global(two: Path, tmp_path: Path) -> None:
    interface = (
        {"predict", "argmax"},
        {f"train_{w}" for w in ["begin", "step", "predict", "save", "load"]},
    )
    for source in SOURCES:
        name, kind = source.split("_")
        subprocess.run(["gcc", "-c", str(two / source), "-o", "one.o"], cwd=tmp_path, check=True)
        listing = subprocess.run(
            ["nm", "-g", "--defined-only", "one.o"], cwd=tmp_path, capture_output=True, text=True
        )
        found = {line.split()[-1] for line in listing.stdout.splitlines()}
        assert found == {f"{name}_{word}" for word in interface[kind == "train.c"]}
        text = (two / source).read_text() + (two / source.replace(".c", ".h")).read_text()
        assert "rosler_" not in text.lower().replace("rosler_jax", "")


def test_a_name_changes_names_alone(two: Path, tmp_path: Path) -> None:
    export(two.parent / "a.rosler", tmp_path, calibration=CALIBRATION, train=Training(), board=None)
    for part in ("model.h", "model.c", "train.h", "train.c"):
        plain = (tmp_path / f"rosler_{part}").read_text()
        assert (two / f"swing_{part}").read_text() == renamed(plain, "swing") != plain
        assert renamed(plain, "rosler") == plain


@needs_gcc
def test_data_goes_where_the_macro_says(two: Path, tmp_path: Path) -> None:
    place = '-DSTEP2_CONST=const __attribute__((section(".weights")))'
    for source in ("Step2_model.c", "Step2_train.c"):
        command = ["gcc", *FLAGS, place, "-c", str(two / source), "-o", "one.o"]
        subprocess.run(command, cwd=tmp_path, check=True, timeout=60)
        listing = subprocess.run(
            ["objdump", "-t", "one.o"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout
        data = [
            line for line in listing.splitlines() if re.search("_(weights|initial|bias)$", line)
        ]
        assert data
        assert all(".weights" in line for line in data)


@pytest.mark.parametrize("name", ["", "2nd", "a-b", "a b", "ü", "_a", "x" * 49, "a_train", "A\n"])
def test_names_that_c_does_not_take_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="expected a prefix for names in C: a letter, then"):
        export(tmp_path / "absent.rosler", tmp_path / "edge", name=name)
    assert not list(tmp_path.iterdir())


def test_the_command_takes_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    common = ["export", str(saved(tmp_path / "m.rosler", 3, 0)), "--out", str(tmp_path / "edge")]
    assert command([*common, "--name", "swing", "--board", "none"]) == 0
    assert (tmp_path / "edge" / "swing_model.c").is_file()
    assert command([*common, "--name", "2nd"]) == 1
    assert "a letter, then" in capsys.readouterr().err
    assert command([*common, "--name", "swing", "--target", "onnx"]) == 1
    assert "for the target c" in capsys.readouterr().err


def test_training_code_of_an_earlier_export_goes(tmp_path: Path) -> None:
    model, edge = saved(tmp_path / "m.rosler", 3, 0), tmp_path / "edge"
    export(model, edge, train=Training(), board=None)
    export(model, edge, name="other", train=Training(), board=None)
    export(model, edge, board=None)
    names = {path.name for path in edge.glob("*_train.*")}
    assert names == {"other_train.h", "other_train.c"}
    (edge / "rosler_train.c").write_text("/* mine */\n")
    before = {path: path.read_bytes() for path in edge.iterdir()}
    with pytest.raises(ExportError, match=r"rosler_train\.c is in the way"):
        export(model, edge, board=None)
    assert before == {path: path.read_bytes() for path in edge.iterdir()}


@pytest.mark.slow
@pytest.mark.skipif(
    None in map(shutil.which, ("arm-none-eabi-gcc", "qemu-system-arm")), reason="no emulator"
)
def test_a_model_of_another_name_runs_on_a_board(tmp_path: Path) -> None:
    save(tmp_path / "m.rosler", make_model(mlp(), bits=32).graph, bits=8)
    done = export(tmp_path / "m.rosler", tmp_path / "edge", name="swing")
    x = reals((70,), 2)
    run = run_firmware(tmp_path / "edge", x)
    np.testing.assert_allclose(run.outputs, run_host(tmp_path / "edge", x), rtol=1e-4, atol=1e-5)
    assert run.flash_code_bytes == done.report["flash"]["code_bytes"]  # the name costs nothing
