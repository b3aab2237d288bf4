"""The benchmark and the tuner: small runs, whole outputs, clear refusals."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import jax
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(script, *arguments):
    return subprocess.run(
        [sys.executable, SCRIPTS / script, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_bench_kernels_checks_times_and_writes(tmp_path):
    options = ("--specs", "small", "--filter", "rademacher 40x150->70 float32", "--repeats", 1)
    done = run("bench_kernels.py", "--out", tmp_path, *options)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "kernels.json").read_text())
    (row,) = found["rows"]
    assert {"stored", "fresh", "xla"} <= set(row["seconds"])
    assert found["about"]["command"].startswith("scripts/bench_kernels --out")
    assert (tmp_path / "kernels.png").stat().st_size > 1000
    assert not list(tmp_path.glob("*tmp*"))
    assert "| rademacher 40x150->70 float32 |" in (tmp_path / "kernels.md").read_text()


def test_bench_kernels_fails_on_a_wrong_result(tmp_path):
    program = (
        f"import runpy, sys; sys.path.insert(0, {str(SCRIPTS)!r});"
        "import rosler_kernels.specs as s;"
        "s.tolerance = lambda spec: (0.0, 1e-30);"
        f"sys.argv = ['bench', '--out', {str(tmp_path)!r}, '--specs', 'small',"
        " '--filter', 'gaussian 40x150->70 float32'];"
        f"runpy.run_path({str(SCRIPTS / 'bench_kernels.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 1
    assert "xla is wrong" in done.stderr
    (row,) = json.loads((tmp_path / "kernels.json").read_text())["rows"]
    assert "xla" in row["wrong"]
    assert "xla" not in row["seconds"]
    assert "**wrong**" in (tmp_path / "kernels.md").read_text()


@pytest.mark.parametrize("option", [("--filter", "nothing"), ("--implementation", "cuda")])
def test_bench_kernels_refuses_what_does_not_exist(tmp_path, option):
    done = run("bench_kernels.py", "--out", tmp_path, *option)
    assert done.returncode == 2
    assert option[1] in done.stderr


def test_tune_kernels_lists_candidates_and_refuses_a_cpu(tmp_path):
    done = run("tune_kernels.py", "--dry-run", "--device-kind", "NVIDIA H200")
    assert done.returncode == 0, done.stderr
    assert "candidates of mosaic_gpu" in done.stdout
    if jax.default_backend() == "cpu":
        done = run("tune_kernels.py", "--out", tmp_path / "tuned.json")
        assert done.returncode == 1
        assert "needs a Hopper GPU" in done.stderr
        assert not (tmp_path / "tuned.json").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--device", "abacus"), "'abacus' is none of tpu-v4"),
        (("--specs", "no"), "'no' is none of"),
    ],
)
def test_compile_kernels_refuses_what_does_not_exist(tmp_path, options, said):
    done = run("compile_kernels.py", "--out", tmp_path / "o", *options)
    assert done.returncode == 2
    assert said in done.stderr
    assert not (tmp_path / "o").exists()


def test_compile_kernels_for_a_tpu_where_its_compiler_is(tmp_path):
    out = tmp_path / "o"
    options = ("--device", "tpu-v5e", "--specs", "ops", "--out", out)
    done = run("compile_kernels.py", *options)
    if importlib.util.find_spec("libtpu") is None:
        assert done.returncode == 2
        assert "libtpu is not installed; scripts/compile_kernels installs" in done.stderr
        pytest.skip("libtpu is not installed")
    assert done.returncode == 0, done.stdout
    rows = [json.loads(line) for line in (out / "compiled.jsonl").read_text().splitlines()]
    assert {row["implementation"] for row in rows} == {"mosaic_tpu", "xla"}
    assert all(isinstance(row["temporaries"], int) for row in rows)
    assert "| tpu-v5e | mosaic_tpu | chain | 6 of 6 |" in (out / "compiled.md").read_text()
