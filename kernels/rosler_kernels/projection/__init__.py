"""X Omega and Y Omega^T from a sketch's seed."""

from __future__ import annotations

from .api import explain, project, project_transpose

__all__ = ["explain", "project", "project_transpose"]
