"""A byte-level language model on text that every Python ships: for scripts/bench_large.

The text is the standard library's own source: code and English, some ten million bytes. Of twenty
files in order of their names one is validation and one is test; a window never spans two splits.
"""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from rosler_jax.nn import one_byte, sketched_dot_general

LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "encodings"}
BYTES = 256


class Size(NamedTuple):
    """Of a model and its batches."""

    width: int = 160
    depth: int = 3
    heads: int = 5
    length: int = 128
    batch: int = 8


class Text(NamedTuple):
    """Bytes of each split, uint8."""

    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray


def text() -> Text:
    """The standard library's source, split by files."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [p for p in sorted(root.rglob("*.py")) if not LEFT_OUT & set(p.parts)]
    parts: dict[str, list[bytes]] = {"train": [], "validation": [], "test": []}
    for i, path in enumerate(files):
        parts[{0: "validation", 10: "test"}.get(i % 20, "train")].append(path.read_bytes())
    return Text(**{k: np.frombuffer(b"\n".join(v), np.uint8) for k, v in parts.items()})


class Block(nnx.Module):
    """A layer of a transformer that looks back alone, normalised before each part.

    ``keep``: share of its rows that the sketches of the two large products keep; None for all.
    """

    def __init__(self, size: Size, rngs: nnx.Rngs, keep: float | None = None):
        d = size.width
        self.attention = nnx.MultiHeadAttention(
            size.heads, d, use_bias=False, decode=False, rngs=rngs
        )
        dot = jax.lax.dot_general if keep is None else sketched_dot_general(keep)
        self.act = nnx.gelu if keep is None else one_byte(nnx.gelu)
        self.up = nnx.Linear(d, 4 * d, use_bias=False, dot_general=dot, rngs=rngs)
        self.down = nnx.Linear(4 * d, d, use_bias=False, dot_general=dot, rngs=rngs)
        self.norms = nnx.List([nnx.RMSNorm(d, rngs=rngs) for _ in range(2)])

    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        """The layer's output."""
        x = x + self.attention(self.norms[0](x), mask=mask)
        return x + self.down(self.act(self.up(self.norms[1](x))))


class LanguageModel(nnx.Module):
    """Logits of the next byte."""

    def __init__(self, size: Size, rngs: nnx.Rngs, keep: float | None = None):
        self.bytes = nnx.Embed(BYTES, size.width, rngs=rngs)
        self.places = nnx.Embed(size.length, size.width, rngs=rngs)
        self.blocks = nnx.List([Block(size, rngs, keep) for _ in range(size.depth)])
        self.norm = nnx.RMSNorm(size.width, rngs=rngs)
        self.head = nnx.Linear(size.width, BYTES, use_bias=False, rngs=rngs)

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits of tokens (batch, length)."""
        length = tokens.shape[-1]
        x = self.bytes(tokens) + self.places(jnp.arange(length))
        mask = jnp.tril(jnp.ones((length, length), bool))[None, None]
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


def bits(graphdef: Any, params: Any, tokens: jax.Array) -> jax.Array:
    """Mean bits a byte of windows one longer than the model sees."""
    logits = nnx.merge(graphdef, params)(tokens[:, :-1]).astype(jnp.float32)
    loss = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
    return loss.mean() / jnp.log(2.0)


def windows(data: np.ndarray, starts: np.ndarray, length: int) -> np.ndarray:
    """Those windows, (n, length + 1), int32."""
    return data[starts[:, None] + np.arange(length + 1)].astype(np.int32)


def held_out(data: np.ndarray, size: Size, count: int = 256) -> np.ndarray:
    """Evenly spaced windows of a split."""
    return windows(
        data, np.linspace(0, len(data) - size.length - 1, count).astype(int), size.length
    )
