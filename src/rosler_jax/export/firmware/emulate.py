"""Runs an image in QEMU: how it ended, and what it counted."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from rosler_jax.export.firmware._errors import FirmwareError
from rosler_jax.export.firmware.build import Image
from rosler_jax.export.firmware.profile import RESULT, Profile, build_plugin, parse_profile
from rosler_jax.export.firmware.symbols import function_at
from rosler_jax.export.firmware.toolchain import Toolchain

PATIENCE = 20  # seconds that a stopped emulator has to write what it counted
_FAULT = re.compile(r"firmware fault: pc=([0-9a-f]{8}) cfsr=([0-9a-f]{8})")
_STACK_FULL = 1 << 3 | 1 << 4 | 1 << 11 | 1 << 12  # the processor could not save its registers
# Other bits of the configurable fault status register.
_CAUSES = {
    0: "execution where there is no code",
    1: "access to protected memory: a write to constants, or the stack is full",
    8: "execution where there is no memory",
    9: "access to an address where there is no memory",
    10: "access to an address where there is no memory",
    16: "an undefined instruction",
    17: "a jump to an address that is not Thumb code",
    19: "a floating-point instruction with the unit off",
    24: "an unaligned access",
    25: "a division by zero",
}


class Ended(NamedTuple):
    """How a program ended.

    Attributes:
      exit_code: 0 to 255.
      messages: what it wrote to standard error.
      profile: its counts.
    """

    exit_code: int
    messages: str
    profile: Profile


def _command(toolchain: Toolchain, image: Image, plugin: str) -> list[str]:
    return [
        toolchain.emulator,
        *("-M", image.board.machine, "-nographic", "-monitor", "none", "-serial", "null"),
        *("-semihosting-config", "enable=on,target=native"),
        *("-icount", "shift=6"),  # a clock that goes by instructions, so that timers repeat too
        *("-plugin", plugin),
        *("-kernel", image.path.name),
    ]


def _read_profile(folder: Path) -> Profile:
    path = folder / RESULT
    return parse_profile(path.read_text(encoding="utf-8") if path.is_file() else "")


def _stop(process: subprocess.Popen[str]) -> None:
    """Ends the emulator; gently at first, so that the profiler can say where the program was."""
    process.terminate()
    try:
        process.communicate(timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _explain_fault(image: Image, match: re.Match[str], last: str | None) -> str:
    at, status = int(match[1], 16), int(match[2], 16)
    causes = [text for bit, text in _CAUSES.items() if status >> bit & 1]
    if status & _STACK_FULL:
        causes = ["the stack is full (stack_bytes gives it more room)"]
    where = f" at address 0x{at:x}" if at else ""
    return (
        f"the program faulted in {function_at(image.symbols, at) if at else last}{where} on"
        f" {image.board.name}: {'; '.join(causes) or 'cause not known'} (CFSR 0x{status:08x})"
    )


def check_end(image: Image, code: int, messages: str, profile: Profile) -> None:
    """Raises FirmwareError for all that is no exit by the program's own will."""
    if match := _FAULT.search(messages):
        raise FirmwareError(_explain_fault(image, match, profile.last))
    if "Lockup" in messages:
        raise FirmwareError(
            f"the processor {image.board.name} locked up, last in {profile.last}: a fault while it"
            " handled a fault; most often the stack is full (give more stack_bytes)"
        )
    if code < 0 or not profile.whole:
        raise FirmwareError(
            f"QEMU ended with {code} and without a profile; it wrote: {messages.strip()[-2000:]}"
        )


def emulate(toolchain: Toolchain, image: Image, *, seconds: float) -> Ended:
    """Runs an image in its folder, which its file operations then refer to.

    Args:
      toolchain: from :func:`find_toolchain`.
      image: what to run.
      seconds: after which it is stopped.

    Raises:
      FirmwareError: if the program hangs or faults; with the function that it was in.
    """
    folder = image.path.parent
    plugin = build_plugin(toolchain, image.symbols, folder)
    (folder / RESULT).unlink(missing_ok=True)
    process = subprocess.Popen(
        _command(toolchain, image, plugin),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    try:
        _, messages = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        _stop(process)
        last = _read_profile(folder).last or "a function not known"
        raise FirmwareError(
            f"the program did not end within {seconds:g} s on {image.board.name} and was stopped;"
            f" it was in {last}. It hangs, or needs more `seconds`"
        ) from None
    except BaseException:
        process.kill()  # interrupted: leave no emulator behind
        raise
    profile = _read_profile(folder)
    check_end(image, process.returncode, messages, profile)
    return Ended(process.returncode, messages, profile)
