"""What building and running exported C code raises."""

from __future__ import annotations


class FirmwareError(RuntimeError):
    """C code that does not build, hangs, faults or fails; the message says which and where."""


class ToolchainError(FirmwareError):
    """Programs that are not installed; the message names them and the packages that have them."""
