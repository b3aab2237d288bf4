"""What an exporter raises."""

from __future__ import annotations


class ExportError(ValueError):
    """A model that a target cannot take; the message names the layer and the alternatives."""
