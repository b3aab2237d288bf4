"""The check of annotated shapes sees what is wrong, and functions refuse in their own words."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from checked_shapes import checked


def product(x, y):
    """Annotations are strings, as in modules that import them for type checkers alone."""
    if x.ndim != 2:
        raise ValueError("two axes")
    return x @ y


product.__annotations__ = {
    "x": "Float[Array, 'm k']", "y": "Float[Array, 'k n']", "return": "Float[Array, 'm n']",
}  # fmt: skip


def test_sizes_of_one_name_are_one() -> None:
    assert checked(product)(jnp.ones((2, 3)), np.ones((3, 4), np.float32)).shape == (2, 4)
    with pytest.raises(TypeError, match=r"product: x is int32\[2, 3\]; expected"):
        checked(product)(jnp.ones((2, 3), jnp.int32), jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="two axes"):
        checked(product)(jnp.ones(3), jnp.ones((3, 4)))

    def square(x):
        return x[:, :1]

    square.__annotations__ = {"x": "Float[Array, 'n n']", "return": "Float[Array, 'n n']"}
    with pytest.raises(TypeError, match="return is"):
        checked(square)(jnp.ones((3, 3)))


def test_the_hook_checks_the_library() -> None:
    code = """
import checked_shapes
checked_shapes.install()
import jax.numpy as jnp
from rosler_jax.factors import TwoFactors, reconstruct
from rosler_jax.views import MatrixView
assert hasattr(MatrixView.to_matrices, "__wrapped__") and hasattr(reconstruct, "__wrapped__")
try:
    reconstruct(TwoFactors(c=jnp.ones((4, 2), jnp.int32), r=jnp.ones((2, 3), jnp.int32)))
except TypeError as error:
    print(error)
"""
    folder = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300
    )
    assert "reconstruct: return is int32[4, 3]" in done.stdout, done.stderr
