"""tensorflow-datasets without TensorFlow: its own builders on small archives, and ours."""

from __future__ import annotations

import gzip
import importlib.util
import io
import struct
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

tfds = pytest.importorskip("tensorflow_datasets", reason="needs tensorflow-datasets")
pytest.importorskip("array_record", reason="needs array_record")

from etils import epath  # noqa: E402

from rosler_jax.data import DataError, cwru, load  # noqa: E402
from rosler_jax.data import tfds as source  # noqa: E402

needs_absence = pytest.mark.skipif(
    importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed"
)


class RoslerTiny(tfds.core.GeneratorBasedBuilder):
    """Forty images whose pixels say their label; no test split."""

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = epath.Path(__file__).parent  # tests are no package, where it would look

    def _info(self) -> Any:
        features = {
            "image": tfds.features.Image(shape=(4, 5, 3)),
            "label": tfds.features.ClassLabel(num_classes=2),
        }
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {"train": self._generate_examples()}

    def _generate_examples(self) -> Any:
        for i in range(40):
            yield i, {"image": np.full((4, 5, 3), 2 * i + i % 2, np.uint8), "label": i % 2}


class RoslerOffline(RoslerTiny):
    """A builder whose download fails as without a network."""

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        raise ConnectionError("Failed to resolve 'example.org'")


def register(monkeypatch: pytest.MonkeyPatch, builder: Any, folder: Path) -> None:
    """Gives a builder's downloads the checksums of the small files in `folder`."""
    from tensorflow_datasets.core.download import checksums

    infos = {
        url: checksums.compute_url_info(folder / info.filename)
        for url, info in type(builder).url_infos.items()
    }
    monkeypatch.setattr(type(builder), "url_infos", infos)


def make_builder(name: str, data_dir: Path) -> Any:
    return tfds.builder(name, data_dir=data_dir, file_format=source.FILE_FORMAT)


@needs_absence
def test_own_builder_and_fixed_test_split(tmp_path):
    first = source.prepare_and_read(RoslerTiny(data_dir=tmp_path, file_format="array_record"))
    again = source.prepare_and_read(RoslerTiny(data_dir=tmp_path, file_format="array_record"))
    assert first.train[0].shape == (32, 4, 5, 3) and first.test[0].shape == (8, 4, 5, 3)
    assert first.train[0].dtype == np.uint8
    for x, y in (first.train, first.test):
        assert np.array_equal(x[:, 0, 0, 0] % 2, y)
    values = np.concatenate([first.train[0], first.test[0]])[:, 0, 0, 0]
    assert sorted(values.tolist()) == [2 * i + i % 2 for i in range(40)]
    assert np.array_equal(first.test[0], again.test[0])
    assert "tensorflow" not in sys.modules


@needs_absence
def test_stand_in_is_taken_back(tmp_path):
    from tensorflow_datasets.core.download import extractor
    from tensorflow_datasets.core.features import image_feature

    before = extractor.tf, image_feature._ImageEncoder._encode_image
    source.prepare_and_read(RoslerTiny(data_dir=tmp_path, file_format="array_record"))
    with pytest.raises(DataError):
        source.prepare_and_read(RoslerOffline(data_dir=tmp_path, file_format="array_record"))
    assert (extractor.tf, image_feature._ImageEncoder._encode_image) == before


def test_no_network(tmp_path):
    builder = RoslerOffline(data_dir=tmp_path, file_format="array_record")
    message = r"rosler_offline: could not.*ConnectionError: Failed to resolve.*manual_dir.*data_dir"
    with pytest.raises(DataError, match=message):
        source.prepare_and_read(builder)


def test_advice_names_the_official_files(tmp_path, monkeypatch):
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("no route to host")

    builder_class = tfds.builder_cls("mnist")
    monkeypatch.setattr(builder_class, "_split_generators", refuse)
    with pytest.raises(
        DataError, match=r"no route.*place t10k-images-idx3-ubyte\.gz, .*by its path"
    ):
        load("mnist", data_dir=tmp_path)


def test_wrong_checksum_of_a_file_placed_by_hand(tmp_path):
    names = [f"{s}-{k}-ubyte.gz" for s in ("train", "t10k") for k in ("images-idx3", "labels-idx1")]
    for name in names:
        (tmp_path / name).write_bytes(gzip.compress(b"nothing"))
    with pytest.raises(DataError, match=r"mnist.*wrong checksum.*check t10k-images-idx3-ubyte\.gz"):
        load("mnist", data_dir=tmp_path / "data", manual_dir=tmp_path)


def test_unknown_name_and_options(tmp_path):
    with pytest.raises(DataError, match="no_such_set: tensorflow-datasets makes no builder"):
        source.load_tfds("no_such_set", data_dir=tmp_path)
    with pytest.raises(DataError, match="mnist: tensorflow-datasets makes no builder"):
        load("mnist", data_dir=tmp_path, version="0.0.7")


def test_missing_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(DataError, match=r"pip install 'rosler-jax\[data\]'"):
        load("mnist")


def test_no_network_is_said_within_seconds(tmp_path, monkeypatch):
    """The package's own ten retries wait for more than three minutes."""
    from tensorflow_datasets.core.download import downloader
    from urllib3.util.retry import Retry

    class RoslerRefused(RoslerTiny):
        url_infos: Any = {}  # noqa: RUF012 (what the base class reads)

        def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
            dl_manager.download("http://127.0.0.1:9/nothing.gz")  # the discard port: nobody listens
            return super()._split_generators(dl_manager)

    waits: list[float] = []
    monkeypatch.setattr(Retry, "sleep", lambda self, *_: waits.append(self.get_backoff_time()))
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    retries = downloader.MAX_RETRIES
    with pytest.raises(DataError, match=r"rosler_refused: could not.*refused"):
        source.prepare_and_read(RoslerRefused(data_dir=tmp_path, file_format="array_record"))
    assert waits and sum(waits) < 10
    assert retries == downloader.MAX_RETRIES


def write_mnist(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, seed: int) -> Any:
    """A small archive for the builder of that name, and its images' bytes with their labels."""
    folder.mkdir(exist_ok=True)
    module = sys.modules[tfds.builder_cls(name).__module__]
    monkeypatch.setattr(module, "_TRAIN_EXAMPLES", 20)
    monkeypatch.setattr(module, "_TEST_EXAMPLES", 10)
    rng, arrays = np.random.default_rng(seed), {}
    for split, n in (("train", 20), ("t10k", 10)):
        x = rng.integers(0, 256, (n, 28, 28), dtype=np.uint8)
        y = (np.arange(n) % 10).astype(np.uint8)
        arrays[split] = {row.tobytes(): int(label) for row, label in zip(x, y, strict=True)}
        for kind, array, magic in (("images-idx3", x, 0x803), ("labels-idx1", y, 0x801)):
            content = struct.pack(f">I{array.ndim}I", magic, *array.shape) + array.tobytes()
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(gzip.compress(content))
    return arrays


@needs_absence
def test_mnist_builders_in_one_data_dir(tmp_path, monkeypatch):
    # Files of the same names: what one builder extracted must not be taken for the other's.
    builders = {name: make_builder(name, tmp_path / "data") for name in ("mnist", "fashion_mnist")}
    # One class inherits from the other: read both checksums before either is replaced.
    monkeypatch.setattr(
        type(builders["fashion_mnist"]), "url_infos", dict(builders["fashion_mnist"].url_infos)
    )
    for seed, (name, builder) in enumerate(builders.items()):
        folder = tmp_path / name
        arrays = write_mnist(folder, monkeypatch, name, seed)
        register(monkeypatch, builder, folder)
        raw = source.prepare_and_read(builder, manual_dir=folder)
        for (x, y), expected in ((raw.train, arrays["train"]), (raw.test, arrays["t10k"])):
            assert x.shape == (len(expected), 28, 28, 1) and x.dtype == np.uint8
            assert {row.tobytes(): int(label) for row, label in zip(x, y, strict=True)} == expected


@needs_absence
def test_cifar10_builder(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    expected: dict[str, dict[bytes, int]] = {"train": {}, "test": {}}
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:

        def add(name: str, content: bytes) -> None:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))

        add("batches.meta.txt", "\n".join(f"class{i}" for i in range(10)).encode())
        for name in names:
            content = b""
            for label in (0, 1, 9):
                x = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                expected["test" if "test" in name else "train"][x.tobytes()] = label
                content += bytes([label]) + x.transpose(2, 0, 1).tobytes()
            add(name, content)
    builder = make_builder("cifar10", tmp_path / "data")
    register(monkeypatch, builder, tmp_path)
    raw = source.prepare_and_read(builder, manual_dir=tmp_path)
    for (x, y), wanted in ((raw.train, expected["train"]), (raw.test, expected["test"])):
        assert x.shape[1:] == (32, 32, 3) and x.dtype == np.uint8
        assert {row.tobytes(): int(label) for row, label in zip(x, y, strict=True)} == wanted


@needs_absence
def test_cats_vs_dogs_builder(tmp_path, monkeypatch):
    from PIL import Image

    with zipfile.ZipFile(tmp_path / "kagglecatsanddogs_5340.zip", "w") as archive:
        archive.writestr("readme[1].txt", "cats and dogs")
        archive.writestr("PetImages/Cat/99.jpg", b"no JPEG, to be left out")
        for i in range(10):
            for kind, colour in (("Cat", (200, 10, 10)), ("Dog", (10, 10, 200))):
                image, buffer = Image.new("RGB", (50 + 9 * i, 90 - 5 * i), colour), io.BytesIO()
                image.save(buffer, "JPEG")
                archive.writestr(f"PetImages/{kind}/{i}.jpg", buffer.getvalue())
    builder = make_builder("cats_vs_dogs", tmp_path / "data")
    monkeypatch.setattr(sys.modules[type(builder).__module__], "_NUM_CORRUPT_IMAGES", 1)
    register(monkeypatch, builder, tmp_path)
    data = load("cats_vs_dogs", data_dir=tmp_path / "data", manual_dir=tmp_path, validation=0.25)
    assert data.train_x.shape == (12, 64, 64, 3) and data.train_x.dtype == np.uint8
    assert np.bincount(data.test_y).tolist() == [2, 2]
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        # Red cats, blue dogs; JPEG of one colour moves a channel by a few counts.
        assert np.array_equal(x[:, 32, 32, 2] > 100, y == 1)
        assert (np.abs(x[:, 32, 32, :].max(axis=1).astype(int) - 200) < 6).all()


@pytest.fixture
def bearings(tmp_path):
    scipy_io = pytest.importorskip("scipy.io", reason="needs scipy")
    folder = tmp_path / "mat"
    folder.mkdir()
    for kind, number in (("normal", 97), ("b007", 118), ("or021", 237)):
        # Not a ramp: all spectra of it are the same.
        time = np.arange(1000.0)[:, None] ** 1.5 + 100_000 * cwru.CLASSES.index(kind)
        scipy_io.savemat(folder / f"{number}.mat", {f"X{number:03d}_DE_time": time})
    return folder


def test_cwru_builder(tmp_path, bearings):
    options = {"data_dir": tmp_path / "data", "manual_dir": bearings, "window": 50, "hop": 25}
    data = load("cwru", **options)
    raw = cwru.split_windows(
        [cwru.read_mat(path) for path in cwru.mat_files(bearings).values()], window=50, hop=25
    )
    assert raw.validation is not None
    parts = (
        (raw.train, (data.train_x, data.train_y)),
        (raw.validation, (data.validation_x, data.validation_y)),
        (raw.test, (data.test_x, data.test_y)),
    )
    for (x, y), (got_x, got_y) in parts:
        order, got_order = np.argsort(x[:, 0]), np.argsort(got_x[:, 0])
        assert np.array_equal(x[order], got_x[got_order])
        assert np.array_equal(y[order], got_y[got_order])
    assert data.num_classes == 10 and data.train_x.dtype == np.float32
    assert len(set(zip(data.groups["recording"], data.train_y, strict=True))) == 3
    assert set(zip(data.groups["load"], data.train_y, strict=True)) == {(0, 0), (0, 1), (1, 9)}
    assert load("cwru", features="fft", **options).test_x.shape[1:] == (26,)
    assert set(load("cwru", loads=(3,), **options).test_y.tolist()) == {9}


def test_cwru_builder_sees_that_files_changed(tmp_path, bearings):
    import scipy.io

    options = {"data_dir": tmp_path / "data", "manual_dir": bearings, "window": 50, "hop": 25}
    before = load("cwru", **options)
    scipy.io.savemat(bearings / "97.mat", {"X097_DE_time": -np.arange(1000.0)[:, None]})
    after = load("cwru", **options)
    assert before.train_x.min() >= 0 and after.train_x.min() < 0


def test_cwru_errors(tmp_path, bearings):
    with pytest.raises(DataError, match=r"no recordings, as 97\.mat.*manual_dir"):
        load("cwru", data_dir=tmp_path)
    with pytest.raises(DataError, match=r"cwru: .*'width'.*options are window"):
        load("cwru", data_dir=tmp_path, manual_dir=bearings, width=3)
    (bearings / "118.mat").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"118\.mat: truncated or no MATLAB file"):
        load("cwru", data_dir=tmp_path, manual_dir=bearings, window=50, hop=25)
