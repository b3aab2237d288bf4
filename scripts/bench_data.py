"""Data of the sweeps in BENCHMARKS.md, for ``data = "scripts/bench_data.py:NAME"``.

Real sets from ``../shared/data`` beside a checkout of this project or from another folder, by
tensorflow-datasets where neither has them, and one that is bundled with scikit-learn.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from rosler_jax import data

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


def _shared(name: str, folder: str | None = None, **options: Any) -> Any:
    path = Path(folder or SHARED) / name
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


def cwru_unseen_load(
    folder: str | None = None, load: int = 3, window: int = 1024, features: str = "fft"
) -> Any:
    """Bearings trained and validated at all loads but one, and tested on all of that one.

    Validation is the last fifth in time of the recordings that are trained on.
    """
    others = tuple(k for k in range(4) if k != load)
    options = {"window": window, "hop": window // 2, "features": features}
    seen, unseen = (_cwru(folder, loads=loads, **options) for loads in (others, (load,)))
    held = [np.concatenate(both) for both in zip(seen.validation, seen.test, strict=True)]
    kept = (unseen.train, unseen.validation, unseen.test)
    test = tuple(np.concatenate(parts) for parts in zip(*kept, strict=True))
    return seen._replace(validation=tuple(held), test=test)


def _cwru(folder: str | None, **options: Any) -> Any:
    """Recordings of a file, of a folder's ``cwru`` with .mat files, or through TFDS."""
    root = Path(folder or SHARED)
    if (root / "cwru_12k_drive_end.npz").exists():
        return _shared("cwru_12k_drive_end.npz", folder, **options)
    return data.read("cwru", manual_dir=str(root / "cwru"), **options)


def cats_dogs(folder: str | None = None, side: int = 64) -> Any:
    """Cats (0) and dogs (1): 2,002 images of 64 x 64, of which 402 test; else all, by TFDS."""
    path = Path(folder or SHARED) / "cats_dogs_64.npz"
    if not path.exists():
        return data.read("cats_vs_dogs", image_size=f"{side},{side}")
    with np.load(path) as file:
        images, labels, index = file["images"], file["labels"], file["source_index"]
    test = index >= 800
    return data.Raw(
        (images[~test], labels[~test].astype(np.int32)),
        (images[test], labels[test].astype(np.int32)),
    )


def diabetes() -> Any:
    """442 patients, ten numbers each, and the progress of a disease a year later."""
    from sklearn.datasets import load_diabetes

    return load_diabetes(return_X_y=True, scaled=False)
