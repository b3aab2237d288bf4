"""A tensorflow-datasets builder for CWRU bearing recordings; importing it imports that package."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from rosler_jax.data import cwru

GROUPS = ("recording", "load")
"""Of the training windows; -1 of others."""


@dataclasses.dataclass(kw_only=True)
class CwruConfig(tfds.core.BuilderConfig):
    """What is cut from the recordings; see :func:`rosler_jax.data.cwru.split_windows`."""

    window: int = 1024
    hop: int = 512
    features: str = "raw"
    loads: tuple[int, ...] = cwru.LOADS


def make_config(
    folder: Path,
    *,
    window: int = 1024,
    hop: int = 512,
    features: str = "raw",
    loads: tuple[int, ...] = cwru.LOADS,
) -> CwruConfig:
    """A config whose name tells options and files apart.

    tensorflow-datasets reuses what it prepared under the same name, so a name without the files'
    digest would give yesterday's windows for today's folder.
    """
    digest = hashlib.sha256()
    for (kind, load), path in sorted(cwru.mat_files(folder).items()):
        with path.open("rb") as file:
            digest.update(f"{kind}_{load}".encode() + hashlib.file_digest(file, "sha256").digest())
    name = f"{features}_w{window}_h{hop}_l{''.join(map(str, loads))}_{digest.hexdigest()[:12]}"
    return CwruConfig(name=name, window=window, hop=hop, features=features, loads=tuple(loads))


class RoslerCwru(tfds.core.GeneratorBasedBuilder):
    """Windows of bearing recordings, split in time."""

    VERSION = tfds.core.Version("1.1.0")  # 1.0.0 had no groups
    MANUAL_DOWNLOAD_INSTRUCTIONS = (
        "Place the 12k drive end .mat files of https://engineering.case.edu/bearingdatacenter in "
        "the manual directory, as 97.mat or normal_0.mat."
    )
    BUILDER_CONFIGS = [CwruConfig(name="raw")]  # noqa: RUF012 (what the base class reads)

    def _info(self) -> tfds.core.DatasetInfo:
        config = self.builder_config
        size = config.window if config.features == "raw" else config.window // 2 + 1
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(
                {
                    "signal": tfds.features.Tensor(shape=(size,), dtype=np.float32),
                    "label": tfds.features.ClassLabel(names=list(cwru.CLASSES)),
                    **{name: tfds.features.Scalar(np.int32) for name in GROUPS},
                }
            ),
            description="CWRU bearing recordings (12 kHz, drive end) in windows, split in time.",
            homepage="https://engineering.case.edu/bearingdatacenter",
            supervised_keys=("signal", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[Any]]:
        config, folder = self.builder_config, Path(dl_manager.manual_dir)
        wanted = [
            path for (_, load), path in cwru.mat_files(folder).items() if load in config.loads
        ]
        raw = cwru.split_windows(
            map(cwru.read_mat, wanted),
            window=config.window,
            hop=config.hop,
            features=config.features,
            loads=config.loads,
        )
        assert raw.validation is not None and raw.groups is not None
        rest = max(len(raw.validation[1]), len(raw.test[1]))
        none = {name: np.full(rest, -1) for name in GROUPS}
        return {
            "train": self._generate_examples(*raw.train, raw.groups),
            "validation": self._generate_examples(*raw.validation, none),
            "test": self._generate_examples(*raw.test, none),
        }

    def _generate_examples(
        self, x: np.ndarray, y: np.ndarray, groups: Mapping[str, np.ndarray]
    ) -> Iterator[Any]:
        for i, (signal, label) in enumerate(zip(x, y, strict=True)):
            belongs = {name: int(found[i]) for name, found in groups.items()}
            yield i, {"signal": signal, "label": int(label), **belongs}
