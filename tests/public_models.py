"""Small models after public descriptions, in plain Flax NNX: what users bring."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from made_once import made_once


class VitBlock(nnx.Module):
    """Pre-norm attention and MLP (Dosovitskiy et al., arXiv:2010.11929)."""

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.norm1 = nnx.LayerNorm(width, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.norm2 = nnx.LayerNorm(width, rngs=rngs)
        self.up = nnx.Linear(width, 4 * width, rngs=rngs)
        self.down = nnx.Linear(4 * width, width, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class Vit(nnx.Module):
    """Patches by a strided convolution, learnt positions and class token, blocks, head."""

    def __init__(self, rngs: nnx.Rngs, *, width: int = 32, heads: int = 4, depth: int = 1):
        self.patch = nnx.Conv(3, width, (4, 4), strides=4, padding="VALID", rngs=rngs)
        self.position = nnx.Param(jax.random.normal(rngs.params(), (1, 5, width)) * 0.02)
        self.token = nnx.Param(jnp.zeros((1, 1, width)))
        self.blocks = nnx.List([VitBlock(width, heads, rngs) for _ in range(depth)])
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images: Any) -> Any:
        x = self.patch(images)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(self.token[...], (x.shape[0], 1, x.shape[-1]))
        x = jnp.concatenate([token, x], axis=1) + self.position[...]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, 0])


class GemmaBlock(nnx.Module):
    """Attention of shared keys and values by einsums, gated MLP (arXiv:2403.08295)."""

    def __init__(self, width: int, heads: int, head: int, rngs: nnx.Rngs):
        self.norm1 = nnx.RMSNorm(width, rngs=rngs)
        self.q = nnx.Einsum("BTD,NDH->BTNH", (heads, width, head), rngs=rngs)
        self.kv = nnx.Einsum("BSD,CKDH->CBSKH", (2, 1, width, head), rngs=rngs)
        self.o = nnx.Einsum("BTNH,NHD->BTD", (heads, head, width), rngs=rngs)
        self.norm2 = nnx.RMSNorm(width, rngs=rngs)
        self.gate = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.up = nnx.Linear(width, 3 * width, use_bias=False, rngs=rngs)
        self.down = nnx.Linear(3 * width, width, use_bias=False, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        h = self.norm1(x)
        q = self.q(h)
        k, v = self.kv(h)
        scores = jnp.einsum("btnh,bskh->bnts", q, k) / q.shape[-1] ** 0.5
        scores = jnp.where(jnp.tril(jnp.ones(scores.shape[-2:], bool)), scores, -1e9)
        mixed = jnp.einsum("bnts,bskh->btnh", nnx.softmax(scores), v)
        x = x + self.o(mixed)
        h = self.norm2(x)
        return x + self.down(nnx.gelu(self.gate(h)) * self.up(h))


class Gemma(nnx.Module):
    """A decoder whose embedding is also its head."""

    def __init__(self, rngs: nnx.Rngs, *, vocabulary: int = 24, width: int = 32, depth: int = 1):
        self.embed = nnx.Embed(vocabulary, width, rngs=rngs)
        self.blocks = nnx.List([GemmaBlock(width, 4, 16, rngs) for _ in range(depth)])
        self.norm = nnx.RMSNorm(width, rngs=rngs)

    def __call__(self, tokens: Any) -> Any:
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x)
        return self.embed.attend(self.norm(x))


class EncoderDecoder(nnx.Module):
    """One encoder block, one decoder block with cross attention (arXiv:1706.03762)."""

    def __init__(self, rngs: nnx.Rngs, *, width: int = 32, heads: int = 4):
        self.embed = nnx.Embed(20, width, rngs=rngs)
        self.encoder = VitBlock(width, heads, rngs)
        self.decoder = VitBlock(width, heads, rngs)
        self.cross = nnx.MultiHeadAttention(heads, width, decode=False, rngs=rngs)
        self.head = nnx.Linear(width, 20, rngs=rngs)

    def __call__(self, source: Any, target: Any) -> Any:
        memory = self.encoder(self.embed(source))
        x = self.decoder(self.embed(target))
        return self.head(x + self.cross(x, memory, memory))


class LstmClassifier(nnx.Module):
    """A recurrent network over windows of a sensor."""

    def __init__(self, rngs: nnx.Rngs):
        self.rnn = nnx.RNN(nnx.LSTMCell(24, 32, rngs=rngs))
        self.head = nnx.Linear(32, 20, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(self.rnn(x)[:, -1])


class ScannedStack(nnx.Module):
    """Blocks made by ``vmap`` and run by ``scan``: one parameter holds all layers."""

    def __init__(self, rngs: nnx.Rngs, *, depth: int = 3):
        @nnx.split_rngs(splits=depth)
        @nnx.vmap
        def make(rngs: nnx.Rngs) -> VitBlock:
            return VitBlock(32, 4, rngs)

        self.blocks = make(rngs)
        self.head = nnx.Linear(32, 20, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        def run(block: VitBlock, x: Any) -> Any:
            return block(x)

        return self.head(run(self.blocks, x).mean(1))


def _tokens(key: Any, *shape: int) -> Any:
    return jax.random.randint(key, shape, 0, 20)


MODELS: dict[str, tuple[Any, Any]] = {
    "vit": (made_once(Vit), lambda key: (jax.random.normal(key, (4, 8, 8, 3)),)),
    "gemma": (made_once(Gemma), lambda key: (_tokens(key, 4, 6),)),
    "encoder-decoder": (
        made_once(EncoderDecoder),
        lambda key: (_tokens(key, 4, 5), _tokens(key, 4, 6)),
    ),
    "lstm": (made_once(LstmClassifier), lambda key: (jax.random.normal(key, (4, 7, 24)),)),
    "scanned stack": (made_once(ScannedStack), lambda key: (jax.random.normal(key, (4, 5, 32)),)),
}
"""What makes every model, by name, with the arguments of a call from a key."""
