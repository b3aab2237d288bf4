"""Experiments: rows are measured once and survive a kill, sections go between their markers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import accuracy_nets  # noqa: E402
import reproduce_accuracy_vs_size as accuracy  # noqa: E402
import reproducing  # noqa: E402


def test_a_row_is_measured_once(tmp_path: Path) -> None:
    calls = []

    def measure() -> dict[str, float]:
        calls.append(1)
        return {"value": 2.0}

    first = reproducing.once(tmp_path, "a/b, seed 1", measure)
    assert reproducing.once(tmp_path, "a/b, seed 1", measure) == first
    assert first["value"] == 2.0 and first["key"] == "a/b, seed 1" and len(calls) == 1
    assert {"date", "revision", "machine", "versions", "took_seconds"} <= set(first)
    reproducing.once(tmp_path, "a_b, seed 1", measure)  # the same slug, another row
    assert [row["key"] for row in reproducing.rows_of(tmp_path)] == ["a/b, seed 1", "a_b, seed 1"]


KILLED = """
import sys, time
sys.path.insert(0, {scripts!r})
import reproducing
from pathlib import Path
for i in range(4):
    def measure(i=i):
        print(i, flush=True)
        if i == 2 and len(sys.argv) == 1:
            time.sleep(60)
        return {{"i": i}}
    reproducing.once(Path({out!r}), f"row {{i}}", measure)
"""


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on(tmp_path: Path) -> None:
    code = KILLED.format(scripts=str(SCRIPTS), out=str(tmp_path))
    first = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert first.stdout is not None
    while first.stdout.readline().strip() != "2":
        time.sleep(0.01)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    again = subprocess.run(
        [sys.executable, "-c", code, "again"], capture_output=True, text=True, check=True
    )
    assert again.stdout.split() == ["2", "3"]
    assert [row["i"] for row in reproducing.rows_of(tmp_path)] == [0, 1, 2, 3]


def test_a_section_goes_between_its_markers(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- reproduce a -->\nold\n<!-- end of a -->\nafter\n")
    reproducing.put_section("a", r"new \1 text", page)
    text = page.read_text()
    assert text == "before\n<!-- reproduce a -->\nnew \\1 text\n<!-- end of a -->\nafter\n"
    with pytest.raises(ValueError, match="no section <!-- reproduce b -->"):
        reproducing.put_section("b", "", page)
    assert page.read_text() == text


def test_published_rows_can_be_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reproducing, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(reproducing, "BENCHMARKS", tmp_path / "page.md")
    (tmp_path / "results").mkdir()
    (tmp_path / "page.md").write_text("<!-- reproduce x -->\n<!-- end of x -->\n")
    parser = reproducing.parser_of("x", "doc")
    args = parser.parse_args(["--out", str(tmp_path / "one"), "--publish"])
    reproducing.begin("x", args)
    reproducing.once(args.out, "row", lambda: {"value": 1})
    figure, axes = reproducing.figure()
    axes[0].plot([0, 1])
    reproducing.finish("x", args, "text", figure)
    rows = json.loads((tmp_path / "results" / "x.json").read_text())["rows"]
    assert [row["value"] for row in rows] == [1]
    svg = (tmp_path / "results" / "x.svg").read_bytes()
    reproducing.save_svg(figure, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == svg  # the same figure, the same bytes
    other = parser.parse_args(["--out", str(tmp_path / "two"), "--continue-published"])
    reproducing.begin("x", other)
    assert reproducing.once(other.out, "row", lambda: {"value": 2})["value"] == 1


def test_lines_for_a_ratio_are_as_small_as_they_say() -> None:
    dense = accuracy_nets.mlp_numbers((784, 1024, 1024, 10))
    for key, line in accuracy_nets.LINES.items():
        if line.ratio and key.startswith("mnist/narrower"):
            numbers = accuracy_nets.mlp_numbers((784, *line.settings["hidden"], 10))
            assert 2 * numbers + accuracy_nets.FILE <= 4 * dense / line.ratio
        if line.teacher is not None:
            assert line.teacher in accuracy_nets.LINES


def _row(line: str, method: str, setting: str, seed: int, test: float, **more: object) -> dict:
    return {
        "key": f"{line}/{setting}/seed {seed}", "line": line, "task": "mnist", "net": "net",
        "method": method, "ratio": 0, "setting": setting, "seed": seed, "test": test,
        "validation": test, "bytes": 1000, "multiplications": 10, **more,
    }  # fmt: skip


def test_tables_take_means_and_what_validation_chose() -> None:
    rows = [_row("mnist/dense", "dense", "bits 32", s, 99.0 + s, bytes=100_000) for s in (0, 1)]
    for seed in (0, 1):
        good = {"ratio": 50, "bytes": 2000, "validation": 98.0}
        rows.append(_row("mnist/a-50", "a", "bits 16", seed, 98.5, **good))
        poor = {"ratio": 50, "bytes": 2000, "validation": 99.0, "multiplications": 20}
        rows.append(_row("mnist/b-50", "b", "bits 16", seed, 98.0, **poor))
    points = accuracy.points_of(rows)["mnist"]
    text = accuracy.ratio_table(points)
    assert "dense, float32, 100,000 bytes: 99.50 ± 0.71 %" in text
    assert "| a, 16 bits | 98.50 ± 0.00 (-1.00; 50x) |" in text
    assert "**98.00 ± 0.00 (-1.50; 50x)**" in text  # chosen by validation, not by the test split
    frontier = [p.rows[0]["line"] for p in accuracy.frontier(points)]
    assert frontier == ["mnist/a-50", "mnist/b-50", "mnist/dense"]
