"""Targets of every kind, tokens, arrays in memory and sources of one's own."""

from __future__ import annotations

import numpy as np
import pytest

from rosler_jax.data import PATHS, SOURCES, DataError, Form, Raw, load, read
from rosler_jax.data._dataset import checked, held_out

RNG = np.random.default_rng(0)
X = RNG.normal(size=(50, 3)).astype(np.float32)


def whole(data, part):
    """All rows of a data set's splits."""
    return np.concatenate([getattr(data, f"{s}_{part}") for s in ("train", "validation", "test")])


@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 4)])
def test_values(shape):
    y = RNG.normal(3.0, 2.0, size=shape)
    data = load((X, y), targets="values", seed=4)
    assert data.targets == "values" and data.num_classes is None and data.classes is None
    assert data.train_y.dtype == np.float32 and data.train_y.shape == (36, *(shape[1:] or (1,)))
    # The split keeps each row's target, whatever the seed.
    place = {x.tobytes(): i for i, x in enumerate(X)}
    rows = [place[x.tobytes()] for x in whole(data, "x")]
    assert sorted(rows) == list(range(50))
    assert np.array_equal(whole(data, "y"), y.reshape(50, -1)[rows].astype(np.float32))
    np.testing.assert_allclose(data.target_mean, data.train_y.mean(0), rtol=1e-5)
    np.testing.assert_allclose(data.target_std, data.train_y.std(0), rtol=1e-5)
    assert data.target_mean.dtype == np.float64


def test_a_constant_target_is_divided_by_one():
    data = load((X, np.c_[X[:, 0], np.full(50, 7.0)]), targets="values")
    assert data.target_mean[1] == 7 and data.target_std[1] == 1


def test_random_splits_depend_on_the_seed_but_for_the_test():
    y = RNG.normal(size=50)
    first, same, other = (load((X, y), targets="values", seed=seed) for seed in (1, 1, 2))
    assert np.array_equal(first.validation_x, same.validation_x)
    assert not np.array_equal(first.validation_x, other.validation_x)
    assert np.array_equal(first.test_x, other.test_x) and first.digest == other.digest
    assert len(first.validation_x) == 4 and len(first.test_x) == 10


def test_flags():
    y = RNG.integers(0, 2, size=(50, 6))
    data = load((X, y), targets="flags")
    assert data.train_y.dtype == np.float32 and data.train_y.shape == (36, 6)
    assert data.num_classes is None and data.target_mean is None
    y[7, 2] = 2
    with pytest.raises(DataError, match=r"flags are 0 or 1, but target 2 of example 7 is 2"):
        load((X, y), targets="flags")
    assert load((X, X[:, 0] > 0), targets="flags").test_y.shape == (10, 1)


@pytest.mark.parametrize("source", [X, (X, None), (X, np.arange(50)), {"x": X, "y": X}, {"x": X}])
def test_no_targets(source):
    data = load(source, targets="none")
    assert data.train_y is data.validation_y is data.test_y is None
    assert data.train_x.shape == (36, 3) and data.num_classes is None and data.name == "arrays"
    assert data.digest == load(X, targets="none").digest


def test_labels_of_a_named_set_are_left_out():
    data = load("mnist5k", targets="none")
    assert data.train_y is None and data.num_classes is None and len(data.train_x) == 3600


@pytest.mark.parametrize("given", [None, True])
def test_tokens_stay_integers(given):
    x = RNG.integers(0, 90, size=(50, 8))
    x[3, 1] = 99
    data = load(x, targets="none", tokens=given)
    assert data.train_x.dtype == data.test_x.dtype == np.int32 and data.vocabulary == 100
    assert data.mean is None and data.std is None
    assert sorted(map(bytes, whole(data, "x"))) == sorted(map(bytes, x.astype(np.int32)))


def test_tokens_if_said_so():
    x, y = RNG.integers(0, 90, size=(50, 8)), np.arange(50) % 2
    assert load((x, y), tokens=True).train_x.dtype == np.int32
    assert load((x, y)).train_x.dtype == np.float32 and load((x, y)).vocabulary is None
    assert load(x, targets="none", tokens=False).train_x.dtype == np.float32
    assert load(x.astype(np.uint8), targets="none").train_x.dtype == np.uint8
    assert load(x.astype(np.uint8), targets="none", tokens=True).vocabulary == x.max() + 1
    with pytest.raises(DataError, match=r"whole numbers, but inputs have dtype float32"):
        load(X, targets="none", tokens=True)
    with pytest.raises(DataError, match=r"tokens run from -1 to .*pass tokens=False"):
        load(x - 1, targets="none")


def test_tokens_of_a_file(tmp_path):
    x = RNG.integers(0, 7, size=(20, 5))
    np.savez(tmp_path / "a.npz", x=x)
    assert load(tmp_path / "a.npz", targets="none").vocabulary == 7
    with pytest.raises(DataError, match=r"a\.npz: holds \['x'\]"):
        load(tmp_path / "a.npz")


def test_npz_of_values(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=X, y_train=X[:, :2], x_test=X[:9], y_test=X[:9, :2])
    data = load(tmp_path / "a.npz", targets="values")
    assert data.train_y.shape == (45, 2) and np.array_equal(data.test_y, X[:9, :2])
    np.savez(tmp_path / "b.npz", x=X, y=np.full(49, 0.5))
    with pytest.raises(DataError, match=r"b\.npz: y of shape \(49,\) is not one row for each of x"):
        load(tmp_path / "b.npz", targets="values")


def test_names_of_classes():
    y = np.array(["pear", "apple", "fig"])[np.arange(50) % 3]
    data = load((X, y))
    assert data.classes == ("apple", "fig", "pear") and data.num_classes == 3
    assert data.train_y.dtype == np.int32 and data.digest != load((X, y[::-1])).digest
    place = {x.tobytes(): i for i, x in enumerate(X)}
    assert [data.classes[c] for c in data.test_y] == [y[place[x.tobytes()]] for x in data.test_x]
    # A class that only the test split has is a class.
    raw = Raw(train=(X, y), test=(X[:2], np.array(["plum", "fig"])))
    assert load(raw).classes == ("apple", "fig", "pear", "plum")
    with pytest.raises(DataError, match="some splits name their classes and others number them"):
        load(raw._replace(test=(X[:2], np.array([0, 1]))))


@pytest.mark.parametrize(
    ("y", "targets", "message"),
    [
        (None, "classes", "no targets, but the task needs classes"),
        (np.full(50, 0.5), "classes", "real numbers are the targets of a regression"),
        (np.full((50, 2, 2), 0.5), "values", r"targets of shape \(50, 2, 2\)"),
        (np.full(49, 0.5), "values", r"50 inputs but targets of shape \(49,\)"),
        (np.full(50, np.nan), "values", r"50 targets' values are NaN.*first at \(0, 0\)"),
        (np.array(["a"] * 50), "values", "values are numbers"),
        (np.arange(50), "numbers", "targets='numbers' is none of classes, values, flags, none"),
    ],
)
def test_targets_that_cannot_be_used(y, targets, message):
    with pytest.raises(DataError, match=message):
        load((X, y), targets=targets)


def test_arrays_of_other_forms():
    y = np.arange(50) % 5
    raw = Raw(train=(X, y), test=(X[:5], y[:5]), validation=(X[:10], y[:10]))
    data = load(raw)
    assert len(data.train_x) == 50 and len(data.validation_x) == 10 and len(data.test_x) == 5
    named = load({"x_train": X, "y_train": y, "x_test": X[:5], "y_test": y[:5]})
    assert len(named.test_x) == 5 and named.num_classes == 5
    with pytest.raises(DataError, match="a tuple of 3; expected a pair"):
        load((X, y, y))
    with pytest.raises(DataError, match="arrays take no options"):
        load((X, y), target="price")
    with pytest.raises(DataError, match="the splits' targets differ in shape"):
        load(Raw(train=(X, X), test=(X, X[:, :2])), targets="values")


SOURCE = """
import numpy as np
from rosler_jax.data import Raw

def pair(rows=40, targets="classes"):
    x = np.arange(4.0 * rows).reshape(rows, 4)
    return x, np.arange(rows) % 2 if targets == "classes" else x[:, 0]

def splits():
    x, y = pair()
    return Raw(train=(x, y), test=(x[:4], y[:4]))

TABLE = pair()
"""


def test_a_function_of_ones_own(tmp_path):
    file = tmp_path / "my_data.py"
    file.write_text(SOURCE)
    assert len(load(f"{file}:pair").test_x) == 8
    assert len(load(f"{file}:pair", rows=100).test_x) == 20
    assert load(f"{file}:pair", targets="values").train_y.dtype == np.float32
    assert len(load(f"{file}:splits").test_x) == 4
    assert load(f"{file}:TABLE").digest == load(f"{file}:pair").digest
    with pytest.raises(DataError, match=r"my_data\.py:pair: .*'lines'"):
        load(f"{file}:pair", lines=3)
    with pytest.raises(DataError, match="has no 'other'"):
        load(f"{file}:other")
    with pytest.raises(DataError, match="no_such_module_of_mine cannot be imported"):
        load("no_such_module_of_mine:data")


def test_a_source_and_a_form_of_path_from_outside(tmp_path, monkeypatch):
    monkeypatch.setitem(SOURCES, "steps", lambda n=20: (np.eye(n), np.arange(n) % 2))
    assert load("steps", n=40).train_x.shape == (28, 40)
    form = Form(
        "a .txt file",
        lambda path: path.suffix == ".txt",
        lambda path: (np.loadtxt(path)[:, :-1], np.loadtxt(path)[:, -1]),
    )
    monkeypatch.setattr("rosler_jax.data.PATHS", [*PATHS, form])
    np.savetxt(tmp_path / "a.txt", np.c_[X, np.arange(50) % 2])
    assert load(tmp_path / "a.txt").num_classes == 2


def test_what_a_sweep_reads():
    y = RNG.normal(size=50)
    splits = checked("toy", read((X, y), targets="values"), "values")
    kept, held = held_out("toy", splits["train"][1], 0.25, 0, targets="values")
    assert len(kept) == 30 and len(held) == 10 and sorted([*kept, *held]) == list(range(40))
    with pytest.raises(DataError, match="toy: one example only"):
        held_out("toy", y[:1], 0.25, 0, targets="values")
