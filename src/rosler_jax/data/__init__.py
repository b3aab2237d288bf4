"""Data sets by name or path, as NumPy splits: ``load("mnist5k")``, ``load("folder/of/files")``."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rosler_jax.data._dataset import DataError, Dataset, Raw, make_dataset

__all__ = ["SOURCES", "DataError", "Dataset", "load"]


def _mnist5k(**options: Any) -> Raw:
    from rosler_jax.data.mnist5k import load_mnist5k

    return load_mnist5k(**options)


def _tfds(name: str) -> Callable[..., Raw]:
    def source(**options: Any) -> Raw:
        from rosler_jax.data.tfds import load_tfds

        return load_tfds(name, **options)

    return source


SOURCES: dict[str, Callable[..., Raw]] = {
    "mnist5k": _mnist5k,
    "mnist": _tfds("mnist"),
    "fashion_mnist": _tfds("fashion_mnist"),
    "cifar10": _tfds("cifar10"),
    "cats_vs_dogs": _tfds("cats_vs_dogs"),
    "cwru": _tfds("cwru"),
}
"""Every data set that has a name; the value takes the source's options."""


def load(
    name_or_path: str | os.PathLike[str],
    *,
    validation: float = 0.1,
    seed: int = 0,
    standardize: str = "auto",
    **options: Any,
) -> Dataset:
    """Loads a data set, with a validation split held out of its training data.

    Args:
      name_or_path: a name of :data:`SOURCES` (a string; a ``Path`` is never one), a folder of idx
        files, or a ``.npz`` file.
      validation: fraction of the training data to hold out, class by class, where the source has
        no validation split of its own.
      seed: of that split; the test split does not depend on it.
      standardize: ``"auto"``, ``"features"`` or ``"all"``: what mean and std are of.
      **options: of the source: ``data_dir=`` and ``manual_dir=`` of those that come through
        tensorflow-datasets; ``window=``, ``hop=``, ``features=`` and ``loads=`` of bearing
        recordings.

    Returns:
      The splits.

    Raises:
      DataError: naming the file, what is wrong with it and what was expected.
      OSError: if a file cannot be read.

    Example:
      >>> import numpy as np, tempfile
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(f"{folder}/toy.npz", x=np.eye(20, dtype=np.float32), y=np.arange(20) % 2)
      ...     toy = load(f"{folder}/toy.npz", validation=0.25)
      >>> toy.train_x.shape, toy.validation_x.shape, toy.test_x.shape, toy.num_classes
      ((12, 20), (4, 20), (4, 20), 2)
    """
    raw = read(name_or_path, **options)
    return make_dataset(
        str(name_or_path), raw, validation=validation, seed=seed, standardize=standardize
    )


def read(name_or_path: str | os.PathLike[str], **options: Any) -> Raw:
    """The splits of a data set as its source stores them; arguments as of :func:`load`.

    Raises:
      DataError: naming the file, what is wrong with it and what was expected.
      OSError: if a file cannot be read.
    """
    name = str(name_or_path)
    named = isinstance(name_or_path, str) and name in SOURCES
    return _from_source(name, options) if named else _from_path(Path(name), options)


def _from_source(name: str, options: dict[str, Any]) -> Raw:
    try:
        return SOURCES[name](**options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise DataError(f"{name}: {error}") from error


def _from_path(path: Path, options: dict[str, Any]) -> Raw:
    from rosler_jax.data import idx, npz

    if not path.exists():
        raise DataError(
            f"{path}: no such file or folder, and no data set of that name; known names: "
            f"{', '.join(SOURCES)}"
        )
    if path.is_dir():
        if options:
            raise DataError(
                f"{path}: a folder of idx files takes no options, got {sorted(options)}"
            )
        if idx.is_idx_folder(path):
            return idx.read_folder(path)
        raise DataError(f"{path}: has no idx files (train-images-idx3-ubyte[.gz], ...)")
    if path.suffix == ".npz":
        return npz.read_npz(path, **options)
    raise DataError(f"{path}: expected a folder of idx files or a .npz file")
