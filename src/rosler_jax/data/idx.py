"""Folders of idx files, the format of MNIST and its relatives, gzipped or not."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np

from rosler_jax.data._check import as_inputs, as_labels
from rosler_jax.data._raw import DataError, Raw

DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
STEMS = {
    "train": ("train-images", "train-labels"),
    "test": ("t10k-images", "t10k-labels"),
}


def read_idx(path: Path) -> np.ndarray:
    """Reads one idx file.

    Args:
      path: the file; gzip is decompressed, whatever the name.

    Returns:
      The array, in native byte order.

    Raises:
      DataError: for a truncated or damaged file, or one that is no idx file.
      OSError: if the file cannot be read.
    """
    content = path.read_bytes()
    if path.suffix == ".gz" or content[:2] == b"\x1f\x8b":  # an idx file starts with two zeros
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise DataError(f"{path}: truncated or damaged gzip ({error})") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in DTYPES:
        raise DataError(f"{path}: wrong magic number {content[:4].hex()!r}; this is no idx file")
    dtype, ndim = np.dtype(DTYPES[content[2]]), content[3]
    start = 4 + 4 * ndim
    if ndim < 1 or len(content) < start:
        raise DataError(f"{path}: truncated idx header of {len(content)} bytes")
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", ndim, 4))
    expected = math.prod(shape) * dtype.itemsize
    if len(content) - start != expected:
        raise DataError(
            f"{path}: shape {shape} needs {expected} bytes, the file has {len(content) - start}; "
            "it is truncated or damaged"
        )
    array = np.frombuffer(content, dtype, offset=start).reshape(shape)
    return array.astype(dtype.newbyteorder("="))


def is_folder(folder: Path) -> bool:
    """Whether a folder looks like one of idx files."""
    return folder.is_dir() and any(folder.glob("train-images*"))


def read_folder(folder: Path) -> Raw:
    """Reads the four files ``{train,t10k}-{images,labels}-idx?-ubyte[.gz]`` of a folder.

    Raises:
      DataError: if one is missing or damaged, or labels and images differ in number.
    """
    splits = {}
    for split, stems in STEMS.items():
        paths = [_find(folder, stem) for stem in stems]
        x, y = map(read_idx, paths)
        if len(x) != len(y):
            raise DataError(
                f"{paths[1]}: {len(y)} labels for the {len(x)} images of {paths[0].name}"
            )
        x = as_inputs(x, str(paths[0]))  # checked here, where the file is known
        splits[split] = (x, as_labels(y, len(x), str(paths[1])))
    return Raw(train=splits["train"], test=splits["test"])


def _find(folder: Path, stem: str) -> Path:
    found = sorted(p for p in folder.iterdir() if p.name.startswith(stem) and p.is_file())
    if not found:
        raise DataError(f"{folder}: has no file {stem}-idx?-ubyte or {stem}-idx?-ubyte.gz")
    return found[0]
