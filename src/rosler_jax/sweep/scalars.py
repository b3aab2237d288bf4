"""A sweep's curves and results for TensorBoard: one run a member."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_scalars(
    folder: Path, rows: Sequence[dict[str, Any]], axes: Sequence[str], metric: str = "accuracy"
) -> None:
    """Writes event files: the validation curve, and the axes with what came of them (HParams).

    Args:
      folder: for ``tensorboard --logdir``.
      rows: of the sweep's table.
      axes: columns that varied.
      metric: what members are compared by: of columns ``validation_<metric>``, ``test_<metric>``.

    Raises:
      ImportError: if tensorboardX is not installed.
      OSError: if the files cannot be written.

    Example:
      >>> import tempfile
      >>> row = {"member": 3, "rank": 4, "curve": [0.7, 0.8], "epochs_done": 2, "file_bytes": 900}
      >>> row |= {"validation_accuracy": 0.8, "test_accuracy": 0.7}
      >>> with tempfile.TemporaryDirectory() as folder:
      ...     write_scalars(Path(folder), [row], axes=["rank"])
      ...     [path.name for path in Path(folder).iterdir()]
      ['member-00003']
    """
    try:
        from tensorboardX import SummaryWriter
        from tensorboardX.summary import hparams
    except ImportError as error:
        raise ImportError(
            "TensorBoard files need tensorboardX: pip install 'rosler-jax[tensorboard]'"
        ) from error
    names = f"validation_{metric}", f"test_{metric}", "file_bytes"
    for row in rows:
        final = {f"final/{name}": row[name] for name in names if math.isfinite(row[name])}
        with SummaryWriter(str(folder / f"member-{row['member']:05d}")) as writer:
            for epoch, value in enumerate(row["curve"], 1):
                if math.isfinite(value):
                    writer.add_scalar(names[0], value, epoch)
            # Not add_hparams: it opens a second file, in this folder one of the same name.
            for summary in hparams({name: _plain(row[name]) for name in axes}, final):
                writer.file_writer.add_summary(summary)
            for name, value in final.items():
                writer.add_scalar(name, value, row["epochs_done"])


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) else str(value)
