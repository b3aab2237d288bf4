"""The dense weight that a sketch layer stands for, written out in float64 by NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import rosler_kernels as rk
from rosler_jax.factors import RIDGE

NAMES = ("c", "u", "r", "parallel", "bias")


def params_of(layer: Any) -> dict[str, np.ndarray]:
    """The parameters that an NNX sketch layer has, by name."""
    variables = {name: getattr(layer, name) for name in NAMES}
    return {name: np.asarray(v[...]) for name, v in variables.items() if v is not None}


def matrix(sketch: Any) -> np.ndarray:
    """A sketch as a matrix, in float64."""
    return np.asarray(rk.materialize(sketch), np.float64)


def ridge_inverse(a: np.ndarray) -> np.ndarray:
    """``argmin_U ||A U - I||^2 + lambda ||U||^2``, by the SVD of A."""
    left, sigma, right = np.linalg.svd(a, full_matrices=False)
    lam = RIDGE * np.sum(a * a) / a.shape[1]
    return right.T @ ((sigma / (sigma**2 + lam))[:, None] * left.T)


def matrices(params: Mapping[str, Any], sketches: tuple[Any, Any]) -> np.ndarray:
    """The weight ``(g, m, n)`` of a layer, dense (``g = 1``), batched, or convolution."""
    p = {name: np.asarray(v, np.float64) for name, v in params.items()}
    u = p["u"] if p["u"].ndim == 3 else p["u"][None]
    if "c" not in p:
        psi, omega = map(matrix, sketches)
        return np.sqrt(psi.shape[1] / psi.shape[0]) * psi @ u @ omega.T
    if p.get("parallel", 0.0) > 0.5:  # then the slot holds A^T
        u = np.stack([ridge_inverse(a.T) for a in u])
    g, s, l = u.shape
    return columns(p["c"], g, s) @ u @ p["r"].reshape(g, l, -1)


def columns(c: np.ndarray, g: int, s: int) -> np.ndarray:
    """``C (g, m, s)`` from the layout of any layer; filters of a convolution come group by group"""
    if c.ndim == 3 and c.shape[0] == g and c.shape[-1] == s:
        return c
    return c.reshape(-1, g, s).transpose(1, 0, 2)
