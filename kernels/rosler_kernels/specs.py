"""Argument specs: the shapes that tests and benchmarks share."""

from __future__ import annotations

import dataclasses
import itertools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .sketches import FAMILIES, make

if TYPE_CHECKING:
    from jaxtyping import Array

    from .sketches import Sketch

KERNEL_FAMILIES = tuple(kind for kind, family in FAMILIES.items() if family.generator)
"""Families whose entries a Pallas kernel makes; row sampling is a gather."""


@dataclasses.dataclass(frozen=True)
class Spec:
    """One projection.

    Attributes:
      kind: family of the sketch.
      batch, rows, cols: x is (batch, rows), Omega (rows, cols).
      dtype: of x.
      transpose: ``project_transpose`` of (batch, cols) instead.
    """

    kind: str
    batch: int
    rows: int
    cols: int
    dtype: str = "float32"
    transpose: bool = False

    @property
    def name(self) -> str:
        """As a test or a table calls it."""
        arrow = "<-" if self.transpose else "->"
        return f"{self.kind} {self.batch}x{self.rows}{arrow}{self.cols} {self.dtype}"

    def sketch(self, seed: int | Array) -> Sketch:
        """Its sketch."""
        if FAMILIES[self.kind].weighted:
            w = jax.random.normal(jax.random.key(99), (self.rows, 3))
            return make(self.kind, seed, self.rows, self.cols, w=w)
        return make(self.kind, seed, self.rows, self.cols)

    def inputs(self, seed: int) -> Array:
        """Standard normal inputs."""
        width = self.cols if self.transpose else self.rows
        return jax.random.normal(jax.random.key(seed), (self.batch, width)).astype(self.dtype)


def _table(
    kinds: tuple[str, ...], shapes: tuple[tuple[int, int, int], ...], dtypes: tuple[str, ...]
) -> tuple[Spec, ...]:
    return tuple(
        Spec(kind, *shape, dtype, transpose)
        for kind, shape, dtype, transpose in itertools.product(kinds, shapes, dtypes, (False, True))
    )


SMALL = _table(
    KERNEL_FAMILIES,
    ((40, 150, 70), (1, 130, 64), (65, 64, 9)),
    ("float32", "bfloat16", "float16"),
)
"""For numerics under an interpreter: odd sizes, every family and dtype."""

CPU = _table(
    KERNEL_FAMILIES,
    (
        (256, 784, 64),
        (1024, 1024, 32),
        (128, 8192, 256),
        (4096, 4096, 64),
        (16, 1_048_576, 128),
    ),
    ("float32",),
)
"""For benchmarks on a CPU."""

GPU = _table(
    KERNEL_FAMILIES,
    (
        (65536, 8192, 64),
        (65536, 8192, 128),
        (65536, 8192, 256),
        (8192, 8192, 64),
        (8192, 8192, 256),
        (8192, 8192, 1024),
        (128, 65536, 1024),
    ),
    ("bfloat16",),
)
"""For benchmarks on a data-centre GPU or TPU."""

TABLES = {"small": SMALL, "cpu": CPU, "gpu": GPU}


def matching(table: str, texts: str) -> list[Spec]:
    """Those of a table whose name holds one of some texts, in the order of the texts.

    Args:
      table: a key of ``TABLES``.
      texts: with commas between them.
    """
    specs = TABLES[table]
    return list(dict.fromkeys(s for text in texts.split(",") for s in specs if text in s.name))


def tolerance(spec: Spec) -> tuple[float, float]:
    """(relative, absolute) error of a right result against float64.

    The sum is float32 at least: the absolute part allows 2^-22 of the square root of the number of
    terms, entries of unit variance; the relative part is one rounding to the dtype. Normal entries
    made by a kernel for a 16-bit dtype have 16 bits of their own.
    """
    terms = spec.cols if spec.transpose else spec.rows
    size = (terms / spec.cols) ** 0.5  # of a result: entries of Omega have variance 1/cols
    eps = float(jnp.finfo(spec.dtype).eps)
    narrow = 2.0**-15 if spec.kind == "gaussian" and spec.dtype != "float32" else 0.0
    return eps, size * (terms**0.5 * 2.0**-21 + 6 * narrow)
