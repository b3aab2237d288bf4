"""Data of the sweeps in BENCHMARKS.md, for ``data = "scripts/bench_data.py:NAME"``.

Real sets from ``../shared/data`` beside a checkout of this project, and one that is bundled with
scikit-learn; users have their own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rosler_jax import data

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def _shared(name: str, **options: Any) -> Any:
    path = SHARED / name
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file; it comes with the project's shared data")
    return data.read(path, **options)


def cifar10_part() -> Any:
    """The first 400 training and 400 test images of CIFAR-10 (JPEG re-encoding)."""
    raw = _shared("cifar10_jpeg.npz")
    return raw._replace(
        train=tuple(part[:400] for part in raw.train),
        test=tuple(part[:400] for part in raw.test),
    )


def cwru_windows() -> Any:
    """Windows of 512 samples of bearings as 32 steps of 16, split in time, every other one."""
    raw = _shared("cwru_12k_drive_end.npz", window=512, hop=512)

    def steps(split: Any) -> Any:
        x, y = split
        return np.asarray(x)[::2].reshape(-1, 32, 16), np.asarray(y)[::2]

    parts = {name: steps(split) for name, split in raw._asdict().items() if split is not None}
    return raw._replace(**parts)


def cwru_spectra() -> Any:
    """Logarithms of the spectra of windows of 2,048 samples of bearings, split in time."""
    raw = _shared("cwru_12k_drive_end.npz", window=2048, hop=512, features="fft")

    def log(split: Any) -> Any:
        x, y = split
        return np.log(np.maximum(x, 1e-5)).astype(np.float32), y

    parts = {name: log(split) for name, split in raw._asdict().items() if split is not None}
    return raw._replace(**parts)


def diabetes() -> Any:
    """442 patients, ten numbers each, and the progress of a disease a year later."""
    from sklearn.datasets import load_diabetes

    return load_diabetes(return_X_y=True, scaled=False)
