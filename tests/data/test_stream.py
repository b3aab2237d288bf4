"""Data that streams: lazy rows, memory maps, and batches in an order given."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from rosler_jax.data import DataError, Raw, load
from rosler_jax.data._lazy import Lazy, chunks, lazy_array, select
from rosler_jax.data.stream import batches, fits, in_order, memory_limit

RNG = np.random.default_rng(0)
X = (RNG.normal(size=(60, 4)) * [1, 10, 100, 1e4]).astype(np.float32)
Y = np.arange(60) % 3
SPLITS = ("train", "validation", "test")


def same(one, other):
    """Whether two data sets are the same to the last bit, streaming or not."""
    for split in SPLITS:
        assert np.array_equal(getattr(one, f"{split}_x"), getattr(other, f"{split}_x"))
        assert getattr(one, f"{split}_x").dtype == getattr(other, f"{split}_x").dtype
        assert np.array_equal(getattr(one, f"{split}_y"), getattr(other, f"{split}_y"))
    assert np.array_equal(one.mean, other.mean) and np.array_equal(one.std, other.std)
    return one.digest == other.digest


def write_npy(folder, **arrays):
    folder.mkdir(exist_ok=True)
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


# --- lazy rows ----------------------------------------------------------------------------------


def test_lazy_rows_are_an_array():
    lazy = lazy_array(X)
    assert (lazy.shape, lazy.ndim, lazy.size, lazy.nbytes) == (X.shape, X.ndim, X.size, X.nbytes)
    index = RNG.permutation(60)[:7]
    for i in (3, -1, slice(2, 9), index, index.tolist(), X[:, 0] > 0):
        assert np.array_equal(lazy[i], X[i]) and lazy[i].shape == X[i].shape
    assert np.array_equal(np.asarray(select(lazy, index)), X[index])
    assert np.array_equal(select(select(lazy, index), np.array([4, 0]))[1], X[index[0]])
    assert np.array_equal(np.stack(list(lazy)), X)
    assert [len(part) for _, part in chunks(lazy, 100)] == [25, 25, 10]
    with pytest.raises(IndexError):
        lazy[60]


def test_lazy_rows_are_read_when_asked_for():
    asked = []

    def read(places):
        asked.extend(places.tolist())
        return X[places]

    lazy = Lazy(read, np.arange(60), (4,), np.dtype(np.float64))
    part = select(lazy.astype(np.float32), np.arange(10, 20))
    assert not asked and part[np.array([5, 2])].dtype == np.float32
    assert asked == [15, 12]


# --- memory maps --------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["uint8", "float32", "float64", "int64", ">f4"])
def test_mapped_folder_is_the_npz(tmp_path, dtype):
    x = (abs(X) % 200).astype(dtype)
    folder = write_npy(tmp_path / "a", x=x, y=Y)
    np.savez(tmp_path / "a.npz", x=x, y=Y)
    memory, whole, lazy = load(tmp_path / "a.npz"), load(folder), load(folder, stream=True)
    assert same(memory, whole) and same(memory, lazy)
    assert lazy.streams and not whole.streams
    assert isinstance(lazy.train_x, Lazy) and isinstance(whole.train_x, np.ndarray)


@pytest.mark.parametrize("write", [np.savez, np.savez_compressed])
def test_npz_that_streams(tmp_path, write):
    path = tmp_path / "a.npz"
    write(path, x_train=X, y_train=Y, x_test=np.asfortranarray(X[:9]), y_test=Y[:9])
    lazy = load(path, stream=True)
    assert same(load(path), lazy) and lazy.streams
    assert isinstance(lazy.train_x, Lazy) == (write is np.savez)
    for keep in (-30, 40, 3):
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz file"):
            load(path, stream=True)


def test_damaged_npz_is_named_or_whole(tmp_path):
    path, rng = tmp_path / "a.npz", np.random.default_rng(0)
    np.savez(path, x=X, y=Y)
    whole = path.read_bytes()
    for _ in range(200):
        content = bytearray(whole)
        content[int(rng.integers(len(whole)))] ^= int(rng.integers(1, 256))
        path.write_bytes(content)
        try:
            load(path, stream=True)
        except DataError as error:
            assert "a.npz" in str(error)


def test_mapped_folders_with_splits_tokens_and_values(tmp_path):
    folder = write_npy(tmp_path / "a", x_train=X, y_train=X[:, 0], x_test=X[:8], y_test=X[:8, 0])
    data = load(folder, targets="values", stream=True)
    assert data.test_x.shape == (8, 4) and data.train_y.shape == (54, 1)
    tokens = RNG.integers(0, 50, size=(40, 6))
    data = load(write_npy(tmp_path / "b", x=tokens), targets="none", stream=True)
    assert data.train_x.dtype == np.int32 and data.vocabulary == tokens.max() + 1
    assert data.train_x[:2].dtype == np.int32 and isinstance(data.train_x, Lazy)


def test_mapped_values_are_checked_by_place(tmp_path):
    x = X.copy()
    x[41, 2] = np.nan
    with pytest.raises(DataError, match=r"array x: 1 values are NaN.*first at \(41, 2\)"):
        load(write_npy(tmp_path / "a", x=x, y=Y), stream=True)
    with pytest.raises(DataError, match=r"a: y of shape \(59,\) is not one label for each of x"):
        load(write_npy(tmp_path / "a", x=X, y=Y[1:]))
    (tmp_path / "a" / "y.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(DataError, match=r"y\.npy: not a readable \.npy file"):
        load(tmp_path / "a")


def test_a_program_may_give_a_memory_map(tmp_path):
    write_npy(tmp_path, x=X)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    lazy = load((mapped, Y), stream=True)
    assert isinstance(lazy.train_x, Lazy) and same(load((X, Y)), lazy)
    raw = Raw(train=(mapped, Y), test=(mapped[:6], Y[:6]))
    assert same(load(Raw(train=(X, Y), test=(X[:6], Y[:6]))), load(raw, stream=True))


# --- images -------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path):
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(20):
            pixels = RNG.integers(0, 256, (5, 6, 3), dtype=np.uint8)
            image.fromarray(pixels).save(tmp_path / name / f"{i}.png")
    return tmp_path


def test_images_that_stream(images):
    memory, lazy = load(images), load(images, stream=True)
    assert same(memory, lazy) and lazy.streams and isinstance(lazy.train_x, Lazy)
    assert lazy.classes == ("cat", "dog")


def test_an_image_damaged_meanwhile_is_named(images):
    pytest.importorskip("grain", reason="needs grain")
    lazy = load(images, stream=True)
    order = RNG.permutation(len(lazy.train_x)).reshape(7, -1)
    for path in (images / "cat").iterdir():
        path.write_bytes(path.read_bytes()[:50])
    for workers in (0, 3):
        with pytest.raises(DataError, match=r"cat/\d+\.png: not a readable image"):
            list(batches(lazy.train_x, lazy.train_y, order, workers=workers))


# --- batches ------------------------------------------------------------------------------------


def slow(x):
    """Rows that take the longer the earlier they are asked for: threads would overtake."""

    def read(places):
        time.sleep(0.002 * (places[0] % 4 == 0))
        return x[places]

    return Lazy(read, np.arange(len(x)), x.shape[1:], x.dtype)


@pytest.mark.parametrize("workers", [0, 1, 2, 5, None])
@pytest.mark.parametrize("lazy", [False, True])
def test_batches_keep_the_order(workers, lazy):
    pytest.importorskip("grain", reason="needs grain")
    order = np.stack([RNG.permutation(60)[:56].reshape(14, 4) for _ in range(3)]).reshape(-1, 4)
    got = list(batches(slow(X) if lazy else X, Y, order, workers=workers))
    assert len(got) == 42
    for (x, y), index in zip(got, order, strict=True):
        assert np.array_equal(x, X[index]) and np.array_equal(y, Y[index])
    rest = list(batches(X, None, order[30:], workers=workers))
    assert all(y is None for _, y in rest)
    assert np.array_equal(np.stack([x for x, _ in rest]), X[order[30:]])


def test_batches_in_order():
    pytest.importorskip("grain", reason="needs grain")
    got = list(batches(X, Y, in_order(60, 16), workers=2))
    assert [len(y) for _, y in got] == [16, 16, 16, 12]
    assert np.array_equal(np.concatenate([x for x, _ in got]), X)
    assert list(batches(X, Y, np.zeros((0, 8), int))) == []


def test_a_stream_left_early_leaves_no_threads():
    pytest.importorskip("grain", reason="needs grain")
    before = threading.active_count()
    for _ in range(5):
        stream = batches(slow(X), Y, in_order(60, 2), workers=4)
        next(stream)
        stream.close()
    deadline = time.monotonic() + 5
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert threading.active_count() <= before


@pytest.mark.slow
def test_without_grain():
    code = (
        "import sys; sys.modules['grain'] = None\n"
        "import numpy as np\n"
        "from rosler_jax.data.stream import batches\n"
        "next(batches(np.eye(2), None, [[0]]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "rosler-jax[stream]" in done.stderr and "ImportError" in done.stderr


# --- whether it fits ----------------------------------------------------------------------------


def test_what_fits(monkeypatch):
    assert 0 < memory_limit() < 1e15 and fits(1000) and not fits(int(memory_limit()) + 1)
    monkeypatch.setattr("rosler_jax.data.stream.memory_limit", lambda: X[:48].nbytes - 1)
    assert load((X, Y)).streams and not load((X, Y), stream=False).streams
    monkeypatch.setattr("rosler_jax.data.stream.memory_limit", lambda: X[:48].nbytes)
    assert not load((X, Y)).streams and load((X, Y), stream=True).streams
