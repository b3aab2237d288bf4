"""A user's project, which sees the installed types, is right for both type checkers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
USER = ROOT / "tests" / "typed_user" / "user.py"
WRONG = "import rosler_jax\nlayer: int = rosler_jax.SketchLinear(8, 'eight')\n"


def checked(command: list[str], file: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT / "kernels")])
    environment = os.environ | {"MYPYPATH": path, "PYTHONPATH": path}
    words = [*command, str(shutil.copy(file, folder))]
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_a_users_project(checker: str, tmp_path: Path) -> None:
    pytest.importorskip(checker, reason=f"no {checker}")
    settings = tmp_path / "pyrightconfig.json"
    settings.write_text(f'{{"extraPaths": ["{ROOT / "src"}", "{ROOT / "kernels"}"]}}')
    command = {
        # Of all that a user imports optax alone has no types.
        "mypy": [sys.executable, "-m", "mypy", "--strict", "--ignore-missing-imports"],
        "pyright": [sys.executable, "-m", "pyright", "--pythonpath", sys.executable],
    }[checker]
    done = checked(command, USER, tmp_path)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    (tmp_path / "bad.py").write_text(WRONG)
    shutil.copy(settings, wrong)
    done = checked(command, tmp_path / "bad.py", wrong)
    assert done.returncode == 1 and done.stdout.count("error") >= 2, done.stdout
