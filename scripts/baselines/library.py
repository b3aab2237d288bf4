"""Nets that the library trains as it is: dense, narrower, convolutional, quantised, of factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from baselines.files import Shipped
from baselines.training import Trained
from rosler_jax.run import Prepared, shipped_graph

WIDE: dict[str, Any] = {"hidden": (300, 100), "method": "dense"}
_MODELS = Path(__file__).resolve().parent.parent / "bench_models.py"
_SKETCHES = {"in_sketch": 196, "sketch": "dct:28x28/srht"}

Line = tuple[str, str, dict[str, Any], tuple[int, ...]]

LINES: tuple[Line, ...] = (
    ("dense, int4 aware", "", {**WIDE, "quantization_aware": True, "bits": 4}, (4,)),
    *(
        ("narrower dense", f"{'-'.join(map(str, widths))}", {"hidden": widths}, (16, 8, 4))
        for widths in ((64, 32), (32, 16), (16, 16))
    ),
    *(
        ("narrower dense, rate-coded", f"64-32, lambda {price:g}",
         {"hidden": (64, 32), "rate_lambda": price, "bits": 4, "learning_rate": 3e-3}, (4,))
        for price in (0.004, 0.009, 0.018)
    ),
    *(
        ("small CNN", f"{'-'.join(map(str, channels))}",
         {"model": f"{_MODELS}:small_conv", "options": (f"channels={channels}",)}, (8, 4))
        for channels in ((12, 24), (6, 12))
    ),
    *(
        ("low-rank", f"rank {rank}", {**WIDE, "method": "low-rank", "rank": rank}, (16, 8, 4))
        for rank in (8, 16, 32)
    ),
    *(
        ("seeded", f"rank {rank}", {**WIDE, "method": "seeded", "rank": rank, **_SKETCHES}, (8, 4))
        for rank in (16, 32, 64)
    ),
    *(
        ("dense, rate-coded", f"lambda {price:g}",
         {**WIDE, "rate_lambda": price, "bits": 4, "learning_rate": 3e-3}, (4,))
        for price in (0.004, 0.01)
    ),
)  # fmt: skip
"""Method, setting, fields of the run, bits of the files. The last two are the library's own."""


def shipped(problem: Prepared, found: Trained, bits: int, coded: bool = False) -> Shipped:
    """A trained net as the library ships it."""
    graph = shipped_graph(
        problem.config, problem.learner, problem.dataset.train_x, found.params, found.buffers,
        problem.units,
    )  # fmt: skip
    return Shipped(graph, bits, coded or problem.config.rate_coded)
