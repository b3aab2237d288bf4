"""Bearing recordings of Case Western Reserve University: windows, split in time.

Pure functions over recordings in memory; :mod:`rosler_jax.data._cwru_builder` is the
tensorflow-datasets builder over them. Twelve kilohertz, drive-end accelerometer, outer-race faults
at 6 o'clock; https://engineering.case.edu/bearingdatacenter.

Consecutive windows overlap, and windows of one recording resemble each other. A recording is
therefore cut in time first, and each part windowed on its own: no sample is in two splits.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from rosler_jax.data._raw import DataError, Raw

if TYPE_CHECKING:
    from jaxtyping import Float, Shaped

CLASSES = (
    "normal", "b007", "b014", "b021", "ir007", "ir014", "ir021", "or007", "or014", "or021",
)  # fmt: skip
"""Names of the labels 0 to 9: ball, inner race and outer race, by fault diameter in mils."""

OFFICIAL_NUMBERS = {
    "normal": (97, 98, 99, 100),
    "b007": (118, 119, 120, 121),
    "b014": (185, 186, 187, 188),
    "b021": (222, 223, 224, 225),
    "ir007": (105, 106, 107, 108),
    "ir014": (169, 170, 171, 172),
    "ir021": (209, 210, 211, 212),
    "or007": (130, 131, 132, 133),
    "or014": (197, 198, 199, 200),
    "or021": (234, 235, 236, 237),
}
"""The centre's file numbers at loads of 0, 1, 2 and 3 horsepower."""

BORDERS = (0.7, 0.8)  # of a recording's time: train before, validation between, test after
LOADS = (0, 1, 2, 3)
FEATURES = ("raw", "fft")
NAME = re.compile(rf"(?:\d+_)?({'|'.join(CLASSES)})(?:[@_]6)?_([0-3])", re.IGNORECASE)


class Recording(NamedTuple):
    """One recording: its class, the motor's load in horsepower, and where it comes from."""

    kind: str
    load: int
    signal: Float[np.ndarray, " samples"]
    where: str


def windows(
    signal: Shaped[np.ndarray, " samples"], length: int, hop: int
) -> Shaped[np.ndarray, "windows length"]:
    """Windows ``signal[i hop : i hop + length]``, as many as fit.

    Args:
      signal: samples in time.
      length: samples in a window.
      hop: samples from one window's start to the next one's.

    Returns:
      The windows, a read-only view.

    Raises:
      DataError: if no window fits, or length or hop is not positive.

    Example:
      >>> windows(np.arange(7), length=3, hop=2)
      array([[0, 1, 2],
             [2, 3, 4],
             [4, 5, 6]])
    """
    if length < 1 or hop < 1:
        raise DataError(f"window={length} and hop={hop} must be at least 1")
    if len(signal) < length:
        raise DataError(f"{len(signal)} samples hold no window of {length}; pass a smaller window")
    return np.lib.stride_tricks.sliding_window_view(signal, length)[::hop]


def split_in_time(
    signal: Shaped[np.ndarray, " samples"],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first 70 % to train on, the next 10 % to validate, the last 20 % to test.

    Example:
      >>> [part.tolist() for part in split_in_time(np.arange(10))]
      [[0, 1, 2, 3, 4, 5, 6], [7], [8, 9]]
    """
    first, second = (round(border * len(signal)) for border in BORDERS)
    return signal[:first], signal[first:second], signal[second:]


def magnitudes(
    x: Float[np.ndarray, "windows length"],
) -> Float[np.ndarray, "windows length//2+1"]:
    """Amplitudes of the frequencies of each window, its mean removed: ``2 |rfft(x - mean)| / n``.

    Example:
      >>> tone = np.sin(2 * np.pi * 3 * np.arange(16) / 16)[None]
      >>> magnitudes(tone).round(3).tolist()
      [[0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]]
    """
    x = np.asarray(x, np.float64)
    spectrum = np.fft.rfft(x - x.mean(axis=1, keepdims=True), axis=1)
    return (2 / x.shape[1] * np.abs(spectrum)).astype(np.float32)


def split_windows(
    recordings: Iterable[Recording],
    *,
    window: int = 1024,
    hop: int = 512,
    features: str = "raw",
    loads: Iterable[int] = LOADS,
) -> Raw:
    """Windows of recordings, each split in time before it is windowed.

    Args:
      recordings: of any classes and loads.
      window: samples in a window.
      hop: samples from one window's start to the next one's.
      features: ``"raw"`` samples or the ``"fft"`` magnitudes of :func:`magnitudes`.
      loads: the loads to keep.

    Returns:
      Splits of inputs ``(windows, window)``, or ``(windows, window // 2 + 1)`` of magnitudes, and
      labels, indices into :data:`CLASSES`; the groups of training windows are ``recording`` and
      ``load``.

    Raises:
      DataError: if nothing is left, or a recording is too short or not finite.
    """
    if features not in FEATURES:
        raise DataError(f"features={features!r} is none of {FEATURES}")
    loads = tuple(loads)
    kept = [recording for recording in recordings if recording.load in loads]
    if not kept:
        raise DataError(f"no recordings of loads {loads}")
    parts: tuple[list[np.ndarray], ...] = ([], [], [])
    labels: tuple[list[np.ndarray], ...] = ([], [], [])
    counts = []
    for recording in kept:
        _check(recording)
        for i, part in enumerate(split_in_time(recording.signal)):
            try:
                x = windows(part, window, hop)
            except DataError as error:
                raise DataError(f"{recording.where}: {error}") from error
            parts[i].append(magnitudes(x) if features == "fft" else x.astype(np.float32))
            labels[i].append(np.full(len(x), CLASSES.index(recording.kind), np.int32))
        counts.append(len(parts[0][-1]))
    train, validation, test = (
        (np.concatenate(x), np.concatenate(y)) for x, y in zip(parts, labels, strict=True)
    )
    groups = {
        "recording": np.repeat(np.arange(len(kept), dtype=np.int32), counts),
        "load": np.repeat(np.array([recording.load for recording in kept], np.int32), counts),
    }
    return Raw(train=train, validation=validation, test=test, groups=groups)


def _check(recording: Recording) -> None:
    signal = recording.signal
    if signal.ndim != 1 or signal.dtype.kind not in "fiu":
        raise DataError(
            f"{recording.where}: {signal.dtype} of shape {signal.shape}; expected one row"
        )
    bad = np.flatnonzero(~np.isfinite(signal))
    if bad.size:
        raise DataError(
            f"{recording.where}: {bad.size} samples are NaN or infinite, the first at {bad[0]}"
        )


def parse_name(stem: str) -> tuple[str, int] | None:
    """Class and load that a file's or array's name says, or None.

    Example:
      >>> parse_name("106"), parse_name("ir007_1"), parse_name("OR021@6_3"), parse_name("images")
      (('ir007', 1), ('ir007', 1), ('or021', 3), None)
    """
    for kind, numbers in OFFICIAL_NUMBERS.items():
        if stem.isdecimal() and int(stem) in numbers:
            return kind, numbers.index(int(stem))
    match = NAME.fullmatch(stem)
    return (match[1].lower(), int(match[2])) if match else None


def recordings_of_arrays(arrays: Mapping[str, np.ndarray], path: Path) -> list[Recording] | None:
    """Recordings of an ``.npz`` with keys ``<class>_<load>``; None if it holds anything else."""
    named = {key: parse_name(key) for key in arrays}
    if not named or any(name is None for name in named.values()):
        return None
    return [
        Recording(*name, arrays[key], f"{path}, array {key}")
        for key, name in named.items()
        if name is not None
    ]


def mat_files(folder: Path) -> dict[tuple[str, int], Path]:
    """The ``.mat`` files of a folder by class and load; other files are left alone.

    Raises:
      DataError: if there are none, or two of the same class and load.
    """
    found: dict[tuple[str, int], Path] = {}
    for path in sorted(folder.glob("*.mat")) if folder.is_dir() else ():
        name = parse_name(path.stem)
        if name is None:
            continue
        if name in found:
            raise DataError(f"{path}: the same recording {name[0]}_{name[1]} as {found[name].name}")
        found[name] = path
    if not found:
        raise DataError(
            f"{folder}: has no recordings, as 97.mat (the Bearing Data Center's number) or "
            "normal_0.mat (<class>_<load>.mat); download the 12k drive end and the normal baseline "
            "files from https://engineering.case.edu/bearingdatacenter, pass manual_dir=<folder>"
        )
    return found


def read_mat(path: Path) -> Recording:
    """Reads one ``.mat`` file of the Bearing Data Center: its ``X<number>_DE_time``.

    Raises:
      DataError: if it is no such file.
    """
    name = parse_name(path.stem)
    if name is None:
        raise DataError(f"{path}: name is neither a 12k drive end number nor <class>_<load>")
    try:
        import scipy.io
    except ImportError as error:
        raise DataError(
            "cwru reads .mat files with scipy: pip install 'rosler-jax[data]'"
        ) from error
    try:
        content = scipy.io.loadmat(path)
    except Exception as error:  # scipy raises whatever the damaged bytes lead it to
        raise DataError(f"{path}: truncated or no MATLAB file ({error})") from error
    keys = sorted(key for key in content if key.endswith("DE_time"))
    # Some of the official files also hold another recording's variables: the number decides.
    own = f"X{OFFICIAL_NUMBERS[name[0]][name[1]]:03d}_DE_time"
    if own in keys:
        keys = [own]
    if len(keys) != 1:
        raise DataError(f"{path}: drive-end variables are {keys}; expected {own} or a single one")
    return Recording(*name, np.asarray(content[keys[0]]).squeeze(), str(path))
