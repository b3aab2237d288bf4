"""Rounds between real processes on this machine, some of which are killed."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rosler_jax.federated.network import join

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None, reason="flwr is not installed (extra: federated)"
)

TOYS = Path(__file__).with_name("network_toys.py")
ROOT = Path(__file__).resolve().parents[3]
PATIENCE = 60.0

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def mark() -> str:
    """In the environment of everything that a test starts."""
    return f"network-test-{secrets.token_hex(8)}"


@pytest.fixture
def start(tmp_path: Path, mark: str) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []
    environment = os.environ | {
        "ROSLER_TEST_MARK": mark,
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
    }

    def start_one(side: str, *arguments: object) -> subprocess.Popen[bytes]:
        words = [sys.executable, str(TOYS), side, str(tmp_path), *map(str, arguments)]
        # Flower's files of its own, if it ever writes some, go where the test's go.
        process = subprocess.Popen(words, env=environment | {"FLWR_HOME": str(tmp_path / "flwr")})
        started.append(process)
        return process

    yield start_one
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def soon(done: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while not (value := done()):
        assert time.monotonic() < deadline, "nothing came"
        time.sleep(0.02)
    return value


def free_address() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def saved(folder: Path) -> list[dict[str, Any]]:
    path = folder / "server.json"
    return json.loads(path.read_text()) if path.exists() else []


def left_behind(mark: str) -> list[int]:
    """Processes that a test's processes have left; on Linux."""
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark.encode() in environment.read_bytes():
                found.append(int(environment.parent.name))
    return found


@pytest.mark.slow
def test_a_killed_client_is_missed_until_it_is_started_again(
    tmp_path: Path, start: Start, mark: str
) -> None:
    address = free_address()
    server = start("server", address, 0, 3, 2.0)
    clients = [start("client", address, number, 0.1) for number in (0, 1)]
    victim = start("client", address, 2, 0, 1)
    soon((tmp_path / "stuck2.json").exists)
    victim.kill()
    victim.wait()
    soon(lambda: len(saved(tmp_path)) >= 4)  # the others go on
    clients.append(start("client", address, 2))
    soon(lambda: saved(tmp_path)[-1]["clients"] == [0, 1, 2])
    (tmp_path / "stop").touch()
    assert server.wait(PATIENCE) == 0
    assert [client.wait(PATIENCE) for client in clients] == [0, 0, 0]
    rounds = saved(tmp_path)
    assert [line["round"] for line in rounds] == list(range(len(rounds)))
    assert [line["clients"] for line in rounds[:4]] == [[0, 1, 2], [0, 1], [0, 1], [0, 1]]
    for line in rounds:
        assert line["sum"] == sum((line["round"] + 1) * 10**client for client in line["clients"])
    worked = [json.loads((tmp_path / f"client{n}.json").read_text()) for n in (0, 1)]
    assert worked == [len(rounds), len(rounds)]
    assert left_behind(mark) == []


@pytest.mark.slow
def test_a_killed_server_goes_on_where_it_was(tmp_path: Path, start: Start, mark: str) -> None:
    address, rounds = free_address(), 5
    server = start("server", address, rounds, 2, 20.0)
    clients = [start("client", address, number, 0.3) for number in (0, 1)]
    soon(lambda: len(saved(tmp_path)) >= 2)
    server.send_signal(signal.SIGKILL)
    server.wait()
    assert len(saved(tmp_path)) < rounds
    assert left_behind(mark) == sorted(client.pid for client in clients)
    again = start("server", address, rounds, 2, 20.0)
    assert again.wait(PATIENCE) == 0
    assert [client.wait(PATIENCE) for client in clients] == [0, 0]
    assert saved(tmp_path) == [
        {"round": value, "clients": [0, 1], "sum": 11 * (value + 1)} for value in range(rounds)
    ]
    assert left_behind(mark) == []


@pytest.mark.slow
def test_a_server_stops_at_ctrl_c(tmp_path: Path, start: Start, mark: str) -> None:
    server = start("server", "127.0.0.1:0", 1, 1, 20.0)
    soon((tmp_path / "address.json").exists)
    server.send_signal(signal.SIGINT)
    assert server.wait(15.0) != 0
    assert left_behind(mark) == []


def test_a_client_gives_up_when_there_is_no_server() -> None:
    address = free_address()
    with pytest.raises(ConnectionError, match=f"no server at {address} for 0.3 seconds"):
        join(lambda body: body, address, patience=0.3, poll=0.1)
