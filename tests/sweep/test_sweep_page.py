"""The sweep of the how-to, as it stands there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parents[2] / "docs" / "howto" / "sweeps.md"


def blocks(language):
    return re.findall(
        rf"^```{language}\n(.*?)^```$", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL
    )


@pytest.mark.slow
def test_the_sweep_of_the_page(tmp_path):
    (spec,) = blocks("toml")
    (tmp_path / "sweep.toml").write_text(spec)
    commands = next(block for block in blocks("console") if "rosler sweep" in block)
    lines = [shlex.split(line, comments=True) for line in commands.splitlines()]
    assert len(lines) == 4
    for prompt, program, *arguments in lines:
        assert (prompt, program) == ("$", "rosler")
        done = subprocess.run(
            [sys.executable, "-m", "rosler_jax", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/sweep/best/model.rosler").exists()
    assert (tmp_path / "runs/sweep/report.html").exists()
