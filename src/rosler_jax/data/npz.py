"""Data sets in one ``.npz`` file of arrays."""

from __future__ import annotations

import io
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from rosler_jax._npy import DAMAGE
from rosler_jax.data._raw import DataError, Raw
from rosler_jax.data.arrays import from_names
from rosler_jax.data.images import needs_pillow
from rosler_jax.data.npy import map_members
from rosler_jax.data.stream import fits

JPEG = ("jpeg", "offsets", "labels")


def read_arrays(path: Path, mapped: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """All arrays of the file: those that are mapped, and the others read; never unpickles.

    Raises:
      DataError: if the file is damaged, or holds objects.
      OSError: if the file cannot be opened.
    """
    with path.open("rb") as content:
        try:
            with np.load(content, allow_pickle=False) as file:
                read = {name: file[name] for name in file.files if name not in mapped}
                return {**read, **mapped}
        except DAMAGE as error:
            raise DataError(
                f"{path}: not a readable .npz file of plain arrays ({error})"
            ) from error


def read_npz(
    path: Path,
    *,
    targets: str = "classes",
    tokens: bool | None = None,
    stream: bool | None = None,
    **options: Any,
) -> Raw:
    """Reads splits by name, or splits a whole data set.

    Args:
      path: the file. It holds arrays by the names of :func:`rosler_jax.data.arrays.from_names`, or
        JPEG files end to end (``{train,test}_{jpeg,offsets,labels}``), or bearing recordings
        (``<class>_<load>``, see :mod:`rosler_jax.data.cwru`).
      targets, tokens, stream: as of :func:`rosler_jax.data.load`. What streams and is not
        compressed is mapped, not read.
      **options: of :func:`rosler_jax.data.cwru.split_windows`, for recordings alone.

    Returns:
      The splits. Of a whole data set a fixed fifth (of each class) is the test split.

    Raises:
      DataError: if the file is damaged or holds none of the known names.
    """
    mapped = not fits(path.stat().st_size) if stream is None else stream
    arrays = read_arrays(path, map_members(path) if mapped else {})
    raw = _recordings(path, arrays, options)
    if raw is not None:
        return raw
    if options:
        raise DataError(f"{path}: these arrays take no options, got {sorted(options)}")
    if {f"{split}_{part}" for split in ("train", "test") for part in JPEG} <= set(arrays):
        return Raw(train=_jpegs(path, arrays, "train"), test=_jpegs(path, arrays, "test"))
    return from_names(str(path), arrays, targets, tokens)


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
    needs_pillow(path)
    from PIL import Image

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
