"""Data sets in one ``.npz`` file of arrays."""

from __future__ import annotations

import io
import itertools
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from rosler_jax.data._dataset import DataError, Raw, as_inputs, as_labels, stratified

TEST_FRACTION = 0.2
SPLIT_SEED = 5000  # fixed: a test split that a file lacks is the same whatever the run's seed
LAYOUTS = (
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_x", "train_y", "test_x", "test_y"),
    ("train_images", "train_labels", "test_images", "test_labels"),
)
WHOLE = (("images", "labels"), ("x", "y"))
JPEG = ("jpeg", "offsets", "labels")


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays of the file; never unpickles.

    Raises:
      DataError: if the file is damaged, or holds objects.
      OSError: if the file cannot be opened.
    """
    # Damaged offsets, sizes and methods lead zipfile to all of these, OSError among them.
    damage = (
        ValueError,
        TypeError,
        EOFError,
        OSError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
    )
    with path.open("rb") as content:
        try:
            with np.load(content, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except damage as error:
            raise DataError(
                f"{path}: not a readable .npz file of plain arrays ({error})"
            ) from error


def read_npz(path: Path, **options: Any) -> Raw:
    """Reads splits by name, or splits a whole data set, class by class.

    Args:
      path: the file. It holds the arrays of one of :data:`LAYOUTS` or :data:`WHOLE`, or JPEG files
        end to end (``{train,test}_{jpeg,offsets,labels}``), or bearing recordings
        (``<class>_<load>``, see :mod:`rosler_jax.data.cwru`).
      **options: of :func:`rosler_jax.data.cwru.split_windows`, for recordings alone.

    Returns:
      The splits. Of a whole data set a fixed fifth of each class is the test split.

    Raises:
      DataError: if the file is damaged or holds none of the known names.
    """
    arrays = read_arrays(path)
    raw = _recordings(path, arrays, options)
    if raw is not None:
        return raw
    if options:
        raise DataError(f"{path}: these arrays take no options, got {sorted(options)}")
    for names in LAYOUTS:
        if set(names) <= set(arrays):
            pairs = [(names[0], names[1]), (names[2], names[3])]
            train, test = (_checked(path, arrays, *pair) for pair in pairs)
            return Raw(train=train, test=test)
    if {f"{split}_{part}" for split in ("train", "test") for part in JPEG} <= set(arrays):
        return Raw(train=_jpegs(path, arrays, "train"), test=_jpegs(path, arrays, "test"))
    for x_name, y_name in WHOLE:
        if {x_name, y_name} <= set(arrays):
            x, y = _checked(path, arrays, x_name, y_name)
            if "source_index" in arrays:  # the subset of cats and dogs names its own test split
                index = arrays["source_index"]
                if index.shape != y.shape:
                    raise DataError(f"{path}: source_index of shape {index.shape}, not {y.shape}")
                test_rows = index >= 800
                return Raw(train=(x[~test_rows], y[~test_rows]), test=(x[test_rows], y[test_rows]))
            kept, held = stratified(y, TEST_FRACTION, SPLIT_SEED)
            return Raw(train=(x[kept], y[kept]), test=(x[held], y[held]))
    known = ", ".join("/".join(names) for names in (*LAYOUTS, *WHOLE))
    raise DataError(f"{path}: holds {sorted(arrays)}; expected {known}")


def _checked(
    path: Path, arrays: dict[str, np.ndarray], x_name: str, y_name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Checks before any split, so that a message names the array and the place in it."""
    x, y = arrays[x_name], arrays[y_name]
    if x.ndim < 1 or y.shape not in ((len(x),), (len(x), 1)):
        raise DataError(
            f"{path}: {y_name} of shape {y.shape} is not one label for each of {x_name}, {x.shape}"
        )
    x = as_inputs(x, f"{path}, array {x_name}")
    return x, as_labels(y, len(x), f"{path}, array {y_name}")


def _recordings(path: Path, arrays: dict[str, np.ndarray], options: dict[str, Any]) -> Raw | None:
    from rosler_jax.data import cwru

    recordings = cwru.recordings_of_arrays(arrays, path)
    if recordings is None:
        return None
    try:
        return cwru.split_windows(recordings, **options)
    except TypeError as error:
        raise DataError(f"{path}: {error}; options are window, hop, features, loads") from error


def _jpegs(path: Path, arrays: dict[str, np.ndarray], split: str) -> tuple[np.ndarray, np.ndarray]:
    try:
        from PIL import Image
    except ImportError as error:
        raise DataError(f"{path}: needs Pillow: pip install 'rosler-jax[data]'") from error
    content, offsets, labels = (arrays[f"{split}_{part}"] for part in JPEG)
    cuts = offsets.shape == (labels.size + 1,) and labels.size > 0
    if not cuts or offsets[-1] != len(content) or (offsets[1:] <= offsets[:-1]).any():
        raise DataError(
            f"{path}: {split}_offsets of shape {offsets.shape} do not cut the {content.size} bytes "
            f"of {split}_jpeg into {labels.size} images"
        )
    images = []
    for start, end in itertools.pairwise(offsets):
        try:
            with Image.open(io.BytesIO(content[start:end].tobytes())) as image:
                images.append(np.asarray(image.convert("RGB")))
        except OSError as error:
            raise DataError(f"{path}: {split} image {len(images)} is no JPEG ({error})") from error
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise DataError(f"{path}: {split} images have {len(sizes)} sizes, as {sorted(sizes)[:2]}")
    return np.stack(images), labels
