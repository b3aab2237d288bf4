"""A server that sums and a client that multiplies, each a process of its own; no models.

network_toys.py server FOLDER ADDRESS ROUNDS CLIENTS TIMEOUT
    ROUNDS 0: until there is a file FOLDER/stop
network_toys.py client FOLDER ADDRESS NUMBER [SECONDS [STUCK_ROUND]]
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rosler_jax.federated.network import Assignment, Pace, Reply, Server, join, serve


def write(path: Path, content: object) -> None:
    """All or nothing: a test reads while this writes."""
    part = path.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(content))
    part.replace(path)


def run_server(folder: Path, address: str, rounds: str, clients: str, timeout: str) -> None:
    saved = folder / "server.json"

    def load() -> list[dict[str, object]]:
        return json.loads(saved.read_text()) if saved.exists() else []

    def begin() -> Assignment | None:
        done = load()
        if len(done) == int(rounds) if int(rounds) else (folder / "stop").exists():
            return None
        value = len(done)
        return Assignment(value, lambda client: f"{value} {client}".encode(), int(clients))

    def end(value: int, replies: Sequence[Reply]) -> None:
        clients = [reply.client for reply in replies]
        total = sum(int(reply.body) for reply in replies)
        write(saved, [*load(), {"round": value, "clients": clients, "sum": total}])

    def started(address: str) -> None:
        write(folder / "address.json", address)

    pace = Pace(timeout=float(timeout), min_replies=1, gather=30.0, poll=0.05)
    serve(Server(begin, end), address, pace=pace, started=started)


def run_client(
    folder: Path, address: str, number: str, seconds: str = "0", stuck: str = "-1"
) -> None:
    def work(body: bytes) -> bytes:
        value, client = map(int, body.split())
        assert client == int(number)
        if value == int(stuck):
            write(folder / f"stuck{number}.json", value)
            time.sleep(600)
        time.sleep(float(seconds))
        return str((value + 1) * 10**client).encode()

    rounds = join(work, address, client=int(number), patience=60.0, poll=0.1)
    write(folder / f"client{number}.json", rounds)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("rosler_jax.federated").setLevel(logging.INFO)
    {"server": run_server, "client": run_client}[sys.argv[1]](Path(sys.argv[2]), *sys.argv[3:])
