"""TensorBoard's event files, read back."""

from __future__ import annotations

import math

import pytest

from rosler_jax.sweep import write_scalars

tensorboardx = pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")


def events(folder):
    """Tags and values of the scalars in a folder."""
    import struct

    from tensorboardX.proto.event_pb2 import Event

    found = []
    for path in sorted(folder.rglob("*tfevents*")):
        raw, at = path.read_bytes(), 0
        while at < len(raw):
            (size,) = struct.unpack_from("<Q", raw, at)
            event = Event.FromString(raw[at + 12 : at + 12 + size])
            at += 12 + size + 4
            found += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
    return found


@pytest.mark.parametrize("metric", ["accuracy", "rmse"])
def test_curves_and_results_are_written(tmp_path, metric):
    row = {
        "member": 3,
        "learning_rate": 0.01,
        "hidden": "[8]",
        f"validation_{metric}": 0.75,
        f"test_{metric}": math.nan,
        "file_bytes": 1200,
        "epochs_done": 3,
        "curve": [0.5, math.nan, 0.75],
    }
    write_scalars(tmp_path, [row], ["learning_rate", "hidden"], metric)
    found = events(tmp_path / "member-00003")
    curve = [(step, value) for tag, step, value in found if tag == f"validation_{metric}"]
    assert curve == [(1, 0.5), (3, 0.75)]
    final = {tag: value for tag, _, value in found if tag.startswith("final/")}
    assert final == {f"final/validation_{metric}": 0.75, "final/file_bytes": 1200}
