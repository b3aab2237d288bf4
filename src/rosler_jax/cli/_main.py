"""From arguments to an exit code: the table of commands, and the one place that handles errors."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import textwrap
import traceback
from collections.abc import Sequence

from rosler_jax._files import json_text
from rosler_jax._interrupt import heard_interrupt
from rosler_jax._version import __version__
from rosler_jax.cli import evaluate, export, federate, info, size, sweep, train
from rosler_jax.cli._command import Command, Outcome, UsageError

COMMANDS: dict[str, Command] = {
    "train": train.COMMAND,
    "sweep": sweep.COMMAND,
    "federate": federate.COMMAND,
    "evaluate": evaluate.COMMAND,
    "size": size.COMMAND,
    "export": export.COMMAND,
    "info": info.COMMAND,
}
"""Every command by name: a new one is one line here."""

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130
EXIT_CODES = "exit codes:\n  0 done, 1 failed, 2 wrong usage, 130 interrupted (Ctrl-C)"


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, and that of every command."""
    examples = _examples([command.examples[0] for command in COMMANDS.values()])
    parser = argparse.ArgumentParser(
        prog="rosler",
        description="Random sketch learning: compact networks, trained directly.",
        epilog=f"{examples}\n\n{EXIT_CODES}\n\n`rosler COMMAND --help` shows a command's options.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"rosler-jax {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    parsers = {}
    for name, command in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=command.summary,
            description=textwrap.fill(command.description, 80),
            epilog=f"{_examples(command.examples)}\n\n{EXIT_CODES}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_arguments(sub)
        sub.add_argument(
            "--json", action="store_true", help="JSON on stdout and nothing else there"
        )
        sub.add_argument("--debug", action="store_true", help="show the traceback of an error")
        parsers[name] = sub
    return parser, parsers


def run(argv: Sequence[str] | None) -> int:
    """Parses, runs the command, prints what it found; gives the exit code."""
    parser, parsers = build_parser()
    try:
        args = parser.parse_args(argv)
    except SystemExit as stop:  # argparse has printed help or what was wrong
        return stop.code if isinstance(stop.code, int) else USAGE
    command, prog = COMMANDS[args.command], parsers[args.command].prog
    try:
        # Whatever a library prints on the way must not end up between the lines for machines.
        with contextlib.redirect_stdout(sys.stderr), heard_interrupt():
            outcome = command.run(args)
        _print(outcome, args.json)
        return DONE
    except KeyboardInterrupt:
        _complain(prog, command.interrupted(args), args.debug)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as `head` does
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except UsageError as error:
        _complain(prog, f"{error}; see {prog} --help", args.debug)
        return USAGE
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        _complain(prog, str(error) or type(error).__name__, args.debug)
        return FAILED
    except Exception as error:
        message = f"internal error, please report it ({type(error).__name__}: {error})"
        _complain(prog, message + ("" if args.debug else "; --debug shows where"), args.debug)
        return FAILED


def _print(outcome: Outcome, as_json: bool) -> None:
    print(json_text(outcome.data) if as_json else outcome.text, flush=True)


def _complain(prog: str, message: str, debug: bool) -> None:
    """One line on stderr, after the traceback if that is wanted."""
    if debug:
        traceback.print_exc()
    print(f"{prog}: error: {' '.join(message.split())}", file=sys.stderr)


def _examples(lines: Sequence[str]) -> str:
    return "\n  ".join(["examples:", *lines])
