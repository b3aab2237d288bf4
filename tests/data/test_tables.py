"""CSV and Parquet files with a named target column."""

from __future__ import annotations

import numpy as np
import pytest

from rosler_jax.data import DataError, load

pa = pytest.importorskip("pyarrow", reason="needs pyarrow")

ROWS = 60
COLUMNS = {
    "width": np.linspace(-1.0, 2.0, ROWS),
    "count": np.arange(ROWS) * 700 % 1100,
    "price": np.linspace(5.0, 9.0, ROWS) ** 2,
    "kind": np.array(["cat", "dog", "ant"])[np.arange(ROWS) % 3],
}


def write(path, columns):
    table = pa.table({name: pa.array(values) for name, values in columns.items()})
    if path.suffix == ".csv":
        from pyarrow import csv

        csv.write_csv(table, path)
    else:
        from pyarrow import parquet

        parquet.write_table(table, path)
    return path


@pytest.fixture(params=["a.csv", "a.parquet", "a.pq"])
def table(request, tmp_path):
    return write(tmp_path / request.param, COLUMNS)


def test_names_as_classes(table):
    data = load(table, target="kind", ignore="price")
    assert data.classes == ("ant", "cat", "dog") and data.num_classes == 3
    assert data.train_x.shape == (42, 2) and data.train_x.dtype == np.float32
    row = {np.float32(w): i for i, w in enumerate(COLUMNS["width"])}
    rows = [row[w] for w in data.test_x[:, 0]]
    assert [data.classes[c] for c in data.test_y] == COLUMNS["kind"][rows].tolist()
    assert np.array_equal(data.test_x[:, 1], COLUMNS["count"][rows])
    assert np.shape(data.mean) == (2,)  # a table: one mean for each feature


@pytest.mark.parametrize("target", ["price", "price,width", ["price", "width"]])
def test_values(table, target):
    data = load(table, targets="values", target=target, ignore="kind")
    k = 1 if target == "price" else 2
    assert data.train_y.shape == (43, k) and data.train_x.shape[1] == 3 - k
    assert set(data.test_y[:, 0]) <= set(COLUMNS["price"].astype(np.float32))


def test_both_formats_have_one_digest(tmp_path):
    paths = [write(tmp_path / name, COLUMNS) for name in ("a.csv", "a.parquet")]
    options = {"targets": "values", "target": "price", "ignore": "kind"}
    assert len({load(path, **options).digest for path in paths}) == 1


def test_default_target(tmp_path):
    for name in ("target", "label", "y", "class"):
        columns = {"a": np.arange(20.0), name: np.arange(20) % 2}
        assert load(write(tmp_path / "a.csv", columns)).num_classes == 2
    # Without targets the column of labels is no feature.
    assert load(tmp_path / "a.csv", targets="none").train_x.shape[1] == 1
    both = {"a": np.arange(20.0), "y": np.arange(20) % 2, "label": np.arange(20) % 2}
    with pytest.raises(DataError, match="more than one column is called"):
        load(write(tmp_path / "b.csv", both))


def test_tokens_of_a_table(tmp_path):
    columns = {f"t{i}": np.arange(20) * (i + 1) % 13 for i in range(5)}
    data = load(write(tmp_path / "a.csv", columns), targets="none")
    assert data.train_x.dtype == np.int32 and data.vocabulary == 13


def test_split_column(tmp_path):
    words = np.array(["train"] * 40 + ["validation"] * 12 + ["test"] * 8)
    path = write(tmp_path / "a.csv", COLUMNS | {"split": words})
    data = load(path, target="price", targets="values", ignore="kind")
    assert (len(data.train_x), len(data.validation_x), len(data.test_x)) == (40, 12, 8)
    assert data.train_x.shape[1] == 2
    np.testing.assert_array_equal(data.test_y[:, 0], COLUMNS["price"][-8:].astype(np.float32))
    # Without a row of test, a fifth of the training rows is.
    words[-8:] = "train"
    path = write(tmp_path / "b.csv", COLUMNS | {"split": words})
    data = load(path, target="kind", ignore="price")
    assert (len(data.validation_x), len(data.test_x)) == (12, 9)
    words[17] = "dev"
    with pytest.raises(DataError, match=r"'split' says 'dev' in row 18; expected train"):
        load(write(tmp_path / "b.csv", COLUMNS | {"split": words}), target="kind")
    words[:] = "test"
    with pytest.raises(DataError, match="has no row of 'train'"):
        load(write(tmp_path / "b.csv", COLUMNS | {"split": words}), target="kind", ignore="price")
    numbers = load(write(tmp_path / "c.csv", COLUMNS | {"split": np.arange(60)}), target="kind")
    assert numbers.train_x.shape[1] == 4  # a number of that name is a feature


def test_column_whose_kind_shows_late(tmp_path):
    # Types are those of all rows: a megabyte of whole numbers may be followed by a half.
    path = tmp_path / "a.csv"
    lines = ["a,b,y", *(f"{i},{i % 7},{i % 2}" for i in range(100_000)), "0.5,1,0"]
    path.write_text("\n".join(lines))
    data = load(path)
    assert 0.5 in np.concatenate([data.train_x, data.validation_x, data.test_x])[:, 0]


def test_delimiter_and_booleans(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "a;b;y\n" + "".join(f"{i}.5;{str(i % 3 == 0).lower()};{i % 2}\n" for i in range(30))
    )
    data = load(path, delimiter=";")
    assert set(data.train_x[:, 1]) == {0, 1} and data.num_classes == 2


@pytest.mark.parametrize("bad", ["", "NaN", "null"])
def test_missing_values(tmp_path, bad):
    path = tmp_path / "a.csv"
    path.write_text("a,b,y\n" + "".join(f"{i},{bad if i == 6 else i},{i % 2}\n" for i in range(30)))
    with pytest.raises(DataError, match=r"a\.csv: column 'b' has 1 missing values.* row 7 "):
        load(path)


def test_missing_values_of_parquet(tmp_path):
    values = np.arange(30.0)
    values[11] = np.nan
    path = write(tmp_path / "a.parquet", {"a": values, "y": np.arange(30) % 2})
    with pytest.raises(DataError, match=r"column 'a' has 1 missing values.* row 12 "):
        load(path)
    path = write(tmp_path / "b.parquet", {"a": np.arange(3.0), "y": ["a", None, "b"]})
    with pytest.raises(DataError, match=r"column 'y' has 1 missing values.* row 2 "):
        load(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "price", "targets": "values"}, r"'kind' holds string, as 'cat'.*ignore=kind"),
        ({}, r"no column is called target.*'width', 'count', 'price', 'kind'"),
        ({"target": "cost"}, r"no column 'cost'; its columns are 'width'"),
        ({"target": "kind", "ignore": "id"}, "no column 'id'"),
        ({"target": "kind", "ignore": "width,count,price"}, "no columns beside"),
        ({"target": "price", "ignore": "kind"}, "not whole numbers"),
        ({"target": "kind,price"}, r"labels of shape \(60, 2\)|'kind' holds"),
        ({"target": "kind", "window": 3}, "a.csv: .*'window'"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path, options, message):
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "a.csv", COLUMNS), **options)


def test_files_that_are_no_tables(tmp_path):
    for name in ("a.csv", "a.parquet"):
        for content in (b"", b"a,b\n1,2,3\n", b"\0\xff\xfe"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(DataError, match=name):
                load(tmp_path / name)
    (tmp_path / "a.csv").write_text("a,y\n")
    with pytest.raises(DataError, match=r"a\.csv: has no rows"):
        load(tmp_path / "a.csv")
    (tmp_path / "a.csv").write_text("a,a,y\n1,2,0\n")
    with pytest.raises(DataError, match="more than one column is called 'a'"):
        load(tmp_path / "a.csv")
