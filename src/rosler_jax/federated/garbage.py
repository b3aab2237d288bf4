"""What clients send that are broken or mean harm: for trying how a run stands it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from rosler_jax.federated.compress import Packed
from rosler_jax.federated.wire import Form, Header, encode

Send = Callable[[Header, Packed, Form, np.random.Generator], bytes]


def _scaled(factor: float) -> Send:
    """The true message, but so many times as long."""

    def send(header: Header, packed: Packed, form: Form, rng: np.random.Generator) -> bytes:
        del rng
        factor32 = np.float32(factor)
        values = packed.values
        if not form.levels:
            values = tuple((v * factor32).astype(np.float32) for v in values)
        return encode(header, Packed(values, tuple(s * factor32 for s in packed.scales)), form)

    return send


def _noise(header: Header, packed: Packed, form: Form, rng: np.random.Generator) -> bytes:
    """Random numbers, as long as the true ones."""

    def drawn(v: np.ndarray) -> np.ndarray:
        size = max(float(np.sqrt(np.mean(np.square(v, dtype=np.float64)))), 1e-8)
        noise = rng.normal(scale=size, size=v.shape)
        if not form.levels:
            return noise.astype(np.float32)
        return np.clip(np.round(noise), -form.levels, form.levels).astype(np.int16)

    return encode(header, Packed(tuple(map(drawn, packed.values)), packed.scales), form)


def _flipped(header: Header, packed: Packed, form: Form, rng: np.random.Generator) -> bytes:
    """The opposite of the true message, four times as long: below what its norm gives away."""
    turned = Packed(tuple(-v for v in packed.values), packed.scales)
    return _scaled(4.0)(header, turned, form, rng)


def _stale(header: Header, packed: Packed, form: Form, rng: np.random.Generator) -> bytes:
    """A message of another round."""
    del rng
    other = header.round - 3 if header.round >= 3 else header.round + 3
    return encode(header._replace(round=other), packed, form)


def _shape(header: Header, packed: Packed, form: Form, rng: np.random.Generator) -> bytes:
    """The tensors in one row each, as another model might have them."""
    del rng
    flat = Packed(tuple(v.reshape(-1) for v in packed.values) + (np.zeros(3, np.int16),),
                  (*packed.scales, np.float32(1)))  # fmt: skip
    return encode(header, flat, Form([v.shape for v in flat.values], form.levels))


def _cut(header: Header, packed: Packed, form: Form, rng: np.random.Generator) -> bytes:
    """Half a message."""
    del rng
    whole = encode(header, packed, form)
    return whole[: len(whole) // 2]


def _random(header: Header, packed: Packed, form: Form, rng: np.random.Generator) -> bytes:
    """Bytes that are no message."""
    return rng.bytes(len(encode(header, packed, form)))


GARBAGE: dict[str, Send] = {
    "nan": _scaled(np.nan),
    "huge": _scaled(1e30),
    "noise": _noise,
    "flipped": _flipped,
    "stale": _stale,
    "shape": _shape,
    "cut": _cut,
    "random": _random,
}
"""Every kind by name: a new one is one line here."""
