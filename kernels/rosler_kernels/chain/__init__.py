"""The thin chain ((x L) U) R, whose outer factors are stored or regenerated from seeds."""

from __future__ import annotations

from .api import sketch_matmul

__all__ = ["sketch_matmul"]
