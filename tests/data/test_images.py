"""Folders of images by class."""

from __future__ import annotations

import numpy as np
import pytest

from rosler_jax.data import DataError, load

Image = pytest.importorskip("PIL.Image", reason="needs Pillow")

CLASSES = ("bus", "car", "train")


def write(folder, number=10, size=(6, 5), mode="RGB", seed=0, classes=CLASSES):
    """Random images by class; their pixels by path relative to the folder."""
    rng, pixels = np.random.default_rng(seed), {}
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(number):
            shape = size if mode == "L" else (*size, len(mode))
            image = rng.integers(0, 256, shape, dtype=np.uint8)
            Image.fromarray(image, mode if mode == "RGBA" else None).save(
                folder / name / f"{i:03}.png"
            )
            pixels[f"{name}/{i:03}.png"] = image
    return pixels


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_whole_folder(tmp_path, mode):
    pixels = write(tmp_path, mode=mode)
    (tmp_path / "bus" / "notes.txt").write_text("no image")
    (tmp_path / "bus" / ".hidden.png").write_text("no image")
    data = load(tmp_path)
    channels = 1 if mode == "L" else 3
    assert data.train_x.shape == (21, 6, 5, channels) and data.train_x.dtype == np.uint8
    assert data.classes == CLASSES and np.bincount(data.test_y).tolist() == [2, 2, 2]
    label = {
        np.atleast_3d(image)[..., :3].tobytes(): path.split("/")[0]
        for path, image in pixels.items()
    }
    for x, y in ((data.train_x, data.train_y), (data.test_x, data.test_y)):
        assert [label[image.tobytes()] for image in x] == [data.classes[c] for c in y]


def test_folders_of_splits(tmp_path):
    for seed, (split, number) in enumerate((("train", 8), ("validation", 2), ("test", 3))):
        write(tmp_path / split, number, seed=seed)
    data = load(tmp_path)
    assert (len(data.train_x), len(data.validation_x), len(data.test_x)) == (24, 6, 9)
    assert data.classes == CLASSES
    write(tmp_path / "test", 3, seed=7, classes=("tram",))
    assert load(tmp_path).num_classes == 4


def test_no_targets(tmp_path):
    write(tmp_path / "one", classes=(".",), number=20)
    for folder in (tmp_path, tmp_path / "one"):
        data = load(folder, targets="none")
        assert data.train_y is None and data.train_x.shape == (14, 6, 5, 3)


@pytest.mark.parametrize("image_size", ["4,8", (4, 8), [4, 8]])
def test_sizes(tmp_path, image_size):
    write(tmp_path)
    assert load(tmp_path, image_size=image_size).train_x.shape[1:] == (4, 8, 3)
    assert load(tmp_path, image_size=4).train_x.shape[1:] == (4, 4, 3)
    write(tmp_path / "car", 1, size=(6, 6), classes=(".",))
    with pytest.raises(DataError, match=r"car/000\.png: is 6 x 6, but .*bus/000\.png 6 x 5; pass"):
        load(tmp_path)
    assert load(tmp_path, image_size=image_size).test_x.shape == (6, 4, 8, 3)
    with pytest.raises(DataError, match="image_size=wide is not HEIGHT,WIDTH"):
        load(tmp_path, image_size="wide")


def test_resized_image_is_the_image(tmp_path):
    for name, colour in (("red", (200, 0, 0)), ("blue", (0, 0, 90))):
        (tmp_path / name).mkdir()
        for i in range(8):
            Image.new("RGB", (9 + i, 7), colour).save(tmp_path / name / f"{i}.png")
    data = load(tmp_path, image_size="5,5")
    colours = np.array([(0, 0, 90), (200, 0, 0)])  # blue comes before red
    assert (data.train_x == colours[data.train_y][:, None, None]).all()


def test_damaged_images_are_named(tmp_path):
    write(tmp_path)
    path = tmp_path / "car" / "004.png"
    content = path.read_bytes()
    for damaged in (b"", b"nothing", content[:60], content[:-40]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"car/004\.png: not a readable image"):
            load(tmp_path)
    Image.fromarray(np.zeros((6, 5), np.uint16)).save(path)
    with pytest.raises(DataError, match=r"car/004\.png: has pixels of mode I;16"):
        load(tmp_path)


def test_digest_is_of_names_and_contents(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b")
    first = load(tmp_path / "a").digest
    assert load(tmp_path / "b", seed=3).digest == first
    assert load(tmp_path / "a", stream=True).digest == first
    (tmp_path / "b" / "car" / "004.png").rename(tmp_path / "b" / "bus" / "004b.png")
    assert load(tmp_path / "b").digest != first
    write(tmp_path / "a", seed=1)
    assert load(tmp_path / "a").digest != first


def test_folders_without_classes(tmp_path):
    write(tmp_path, classes=(".",))
    with pytest.raises(DataError, match=r"has no images <class>/<name>"):
        load(tmp_path)
