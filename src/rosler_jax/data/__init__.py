"""Data sets by name, path or as arrays, as splits: ``load("mnist5k")``, ``load("table.csv")``."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from rosler_jax._lookup import is_reference, referred
from rosler_jax.data import arrays, idx, images, mnist5k, npy, npz, tables, tfds
from rosler_jax.data._check import TARGETS
from rosler_jax.data._dataset import DataError, Dataset, Raw, make_dataset

__all__ = ["PATHS", "SOURCES", "DataError", "Dataset", "Form", "Raw", "load", "read"]


SOURCES: dict[str, Callable[..., Any]] = {
    "mnist5k": mnist5k.load_mnist5k,
    "mnist": functools.partial(tfds.load_tfds, "mnist"),
    "fashion_mnist": functools.partial(tfds.load_tfds, "fashion_mnist"),
    "cifar10": functools.partial(tfds.load_tfds, "cifar10"),
    "cats_vs_dogs": functools.partial(tfds.load_tfds, "cats_vs_dogs"),
    "cwru": functools.partial(tfds.load_tfds, "cwru"),
}
"""Every data set that has a name: a function of the source's options, and of ``targets``,
``tokens`` and ``stream`` of :func:`load` if it names them."""


class Form(NamedTuple):
    """One form of path that is understood.

    Attributes:
      what: it is, in words.
      matches: whether a path that exists has this form.
      read: of the path, and of what a function of :data:`SOURCES` takes.

    Example:
      >>> import numpy as np
      >>> def read_text(path, **options):
      ...     rows = np.loadtxt(path)
      ...     return rows[:, 1:], rows[:, 0].astype(int)
      >>> form = Form("a .txt file, the class first", lambda path: path.suffix == ".txt", read_text)
      >>> form.matches(Path("rows.txt")), form.matches(Path("rows.csv"))
      (True, False)
    """

    what: str
    matches: Callable[[Path], bool]
    read: Callable[..., Any]


def _suffix(*suffixes: str) -> Callable[[Path], bool]:
    return lambda path: path.is_file() and path.suffix.lower() in suffixes


PATHS: list[Form] = [
    Form("a folder of idx files (train-images-idx3-ubyte, ...)", idx.is_folder, idx.read_folder),
    Form("a folder of x.npy and y.npy", npy.is_folder, npy.read_folder),
    Form("a folder of images by class (CLASS/*.png)", images.is_folder, images.read_folder),
    Form("a .npz file", _suffix(".npz"), npz.read_npz),
    Form("a .csv file", _suffix(".csv"), tables.read_csv),
    Form("a .parquet or .pq file", _suffix(".parquet", ".pq"), tables.read_parquet),
]
"""Every form of path; the first that matches reads it."""


def load(
    source: Any,
    *,
    validation: float = 0.1,
    seed: int = 0,
    standardize: str = "auto",
    targets: str = "classes",
    tokens: bool | None = None,
    stream: bool | None = None,
    **options: Any,
) -> Dataset:
    """Loads a data set, with a validation split held out of its training data.

    Args:
      source: a name of :data:`SOURCES` (a string; a ``Path`` is never one); a path of one of the
        forms of :data:`PATHS`; ``FILE.py:NAME`` or ``MODULE:NAME`` of arrays, or of a function that
        returns them; or arrays: a :class:`Raw`, a pair ``(x, y)``, inputs alone, or a dictionary.
      validation: fraction of the training data to hold out, class by class (of targets of another
        kind at random), where the source has no validation split of its own.
      seed: of that split; the test split does not depend on it.
      standardize: ``"auto"``, ``"features"`` or ``"all"``: what mean and std are of.
      targets: what y is: ``"classes"``, ``"values"`` (real numbers), ``"flags"`` (0 or 1 each), or
        ``"none"``: the inputs are the targets, and labels are left out.
      tokens: whether inputs are tokens, which stay integers; None for whole numbers in rows, other
        than bytes, that have no targets.
      stream: whether the data stays where it is and is read batch by batch; None if it is too large
        for the device.
      **options: of the source: ``data_dir=`` and ``manual_dir=`` of those that come through
        tensorflow-datasets; ``window=``, ``hop=``, ``features=`` and ``loads=`` of bearing
        recordings; ``target=``, ``ignore=`` and ``delimiter=`` of tables; ``image_size=`` of
        images; those of your own function.

    Returns:
      The splits.

    Raises:
      DataError: naming the file, what is wrong with it and what was expected.
      OSError: if a file cannot be read.

    Example:
      >>> import numpy as np
      >>> toy = load((np.eye(20), np.arange(20) % 2), validation=0.25)
      >>> toy.train_x.shape, toy.validation_x.shape, toy.test_x.shape, toy.num_classes
      ((12, 20), (4, 20), (4, 20), 2)
      >>> load((np.eye(20), np.arange(20) / 7), targets="values").target_mean.shape
      (1,)
    """
    raw = read(source, targets=targets, tokens=tokens, stream=stream, **options)
    return make_dataset(
        _name(source),
        raw,
        validation=validation,
        seed=seed,
        standardize=standardize,
        targets=targets,
        tokens=tokens,
        stream=stream,
    )


def read(
    source: Any,
    *,
    targets: str = "classes",
    tokens: bool | None = None,
    stream: bool | None = None,
    **options: Any,
) -> Raw:
    """The splits of a data set as its source stores them; arguments as of :func:`load`.

    Raises:
      DataError: naming the file, what is wrong with it and what was expected.
      OSError: if a file cannot be read.

    Example:
      >>> import tempfile, numpy as np
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     np.savez(f"{folder}/toy.npz", x=np.eye(20), y=np.arange(20) % 2)
      ...     raw = read(f"{folder}/toy.npz")
      >>> raw.train[0].shape, raw.test[0].shape, raw.validation
      ((16, 20), (4, 20), None)
    """
    name = _name(source)
    if targets not in TARGETS:
        raise DataError(f"targets={targets!r} is none of {', '.join(TARGETS)}")
    function = _reader(source)
    if callable(function):
        asked = {"targets": targets, "tokens": tokens, "stream": stream}
        function = _called(name, function, asked, options)
    elif options:
        raise DataError(f"{name}: arrays take no options, got {sorted(options)}")
    return arrays.as_raw(name, function, targets, tokens)


def _name(source: Any) -> str:
    return str(source) if isinstance(source, str | os.PathLike) else "arrays"


def _reader(source: Any) -> Any:
    """The function that reads a source, or the arrays themselves."""
    if not isinstance(source, str | os.PathLike):
        return source
    name, path = str(source), Path(source)
    if isinstance(source, str) and name in SOURCES:
        return SOURCES[name]
    if path.exists():
        for form in PATHS:
            if form.matches(path):
                return functools.partial(form.read, path)
    elif is_reference(name):
        try:
            return referred(name)
        except ValueError as error:
            raise DataError(str(error)) from error
    reason = "is nothing that is understood" if path.exists() else "no such file or folder"
    raise DataError(
        f"{path}: {reason}; expected {'; '.join(form.what for form in PATHS)}; FILE.py:NAME or "
        f"MODULE:NAME of a function that returns arrays; or a name: {', '.join(SOURCES)}"
    )


def _called(
    name: str, function: Callable[..., Any], asked: dict[str, Any], options: dict[str, Any]
) -> Any:
    """Calls a source with all options, and with what it names of the rest."""
    named = inspect.signature(function).parameters
    given = {key: value for key, value in asked.items() if key in named}
    try:
        return function(**given, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise DataError(f"{name}: {error}") from error
