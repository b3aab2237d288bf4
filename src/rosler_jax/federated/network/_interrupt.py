"""Ctrl-C that is heard wherever it falls."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

AGAIN = 0.5  # seconds


@contextlib.contextmanager
def insistent_interrupt() -> Iterator[None]:
    """Raises KeyboardInterrupt again until it leaves the block.

    Python prints and drops an exception that is raised while it collects garbage, as JAX has a
    callback do: a Ctrl-C that falls there would be lost, and a server go on waiting.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    left = threading.Event()

    def again() -> None:
        if not left.wait(AGAIN):
            os.kill(os.getpid(), signal.SIGINT)

    def handle(number: int, frame: Any) -> None:
        threading.Thread(target=again, daemon=True).start()
        signal.default_int_handler(number, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        left.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
