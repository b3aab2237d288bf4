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

    Example:
      >>> whole = Exchange(
      ...     init=lambda params: (),
      ...     send=lambda new, old: new - old,
      ...     receive=lambda message, old, state: (message, state),
      ... )
      >>> mean = (whole.send(3.0, 1.0) + whole.send(2.0, 1.0)) / 2  # of two clients
      >>> whole.receive(mean, 1.0, whole.init(1.0))
      (1.5, ())
    """

    init: Callable[[Any], Any]
    send: Callable[[Any, Any], Any]
    receive: Callable[[Any, Any, Any], tuple[Any, Any]]
    steps: bool = False
