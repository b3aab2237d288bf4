"""Which implementation runs an operation, and why.

In this order: the ``implementation`` argument, the innermost ``use_implementation``, the
environment variable ``ROSLER_KERNELS_IMPLEMENTATION``, and else the device. An implementation that
the device does not have is an error in all three; one that does not serve an operation, its family
or its dtype is an error as an argument, while XLA stands in where a whole program was told to use
it. A Pallas kernel is chosen of itself only on a kind of device for which measured block sizes are
in the table of ``rosler_kernels.tuning``, and only near shapes where it was measured to win.

What is asked for is read, and refused, when a function is traced. ``use_implementation`` and
``assume_device`` belong to JAX's trace context: a jitted function that was traced under another
choice is traced again. The environment variable does not: it is read at every trace, and what is
traced already stays. The choice by device is made when a program is lowered, for each platform by
itself; where that is for several platforms at once, or for one that is not here, the kinds of their
devices are not known, and XLA runs all that was not asked for or assumed.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

import jax

from . import tuning

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from ._problem import Problem

VARIABLE = "ROSLER_KERNELS_IMPLEMENTATION"


class Backend(NamedTuple):
    """An implementation that every operation may have.

    Attributes:
      platform: where it runs, "gpu", "tpu" or None for everywhere.
      module: name of its file in the operation's folder.
      interpret: whether it simulates its device on the CPU.
    """

    platform: str | None
    module: str
    interpret: bool = False


IMPLEMENTATIONS: dict[str, Backend] = {
    "xla": Backend(None, "xla"),
    "mosaic_gpu": Backend("gpu", "mosaic_gpu"),
    "mosaic_tpu": Backend("tpu", "mosaic_tpu"),
    "mosaic_gpu_interpret": Backend(None, "mosaic_gpu", interpret=True),
    "mosaic_tpu_interpret": Backend(None, "mosaic_tpu", interpret=True),
    "reference": Backend(None, "reference"),
}


class Device(NamedTuple):
    """What a kernel is compiled for: JAX's platform ("cpu", "gpu", "tpu") and device kind."""

    platform: str
    kind: str


class Choice(NamedTuple):
    """An implementation and why it was chosen.

    Attributes:
      name: a key of ``IMPLEMENTATIONS``.
      reason: one sentence.
      blocks: tuned block sizes as sorted (name, size) pairs; None for the kernel's own default.
      asked: whether it was asked for; else every platform that is lowered for chooses by itself.

    >>> import rosler_kernels as rk
    >>> choice = rk.explain(rk.srht(0, 784, 64), (8, 784), implementation="xla")
    >>> choice.name, choice.reason, choice.asked
    ('xla', 'asked for', True)
    """

    name: str
    reason: str
    blocks: tuple[tuple[str, int], ...] | None = None
    asked: bool = False


# Part of the key of every cache of traces, unlike a variable of Python's own.
_forced = jax.make_user_context(None)  # an implementation's name
_assumed = jax.make_user_context(None)  # a Device


@contextlib.contextmanager
def use_implementation(name: str | None) -> Iterator[None]:
    """Every operation called inside runs with that implementation; None: choose by device again.

    A jitted function that was called outside is traced again, once for each implementation.

    Args:
      name: a key of ``IMPLEMENTATIONS`` or None.

    Raises:
      ValueError: there is none of that name.

    >>> import rosler_kernels as rk
    >>> with use_implementation("reference"):
    ...     rk.explain(rk.srht(0, 784, 64), (8, 784)).name
    'reference'
    """
    with _forced(None if name is None else _known(name)):
        yield


@contextlib.contextmanager
def assume_device(platform: str, kind: str) -> Iterator[None]:
    """Chooses as on that device: to lower for one that is not here, with ``jax.export``.

    >>> import rosler_kernels as rk
    >>> with assume_device("gpu", "NVIDIA H100 80GB HBM3"):
    ...     rk.explain(rk.srht(0, 784, 64), (8, 784), implementation="mosaic_gpu").name
    'mosaic_gpu'
    """
    with _assumed(Device(platform, kind)):
        yield


def assumed() -> Device | None:
    """The device of ``assume_device``, if there is one."""
    return _assumed.value


def device() -> Device:
    """The device that operations are compiled for, unless told otherwise."""
    return assumed() or Device(
        _kind_of_platform(jax.default_backend()), jax.devices()[0].device_kind
    )


def targets(platforms: tuple[str, ...], assumed: Device | None) -> dict[str, Device]:
    """The devices that a program is lowered for, by JAX's name of the platform.

    The kind is known where one was assumed, or for one platform alone, if it is the one here.
    """
    known = [assumed] if assumed else []
    if len(platforms) == 1:
        known.append(device())
    unknown = {p: Device(_kind_of_platform(p), "a device of unknown kind") for p in platforms}
    return {p: next((d for d in known if d.platform == u.platform), u) for p, u in unknown.items()}


def _kind_of_platform(platform: str) -> str:
    return "gpu" if platform in ("cuda", "rocm") else platform


def choose(
    problem: Problem, unsupported: Callable[[str], str | None], implementation: str | None
) -> Choice:
    """The implementation for a problem on the device here, or assumed.

    Args:
      problem: what is asked for.
      unsupported: from the name of a back end's file, why it cannot run the problem, or None.
      implementation: an explicit choice, or None.

    Returns:
      Choice.

    Raises:
      ValueError: an explicit, forced or environment's choice is unknown or cannot run.
    """
    for name, source in (
        (implementation, "asked for"),
        (_forced.value, "forced by use_implementation"),
        (os.environ.get(VARIABLE) or None, f"set by {VARIABLE}"),
    ):
        if name is not None:
            missing = _missing(_known(name, source), device())
            why = missing or _symbolic(name, problem) or unsupported(IMPLEMENTATIONS[name].module)
            if why and (missing or implementation is not None):
                raise ValueError(
                    f"{problem.operation}: implementation {name!r}, {source}, cannot run: {why}; "
                    "use implementation='xla', which runs everywhere"
                )
            if why:
                return Choice("xla", f"{name} was {source}, but {why}", asked=True)
            return on_device(problem, unsupported, name, device())._replace(reason=source)
    return on_device(problem, unsupported, None, device())


def on_device(
    problem: Problem, unsupported: Callable[[str], str | None], asked: str | None, here: Device
) -> Choice:
    """The implementation for a problem on a device: what was asked for, or by measurements."""
    if asked is not None:
        return Choice(asked, "asked for", tuning.lookup(here.kind, asked, problem).blocks, True)
    name = {"gpu": "mosaic_gpu", "tpu": "mosaic_tpu"}.get(here.platform)
    if name is None:
        return Choice("xla", f"there is no kernel for {here.platform}; XLA is its implementation")
    why = _missing(name, here) or _symbolic(name, problem)
    why = why or unsupported(IMPLEMENTATIONS[name].module)
    found = tuning.lookup(here.kind, name, problem)
    if why or not found.wins:
        return Choice("xla", why or found.reason)
    return Choice(name, found.reason, found.blocks)


def _missing(name: str, here: Device) -> str | None:
    """Why a device does not have an implementation; None where it does."""
    backend = IMPLEMENTATIONS[name]
    if backend.platform is not None and backend.platform != here.platform:
        return f"it needs a {backend.platform}, and this is a {here.platform} ({here.kind})"
    if name == "mosaic_gpu" and not tuning.is_hopper(here.kind):
        return f"its wgmma instructions exist on Hopper GPUs alone (H100, H200), not on {here.kind}"
    return None


def _symbolic(name: str, problem: Problem) -> str | None:
    """Why an implementation does not serve a batch whose size is not known; None where it does."""
    if name in ("xla", "reference") or all(isinstance(size, int) for size in problem.shape):
        return None
    return f"the grid of a kernel needs numbers, and the shape {problem.shape} is symbolic"


def _known(name: str, source: str = "asked for") -> str:
    if name not in IMPLEMENTATIONS:
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"implementation {name!r}, {source}; expected one of {known}")
    return name


def backend_options(choice: Choice, blocks: Any) -> dict[str, Any]:
    """Keyword arguments that the chosen back end takes besides the operands.

    Args:
      choice: what runs.
      blocks: the back end's ``Blocks``, or None where it has none.
    """
    backend = IMPLEMENTATIONS[choice.name]
    if backend.platform is None and not backend.interpret:
        return {}
    options: dict[str, Any] = {"interpret": backend.interpret}
    if choice.blocks is not None and blocks is not None:
        options["blocks"] = blocks(**dict(choice.blocks))
    return options
