"""Folders of images, one folder for each class, through Pillow."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rosler_jax.data._lazy import Lazy, select
from rosler_jax.data._raw import DataError, Pair, Raw
from rosler_jax.data._split import with_test

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
SPLITS = ("train", "validation", "test")
GREY, COLOUR = ("1", "L"), ("LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")


def is_folder(folder: Path) -> bool:
    """Whether there are images in a folder, or one or two levels below."""
    return folder.is_dir() and any(_images(folder, depth) for depth in ("*", "*/*", "*/*/*"))


def read_folder(
    folder: Path,
    *,
    targets: str = "classes",
    image_size: str | int | Sequence[int] | None = None,
) -> Raw:
    """Reads ``folder/<class>/*.png``, or ``folder/{train,validation,test}/<class>/*.png``.

    Args:
      folder: of images of one size. Where all of them are grey they have one channel, else three.
        Without targets no folders of classes are needed.
      targets: as of :func:`rosler_jax.data.load`.
      image_size: ``height,width`` that images are resized to.

    Returns:
      The splits: lazy images, uint8 ``(examples, height, width, channels)``, and the names of their
      classes. Without folders ``train`` and ``test`` a fixed fifth of each class is the test split.

    Raises:
      DataError: naming the file that is damaged, or of another size than the first.
    """
    needs_pillow(folder)
    parts = _parts(folder, targets)
    files = [path for paths, _ in parts.values() for path in paths]
    size = _size(image_size)
    lazy = _lazy_images(folder, files, size)
    splits: dict[str, Pair] = {}
    start = 0
    for name, (paths, classes) in parts.items():
        rows = np.arange(start, start + len(paths))
        splits[name] = (select(lazy, rows), None if targets == "none" else np.asarray(classes))
        start += len(paths)
    if "test" not in splits:
        splits["train"], splits["test"] = with_test(*splits["train"], targets)[:2]
    return Raw(splits["train"], splits["test"], splits.get("validation"))


def _parts(folder: Path, targets: str) -> dict[str, tuple[list[Path], list[str]]]:
    """Files and classes of each split, or of the whole folder as ``train``."""
    names = {path.name for path in folder.iterdir() if path.is_dir()}
    # A class may be called train: a split has folders of its own, or nothing beside it but splits.
    if "train" in names and (_images(folder / "train", "*/*") or names <= set(SPLITS)):
        return {n: _files(folder / n, targets) for n in SPLITS if n in names}
    return {"train": _files(folder, targets)}


def _files(folder: Path, targets: str) -> tuple[list[Path], list[str]]:
    """Images below a folder in order of their names, and the class of each."""
    found = sorted(_images(folder, "*/*") + (_images(folder, "*") if targets == "none" else []))
    if not found:
        raise DataError(
            f"{folder}: has no images <class>/<name> of {', '.join(SUFFIXES)}, one folder for each "
            "class"
        )
    return found, [path.parent.name for path in found]


def _images(folder: Path, pattern: str) -> list[Path]:
    return [
        path
        for path in folder.glob(pattern)
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".")
    ]


def _lazy_images(folder: Path, files: list[Path], size: tuple[int, int] | None) -> Lazy:
    heads = [_head(path) for path in files]
    first = heads[0][:2]
    if size is None:
        other = next((i for i, head in enumerate(heads) if head[:2] != first), None)
        if other is not None:
            height, width = heads[other][:2]
            raise DataError(
                f"{files[other]}: is {height} x {width}, but {files[0]} {first[0]} x {first[1]}; "
                "pass image_size=HEIGHT,WIDTH to resize them all"
            )
    grey = all(head[2] in GREY for head in heads)
    item = (*(size or first), 1 if grey else 3)

    def read(places: np.ndarray) -> np.ndarray:
        rows = np.empty((len(places), *item), np.uint8)
        for row, place in zip(rows, places, strict=True):
            row[...] = decode(files[place], item)
        return rows

    def content(place: int) -> bytes:
        path = files[place]
        head = f"{path.relative_to(folder).as_posix()}{item};".encode()
        return head + hashlib.blake2b(path.read_bytes(), digest_size=16).digest()

    return Lazy(read, np.arange(len(files)), item, np.dtype(np.uint8), content)


def decode(path: Path, item: tuple[int, ...]) -> np.ndarray:
    """One image as ``(height, width, channels)``, resized if it has another size.

    Raises:
      DataError: naming the file if it is damaged.
    """
    from PIL import Image

    height, width, channels = item
    try:
        with Image.open(path) as image:
            pixels = image.convert("L" if channels == 1 else "RGB")
        if pixels.size != (width, height):
            pixels = pixels.resize((width, height), Image.Resampling.LANCZOS)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from error
    return np.asarray(pixels, np.uint8).reshape(item)


def _head(path: Path) -> tuple[int, int, str]:
    """Height, width and mode of an image; its pixels are not read."""
    from PIL import Image

    try:
        with Image.open(path) as image:
            (width, height), mode = image.size, image.mode
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: not a readable image ({error})") from error
    if mode not in (*GREY, *COLOUR):
        raise DataError(f"{path}: has pixels of mode {mode}; expected 8 bits a channel")
    return height, width, mode


def _size(image_size: Any) -> tuple[int, int] | None:
    if image_size is None:
        return None
    parts = image_size.split(",") if isinstance(image_size, str) else image_size
    try:
        sides = [int(side) for side in (np.ravel(parts).tolist())]
    except (TypeError, ValueError):
        sides = []
    if len(sides) == 1:
        sides *= 2
    if len(sides) != 2 or min(sides) < 1:
        raise DataError(f"image_size={image_size} is not HEIGHT,WIDTH, as 32,32")
    return sides[0], sides[1]


def needs_pillow(where: Any) -> None:
    """Refuses to go on without Pillow.

    Raises:
      DataError: if it is not installed.
    """
    try:
        import PIL.Image  # noqa: F401
    except ImportError as error:
        raise DataError(f"{where}: needs Pillow: pip install 'rosler-jax[data]'") from error
