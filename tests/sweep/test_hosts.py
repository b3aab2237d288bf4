"""Several processes with jax.distributed run one sweep, and end with the table of one process."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from rosler_jax.sweep import sweep
from rosler_jax.sweep import table as tables

TOML = """
data = {data!r}
hidden = [16]
method = "chain"
epochs = 2
batch_size = 32
{more}
[axes]
learning_rate = {{ log_uniform = [1e-3, 1e-2], n = 5 }}
rank = {{ grid = [2, 4] }}
"""


def command(*arguments):
    return [sys.executable, "-m", "rosler_jax", "sweep", *map(str, arguments), "--devices", "1"]


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def named(i, port):
    """Options and environment of a process that is told where the others are."""
    return ["--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process", str(i)], {}


def slurm(i, port):
    """The same of one that Slurm has started."""
    job = {"SLURM_JOB_ID": "1", "SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_STEP_NUM_NODES": "1"}
    task = {"SLURM_NTASKS": "2", "SLURM_PROCID": str(i), "SLURM_LOCALID": str(i)}
    return ["--distributed"], {**job, **task, "JAX_COORDINATOR_PORT": str(port)}


def together(*arguments, folders, start=named):
    """Runs the command as two processes, each with a folder of its own; they must not share it."""
    ways = [start(i, port) for port in [free_port()] for i in range(2)]
    running = [
        subprocess.Popen(
            [*command(*arguments, folder), *options, "--json"],
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for folder, (options, environment) in zip(folders, ways, strict=True)
    ]
    found = [process.communicate(timeout=300) for process in running]
    return [
        (process.returncode, out, err) for process, (out, err) in zip(running, found, strict=True)
    ]


def results(ended):
    """What processes that ended well printed."""
    for code, _, err in ended:
        assert code == 0, err
    return [json.loads(out) for _, out, _ in ended]


@pytest.mark.slow
def test_two_processes_end_with_the_table_of_one(data, tmp_path):
    spec = tmp_path / "sweep.toml"
    spec.write_text(TOML.format(data=data, more="halving = { rungs = [1], keep = 0.5 }"))
    sweep(spec, out=tmp_path / "one")
    folders = (tmp_path / "two", tmp_path / "of the other host")
    both = results(together(spec, "--out", folders=folders, start=slurm))
    assert [out["members"] for out in both] == [10, 10]
    assert both[0]["best"] == both[1]["best"]
    a, b = (tables.read_rows(tmp_path / name / "table.parquet") for name in ("one", "two"))
    for x, y in zip(a, b, strict=True):
        assert (x["member"], x["status"], x["file_bytes"]) == (
            y["member"],
            y["status"],
            y["file_bytes"],
        )
        # One or several members under a vmap: rounding; one of 30 examples may go astray.
        np.testing.assert_allclose(x["curve"], y["curve"], atol=1 / 30 + 1e-6)
        np.testing.assert_allclose(x["loss"], y["loss"], rtol=1e-4)
    assert not folders[1].exists()
    resumed = results(together("--resume", folders=folders))
    assert [out["members"] for out in resumed] == [10, 10]
    refused = together(spec, "--out", folders=folders)
    assert [code for code, _, _ in refused] == [1, 1]
    assert all("already holds this sweep" in err for _, _, err in refused)


@pytest.mark.slow
def test_a_second_host_without_a_name_is_refused():
    done = subprocess.run(
        command("s.toml", "--out", "o", "--coordinator", "127.0.0.1:1"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "go together" in done.stderr
