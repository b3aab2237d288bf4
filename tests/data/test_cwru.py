"""Bearing recordings: windows that never cross a border in time, features, names, .mat files."""

from __future__ import annotations

import numpy as np
import pytest

from rosler_jax.data import DataError, cwru, load
from rosler_jax.data.cwru import Recording, magnitudes, parse_name, split_windows, windows


def clock(kind: str, load_hp: int, samples: int) -> Recording:
    """A recording whose samples are their own times, so that a window says what it saw."""
    return Recording(kind, load_hp, np.arange(samples, dtype=np.float32), f"{kind}_{load_hp}")


@pytest.mark.parametrize(
    ("n", "length", "hop"), [(100, 7, 3), (50, 50, 1), (64, 8, 8), (65, 9, 20)]
)
def test_windows_against_a_loop(n, length, hop):
    signal = np.random.default_rng(0).normal(size=n)
    expected = [signal[i : i + length] for i in range(0, n - length + 1, hop)]
    assert np.array_equal(windows(signal, length, hop), expected)


@pytest.mark.parametrize(("length", "hop"), [(64, 16), (64, 64), (33, 1), (100, 7)])
@pytest.mark.parametrize("samples", [1000, 1003, 2999])
def test_no_window_leaks(length, hop, samples):
    raw = split_windows([clock("b007", 0, samples)], window=length, hop=hop)
    assert raw.validation is not None
    seen = [set(x.astype(int).ravel().tolist()) for x, _ in (raw.train, raw.validation, raw.test)]
    train, validation, test = seen
    assert not train & validation and not train & test and not validation & test
    # In time: all of training before all of validation before all of test.
    assert max(train) < min(validation) and max(validation) < min(test)
    assert max(train) < round(0.7 * samples) <= min(validation)
    assert min(test) == round(0.8 * samples)
    # Each window is one stretch of time.
    for x, _ in (raw.train, raw.validation, raw.test):
        assert (np.diff(x, axis=1) == 1).all()


def test_all_of_the_time_is_used():
    raw = split_windows([clock("b007", 0, 1000)], window=10, hop=10)
    seen = np.concatenate([x.ravel() for x, _ in (raw.train, raw.validation, raw.test)])  # type: ignore[misc]
    assert np.array_equal(seen, np.arange(1000))


def test_labels_and_loads():
    recordings = [clock("normal", 0, 1000), clock("or021", 2, 1000), clock("ir007", 1, 1000)]
    raw = split_windows(recordings, window=10, hop=10)
    assert np.bincount(raw.train[1]).tolist() == [70, 0, 0, 0, 70, 0, 0, 0, 0, 70]
    only = split_windows(recordings, window=10, hop=10, loads=(1,))
    assert set(only.test[1].tolist()) == {cwru.CLASSES.index("ir007")}
    with pytest.raises(DataError, match=r"no recordings of loads \(3,\)"):
        split_windows(recordings, window=10, hop=10, loads=(3,))


def test_magnitudes_against_the_definition():
    x = np.random.default_rng(1).normal(size=(3, 21)) + 5
    n = x.shape[1]
    basis = np.exp(-2j * np.pi * np.outer(np.arange(n), np.arange(n // 2 + 1)) / n)
    expected = 2 / n * np.abs((x - x.mean(1, keepdims=True)) @ basis)
    # float32 output of numbers below 2: half a unit in the last place is 6e-8.
    np.testing.assert_allclose(magnitudes(x), expected, atol=2e-7)


def test_fft_features():
    raw = split_windows([clock("b007", 0, 1000)], window=16, hop=16, features="fft")
    plain = split_windows([clock("b007", 0, 1000)], window=16, hop=16)
    assert raw.test[0].shape == (len(plain.test[0]), 9) and raw.test[0].dtype == np.float32
    np.testing.assert_array_equal(raw.test[0], magnitudes(plain.test[0]))


def test_every_official_number_is_one_recording():
    numbers = [n for row in cwru.OFFICIAL_NUMBERS.values() for n in row]
    assert len(numbers) == len(set(numbers)) == 40
    assert set(cwru.OFFICIAL_NUMBERS) == set(cwru.CLASSES)
    assert [parse_name(str(n)) for n in (97, 105, 121, 237)] == [
        ("normal", 0), ("ir007", 0), ("b007", 3), ("or021", 3)
    ]  # fmt: skip
    assert parse_name("OR007@3_0") is None and parse_name("144") is None
    assert parse_name("135_OR007_6_2") == ("or007", 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 400}, "b007_0: 100 samples hold no window of 400"),
        ({"hop": 0}, "hop=0"),
        ({"features": "wavelet"}, "features='wavelet'.*raw.*fft"),
    ],
)
def test_refused_options(options, message):
    with pytest.raises(DataError, match=message):
        split_windows([clock("b007", 0, 1000)], **({"window": 10, "hop": 5} | options))


def test_recordings_in_npz(tmp_path):
    # Not a ramp: all spectra of it are the same.
    arrays = {f"{kind}_0": np.arange(3000, dtype=np.float32) ** 1.5 for kind in cwru.CLASSES}
    path = tmp_path / "bearings.npz"
    np.savez(path, **arrays)
    data = load(path, window=100, hop=50, seed=1)
    again = load(path, window=100, hop=50, seed=2)
    assert data.num_classes == 10 and data.train_x.shape == (10 * 41, 100)
    assert data.validation_x.shape == (10 * 5, 100) and data.test_x.shape == (10 * 11, 100)
    assert np.array_equal(data.test_x, again.test_x)
    assert load(path, window=100, hop=50, features="fft").train_x.shape == (410, 51)
    with pytest.raises(DataError, match=r"bearings\.npz.*'width'.*options are window"):
        load(path, width=3)

    arrays["b014_0"][7] = np.nan
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=r"bearings\.npz, array b014_0: 1 samples.*first at 7"):
        load(path, window=100, hop=50)


def test_real_recordings(real_data):
    path = real_data / "cwru_12k_drive_end.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    data = load(path, features="fft")
    assert data.num_classes == 10 and data.train_x.shape[1:] == (513,)
    # 37 recordings of about 121,500 samples, and normal_0 of twice that: 38 lengths in all.
    assert len(data.test_x) == pytest.approx(38 * (0.2 * 121_500 / 512 - 1), rel=0.02)


@pytest.mark.parametrize("keys", [("normal_0", "ir007_1", "or021_3")])
def test_real_recordings_as_mat_files(real_data, tmp_path, keys):
    pytest.importorskip("tensorflow_datasets", reason="needs tensorflow-datasets")
    savemat = pytest.importorskip("scipy.io", reason="needs scipy").savemat
    path = real_data / "cwru_12k_drive_end.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    with np.load(path) as file:
        arrays = {key: file[key] for key in keys}
    for key, signal in arrays.items():
        kind, load_hp = key.split("_")
        number = cwru.OFFICIAL_NUMBERS[kind][int(load_hp)]
        savemat(tmp_path / f"{number}.mat", {f"X{number:03d}_DE_time": signal[:, None]})
    np.savez(tmp_path / "same.npz", **arrays)
    expected = load(tmp_path / "same.npz", features="fft")
    got = load("cwru", data_dir=tmp_path / "data", manual_dir=tmp_path, features="fft")
    for split in ("train", "validation", "test"):
        # tensorflow-datasets shuffles what it prepares: compare in the order of the bytes.
        a, b = (
            sorted(
                (x.tobytes(), int(y))
                for x, y in zip(
                    getattr(data, f"{split}_x"), getattr(data, f"{split}_y"), strict=True
                )
            )
            for data in (expected, got)
        )
        assert a == b
    assert got.mean == pytest.approx(expected.mean, rel=1e-9)


@pytest.fixture
def scipy_io():
    return pytest.importorskip("scipy.io", reason="needs scipy")


def test_mat_files_by_number_and_by_name(tmp_path, scipy_io):
    signal = np.arange(50.0)[:, None]
    # The official 99.mat holds the previous recording's variables as well.
    both = {"X098_DE_time": -signal, "X099_DE_time": signal, "X099_FE_time": 0 * signal}
    scipy_io.savemat(tmp_path / "99.mat", both)
    scipy_io.savemat(tmp_path / "B007_1.mat", {"X119_DE_time": signal, "X119RPM": [[1772]]})
    scipy_io.savemat(tmp_path / "3005.mat", {"X3005_DE_time": signal})
    files = cwru.mat_files(tmp_path)
    assert {key: path.name for key, path in files.items()} == {
        ("normal", 2): "99.mat",
        ("b007", 1): "B007_1.mat",
    }
    for path in files.values():
        assert np.array_equal(cwru.read_mat(path).signal, np.arange(50.0))

    scipy_io.savemat(tmp_path / "119.mat", {"X119_DE_time": signal})
    with pytest.raises(DataError, match=r"B007_1\.mat: the same recording b007_1 as 119\.mat"):
        cwru.mat_files(tmp_path)


def test_mat_files_that_are_none(tmp_path, scipy_io):
    with pytest.raises(DataError, match=r"no recordings, as 97\.mat.*manual_dir"):
        cwru.mat_files(tmp_path)
    with pytest.raises(DataError, match="absent: has no recordings"):
        cwru.mat_files(tmp_path / "absent")
    path = tmp_path / "97.mat"
    path.write_bytes(b"no MATLAB file at all")
    with pytest.raises(DataError, match=r"97\.mat: truncated or no MATLAB file"):
        cwru.read_mat(path)
    scipy_io.savemat(path, {"X097_DE_time": np.random.default_rng(0).normal(size=(5000, 1))})
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DataError, match=r"97\.mat: truncated or no MATLAB file"):
        cwru.read_mat(path)
    scipy_io.savemat(path, {"X097_FE_time": np.ones((9, 1))})
    with pytest.raises(DataError, match=r"97\.mat: drive-end variables are \[\]; expected X097_DE"):
        cwru.read_mat(path)


def test_groups_of_training_windows_are_recordings_and_loads() -> None:
    recordings = [
        cwru.Recording(kind, load, np.arange(100.0) + 1000 * place, kind)
        for place, (kind, load) in enumerate([("normal", 0), ("b007", 2), ("b007", 0)])
    ]
    data = load(cwru.split_windows(recordings, window=10, hop=5))
    assert set(data.groups) == {"recording", "load"}
    first = data.train_x[:, 0] // 1000  # tells the recording
    assert np.array_equal(data.groups["recording"], first)
    assert np.array_equal(data.groups["load"], np.array([0, 1, 0])[first.astype(int)])


def test_groups_follow_the_training_examples() -> None:
    x, y = np.arange(60.0).reshape(30, 2), np.arange(30) % 3
    whole = load({"x": x, "y": y, "groups": np.array([f"site {k % 5}" for k in range(30)])})
    assert np.array_equal(whole.groups["groups"], whole.train_x[:, 0] // 2 % 5)
    parts = {"x_train": x, "y_train": y, "x_test": x[:3], "y_test": y[:3]}
    found = load({**parts, "train_groups": np.arange(30) // 3})
    assert np.array_equal(found.groups["groups"], found.train_x[:, 0] // 2 // 3)
    with pytest.raises(DataError, match=r"groups' of shape \(4,\); expected \(30,\)"):
        load({**parts, "train_groups": np.arange(4)})
    assert load((x, y)).groups == {}
