"""The comparison table of the quickstart."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "compare_runs.py"

DENSE = {
    "test_accuracy": 0.95,
    "validation_accuracy": 0.96,
    "parameters": 1_863_690,
    "file_bytes": 7_454_760,
    "compression": 1.0,
    "train_seconds": 20.0,
}
COMPACT = DENSE | {"test_accuracy": 0.94, "file_bytes": 149_095, "train_seconds": 5.0}


def compare(*folders: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), *map(str, folders)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def write(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "result.json").write_text(text, encoding="utf-8")
    return folder


def test_table_compares_the_last_with_the_first(tmp_path: Path) -> None:
    dense = write(tmp_path / "dense", json.dumps(DENSE))
    compact = write(tmp_path / "compact", json.dumps(COMPACT))
    done = compare(dense, compact)
    assert done.returncode == 0, done.stderr
    heading, rule, first, second, *_ = done.stdout.splitlines()
    assert len({len(line) for line in (heading, rule, first, second)}) == 1
    assert "95.00%" in first and "7,454,760" in first
    assert "94.00%" in second and "149,095" in second
    assert "50.0 times smaller" in done.stdout
    assert "-1.00 points" in done.stdout
    assert "0.25 of the time" in done.stdout


def test_errors_name_the_file_and_the_reason(tmp_path: Path) -> None:
    cases = {
        "no such file": tmp_path / "absent",
        "not JSON": write(tmp_path / "cut", '{"test_accuracy": '),
        "lacks file_bytes": write(
            tmp_path / "old", json.dumps({k: v for k, v in DENSE.items() if k != "file_bytes"})
        ),
    }
    for reason, folder in cases.items():
        done = compare(folder)
        assert done.returncode == 1
        assert reason in done.stderr and str(folder / "result.json") in done.stderr
        assert "Traceback" not in done.stderr
