"""Data sets in one ``.npz`` file of arrays."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np

from rosler_jax.data._dataset import DataError, Raw, stratified

TEST_FRACTION = 0.2
LAYOUTS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_x", "train_y", "test_x", "test_y"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
WHOLE = (("images", "labels"), ("x", "y"))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of the file; never unpickles.

    Raises:
      DataError: if the file is damaged, or holds objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except (ValueError, zipfile.BadZipFile, zlib.error, EOFError, AttributeError) as error:
        raise DataError(f"{path}: not a readable .npz file of plain arrays ({error})") from error


def read_npz(path: Path, seed: int) -> Raw:
    """Reads splits by name, or splits a whole data set, class by class, by the seed.

    Raises:
      DataError: if the file is damaged or holds none of the known names.
    """
    arrays = read_arrays(path)
    for names in LAYOUTS:
        if set(names) <= set(arrays):
            a, b, c, d = (arrays[name] for name in names)
            return Raw(train=(a, b), test=(c, d))
    for x_name, y_name in WHOLE:
        if {x_name, y_name} <= set(arrays):
            x, y = arrays[x_name], arrays[y_name]
            if len(x) != len(y):
                raise DataError(f"{path}: {len(y)} labels for {len(x)} inputs")
            if "source_index" in arrays:  # the subset of cats and dogs names its own test split
                test = arrays["source_index"] >= 800
                return Raw(train=(x[~test], y[~test]), test=(x[test], y[test]))
            kept, held = stratified(y, TEST_FRACTION, seed)
            return Raw(train=(x[kept], y[kept]), test=(x[held], y[held]))
    known = ", ".join("/".join(names) for names in (*LAYOUTS, *WHOLE))
    raise DataError(f"{path}: holds {sorted(arrays)}; expected {known}")
