"""The diffs of the design page apply to this tree, and what they add works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DIFFS = ROOT / "docs" / "diffs"

CHECKS = """
import sys
from pathlib import Path
from types import SimpleNamespace
import jax, jax.numpy as jnp, numpy as np
from flax import nnx
import rosler_kernels as rk
from rosler_jax import SketchLinear, load, save, trace
from rosler_jax.config import TrainConfig
from rosler_jax.export import export
from rosler_jax.export.c.source import write_c
from rosler_jax.fit import Arrays, fit, learner_of
from rosler_jax.graph import run_batch

folder = Path(sys.argv[1])
omega = np.asarray(rk.materialize(rk.make("toeplitz", 0, 12, 8)))
assert (omega[1:, 1:] == omega[:-1, :-1]).all() and len(np.unique(omega)) == 2
layer = SketchLinear(16, 12, rank=4, mode="seeded", sketch="toeplitz", rngs=nnx.Rngs(0))
assert layer(jnp.ones((2, 16))).shape == (2, 12)

x = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
save(folder / "sorts.rosler", trace(lambda x: jnp.sort(x, axis=-1), x[:1]))
graph = load(folder / "sorts.rosler").graph
np.testing.assert_array_equal(run_batch(graph, x), np.sort(x))
assert "rosler_sort_rows_f32(x, 1, 5" in write_c(graph).source

export(trace(layer, np.ones((1, 16), np.float32)), folder / "npz", target="npz")
assert set(np.load(folder / "npz" / "model.npz")) >= {"u", "bias"}

def trained(data, **options):
    config = TrainConfig(epochs=2, batch_size=4, rank=2, **options)
    learner = learner_of(config, data)
    x, y = jnp.asarray(data.train_x), jnp.asarray(data.train_y)
    _, metrics = fit(config, learner, Arrays(x, y, x, y), jax.random.key(0))
    assert bool(metrics.finite.all())

images = SimpleNamespace(
    train_x=np.ones((8, 8, 8, 3), np.float32), train_y=np.zeros(8, np.int32), num_classes=2
)
trained(images, model="convmixer", options=("width=8", "depth=1"), method="lion")
counts = SimpleNamespace(train_x=x.repeat(4, 0)[:8], train_y=np.ones((8, 1), np.float32))
trained(counts, task="counts", hidden=(8,), method="chain")
print("all of them work")
"""


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_what_the_diffs_of_the_design_page_add_works(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "design.md").read_text("utf-8")
    diffs = sorted(DIFFS.glob("*.diff"))
    assert {path.name for path in diffs} == set(re.findall(r"diffs/(\w+\.diff)", page))
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("src", "kernels"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    for path in diffs:
        subprocess.run(["git", "apply", "-p0", path], cwd=tmp_path, check=True)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'src'}:{tmp_path / 'kernels'}"}
    done = subprocess.run(
        [sys.executable, "-c", CHECKS, str(tmp_path)], env=environment, capture_output=True,
        text=True, timeout=600,
    )  # fmt: skip
    assert "all of them work" in done.stdout, done.stderr
