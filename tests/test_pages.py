"""Every example of the README and of the documentation runs as it stands there.

Cells of the pages that are notebooks run when the site is built (``scripts/docs``).
"""

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
DOCS = ROOT / "docs"
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(DOCS.rglob("*.md")))
    if not {"_build", "generated"} & set(path.parts)
}
ROSLER = [sys.executable, "-c", "import sys; from rosler_jax.cli import main; sys.exit(main())"]


def blocks(page: str, language: str) -> list[str]:
    """The fenced blocks of `language` in a page, in order."""
    fence = rf"^```{re.escape(language)}\n(.*?)^```$"
    return re.findall(fence, PAGES[page], flags=re.MULTILINE | re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Words of every command line of a page that is ours, in order."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    split = [shlex.split(line, comments=True) for line in lines]
    return [words for words in split if words and words[0] in ("rosler", "scripts/firmware")]


def pages_of_commands() -> list[str]:
    """Pages with commands of ours, but for those whose commands are all on another one."""
    own = {page: set(map(tuple, commands(page))) for page in PAGES}
    return [page for page in PAGES if own[page] and not any(own[page] < o for o in own.values())]


EXAMPLES = [(page, i) for page in PAGES for i in range(len(blocks(page, "python")))]


def run(command: list[str], folder: Path) -> str:
    """Runs `command` in `folder` as a user would, JAX at its defaults; returns what it prints."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "kernels")])
    environment = os.environ | {"PYTHONPATH": path, "MPLBACKEND": "Agg"}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command} exited {done.returncode}\n{done.stderr}"
    return done.stdout


def test_pages_have_their_examples() -> None:
    assert len(blocks("README.md", "python")) >= 2 and len(PAGES) > 20
    assert sum(bool(commands(page)) for page in PAGES) >= 4
    assert sum("{code-cell}" in text for text in PAGES.values()) >= 10


@pytest.mark.slow
@pytest.mark.parametrize(("page", "number"), EXAMPLES)
def test_python_example(page: str, number: int, tmp_path: Path) -> None:
    run([sys.executable, "-c", blocks(page, "python")[number]], tmp_path)


def a_users_files(folder: Path) -> None:
    """What the examples take for given: a model, a table of houses, photos in folders."""
    from PIL import Image

    page = "docs/howto/training.md"
    (model,) = (block for block in blocks(page, "python") if block.startswith("# my_model.py\n"))
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


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_of_commands())
def test_command_line_examples(page: str, tmp_path: Path) -> None:
    # One after another in one folder: later ones read what the first wrote.
    if page == "docs/howto/training.md":
        a_users_files(tmp_path)
    for program, *words in commands(page):
        if program == "rosler":
            run([*ROSLER, *words], tmp_path)
        elif has_emulator():
            run([sys.executable, str(ROOT / "scripts" / "firmware.py"), *words], tmp_path)


def has_emulator() -> bool:
    """Whether firmware can be built and run here."""
    from rosler_jax.export import firmware

    try:
        firmware.find_toolchain()
    except firmware.ToolchainError:
        return False
    return True


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", re.sub(r"(?s)```.*?```", "", PAGES[page]))
    folder = (ROOT / page).parent
    absent = [t for t in targets if "://" not in t and not (folder / t).exists()]
    assert not absent


@pytest.mark.slow
def test_the_table_of_kinds_is_current() -> None:
    run([sys.executable, str(ROOT / "scripts" / "kinds.py"), "--check"], ROOT)
