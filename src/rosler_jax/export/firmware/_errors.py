"""What building and running exported C code raises."""

from __future__ import annotations


class FirmwareError(RuntimeError):
    """C code that does not build, hangs, faults or fails; the message says which and where.

    Example:
      >>> import tempfile
      >>> import jax.numpy as jnp
      >>> from rosler_jax.export import export
      >>> from rosler_jax.export.firmware import run_host
      >>> from rosler_jax.graph import trace
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     done = export(trace(jnp.negative, jnp.ones((1, 2))), folder, board=None)
      ...     size = done.files[1].write_text("void rosler_predict(")  # cut off
      ...     try:
      ...         run_host(folder, [[1.0, 2.0]])
      ...     except FirmwareError as error:  # also where gcc is not installed
      ...         print(error)
      gcc...
    """


class ToolchainError(FirmwareError):
    """Programs that are not installed; the message names them and the packages that have them.

    Example:
      >>> import os
      >>> from unittest import mock
      >>> from rosler_jax.export.firmware import find_toolchain
      >>> with mock.patch.dict(os.environ, PATH=""):
      ...     find_toolchain()
      Traceback (most recent call last):
      rosler_jax.export.firmware._errors.ToolchainError: arm-none-eabi-gcc, arm-none-eabi-nm,
      qemu-system-arm, gcc not found; on Debian or Ubuntu: apt-get install --no-install-recommends
      binutils-arm-none-eabi gcc gcc-arm-none-eabi qemu-system-arm
    """
