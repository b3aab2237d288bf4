"""Sources that need no network and no tensorflow-datasets: digits, idx folders, npz files."""

from __future__ import annotations

import gzip
import io
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from rosler_jax.data import SOURCES, DataError, load
from rosler_jax.data._moments import moments, standardization
from rosler_jax.data._split import stratified
from rosler_jax.data.idx import read_idx


def idx_bytes(array: np.ndarray) -> bytes:
    codes = {"uint8": 0x08, "int32": 0x0C, "float32": 0x0D}
    header = struct.pack(">HBB", 0, codes[array.dtype.name], array.ndim)
    big_endian = array.astype(array.dtype.newbyteorder(">"))
    return header + struct.pack(f">{array.ndim}I", *array.shape) + big_endian.tobytes()


def write_idx_folder(folder: Path, *, zipped: bool, train: int = 40, test: int = 10) -> Path:
    rng = np.random.default_rng(0)
    for stem, n in (("train", train), ("t10k", test)):
        x = rng.integers(0, 256, (n, 4, 3), dtype=np.uint8)
        y = (np.arange(n) % 5).astype(np.uint8)
        for name, array in ((f"{stem}-images-idx3-ubyte", x), (f"{stem}-labels-idx1-ubyte", y)):
            content = idx_bytes(array)
            if zipped:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return folder


def rows(x: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in x}


@pytest.mark.slow
def test_import_is_light():
    code = (
        "import sys, rosler_jax.data\n"
        "heavy = ['scipy', 'tensorflow_datasets', 'PIL', 'mlxtend', 'pandas', 'rosler_jax.run']\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_mnist5k():
    data = load("mnist5k", validation=0.1, seed=3)
    assert data.train_x.shape == (3600, 28, 28) and data.validation_x.shape == (400, 28, 28)
    assert data.test_x.shape == (1000, 28, 28)
    assert data.train_x.dtype == np.uint8 and data.train_y.dtype == np.int32
    assert np.bincount(data.test_y).tolist() == [100] * 10
    assert np.bincount(data.validation_y).tolist() == [40] * 10
    assert data.num_classes == 10
    # All of MNIST has mean 33.3 and standard deviation 78.6; this is a sample of 3600 images.
    assert abs(data.mean - 33.3) < 1 and abs(data.std - 78.6) < 1


def test_mnist5k_refuses_options():
    with pytest.raises(DataError, match=r"mnist5k.*window"):
        load("mnist5k", window=3)


@pytest.mark.parametrize("zipped", [False, True])
def test_idx_folder(tmp_path, zipped):
    data = load(write_idx_folder(tmp_path, zipped=zipped), validation=0.25)
    assert data.train_x.shape == (30, 4, 3) and data.validation_x.shape == (10, 4, 3)
    assert data.test_x.shape == (10, 4, 3) and data.train_x.dtype == np.uint8
    expected = np.random.default_rng(0).integers(0, 256, (40, 4, 3), dtype=np.uint8)
    assert rows(data.train_x) | rows(data.validation_x) == rows(expected)
    # The split keeps the order, so each image still has the label it was written with.
    place = {row.tobytes(): i for i, row in enumerate(expected)}
    assert [place[x.tobytes()] % 5 for x in data.train_x] == data.train_y.tolist()


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32"])
def test_read_idx_dtypes(tmp_path, dtype):
    array = (np.arange(24).reshape(2, 3, 4) * 1.0).astype(dtype)
    path = tmp_path / "a-idx3"
    path.write_bytes(idx_bytes(array))
    got = read_idx(path)
    assert got.dtype == np.dtype(dtype) and np.array_equal(got, array)


@pytest.mark.slow
def test_real_mnist(real_data):
    folder = real_data / "mnist"
    if not folder.is_dir():
        pytest.skip(f"no MNIST in {folder}")
    data = load(folder)
    whole = np.concatenate([data.train_x, data.validation_x])
    assert whole.shape == (60000, 28, 28) and data.test_x.shape == (10000, 28, 28)
    # A tenth of each of ten classes, each rounded.
    assert abs(len(data.validation_x) - 6000) <= 5
    assert whole.mean() / 255 == pytest.approx(0.1307, abs=5e-5)
    assert whole.std() / 255 == pytest.approx(0.3081, abs=5e-5)


def test_real_cats_and_dogs(real_data):
    path = real_data / "cats_dogs_64.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    data = load(path)
    assert len(data.train_x) + len(data.validation_x) == 1600 and len(data.test_x) == 402
    assert data.train_x.shape[1:] == (64, 64, 3) and data.num_classes == 2


def test_wrong_path(tmp_path):
    with pytest.raises(DataError, match=r"no_such.*mnist5k"):
        load(tmp_path / "no_such")
    with pytest.raises(DataError, match=r"nothing that is understood; expected .*idx files"):
        load(tmp_path)
    other = tmp_path / "data.xls"
    other.write_text("1,2\n")
    with pytest.raises(DataError, match=r"data\.xls.*\.npz.*\.csv.*\.parquet.*FILE\.py:NAME"):
        load(other)


def test_options_that_a_path_does_not_take(tmp_path):
    write_idx_folder(tmp_path, zipped=False)
    with pytest.raises(DataError, match="window"):
        load(tmp_path, window=8)


@pytest.mark.parametrize("keep", [5, -9, -1])
def test_truncated_gzip(tmp_path, keep):
    path = write_idx_folder(tmp_path, zipped=True) / "train-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: truncated or damaged gzip"):
        load(tmp_path)


def test_damaged_gzip(tmp_path):
    path = write_idx_folder(tmp_path, zipped=True) / "train-images-idx3-ubyte.gz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))
    with pytest.raises(DataError, match=r"train-images-idx3-ubyte\.gz: "):
        load(tmp_path)


@pytest.mark.parametrize("head", [b"\x89PNG", b"\0\0\x07\x03", b"\0\0", b""])
def test_wrong_magic(tmp_path, head):
    path = write_idx_folder(tmp_path, zipped=False) / "t10k-images-idx3-ubyte"
    path.write_bytes(head + path.read_bytes()[4:] if len(head) == 4 else head)
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte: wrong magic"):
        load(tmp_path)


def test_truncated_idx(tmp_path):
    path = write_idx_folder(tmp_path, zipped=False) / "t10k-images-idx3-ubyte"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte: shape .* needs 120 bytes.* 119"):
        load(tmp_path)
    path.write_bytes(whole[:9])
    with pytest.raises(DataError, match="t10k-images-idx3-ubyte: truncated idx header"):
        load(tmp_path)


def test_gzip_without_its_suffix(tmp_path):
    write_idx_folder(tmp_path, zipped=False)
    expected = load(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(gzip.compress(path.read_bytes()))
    assert np.array_equal(load(tmp_path).train_x, expected.train_x)


def test_idx_values_that_are_no_numbers(tmp_path):
    path = write_idx_folder(tmp_path, zipped=False) / "t10k-images-idx3-ubyte"
    x = np.ones((10, 4, 3), np.float32)
    x[6, 1, 2] = np.nan
    path.write_bytes(idx_bytes(x))
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte: 1 values.*first at \(6, 1, 2\)"):
        load(tmp_path)


def test_idx_counts_differ(tmp_path):
    path = write_idx_folder(tmp_path, zipped=False) / "train-labels-idx1-ubyte"
    path.write_bytes(idx_bytes(np.zeros(39, np.uint8)))
    with pytest.raises(DataError, match="train-labels-idx1-ubyte: 39 labels for the 40 images"):
        load(tmp_path)


def test_idx_file_missing(tmp_path):
    (write_idx_folder(tmp_path, zipped=False) / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="no file t10k-labels"):
        load(tmp_path)


LAYOUTS = [
    ("x_train", "y_train", "x_test", "y_test"),
    ("train_x", "train_y", "test_x", "test_y"),
    ("train_images", "train_labels", "test_images", "test_labels"),
]


@pytest.mark.parametrize("names", LAYOUTS)
def test_npz_with_splits(tmp_path, names):
    rng = np.random.default_rng(0)
    arrays = (
        rng.normal(size=(30, 7)),
        np.arange(30) % 3,
        rng.normal(size=(9, 7)),
        np.arange(9) % 3,
    )
    np.savez(tmp_path / "a.npz", **dict(zip(names, arrays, strict=True)))
    data = load(tmp_path / "a.npz", validation=0.2)
    assert data.train_x.shape == (24, 7) and data.train_x.dtype == np.float32
    assert np.array_equal(data.test_x, arrays[2].astype(np.float32))
    assert np.array_equal(data.test_y, arrays[3])
    assert data.mean == pytest.approx(data.train_x.mean(), abs=1e-6)


def write_whole(path: Path, **replaced: np.ndarray) -> Path:
    arrays = {"x": np.arange(200, dtype=np.float32).reshape(100, 2), "y": np.arange(100) % 4}
    np.savez(path, **(arrays | replaced))
    return path


def test_splits_are_disjoint_stratified_and_reproducible(tmp_path):
    path = write_whole(tmp_path / "a.npz")
    data, same, other = load(path, seed=1), load(path, seed=1), load(path, seed=2)
    parts = [rows(data.train_x), rows(data.validation_x), rows(data.test_x)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 100
    assert np.bincount(data.test_y).tolist() == [5] * 4
    assert np.bincount(data.validation_y).tolist() == [2] * 4
    assert np.bincount(data.train_y).tolist() == [18] * 4
    for name in ("train_x", "train_y", "validation_x", "validation_y", "test_x", "test_y"):
        assert np.array_equal(getattr(data, name), getattr(same, name))
    assert not np.array_equal(data.validation_x, other.validation_x)
    # A model trained with one seed and evaluated with another must not have seen the test data.
    assert np.array_equal(data.test_x, other.test_x)


def test_stratified_gives_uneven_classes_their_share():
    y = np.repeat([0, 1, 2], [100, 50, 7])
    kept, held = stratified(y, 0.2, seed=0)
    assert np.bincount(y[held]).tolist() == [20, 10, 1]
    assert sorted([*kept, *held]) == list(range(len(y)))


def test_a_class_of_one_example_is_trained_on(tmp_path):
    y = np.array([0, 0, 0, 0, 1, 1, 1, 2])
    np.savez(tmp_path / "a.npz", **dict(zip(LAYOUTS[0], [np.eye(8), y, np.eye(8), y], strict=True)))
    for fraction in (0.01, 0.5, 0.99):
        data = load(tmp_path / "a.npz", validation=fraction)
        assert set(data.train_y.tolist()) == {0, 1, 2} and set(data.validation_y.tolist()) == {0, 1}
    np.savez(
        tmp_path / "b.npz", x_train=np.eye(3), y_train=[0, 1, 2], x_test=np.eye(3), y_test=y[:3]
    )
    with pytest.raises(DataError, match=r"b\.npz: no class has two training examples"):
        load(tmp_path / "b.npz")


def test_a_path_is_no_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist").mkdir()
    write_idx_folder(tmp_path / "mnist", zipped=True)
    assert load(Path("mnist")).train_x.shape == (35, 4, 3)  # 40 less one of each class of eight


@pytest.mark.parametrize("shape", [(7, 5), (1, 40), (64, 3, 3, 2)])
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
def test_moments_against_float64(shape, dtype):
    x = (100 + 30 * np.random.default_rng(0).normal(size=shape)).clip(0, 255).astype(dtype)
    for chunk in (1, 50, 2**20):
        mean, std = moments(x, chunk)
        # Sums in another order: a few roundings of float64 in hundreds of terms.
        assert mean == pytest.approx(x.astype(np.float64).mean(), rel=1e-13)
        assert std == pytest.approx(x.astype(np.float64).std(), rel=1e-12)


# --- units --------------------------------------------------------------------------------------


def test_tables_are_standardised_feature_by_feature(tmp_path):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(100, 3)) * [1e-5, 1, 1e5] + [0, 7, 1e6]).astype(np.float32)
    x = np.c_[x, np.full((100, 1), 0.1, np.float32)]
    data = load(write_whole(tmp_path / "a.npz", x=x))
    standard = (data.train_x - data.mean) / data.std
    np.testing.assert_allclose(standard[:, :3].std(0), 1, rtol=1e-4)
    np.testing.assert_allclose(standard.mean(0), 0, atol=1e-4)
    assert data.std[3] == 1  # a constant is left as it is
    whole = load(tmp_path / "a.npz", standardize="all")
    assert whole.std == pytest.approx(whole.train_x.std(), rel=1e-5)


@pytest.mark.parametrize("unit", [1.0, 1e-30, 1e30])
def test_features_that_are_alike_and_images_share_one_number(unit):
    rng = np.random.default_rng(0)
    signal = (rng.normal(size=(50, 64)) * unit).astype(np.float32)
    bytes_ = rng.integers(0, 1 + np.arange(64) * 4, (50, 64)).astype(np.uint8)
    for x in (signal, signal.reshape(50, 8, 8), bytes_):
        assert standardization("a", x) == moments(x)
    means, stds = standardization("a", signal, "features")
    assert means.shape == stds.shape == (64,)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.full((100, 2), 3.0), "all 76 training inputs are the same"),
        (np.tile([1.0, 2.0], (100, 1)), "all 76 training inputs are the same"),
        (np.eye(100, 2) * 1e-40, "less than float32 can tell"),
    ],
)
def test_data_that_does_not_vary_is_refused_by_name(tmp_path, x, message):
    parts = [x[:80].astype(np.float32), np.arange(80) % 4, np.ones((4, 2)), np.arange(4)]
    np.savez(tmp_path / "a.npz", **dict(zip(LAYOUTS[0], parts, strict=True)))
    with pytest.raises(DataError, match=rf"a\.npz: .*{message}"):
        load(tmp_path / "a.npz", validation=0.0625)


def test_the_digest_is_of_all_splits_and_not_of_the_file(tmp_path):
    arrays = dict(np.load(write_whole(tmp_path / "a.npz")))
    first = load(tmp_path / "a.npz").digest
    np.savez_compressed(tmp_path / "b.npz", **arrays)
    assert load(tmp_path / "b.npz", validation=0.3, seed=5).digest == first
    for changed in ({"y": arrays["y"][::-1]}, {"x": arrays["x"] + np.eye(100, 2)}):
        assert load(write_whole(tmp_path / "c.npz", **changed)).digest != first


def test_npz_counts_differ(tmp_path):
    path = write_whole(tmp_path / "a.npz", y=np.zeros(99, int))
    with pytest.raises(DataError, match=r"a\.npz: y of shape \(99,\)"):
        load(path)
    parts = [np.ones((4, 2)), np.zeros(4, int), np.ones((4, 2)), np.zeros(3, int)]
    np.savez(tmp_path / "b.npz", **dict(zip(LAYOUTS[0], parts, strict=True)))
    with pytest.raises(DataError, match=r"b\.npz: y_test of shape \(3,\)"):
        load(tmp_path / "b.npz")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_not_finite(tmp_path, bad):
    x = np.ones((100, 2), np.float32)
    x[:, 1] = bad
    with pytest.raises(DataError, match=r"a\.npz, array x: 100 values are NaN or infinite.*0, 1"):
        load(write_whole(tmp_path / "a.npz", x=x))


def test_pickled_npz(tmp_path):
    path = write_whole(tmp_path / "a.npz", x=np.array([{"a": 1}] * 100, dtype=object))
    with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz"):
        load(path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", b"hello there"])
def test_npz_that_is_none(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz"):
        load(path)


def test_npz_truncated_or_a_lone_array(tmp_path):
    path = write_whole(tmp_path / "a.npz")
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz"):
        load(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with pytest.raises(DataError, match=r"a\.npz: not a readable \.npz"):
        load(path)


@pytest.mark.parametrize(
    ("replaced", "message"),
    [
        ({"y": np.full(100, 1j)}, "labels have dtype"),
        ({"y": np.full(100, 0.5)}, "not whole numbers"),
        ({"y": np.full(100, -1)}, "labels run from -1"),
        ({"x": np.array([["a"]] * 100)}, "inputs have dtype"),
        ({"x": np.ones(100)}, r"array x: inputs have shape \(100,\)"),
        ({"z": np.ones(3), "y": np.ones((100, 2), int)}, r"y of shape \(100, 2\)"),
    ],
)
def test_npz_with_unusable_arrays(tmp_path, replaced, message):
    with pytest.raises(DataError, match=rf"a\.npz.*{message}"):
        load(write_whole(tmp_path / "a.npz", **replaced))


def test_damaged_npz_is_always_named(tmp_path):
    """Whatever bytes are damaged: the error is DataError, or the arrays are those of the file."""
    path, rng = write_whole(tmp_path / "a.npz"), np.random.default_rng(0)
    whole, expected = path.read_bytes(), load(path)
    for _ in range(300):
        content = bytearray(whole)
        content[int(rng.integers(len(whole)))] ^= int(rng.integers(1, 256))
        path.write_bytes(
            content[: int(rng.integers(len(whole)))] if rng.random() < 0.3 else content
        )
        try:
            got = load(path)
        except DataError as error:
            assert "a.npz" in str(error)
        else:
            assert np.array_equal(got.train_x, expected.train_x)


def test_npz_says_where_it_is_not_finite(tmp_path):
    x = np.ones((100, 2))
    x[93, 1], x[97, 0] = np.nan, 1e300
    with pytest.raises(DataError, match=r"a\.npz, array x: 2 values.*first at \(93, 1\)"):
        load(write_whole(tmp_path / "a.npz", x=x))


def test_npz_with_its_own_test_rows(tmp_path):
    index = np.r_[np.arange(50), 800 + np.arange(50)]
    x, y = np.arange(100, dtype=np.uint8)[:, None], np.arange(100) % 2
    np.savez(tmp_path / "a.npz", images=x, labels=y, source_index=index)
    assert load(tmp_path / "a.npz").test_x.ravel().tolist() == list(range(50, 100))
    np.savez(tmp_path / "b.npz", images=x, labels=y, source_index=index[:7])
    with pytest.raises(DataError, match=r"b\.npz: source_index of shape \(7,\)"):
        load(tmp_path / "b.npz")


def test_npz_with_unknown_names(tmp_path):
    np.savez(tmp_path / "a.npz", features=np.ones(3))
    with pytest.raises(DataError, match=r"a\.npz: holds \['features'\]; expected x_train"):
        load(tmp_path / "a.npz")


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_validation_fraction(fraction):
    with pytest.raises(DataError, match=f"validation={fraction}"):
        load("mnist5k", validation=fraction)


def test_splits_of_other_shapes(tmp_path):
    parts = [np.ones((4, 2)), np.zeros(4, int), np.ones((4, 3)), np.zeros(4, int)]
    np.savez(tmp_path / "a.npz", **dict(zip(LAYOUTS[0], parts, strict=True)))
    with pytest.raises(DataError, match="differ in shape"):
        load(tmp_path / "a.npz")


def jpeg_arrays(n: int, split: str, *, widths: tuple[int, ...] = (8,)) -> dict[str, np.ndarray]:
    image = pytest.importorskip("PIL.Image", reason="needs Pillow")
    files = []
    for i in range(n):
        buffer = io.BytesIO()
        pixels = np.full((8, widths[i % len(widths)], 3), 20 * i, np.uint8)
        image.fromarray(pixels).save(buffer, "JPEG")
        files.append(np.frombuffer(buffer.getvalue(), np.uint8))
    offsets = np.cumsum([0, *map(len, files)])
    return {
        f"{split}_jpeg": np.concatenate(files),
        f"{split}_offsets": offsets,
        f"{split}_labels": (np.arange(n) % 2).astype(np.uint8),
    }


def test_npz_of_jpegs(tmp_path):
    arrays = jpeg_arrays(10, "train") | jpeg_arrays(4, "test")
    np.savez(tmp_path / "a.npz", **arrays)
    data = load(tmp_path / "a.npz", validation=0.2)
    assert data.train_x.shape == (8, 8, 8, 3) and data.train_x.dtype == np.uint8
    # One colour all over loses nothing to JPEG but rounding between colour spaces.
    expected = np.array([0, 20, 40, 60])
    assert np.abs(data.test_x.mean(axis=(1, 2, 3)) - expected).max() <= 1

    np.savez(tmp_path / "b.npz", **(arrays | {"test_offsets": arrays["test_offsets"][:-1]}))
    with pytest.raises(DataError, match=r"b\.npz: test_offsets"):
        load(tmp_path / "b.npz")
    none = {f"test_{part}": np.zeros(0, np.int64) for part in ("jpeg", "offsets", "labels")}
    np.savez(tmp_path / "d.npz", **(arrays | none))
    with pytest.raises(DataError, match=r"d\.npz: test_offsets of shape \(0,\)"):
        load(tmp_path / "d.npz")
    np.savez(tmp_path / "e.npz", **(arrays | jpeg_arrays(4, "test", widths=(8, 9))))
    with pytest.raises(DataError, match=r"e\.npz: test images have 2 sizes"):
        load(tmp_path / "e.npz")
    arrays["test_jpeg"] = np.zeros_like(arrays["test_jpeg"])
    np.savez(tmp_path / "c.npz", **arrays)
    with pytest.raises(DataError, match=r"c\.npz: test image 0 is no JPEG"):
        load(tmp_path / "c.npz")


def test_names():
    wanted = {"mnist5k", "mnist", "fashion_mnist", "cifar10", "cats_vs_dogs", "cwru"}
    assert wanted <= set(SOURCES)
