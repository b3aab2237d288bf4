"""Large models as shapes: LLaMA-7B's optimisers, and the activations of a transformer.

For scripts/bench_large, which counts and times, and scripts/compile_kernels, which compiles the
same for devices that are not here (specs "llama" and "activations").
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from rosler_jax import MatrixView, compact_state, scale_by_sketched_adam
from rosler_jax.nn import one_byte, sketch_policy, sketched_dot_general

# LLaMA-7B (Touvron et al., arXiv:2302.13971): width, inner width, layers, vocabulary.
WIDTH, INNER, LAYERS, VOCABULARY = 4096, 11008, 32, 32000

Program = tuple[str, Callable[..., Any], Any]


def llama(stacked: bool = True, dtype: Any = jnp.bfloat16) -> dict[str, Any]:
    """Shapes of the parameters; the layers of a kind in one array, or each in its own."""
    square, up, down = (WIDTH, WIDTH), (WIDTH, INNER), (INNER, WIDTH)
    layer: dict[str, tuple[int, ...]] = dict.fromkeys(("q", "k", "v", "o"), square)
    layer |= {"gate": up, "up": up, "down": down, "norm1": (WIDTH,), "norm2": (WIDTH,)}
    ends: dict[str, tuple[int, ...]] = {
        "embed": (VOCABULARY, WIDTH),
        "head": (WIDTH, VOCABULARY),
        "norm": (WIDTH,),
    }
    if stacked:
        shapes = ends | {name: (LAYERS, *shape) for name, shape in layer.items()}
    else:
        shapes = ends | {
            f"{name}/{i}": shape for i in range(LAYERS) for name, shape in layer.items()
        }
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}


def _view(name: str, shape: tuple[int, ...]) -> MatrixView | None:
    if name.startswith("norm"):
        return None
    return MatrixView((0,), (1,)) if len(shape) == 2 else MatrixView((1,), (2,), stack=(0,))


_sketched = functools.partial(scale_by_sketched_adam, view=_view)
_channel = functools.partial(_sketched, scaling="channel", family="rademacher")

OPTIMISERS: dict[str, Callable[[], optax.GradientTransformation]] = {
    "AdamW, float32 moments": lambda: optax.scale_by_adam(mu_dtype=jnp.float32),
    "AdamW, int8": lambda: compact_state(optax.scale_by_adam(), jnp.int8),
    "Adafactor": optax.scale_by_factored_rms,
    "GaLore of optax, rank 256": lambda: optax.contrib.scale_by_galore(256, 200),
    "channel, rank 256": lambda: _channel(256),
    "channel, rank 256, int8": lambda: _channel(256, state_dtype=jnp.int8),
    "combined of cosines, rank 256": lambda: _sketched(
        256, scaling="combined", family="dct_columns"
    ),
    "combined of cosines, rank 256, int8": lambda: _sketched(
        256, scaling="combined", family="dct_columns", state_dtype=jnp.int8
    ),
    "channel, rank 64, longer axis lost": lambda: _channel(64, along="longer"),
    "tensor, rank 1": lambda: _sketched(1, scaling="tensor", family="rademacher"),
}


def state_bytes(make: Callable[[], Any], params: Any) -> int:
    """Of an optimiser's state."""
    leaves = jax.tree.leaves(jax.eval_shape(make().init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def _wide(tree: Any) -> Any:
    """Adam's squares have the dtype of what it is initialised with."""
    return jax.tree.map(lambda a: a.update(dtype=jnp.float32), tree)


def llama_state_bytes() -> dict[str, int]:
    """Of each optimiser, on weights in bfloat16 (AdamW's moments in float32)."""
    params = llama(stacked=False)
    return {
        name: state_bytes(make, _wide(params) if "float32" in name else params)
        for name, make in OPTIMISERS.items()
    }


def llama_updates(_: str = "") -> Iterator[Program]:
    """Of each optimiser that knows stacks: from gradients to new weights."""
    params = llama()
    for name, make in OPTIMISERS.items():
        if "GaLore" in name or "Adafactor" in name:
            continue  # they take a stack of matrices for one array
        tx = make()
        wide = "float32" in name

        def update(params: Any, state: Any, grads: Any, tx: Any = tx, wide: bool = wide) -> Any:
            given = jax.tree.map(lambda g: g.astype(jnp.float32), grads) if wide else grads
            updates, state = tx.update(given, state, params)
            updates = jax.tree.map(lambda u: (-1e-3 * u).astype(jnp.bfloat16), updates)
            return optax.apply_updates(params, updates), state

        state = jax.eval_shape(tx.init, _wide(params) if wide else params)
        yield f"LLaMA-7B, {name}", update, (params, state, params)


class Variant(NamedTuple):
    """How a block's backward pass gets what it needs.

    Attributes:
      dot: of its four dense products.
      act: its activation.
      policy: of ``jax.checkpoint`` around the block; None for no checkpoint.
    """

    dot: Callable[..., Any] = jax.lax.dot_general
    act: Callable[[Any], Any] = jax.nn.gelu
    policy: Any = None


_DOT, _GELU = sketched_dot_general(1 / 8), one_byte(jax.nn.gelu)
VARIANTS: dict[str, Variant] = {
    "as it is": Variant(),
    "sketch of an eighth": Variant(_DOT),
    "sketch and a byte": Variant(_DOT, _GELU),
    "remat of a block": Variant(policy=jax.checkpoint_policies.nothing_saveable),
    "remat, products kept": Variant(
        policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    ),
    "sketch, a byte and remat": Variant(_DOT, _GELU, sketch_policy),
}
"""Every way by name: a new one is one line here."""


class Sizes(NamedTuple):
    """Of a transformer and its batch."""

    width: int = 1024
    heads: int = 16
    depth: int = 8
    length: int = 512
    batch: int = 8


def _block(variant: Variant, sizes: Sizes, w: dict[str, Any], x: Any) -> Any:
    dims = (((2,), (0,)), ((), ()))
    h = _normed(x)
    b, t, d = h.shape
    q, k, v = (
        a.reshape(b, t, sizes.heads, d // sizes.heads)
        for a in jnp.split(variant.dot(h, w["qkv"], dims), 3, axis=-1)
    )
    mixed = jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(b, t, d)
    x = x + variant.dot(mixed, w["out"], dims)
    inner = variant.act(variant.dot(_normed(x), w["up"], dims))
    return x + variant.dot(inner, w["down"], dims)


def _normed(x: Any) -> Any:
    scale = jax.lax.rsqrt(jnp.mean(jnp.square(x.astype(jnp.float32)), -1, keepdims=True) + 1e-6)
    return x * scale.astype(x.dtype)


def weights_of(sizes: Sizes, dtype: Any) -> list[dict[str, Any]]:
    """Shapes of the weights, block by block."""
    d = sizes.width
    shapes = {"qkv": (d, 3 * d), "out": (d, d), "up": (d, 4 * d), "down": (4 * d, d)}
    one = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
    return [one] * sizes.depth


def gradients(variant: Variant, sizes: Sizes) -> Callable[..., Any]:
    """``(weights, x)`` to the gradients of a loss of the outputs."""
    block: Callable[..., Any] = functools.partial(_block, variant, sizes)
    if variant.policy is not None:
        block = jax.checkpoint(block, policy=variant.policy)

    def loss(weights: Any, x: Any) -> Any:
        for w in weights:
            x = block(w, x)
        return jnp.mean(jnp.square(x.astype(jnp.float32)))

    return jax.grad(loss)


def activations(_: str = "", dtype: Any = jnp.bfloat16) -> Iterator[Program]:
    """The gradients of a transformer in every way."""
    sizes = Sizes()
    x = jax.ShapeDtypeStruct((sizes.batch, sizes.length, sizes.width), dtype)
    for name, variant in VARIANTS.items():
        yield f"8 blocks, {name}", gradients(variant, sizes), (weights_of(sizes, dtype), x)


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown of compiled rows: bytes and operations."""
    lines = ["| device | program | arguments, GB | temporaries, GB | operations, T |"]
    lines.append("|---|---|---:|---:|---:|")
    for row in rows:
        said = row.get("error") or row.get("refused")
        flops = f"{row['flops'] / 1e12:.3f}" if row.get("flops") else "-"
        cells = (
            f"{said} | - | -"
            if said
            else (f"{row['arguments'] / 1e9:.3f} | {row['temporaries'] / 1e9:.3f} | {flops}")
        )
        lines.append(f"| {row['device']} | {row['what']} | {cells} |")
    return "\n".join(lines)
