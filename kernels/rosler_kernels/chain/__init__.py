"""The thin chain ((x L) U) R, whose outer factors are stored or regenerated from seeds."""

from __future__ import annotations

from .api import Parallel, sketch_matmul

__all__ = ["Parallel", "sketch_matmul"]
