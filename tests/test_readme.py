"""Every example of the README runs as it stands there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")

ROSLER = [sys.executable, "-c", "import sys; from rosler_jax.cli import main; sys.exit(main())"]


def blocks(language: str) -> list[str]:
    """The fenced blocks of `language` in the README, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[list[str]]:
    """Arguments of every `rosler` command line in the README's bash blocks, in order."""
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words[1:] for words in split if words[:1] == ["rosler"]]


def run(command: list[str], folder: Path) -> str:
    """Runs `command` in `folder` as a user would, JAX at its defaults; returns what it prints."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "kernels")])
    environment = os.environ | {"PYTHONPATH": path, "MPLBACKEND": "Agg"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stderr}"
    return done.stdout


def test_readme_has_its_examples() -> None:
    assert len(blocks("python")) >= 2
    assert commands()


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_python_example(number: int, tmp_path: Path) -> None:
    run([sys.executable, "-c", blocks("python")[number]], tmp_path)


def a_users_files(folder: Path) -> None:
    """What the examples take for given: a model, a table of houses, photos in folders."""
    from PIL import Image

    (model,) = (block for block in blocks("python") if block.startswith("# my_model.py\n"))
    (folder / "my_model.py").write_text(model)
    rng = np.random.default_rng(0)
    rooms = rng.normal(size=(200, 5))
    rows = np.column_stack([rooms, 300 + 50 * rooms[:, 0] - 20 * rooms[:, 1]])
    head = "a,b,c,d,e,price"
    np.savetxt(folder / "houses.csv", rows, delimiter=",", header=head, comments="")
    for kind, bright in (("cat", 40), ("dog", 120)):
        (folder / "photos" / kind).mkdir(parents=True)
        for i in range(40):
            pixels = rng.integers(0, 100, (20, 24, 3)) + bright
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "photos" / kind / f"{i}.png")


def test_command_line_examples(tmp_path: Path) -> None:
    # One after another in one folder: later ones read what the first wrote.
    a_users_files(tmp_path)
    for arguments in commands():
        run([*ROSLER, *arguments], tmp_path)


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    absent = [t for t in targets if "://" not in t and not (ROOT / t).exists()]
    assert not absent


def test_the_table_of_kinds_is_current() -> None:
    run([sys.executable, str(ROOT / "scripts" / "kinds.py"), "--check"], ROOT)
