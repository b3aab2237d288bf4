"""The functions of an exchange."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple


class Exchange(NamedTuple):
    """What travels between clients and server.

    Attributes:
      init: of the server's parameters, to what the server keeps.
      send: ``(new, old)``, a client's parameters after and before, to its message; linear in what
        it averages.
      receive: ``(message, old, state) -> (change, state)``: the mean message, to a change of the
        parameters.
      steps: whether the change is to be made as it is, by no server optimiser.
    """

    init: Callable[[Any], Any]
    send: Callable[[Any, Any], Any]
    receive: Callable[[Any, Any, Any], tuple[Any, Any]]
    steps: bool = False
