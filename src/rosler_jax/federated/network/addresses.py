"""Where a server listens, and whether a connection to it may go unencrypted."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import NamedTuple

StrPath = str | os.PathLike[str]

SECRET_HEADER = "x-rosler-secret"


class Address(NamedTuple):
    """A host and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        """As it is written: an IPv6 host in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str) -> Address:
    """Reads host:port.

    Raises:
      ValueError: if it is not of that form.

    Example:
      >>> parse_address("[::1]:8080")
      Address(host='::1', port=8080)
    """
    host, colon, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    if not colon or not bare or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ValueError(f"the address {text!r} is not host:port, as in 127.0.0.1:8080")
    if ":" in bare and not host.startswith("["):
        raise ValueError(f"the address {text!r} needs brackets around its host, as in [::1]:8080")
    return Address(bare, int(port))


def is_loopback(host: str) -> bool:
    """Whether what is sent to a host stays on this machine.

    Example:
      >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0")
      (True, True, False)
    """
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name, that may be anywhere
        return False


class Certificate(NamedTuple):
    """A server's certificate chain and its private key, as files in PEM format."""

    chain: Path
    key: Path


def server_certificate(
    address: Address, certificate: StrPath | None, key: StrPath | None, insecure: bool
) -> Certificate | None:
    """What a server is to prove itself with; None for no encryption.

    Raises:
      ValueError: if it would be reached from other machines without encryption, or only one of
        the two files is given.
      FileNotFoundError: if a file is not there.

    Example:
      >>> server_certificate(Address("127.0.0.1", 8080), None, None, insecure=False)
      >>> server_certificate(Address("0.0.0.0", 8080), None, None, insecure=False)
      Traceback (most recent call last):
      ValueError: 0.0.0.0:8080 is reached from other machines, but has no certificate; give
      certificate and key, or insecure=True to send everything unencrypted
    """
    if (certificate is None) != (key is None):
        raise ValueError(
            f"certificate is {certificate} and key is {key}; give both files, or neither"
        )
    if certificate is not None and key is not None:
        if insecure:
            raise ValueError("insecure=True and a certificate contradict each other; give one")
        return Certificate(_existing(certificate, "certificate"), _existing(key, "key"))
    if not insecure and not is_loopback(address.host):
        raise ValueError(
            f"{address} is reached from other machines, but has no certificate; give certificate "
            "and key, or insecure=True to send everything unencrypted"
        )
    return None


def client_roots(
    address: Address, root_certificates: StrPath | None, insecure: bool
) -> tuple[bool, bytes | None]:
    """Whether a client's connection is unencrypted, and the roots that it trusts.

    Without root certificates it trusts those of the system, except that a connection that does
    not leave the machine is not encrypted.

    Raises:
      ValueError: if roots are given for a connection that is not encrypted.
      FileNotFoundError: if the file is not there.

    Example:
      >>> client_roots(Address("127.0.0.1", 8080), None, insecure=False)
      (True, None)
      >>> client_roots(Address("server.example", 8080), None, insecure=False)
      (False, None)
    """
    if root_certificates is not None:
        if insecure:
            raise ValueError("insecure=True and root_certificates contradict each other; give one")
        return False, _existing(root_certificates, "root_certificates").read_bytes()
    return insecure or is_loopback(address.host), None


def check_secret(secret: str | None) -> None:
    """Refuses secrets that no header can carry.

    Raises:
      ValueError: if it is empty, or not of visible ASCII characters.
    """
    if secret is not None and not (secret and all("!" <= letter <= "~" for letter in secret)):
        raise ValueError("secret must be of visible ASCII characters, at least one")


def _existing(path: StrPath, name: str) -> Path:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name} is {path}, but there is no such file")
    return Path(path)
