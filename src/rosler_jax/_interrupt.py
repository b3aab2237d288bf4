"""Ctrl-C that is heard wherever it falls."""

from __future__ import annotations

import _thread
import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any

AGAIN = 0.05  # seconds


@contextlib.contextmanager
def heard_interrupt() -> Iterator[None]:
    """Raises a KeyboardInterrupt again that Python has dropped.

    It drops exceptions that are raised while it collects garbage, as JAX has a callback do, or in a
    destructor: a Ctrl-C that falls there would be lost, and a loop or a server go on.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield
        return
    left = threading.Event()

    def again() -> None:
        if left.wait(AGAIN):
            return
        if hasattr(signal, "pthread_kill") and main.ident is not None:
            signal.pthread_kill(main.ident, signal.SIGINT)  # ends what waits in the system, too
        else:
            _thread.interrupt_main()

    before = sys.unraisablehook

    def dropped(unraisable: Any) -> None:
        if issubclass(unraisable.exc_type, KeyboardInterrupt):
            # From another thread: here, within the collection, it would be dropped once more.
            threading.Thread(target=again, daemon=True).start()
        else:
            before(unraisable)

    sys.unraisablehook = dropped
    try:
        yield
    finally:
        left.set()
        sys.unraisablehook = before
