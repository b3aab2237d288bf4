"""The Walsh-Hadamard transform."""

from __future__ import annotations

from .api import hadamard_transform

__all__ = ["hadamard_transform"]
