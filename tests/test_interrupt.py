"""Ctrl-C is heard where Python drops it, once, and nothing else changes."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from rosler_jax._interrupt import heard_interrupt


@pytest.fixture(autouse=True)
def usual_handler() -> Iterator[None]:
    """Others may have left theirs."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before or signal.default_int_handler)


def in_a_callback() -> None:
    come = []

    def collected(phase: str, info: object) -> None:
        if phase == "start" and not come:
            come.append(info)
            signal.raise_signal(signal.SIGINT)  # as if it came within a callback

    gc.callbacks.append(collected)
    try:
        gc.collect()
        assert come
    finally:
        gc.callbacks.remove(collected)


def in_a_destructor() -> None:
    class Held:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    held = Held()
    del held


@pytest.mark.parametrize("where", [in_a_callback, in_a_destructor])
def test_what_python_drops_is_raised_again(where) -> None:
    before = sys.unraisablehook
    with pytest.raises(KeyboardInterrupt), heard_interrupt():
        where()
        time.sleep(30)
    assert sys.unraisablehook is before
    time.sleep(0.2)  # and not once more


def test_what_is_heard_is_not_raised_again() -> None:
    with heard_interrupt():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        time.sleep(0.2)


def test_other_errors_go_where_they_went(monkeypatch) -> None:
    class Held:
        def __del__(self) -> None:
            raise ValueError("not a number")

    seen = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: seen.append(found.exc_type))
    with heard_interrupt():
        held = Held()
        del held
    assert seen == [ValueError]


def test_other_threads_are_left_alone() -> None:
    before, hooks = sys.unraisablehook, []

    def body() -> None:
        with heard_interrupt():
            hooks.append(sys.unraisablehook)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    assert hooks == [before]
