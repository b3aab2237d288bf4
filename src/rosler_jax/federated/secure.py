r"""Secure aggregation: the server learns the sum of the messages modulo 2^32, and nothing else.

Numbers are integers of one step, ``q = round(x / s)``, times the client's examples, in 32 bits that
wrap. Client i of a round sends::

    y_i = q_i + PRG(b_i) + sum_{j > i} PRG(s_ij) - sum_{j < i} PRG(s_ij)    mod 2^32

``s_ij`` is a secret of each pair (X25519 of their keys of the round, hashed), so that the pairs'
masks cancel in the sum; ``b_i`` is i's own. Both i's key and ``b_i`` are shared among all clients
by Shamir's scheme, any ``threshold`` of which give them back. Of a client that answered the server
asks for shares of ``b_i``, of one that dropped for those of its key, never for both, and takes the
masks that did not cancel out of the sum.

The arithmetic is the real one; here one process plays all clients, so that no message is encrypted
on its way (bytes are counted as if each share were, by AES-GCM).

Source: Bonawitz et al., "Practical secure aggregation for privacy-preserving machine learning",
CCS 2017 (the protocol against an honest but curious server); Shamir, "How to share a secret", 1979.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Float, UInt32

    Words = UInt32[np.ndarray, " numbers"]

PRIME = 2**521 - 1  # a Mersenne prime: secrets of 32 bytes fit
SECRET = 32  # bytes of a key
SHARE = 66 + 28  # bytes of a share, and what encrypting and authenticating it adds


class SecureError(ValueError):
    """A sum that cannot be had."""


class Secrets(NamedTuple):
    """What a client has made for a round: a private key, and the seed of its own mask."""

    private: bytes
    own: bytes


class Shares(NamedTuple):
    """A client's two secrets in shares: number -> share."""

    private: Mapping[int, int]
    own: Mapping[int, int]


def fixed_point(x: Float[np.ndarray, " numbers"], weight: int, total: int, most: float) -> Words:
    """Integers times a weight, modulo 2^32; sums of them up to a weight of ``total`` do not wrap.

    Args:
      x: numbers; what is beyond ``most`` is cut.
      weight: of them.
      total: of all clients, known beforehand.
      most: largest number.

    Example:
      >>> words = fixed_point(np.array([0.5, -1.0]), 3, 10, 1.0)
      >>> (mean_of(words, 3, 10, 1.0) * 2).tolist()
      [1.0, -2.0]
    """
    levels = _levels(total)
    q = np.clip(np.round(np.asarray(x, np.float64) / most * levels), -levels, levels)
    return (q.astype(np.int64) * weight & 0xFFFFFFFF).astype(np.uint32)


def mean_of(
    total_words: Words, weight: int, total: int, most: float
) -> Float[np.ndarray, " numbers"]:
    """The mean that a sum of :func:`fixed_point` stands for; ``weight`` is that of who is in it."""
    signed = total_words.view(np.int32).astype(np.float64)
    return signed / max(weight, 1) / _levels(total) * most


def _levels(total: int) -> int:
    if not 1 <= total < 2**31:
        raise SecureError(f"weights sum to {total}; expected 1..2^31-1")
    return (2**31 - 1) // total


def make_secrets(seed: bytes) -> Secrets:
    """A client's secrets of a round, of what it alone knows."""
    return Secrets(_hash(b"private", seed), _hash(b"own", seed))


def public_key(secrets: Secrets) -> bytes:
    """What a client says to all."""
    return bytes(_private(secrets.private).public_key().public_bytes_raw())


def split_secrets(secrets: Secrets, clients: Sequence[int], threshold: int) -> Shares:
    """Shares of both secrets for all clients of the round."""
    return Shares(
        split(secrets.private, clients, threshold), split(secrets.own, clients, threshold)
    )


def masked(words: Words, client: int, secrets: Secrets, keys: Mapping[int, bytes]) -> Words:
    """A client's message: its words under its own mask and those that it has with each other.

    Args:
      words: the message.
      client: its number.
      secrets: its own.
      keys: public keys of all clients of the round by number.
    """
    out = words + _mask(secrets.own, len(words))
    for other, key in keys.items():
        if other != client:
            out = _signed(out, _mask(_pair(secrets.private, key), len(words)), client < other)
    return out


def unmasked(
    messages: Mapping[int, Words],
    keys: Mapping[int, bytes],
    shares: Mapping[int, Shares],
    threshold: int,
) -> Words:
    """The sum of the messages that came, of which alone it is: masks taken out.

    Args:
      messages: by client.
      keys: public keys of all who began the round.
      shares: by client, of its secrets, as those hold them who answered: of a client in
        ``messages`` only shares of its own mask are looked at, of others only those of its key.
      threshold: shares that a secret needs.

    Raises:
      SecureError: if fewer clients than that answered.

    Example:
      >>> who, words = [0, 1, 2], np.arange(4, dtype=np.uint32)
      >>> secrets = {i: make_secrets(bytes([i])) for i in who}
      >>> keys = {i: public_key(secrets[i]) for i in who}
      >>> shares = {i: split_secrets(secrets[i], who, 2) for i in who}
      >>> sent = {i: masked(words + i, i, secrets[i], keys) for i in (0, 2)}  # 1 has dropped
      >>> unmasked(sent, keys, shares, 2).tolist()
      [2, 4, 6, 8]
    """
    if len(messages) < threshold:
        raise SecureError(
            f"{len(messages)} of {len(keys)} clients answered; {threshold} are needed to take the "
            "masks off"
        )
    came = sorted(messages)
    total = np.zeros_like(messages[came[0]])
    for words in messages.values():
        total = total + words
    for i in keys:
        held = shares[i].own if i in messages else shares[i].private
        secret = join({j: held[j] for j in came[:threshold]})
        if i in messages:
            total = total - _mask(secret, len(total))
            continue
        for j in came:  # what j added for the pair is still there
            total = _signed(total, _mask(_pair(secret, keys[j]), len(total)), i < j)
    return total


def sent_bytes(asked: int, answered: int, numbers: int) -> tuple[int, int]:
    """Bytes up and down of a round, beyond the model: keys, shares, masked words, shares again."""
    shares = asked * (asked - 1) * SHARE * 2
    # At the end each who answered gives one share of each who began.
    up = asked * 2 * SECRET + shares + answered * 4 * numbers + answered * asked * SHARE
    down = asked * asked * 2 * SECRET + shares
    return up, down + answered * math.ceil(asked / 8)


# Shamir's scheme.


def split(secret: bytes, numbers: Sequence[int], threshold: int) -> dict[int, int]:
    """Shares of a secret: values of a random polynomial at each number + 1.

    Example:
      >>> shares = split(bytes(range(32)), [0, 1, 2, 3], 3)
      >>> join({k: shares[k] for k in (3, 0, 2)}) == bytes(range(32))
      True
    """
    value = int.from_bytes(secret, "big")
    coefficients = [value]
    coefficients += [
        int.from_bytes(_hash(b"shamir", secret, k) + _hash(b"more", secret, k), "big") % PRIME
        for k in range(1, threshold)
    ]

    def at(x: int) -> int:
        total = 0
        for coefficient in reversed(coefficients):
            total = (total * x + coefficient) % PRIME
        return total

    return {number: at(number + 1) for number in numbers}


def join(shares: Mapping[int, int]) -> bytes:
    """The secret of enough shares, by Lagrange's formula at 0."""
    total = 0
    for i, share in shares.items():
        above, below = 1, 1
        for j in shares:
            if j != i:
                above = above * (j + 1) % PRIME
                below = below * (j - i) % PRIME
        total = (total + share * above * pow(below, -1, PRIME)) % PRIME
    if total >= 1 << 8 * SECRET:
        raise SecureError("shares are of different secrets, or too few")
    return total.to_bytes(SECRET, "big")


# Keys and masks.


def _private(secret: bytes) -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
    except ImportError as error:
        raise ImportError(
            "secure aggregation needs cryptography: pip install 'rosler-jax[federated]'"
        ) from error
    return X25519PrivateKey.from_private_bytes(secret)


def _pair(private: bytes, public: bytes) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

    key = X25519PublicKey.from_public_bytes(public)
    return _hash(b"pair", _private(private).exchange(key))


def _mask(seed: bytes, numbers: int) -> Words:
    """A stream of words: AES in counter mode."""
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES(seed), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(cipher.update(bytes(4 * numbers)), "<u4").astype(np.uint32)


def _signed(words: Words, mask: Words, plus: bool) -> Words:
    return words + mask if plus else words - mask


def _hash(*parts: bytes | int) -> bytes:
    data = b"|".join(p if isinstance(p, bytes) else str(p).encode() for p in parts)
    return hashlib.sha256(data).digest()
