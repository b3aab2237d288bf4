"""Projection of a convolution's patches, which are never gathered into one array."""

from __future__ import annotations

from .api import project_patches

__all__ = ["project_patches"]
