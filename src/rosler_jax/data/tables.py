"""Tables with a target column: CSV and Parquet files, through pyarrow."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rosler_jax.data._raw import DataError, Pair, Raw
from rosler_jax.data._split import with_test
from rosler_jax.data.arrays import usable

DEFAULTS = ("target", "label", "y", "class")
"""Names of a target column that need not be said."""

SPLIT, SPLITS = "split", ("train", "validation", "test")


def read_csv(
    path: Path,
    *,
    delimiter: str = ",",
    targets: str = "classes",
    tokens: bool | None = None,
    **options: Any,
) -> Raw:
    """Reads a CSV file whose first line names the columns.

    Args:
      path: the file.
      delimiter: between columns.
      targets, tokens, **options: of :func:`from_table`.

    Raises:
      DataError: naming row and column, if the file cannot be read as numbers.
    """
    pyarrow = _import_pyarrow(path)
    from pyarrow import csv

    # One block: a column's type is that of all its rows, not of those in the first megabyte.
    block = min(max(path.stat().st_size + 1, 2**16), 2**31 - 1)
    try:
        table = csv.read_csv(
            path,
            read_options=csv.ReadOptions(block_size=block),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(strings_can_be_null=True),
        )
    except (pyarrow.ArrowException, ValueError) as error:
        raise DataError(f"{path}: not a readable CSV file ({error})") from error
    return from_table(path, table, targets=targets, tokens=tokens, **options)


def read_parquet(
    path: Path, *, targets: str = "classes", tokens: bool | None = None, **options: Any
) -> Raw:
    """Reads a Parquet file; arguments and errors as of :func:`read_csv`, but for a delimiter."""
    pyarrow = _import_pyarrow(path)
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
    except (pyarrow.ArrowException, ValueError, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file ({error})") from error
    return from_table(path, table, targets=targets, tokens=tokens, **options)


def from_table(
    path: Path,
    table: Any,
    *,
    targets: str = "classes",
    tokens: bool | None = None,
    target: str | Sequence[str] | None = None,
    ignore: str | Sequence[str] = (),
) -> Raw:
    """Splits of a ``pyarrow.Table``: target columns, an optional column ``split``, features.

    Args:
      path: the table comes from, for messages.
      table: of numbers; the target of a classification and ``split`` may be text.
      targets, tokens: as of :func:`rosler_jax.data.load`.
      target: name of the target column, or of several (``"a,b"``); None for one of
        :data:`DEFAULTS`. Without targets these columns are left out.
      ignore: columns that are neither features nor targets, as ``"id,name"``.

    Returns:
      The splits that the column ``split`` names (train, validation, test). Without one, or
      without a row of test, a fixed fifth (of each class) of the training rows is the test split.

    Raises:
      DataError: for missing values, text or other kinds of columns, by row and column.
    """
    names = table.column_names
    if not table.num_rows:
        raise DataError(f"{path}: has no rows below its header")
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"{path}: more than one column is called {', '.join(map(repr, twice))}")
    wanted = _target_columns(path, names, target, targets)
    dropped = _columns(path, names, ignore)
    splits = _split_column(path, table) if SPLIT not in (*wanted, *dropped) else None
    left_out = {*wanted, *dropped, *([] if splits is None else [SPLIT])}
    features = [name for name in names if name not in left_out]
    if not features:
        raise DataError(f"{path}: has no columns beside {', '.join(names)}; nothing to learn from")
    x = np.column_stack([_numbers(path, table, name) for name in features])
    y = None
    if targets != "none":
        columns = [_labels(path, table, name, targets) for name in wanted]
        y = columns[0] if len(columns) == 1 else np.column_stack(columns)
    places = f"{path}, features", f"{path}, {', '.join(wanted)}"
    return _by_split(path, usable((x, y), places, targets, tokens), splits, targets)


def _by_split(path: Path, whole: Pair, splits: np.ndarray | None, targets: str) -> Raw:
    if splits is None:
        return with_test(*whole, targets)
    x, y = whole
    pairs = {
        split: (x[splits == split], None if y is None else y[splits == split])
        for split in SPLITS
        if (splits == split).any()
    }
    if "train" not in pairs:
        raise DataError(f"{path}: column {SPLIT!r} has no row of 'train'")
    if "test" not in pairs:
        pairs["train"], pairs["test"] = with_test(*pairs["train"], targets)[:2]
    return Raw(pairs["train"], pairs["test"], pairs.get("validation"))


def _target_columns(path: Path, names: list[str], target: Any, targets: str) -> list[str]:
    if target is not None:
        return _columns(path, names, target)
    found = [name for name in DEFAULTS if name in names]
    if targets == "none":
        return found
    if len(found) != 1:
        raise DataError(
            f"{path}: {'no' if not found else 'more than one'} column is called "
            f"{', '.join(DEFAULTS)}; pass target= one (or several, as a,b) of "
            f"{', '.join(map(repr, names))}"
        )
    return found


def _columns(path: Path, names: list[str], wanted: str | Sequence[str]) -> list[str]:
    if isinstance(wanted, str):  # a name may hold a comma itself
        wanted = [wanted] if wanted in names else wanted.split(",")
    missing = [name for name in wanted if name not in names]
    if missing:
        raise DataError(
            f"{path}: has no column {', '.join(map(repr, missing))}; its columns are "
            f"{', '.join(map(repr, names))}"
        )
    return list(wanted)


def _present(path: Path, table: Any, name: str) -> Any:
    """A column of which no value is missing."""
    import pyarrow as pa
    import pyarrow.compute as pc

    column = table.column(name)
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    missing = np.asarray(pc.is_null(column, nan_is_null=True))
    if missing.any():
        raise DataError(
            f"{path}: column {name!r} has {int(missing.sum())} missing values, the first in row "
            f"{int(np.argmax(missing)) + 1} (of rows below the header, from 1); fill them in, or "
            "leave out the rows, or the column: ignore="
        )
    return column


def _numbers(path: Path, table: Any, name: str) -> np.ndarray:
    import pyarrow as pa

    column = _present(path, table, name)
    kinds = pa.types
    if kinds.is_decimal(column.type):
        column = column.cast(pa.float64())
    if not (kinds.is_integer(column.type) or kinds.is_floating(column.type)) and not (
        kinds.is_boolean(column.type)
    ):
        raise DataError(
            f"{path}: column {name!r} holds {column.type}, as {str(column[0].as_py())[:40]!r}; "
            "features are numbers. Give a category one column of 0 and 1 for each of its values "
            f"(pandas.get_dummies), or leave the column out: ignore={name}"
        )
    values = column.to_numpy()
    return values.astype(np.int64) if values.dtype.kind == "b" else values


def _labels(path: Path, table: Any, name: str, targets: str) -> np.ndarray:
    import pyarrow as pa

    column = _present(path, table, name)
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    if targets == "classes" and text:
        return np.asarray(column.to_pylist(), np.str_)
    return _numbers(path, table, name)


def _split_column(path: Path, table: Any) -> np.ndarray | None:
    """The column ``split``, if it is one of words; a number of that name is a feature."""
    if SPLIT not in table.column_names:
        return None
    column = _present(path, table, SPLIT)
    if str(column.type) not in ("string", "large_string"):
        return None
    splits = np.asarray(column.to_pylist(), np.str_)
    wrong = np.flatnonzero(~np.isin(splits, SPLITS))
    if wrong.size:
        raise DataError(
            f"{path}: column {SPLIT!r} says {str(splits[wrong[0]])!r} in row {int(wrong[0]) + 1}; "
            f"expected {', '.join(SPLITS)}"
        )
    return splits


def _import_pyarrow(path: Path) -> Any:
    try:
        import pyarrow
    except ImportError as error:
        raise DataError(
            f"{path}: tables are read with pyarrow: pip install 'rosler-jax[data]'"
        ) from error
    return pyarrow
