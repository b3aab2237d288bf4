"""Models as users write them: a U-Net, a VAE, a Linen ResNet, recurrent and gated ones, a mixer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen, nnx
from made_once import made_once

from rosler_jax.graph.kinds import Concat, Conv, Cumulative, Dense, Norm, Scan, Take, Transpose


class UNet(nnx.Module):
    """Two levels, skips by concatenation, transposed convolution and nearest upsampling."""

    def __init__(self, rngs: nnx.Rngs):
        self.first = nnx.Conv(1, 4, (3, 3), rngs=rngs)
        self.down = nnx.Conv(4, 8, (3, 3), strides=2, rngs=rngs)
        self.deep = nnx.Conv(8, 8, (3, 3), strides=2, rngs=rngs)
        self.up = nnx.ConvTranspose(8, 8, (2, 2), strides=(2, 2), rngs=rngs)
        self.join = nnx.Conv(16, 8, (3, 3), rngs=rngs)
        self.last = nnx.Conv(12, 2, (1, 1), rngs=rngs)

    def __call__(self, x: Any) -> Any:
        a = nnx.silu(self.first(x))
        b = nnx.silu(self.down(a))
        c = self.up(nnx.silu(self.deep(b)))
        d = nnx.silu(self.join(jnp.concatenate([b, c], -1)))
        e = jnp.repeat(jnp.repeat(d, 2, 1), 2, 2)
        return self.last(jnp.concatenate([a, e], -1))


class Vae(nnx.Module):
    """Mean and log variance; the noise of a fixed key is a constant."""

    def __init__(self, rngs: nnx.Rngs):
        self.encoder = nnx.Linear(20, 16, rngs=rngs)
        self.mean, self.log_variance = (nnx.Linear(16, 4, rngs=rngs) for _ in range(2))
        self.decoder = nnx.Linear(4, 20, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        h = nnx.elu(self.encoder(x))
        mean, log_variance = self.mean(h), self.log_variance(h)
        noise = jax.random.normal(jax.random.key(7), (1, 4))
        z = mean + jnp.exp(0.5 * log_variance) * noise
        return {"image": nnx.sigmoid(self.decoder(z)), "mean": mean, "log_variance": log_variance}


class Mixer(nnx.Module):
    """One block of Tolstikhin et al., arXiv:2105.01601, with grouped norm after it."""

    def __init__(self, rngs: nnx.Rngs):
        self.norm1, self.norm2 = (nnx.LayerNorm(8, rngs=rngs) for _ in range(2))
        self.tokens, self.channels = nnx.Linear(6, 6, rngs=rngs), nnx.Linear(8, 8, rngs=rngs)
        self.groups = nnx.GroupNorm(8, num_groups=2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        y = self.norm1(x).swapaxes(1, 2)
        x = x + nnx.gelu(self.tokens(y), approximate=False).swapaxes(1, 2)
        return self.groups(x + self.channels(self.norm2(x)))


class Gated(nnx.Module):
    """A GRU both ways, a running sum, the mean over time."""

    def __init__(self, rngs: nnx.Rngs):
        self.rnn = nnx.Bidirectional(
            nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs)), nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs))
        )
        self.head = nnx.Linear(8, 2, rngs=rngs)

    def __call__(self, x: Any) -> Any:
        return self.head(jnp.cumsum(self.rnn(x), axis=1).mean(1))


class LinenResNet(linen.Module):
    """Two residual blocks with batch norm, average pooling with SAME padding."""

    @linen.compact
    def __call__(self, x: Any) -> Any:
        x = linen.Conv(6, (3, 3), use_bias=False)(x)
        for width in (6, 8):
            y = linen.relu(linen.BatchNorm(use_running_average=True)(x))
            y = linen.Conv(width, (3, 3), strides=width // 4)(y)
            if y.shape != x.shape:
                x = linen.Conv(width, (1, 1), strides=width // 4)(x)
            x = x + y
        x = linen.avg_pool(x, (3, 3), (2, 2), "SAME", count_include_pad=False)
        return linen.Dense(3)(x.mean((1, 2)))


def _nnx(make: Callable[[nnx.Rngs], Any], shape: tuple[int, ...], kinds: set[type]) -> Any:
    copy = made_once(make)

    def model(key: Any) -> tuple[Any, Any, tuple[Any, ...], set[type]]:
        made = copy()
        return made, made, (jax.random.normal(key, (2, *shape)),), kinds

    return model


def _linen(key: Any) -> tuple[Any, Any, tuple[Any, ...], set[type]]:
    module, x = LinenResNet(), jax.random.normal(key, (2, 9, 9, 2))
    variables = jax.jit(module.init)(key, x)
    return (module, variables), lambda x: module.apply(variables, x), (x,), {Conv, Dense}


USER_MODELS: dict[str, Any] = {
    "u-net": _nnx(UNet, (8, 8, 1), {Conv, Concat, Take}),
    "vae": _nnx(Vae, (20,), {Dense}),
    "mixer": _nnx(Mixer, (6, 8), {Norm, Transpose, Dense}),
    "gated": _nnx(Gated, (5, 3), {Scan, Cumulative, Concat}),
    "linen resnet": _linen,
}
"""From a key: the model as ``trace`` takes it, to call, arguments, kinds that it has."""
