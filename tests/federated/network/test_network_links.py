"""Who may connect: secrets, certificates, and nothing on the port but what clients need."""

from __future__ import annotations

import contextlib
import datetime
import importlib.metadata
import importlib.util
import ipaddress
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from rosler_jax.federated.network import Assignment, Pace, Reply, Server, join, serve, server_app
from rosler_jax.federated.network import rounds as rounds_module
from rosler_jax.federated.network._flower import need_flower
from rosler_jax.federated.network.addresses import (
    Address,
    client_roots,
    parse_address,
    server_certificate,
)

flower = pytest.mark.skipif(
    importlib.util.find_spec("flwr") is None, reason="flwr is not installed (extra: federated)"
)

QUICK = Pace(timeout=20.0, poll=0.02)

Served = tuple[str, Callable[[], list[Reply]]]


def served(
    rounds: int = 1,
    pace: Pace = QUICK,
    clients: int = 1,
    **options: Any,
) -> Served:
    """A server on a thread: its address, and its replies once it has ended."""
    replies: list[Reply] = []
    addresses: queue.Queue[str] = queue.Queue()
    failures: list[Exception] = []
    count = iter(range(rounds))

    def begin() -> Assignment | None:
        value = next(count, None)
        return None if value is None else Assignment(value, b"%d" % value, clients)

    def end(value: int, come: Sequence[Reply]) -> None:
        replies.extend(come)

    def run() -> None:
        try:
            serve(
                Server(begin, end),
                "127.0.0.1:0",
                pace=pace,
                started=addresses.put,
                **options,
            )
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def ended() -> list[Reply]:
        thread.join(30.0)
        assert not thread.is_alive() and not failures, failures
        return replies

    return addresses.get(timeout=30.0), ended


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    host = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([host]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder = tmp_path_factory.mktemp("certificate")
    chain, secret = folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    secret.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return chain, secret


@pytest.mark.slow
@flower
def test_only_who_knows_the_secret_takes_part() -> None:
    address, ended = served(secret="open-sesame")
    for wrong in (None, "open-barley"):
        with pytest.raises(ConnectionError, match="its secret is missing or another one"):
            join(lambda body: b"spy", address, secret=wrong, patience=5.0)
    assert join(lambda body: body + b"!", address, client=3, secret="open-sesame", poll=0.02) == 1
    assert ended() == [Reply(3, b"0!")]


@pytest.mark.slow
@flower
def test_with_a_certificate_only_its_own_server_is_trusted(certificate: tuple[Path, Path]) -> None:
    chain, key = certificate
    address, ended = served(certificate=chain, key=key)
    with pytest.raises(ConnectionError, match=r"no server at"):
        join(lambda body: b"spy", address, patience=0.2)  # speaks without encryption
    where = parse_address(address)
    from rosler_jax.federated.network.apps import client_app
    from rosler_jax.federated.network.supernode import Road, attend

    with pytest.raises(ConnectionError, match="cannot be trusted"):
        attend(client_app(lambda body: b"spy"), Road(where, False))  # with the system's roots
    assert join(lambda body: body, address, client=0, root_certificates=chain, poll=0.02) == 1
    assert ended() == [Reply(0, b"0")]


@flower
@pytest.mark.parametrize("path", ["/v1/control/start-run", "/v1/runtime/acquire-task", "/docs"])
def test_the_port_takes_no_apps(path: str) -> None:
    address, ended = served()
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.build_opener(urllib.request.ProxyHandler({})).open(
            f"http://{address}{path}", data=b"", timeout=10
        )
    assert refused.value.code == 404
    join(lambda body: body, address, poll=0.02)
    assert len(ended()) == 1


@flower
def test_large_bodies_and_failing_work() -> None:
    address, ended = served(rounds=2)
    calls = iter(range(10))

    def work(body: bytes) -> bytes:
        if next(calls) == 1:
            raise RuntimeError("the sensor is unplugged")
        return body * 3_000_000

    assert join(work, address, client=1, poll=0.02) == 3
    assert ended() == [Reply(1, b"0" * 3_000_000), Reply(1, b"1" * 3_000_000)]


@pytest.mark.slow
@flower
def test_a_reply_that_is_cut_off_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.supercore.inflatable import inflatable_utils

    address, ended = served(rounds=2, pace=Pace(timeout=2.0, poll=0.02), clients=2)
    push, stuck, released = inflatable_utils.push_objects, threading.local(), threading.Event()

    def push_objects(*arguments: Any, **options: Any) -> None:
        if getattr(stuck, "now", False):
            released.wait(60.0)
        push(*arguments, **options)

    monkeypatch.setattr(inflatable_utils, "push_objects", push_objects)
    monkeypatch.setattr(rounds_module, "FAREWELL", 0.2)

    def run_stuck() -> None:
        def work(body: bytes) -> bytes:
            stuck.now = True
            return body

        with contextlib.suppress(ConnectionError):  # the server is gone by then
            join(work, address, client=1, poll=0.02, patience=0.1)

    thread = threading.Thread(target=run_stuck, daemon=True)
    thread.start()
    start = time.monotonic()
    assert join(lambda body: body, address, client=0, poll=0.02) == 2
    assert ended() == [Reply(0, b"0"), Reply(0, b"1")]
    assert time.monotonic() - start < 30.0
    released.set()
    thread.join(20.0)
    assert not thread.is_alive()


@pytest.mark.slow
@flower
def test_work_that_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rounds_module, "void_after", lambda pace: 0.5)
    address, ended = served(rounds=12, pace=Pace(timeout=0.2, poll=0.02), clients=2)
    sleepy = threading.Thread(
        target=join,
        args=(lambda body: time.sleep(1.5) or body, address),
        kwargs={"client": 1, "poll": 0.02},
        daemon=True,
    )
    sleepy.start()
    assert join(lambda body: time.sleep(0.15) or body, address, client=0, poll=0.02) == 12
    assert [reply for reply in ended() if reply.client == 0] == [
        Reply(0, b"%d" % value) for value in range(12)
    ]
    sleepy.join(20.0)
    assert not sleepy.is_alive()


@flower
def test_what_is_no_server_of_ours() -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{other.server_port}"
        with pytest.raises(ConnectionError, match=f"no server (for these clients|at {address})"):
            join(lambda body: body, address, patience=0.2)
        other.shutdown()


@flower
def test_a_port_that_is_taken() -> None:
    address, ended = served()
    with pytest.raises(OSError, match=rf"cannot listen on {address}: .*running there already"):
        serve(Server(lambda: None, lambda value, replies: None), address)
    join(lambda body: body, address, poll=0.02)
    ended()


def test_other_machines_are_not_reached_unencrypted_by_accident() -> None:
    work = lambda body: body
    with pytest.raises(ValueError, match="give certificate and key, or insecure=True"):
        serve(Server(lambda: None, lambda value, replies: None), "0.0.0.0:8080")
    assert server_certificate(Address("0.0.0.0", 1), None, None, insecure=True) is None
    assert client_roots(Address("server.example", 1), None, insecure=False) == (False, None)
    assert client_roots(Address("server.example", 1), None, insecure=True) == (True, None)
    with pytest.raises(FileNotFoundError, match=r"root_certificates is nowhere\.pem"):
        join(work, root_certificates="nowhere.pem")
    with pytest.raises(ValueError, match="contradict each other"):
        join(work, root_certificates="nowhere.pem", insecure=True)
    with pytest.raises(ValueError, match="give both files, or neither"):
        serve(Server(lambda: None, lambda value, replies: None), certificate="chain.pem")


@pytest.mark.parametrize(
    "text", ["127.0.0.1", ":8080", "localhost:http", "localhost:70000", "::1:8080", ""]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="address"):
        parse_address(text)


def test_options_that_make_no_sense() -> None:
    work = lambda body: body
    with pytest.raises(ValueError, match="poll is 0, but must be more than 0 seconds"):
        join(work, poll=0)
    with pytest.raises(ValueError, match="client is -1, but must be a number from 0"):
        join(work, client=-1)
    with pytest.raises(ValueError, match="visible ASCII"):
        join(work, secret="pass word")


def test_without_flower_there_is_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ImportError, match=r"pip install 'rosler-jax\[federated\]'"):
        server_app(Server(lambda: None, lambda value, replies: None))


@flower
def test_an_unknown_flower_may_make_apps_but_not_launch_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "9.0.0")
    need_flower()
    with pytest.raises(ImportError, match=r"flwr is 9\.0\.0, but serve and join need at least"):
        need_flower(launcher=True)


@pytest.mark.slow
def test_importing_does_not_import_flower() -> None:
    code = (
        "import sys, rosler_jax, rosler_jax.federated, rosler_jax.federated.network\n"
        "import rosler_jax.federated.network.secagg\n"
        "sys.exit('flwr' in sys.modules)"
    )
    source = str(Path(__file__).resolve().parents[3] / "src")
    environment = os.environ | {"PYTHONPATH": source, "JAX_PLATFORMS": "cpu"}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
