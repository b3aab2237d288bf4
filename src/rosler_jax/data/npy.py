"""Memory maps: a folder of ``.npy`` files, and the arrays of a ``.npz`` file stored as they are."""

from __future__ import annotations

import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from rosler_jax._npy import DAMAGE
from rosler_jax.data._raw import DataError, Raw
from rosler_jax.data.arrays import LAYOUTS, WHOLE, from_names


def is_folder(folder: Path) -> bool:
    """Whether a folder holds an ``x.npy``, or inputs by another of the names that are known."""
    return any((folder / f"{names[0]}.npy").is_file() for names in (*LAYOUTS, *WHOLE))


def read_folder(folder: Path, *, targets: str = "classes", tokens: bool | None = None) -> Raw:
    """Reads ``x.npy`` and ``y.npy``, or ``x_train.npy`` and so on; inputs are mapped, not read.

    Args:
      folder: of arrays by the names of :func:`rosler_jax.data.arrays.from_names`.
      targets, tokens: as of :func:`rosler_jax.data.load`.

    Raises:
      DataError: if a file is damaged, or arrays do not match.
    """
    arrays = {path.stem: _map(path) for path in sorted(folder.glob("*.npy"))}
    return from_names(str(folder), arrays, targets, tokens)


def _map(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except DAMAGE as error:
        raise DataError(f"{path}: not a readable .npy file ({error})") from error


def map_members(path: Path) -> dict[str, np.ndarray]:
    """Maps the arrays of a ``.npz`` file that are not compressed (``numpy.savez``); leaves others.

    Zip's checksums are of whole arrays, and are not looked at.

    Raises:
      DataError: if the file is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            stored = [i for i in archive.infolist() if i.compress_type == zipfile.ZIP_STORED]
            found = {i.filename.removesuffix(".npy"): _map_at(path, file, i) for i in stored}
    except DAMAGE as error:
        raise DataError(f"{path}: not a readable .npz file ({error})") from error
    return {name: array for name, array in found.items() if array is not None}


def _map_at(path: Path, file: Any, member: zipfile.ZipInfo) -> np.ndarray | None:
    file.seek(member.header_offset + 26)  # lengths of name and extra field, which end the header
    name, extra = struct.unpack("<HH", file.read(4))
    file.seek(name + extra, 1)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject or 0 in shape or not shape:
        return None
    return np.memmap(path, dtype, "r", file.tell(), shape, "F" if fortran else "C")
