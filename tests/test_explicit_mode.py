"""Training over several devices in JAX's explicit mode, that of ``jax.make_mesh``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_mesh_of_four_devices_trains_to_the_same_numbers():
    program = Path(__file__).with_name("explicit_mode.py")
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    environment = dict(os.environ, JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.stdout.strip() == "equal", done.stderr[-3000:]
