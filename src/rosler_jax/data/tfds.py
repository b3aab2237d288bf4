"""Data sets through tensorflow-datasets, prepared and read without TensorFlow."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rosler_jax.data._raw import DataError, Raw
from rosler_jax.data._split import with_test

FILE_FORMAT = "array_record"  # the one that needs no TensorFlow
CATS_VS_DOGS_SIZE = 64
MAX_RETRIES = 5  # of a download: 6 seconds, where tensorflow-datasets' own 10 are 200


def load_tfds(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    manual_dir: str | os.PathLike[str] | None = None,
    **builder_kwargs: Any,
) -> Raw:
    """Prepares a data set on first use, downloading it if need be, and reads it.

    Args:
      name: ``mnist``, ``fashion_mnist``, ``cifar10``, ``cats_vs_dogs``, ``cwru``, or any other
        image classification set of tensorflow-datasets whose images have one size.
      data_dir: where prepared data lies; None is tensorflow-datasets' default,
        ``~/tensorflow_datasets``.
      manual_dir: a folder with files downloaded by hand, under their official names, which are
        checked and used in place of a download. ``cwru`` always reads its ``.mat`` files there.
      **builder_kwargs: of the builder; for ``cwru``, options of
        :func:`rosler_jax.data.cwru.split_windows`.

    Returns:
      The splits; images uint8. Of a set without a test split, as ``cats_vs_dogs``, a fixed fifth
      of each class is the test split. ``cats_vs_dogs`` is resized to 64 x 64.

    Raises:
      DataError: if tensorflow-datasets is missing, knows no such set, or cannot prepare it.
    """
    tfds = _import_tfds()
    if name == "cwru":
        builder = _cwru_builder(tfds, data_dir, manual_dir, builder_kwargs)
        groups = ("recording", "load")
        return prepare_and_read(builder, manual_dir=manual_dir, x_key="signal", groups=groups)
    try:
        builder = tfds.builder(name, data_dir=data_dir, file_format=FILE_FORMAT, **builder_kwargs)
    except Exception as error:  # an unknown name, version or option; no common base class
        raise DataError(f"{name}: tensorflow-datasets makes no builder of it ({error})") from error
    resize = _resized if name == "cats_vs_dogs" else None
    return prepare_and_read(builder, manual_dir=manual_dir, transform=resize)


def prepare_and_read(
    builder: Any,
    *,
    manual_dir: str | os.PathLike[str] | None = None,
    x_key: str = "image",
    y_key: str = "label",
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    groups: tuple[str, ...] = (),
) -> Raw:
    """Prepares a builder's data, if that is not done yet, and reads its splits.

    Raises:
      DataError: if that fails, saying what to do.
    """
    tfds = _import_tfds()
    from rosler_jax.data._tensorflow_stand_in import without_tensorflow

    # Files placed by hand are extracted under their own names, the same for mnist and
    # fashion_mnist, and what is extracted already is reused: each builder gets its own folder.
    extracted = f"{builder.name}-{builder.version}"
    config = tfds.download.DownloadConfig(
        extract_dir=Path(builder.data_dir_root) / "downloads" / "extracted" / extracted,
        manual_dir=None if manual_dir is None else str(manual_dir),
    )
    try:
        with without_tensorflow(builder), _few_retries():
            builder.download_and_prepare(download_config=config)
    except DataError:
        raise
    except Exception as error:  # whatever network, disk or builder run into
        raise DataError(_why_not(builder, manual_dir, error)) from error
    read = {
        split: _read_split(builder, split, (x_key, y_key, *groups), transform)
        for split in ("train", "validation", "test")
        if split in builder.info.splits
    }
    if "train" not in read:
        raise DataError(f"{builder.name}: has splits {sorted(read)}, none to train on")
    splits = {split: (x, y) for split, (x, y, *_) in read.items()}
    if "test" not in splits:
        splits["train"], splits["test"] = with_test(*splits["train"])[:2]
    found = dict(zip(groups, read["train"][2:], strict=True))
    return Raw(splits["train"], splits["test"], splits.get("validation"), found or None)


def _import_tfds() -> Any:
    try:
        import array_record.python.array_record_module  # noqa: F401
        import importlib_resources  # noqa: F401
        import tensorflow_datasets
    except ImportError as error:
        raise DataError(
            f"this data set comes through tensorflow-datasets ({error}): "
            "pip install 'rosler-jax[data]'"
        ) from error
    return tensorflow_datasets


@contextlib.contextmanager
def _few_retries() -> Iterator[None]:
    """Lets a machine without a network say so in seconds; no option of the package does."""
    from tensorflow_datasets.core.download import downloader

    before = downloader.MAX_RETRIES
    downloader.MAX_RETRIES = min(before, MAX_RETRIES)
    try:
        yield
    finally:
        downloader.MAX_RETRIES = before


def _cwru_builder(tfds: Any, data_dir: Any, manual_dir: Any, options: dict[str, Any]) -> Any:
    from rosler_jax.data import _cwru_builder

    root = Path(data_dir or tfds.core.constants.DATA_DIR).expanduser()
    folder = Path(manual_dir).expanduser() if manual_dir else root / "downloads" / "manual"
    try:
        config = _cwru_builder.make_config(folder, **options)
    except TypeError as error:
        raise DataError(f"cwru: {error}; options are window, hop, features, loads") from error
    return _cwru_builder.RoslerCwru(config=config, data_dir=root, file_format=FILE_FORMAT)


def _read_split(
    builder: Any,
    split: str,
    keys: tuple[str, ...],
    transform: Callable[[np.ndarray], np.ndarray] | None,
) -> tuple[np.ndarray, ...]:
    """Inputs, and of each further key an integer for each example."""
    where = f"{builder.name}, {split} split"
    try:
        source = builder.as_data_source(split=split)
        examples = [tuple(example[key] for key in keys) for example in _examples(source)]
    except KeyError as error:
        raise DataError(f"{where}: examples have no {error}") from error
    except Exception as error:  # array_record raises RuntimeError and others for damaged files
        raise DataError(
            f"{where}: cannot be read ({error}); delete {builder.data_dir} to prepare it anew"
        ) from error
    if not examples:
        raise DataError(f"{where}: has no examples")
    images = [x if transform is None else transform(x) for x, *_ in examples]
    sizes = {image.shape for image in images}
    if len(sizes) > 1:
        raise DataError(f"{where}: images have {len(sizes)} sizes, as {sorted(sizes)[:2]}")
    rest = zip(*(values for _, *values in examples), strict=True)
    return np.stack(images), *(np.asarray(values, np.int32) for values in rest)


def _examples(source: Any, chunk: int = 1024) -> Any:
    """All examples; by the thousand, as one read each is slow."""
    for start in range(0, len(source), chunk):
        yield from source.__getitems__(list(range(start, min(start + chunk, len(source)))))


def _resized(image: np.ndarray) -> np.ndarray:
    from PIL import Image

    size = (CATS_VS_DOGS_SIZE, CATS_VS_DOGS_SIZE)
    return np.asarray(Image.fromarray(image).convert("RGB").resize(size, Image.Resampling.LANCZOS))


def _why_not(builder: Any, manual_dir: Any, error: Exception) -> str:
    urls = {getattr(info, "filename", None) for info in (builder.url_infos or {}).values()}
    names = ", ".join(sorted(name for name in urls if name)) or "its files"
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    advice = (
        f"place {names} in a folder and pass manual_dir=<folder>"
        if manual_dir is None
        else f"check {names} in {manual_dir}"
    )
    if builder.name in ("mnist", "fashion_mnist"):
        advice += ", or load that folder by its path"
    return (
        f"{builder.name}: could not be downloaded and prepared in {builder.data_dir} "
        f"({type(error).__name__}: {reason}). Without a network {advice}; or pass data_dir= of a "
        "machine that has prepared it"
    )
