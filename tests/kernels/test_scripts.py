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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


SASS = """
        /*0000*/                   MOV R1, R2 ;
.L_x_2:
        /*0010*/                   LOP3.LUT R5, R4, R3, RZ, 0xc0, !PT ;
.L_x_1:
        /*0020*/                   FMUL R6, R5, R5 ;
        /*0030*/              @P0 BRA `(.L_x_1) ;
.L_x_0:
        /*0040*/                   SYNCS.PHASECHK.TRANS64.TRYWAIT P1, [UR20], R23 ;
        /*0050*/              @!P1 BRA `(.L_x_0) ;
        /*0060*/                   BAR.SYNC.DEFER_BLOCKING 0x1, 0x80 ;
        /*0070*/                   HGMMA.64x128x16.F32.BF16 R88, gdesc[UR44].tnspB, R88 ;
        /*0080*/                   WARPGROUP.DEPBAR.LE gsb0, 0x1 ;
        /*0090*/               @P2 BRA `(.L_x_2) ;
        /*00a0*/                   EXIT ;
"""


def test_a_loop_is_found_in_machine_code(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import kernel_facts

    loop = kernel_facts.loop_of(SASS)
    assert loop == kernel_facts.Loop(2, 9, 1, 1, 1)
    assert kernel_facts.loop_of(SASS, inner=4).instructions == 9 + 3 * 2  # not the wait's
    # A block of 128 threads: registers allow 512 / 200, shared memory 1.
    facts = {"blocks": 264, "threads": 128, "shared": 198_680, "registers": 200}
    assert kernel_facts.resident(200, 128, 198_680) == 1
    assert kernel_facts.resident(200, 128, 50_000) == 2
    chip = kernel_facts.Chip(132, 1e9, 1e12, 1e15)
    bound = kernel_facts.bound(loop, facts, steps=10, moved=10**6, operations=10**9, chip=chip)
    assert bound == pytest.approx({"memory": 1.0, "products": 1.0, "issue": 2 * 92 / 1e3})


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
