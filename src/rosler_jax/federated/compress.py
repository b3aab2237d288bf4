r"""What a message's numbers are sent as: integers of one scale a tensor, or floats as they are.

What rounding leaves behind is kept by who sent it, and added to what it sends next (error
feedback): with memory ``e``, of an update ``x`` it sends ``q s = round(x + e)`` and keeps
``e <- x + e - q s``. So nothing is lost, only late, and integers that are mostly zeros still train.

Source: Seide et al., "1-bit stochastic gradient descent and its application to data-parallel
distributed training of speech DNNs", Interspeech 2014; Karimireddy et al., "Error feedback fixes
SignSGD and other gradient compression schemes", arXiv:1901.09847.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax.federated._spec import Spec, choose

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int, PyTree

_MOST = 127  # of the integers of a coarse step: further ones are cut, and sent later
_FINEST, _COARSEST = 128, 10  # steps of a grid in the weights' size, and powers of two above them
_TINY = np.float32(2.0**-100)


class Compression(NamedTuple):
    """How tensors are sent.

    Attributes:
      levels: the largest integer; 0 for float32 numbers as they are.
      scale: of a tensor; the step of its integers.
      keep: of a tensor, which of its numbers are sent; None for all.
      grid: of steps that all rounds share, how coarse they are, in root mean squares of a message;
        0 where each message has steps of its own.
    """

    levels: int = 0
    scale: Callable[[Any], Any] = lambda x: jnp.ones((), jnp.float32)
    keep: Callable[[Any], Any] | None = None
    grid: float = 0.0


class Packed(NamedTuple):
    """A message's tensors in the order of its leaves.

    Attributes:
      values: integers (int16), or float32 numbers, of which there may be some at the end.
      scales: their steps, which are bfloat16 numbers; 1 of floats.
    """

    values: tuple[Any, ...]
    scales: tuple[Any, ...]


def pack(
    compression: Compression, message: PyTree, scales: Sequence[Any] = (), floats: int = 0
) -> Packed:
    """Rounds a message.

    Args:
      compression: how.
      message: any tree of floats.
      scales: of its tensors, where they are on a grid.
      floats: how many of the last tensors are sent as they are.

    Example:
      >>> packed = pack(compression("step:1"), {"w": jnp.array([3.0, -0.1, 0.2, 0.0])})
      >>> packed.values[0].tolist()
      [2, 0, 0, 0]
      >>> unpack(packed, {"w": jnp.zeros(4)})["w"].round(2).tolist()
      [3.02, 0.0, 0.0, 0.0]
    """
    leaves = [jnp.asarray(x, jnp.float32) for x in jax.tree.leaves(message)]
    integers, rest = leaves[: len(leaves) - floats], leaves[len(leaves) - floats :]
    if compression.grid:
        steps = zip(integers, scales, strict=True)
        pairs = [(_on_grid(compression, x, s), s) for x, s in steps]
    else:
        pairs = [_pack(compression, x) for x in integers]
    pairs += [(x, jnp.ones((), jnp.float32)) for x in rest]
    return Packed(tuple(q for q, _ in pairs), tuple(s for _, s in pairs))


def _pack(how: Compression, x: Float[Array, "..."]) -> tuple[Array, Array]:
    if not how.levels:
        return x, jnp.ones((), jnp.float32)
    scale = _bfloat16_above(jnp.maximum(how.scale(x), _TINY))
    q = jnp.clip(jnp.round(x / scale), -how.levels, how.levels)
    if how.keep is not None:
        q = jnp.where(how.keep(x), q, 0)
    # What is not finite is no integer: the scale says so, and the server sees it.
    scale = jnp.where(jnp.isfinite(x).all(), scale, jnp.nan)
    return q.astype(jnp.int16), scale


def _bfloat16_above(x: Float[Array, ""]) -> Float[Array, ""]:
    """The number that is sent: not below, so that the largest integer is not passed."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    return jax.lax.bitcast_convert_type((bits + 0xFFFF) & np.uint32(0xFFFF0000), jnp.float32)


def unpack(packed: Packed, like: PyTree) -> PyTree:
    """The message that was sent, float32: ``values * scales`` in the structure of ``like``."""
    leaves = [v.astype(jnp.float32) * s for v, s in zip(packed.values, packed.scales, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(like), leaves)


def compression(spec: str, what: str = "compression") -> Compression:
    """The row of a text, as ``"step:2"``; see :data:`COMPRESSIONS`.

    Raises:
      ValueError: for an unknown one, or a number that it does not take.
    """
    make, number = choose(what, spec, COMPRESSIONS)
    return make(number)


def _largest(x: Array) -> Array:
    return jnp.abs(x).max(initial=0.0)


def _root_mean_square(x: Array) -> Array:
    x = jnp.asarray(x, jnp.float32)
    unit = jnp.maximum(_largest(x), _TINY)  # the square of 1e30 is no float32
    return unit * jnp.sqrt(((x / unit) ** 2).mean())


def _floats(number: float) -> Compression:
    del number
    return Compression()


def _bits(number: float) -> Compression:
    """Integers of so many bits, up to the tensor's largest number."""
    levels = 2 ** (round(number) - 1) - 1
    return Compression(levels, lambda x: _largest(x) / levels)


def _sign(number: float) -> Compression:
    """One bit a number: its sign, times the mean size."""
    del number
    return Compression(1, lambda x: jnp.abs(x).mean(), lambda x: jnp.abs(x) > 0)


def _step(number: float) -> Compression:
    """Steps of so many times the tensor's root mean square: most integers are 0, and cost little.

    The coarser, the fewer bits; with error feedback small numbers add up until they are sent.
    """
    return Compression(_MOST, lambda x: number * _root_mean_square(x))


def _top(number: float) -> Compression:
    """The largest share of a tensor's numbers, of 8 bits; all others are kept for later."""

    def keep(x: Array) -> Array:
        k = max(1, math.ceil(number * math.prod(x.shape) - 1e-6))
        sizes = jnp.abs(x).reshape(-1)
        return jnp.abs(x) >= jax.lax.top_k(sizes, k)[0][-1]

    return Compression(_MOST, lambda x: _largest(x) / _MOST, keep)


def _grid(number: float) -> Compression:
    """As ``step``, but of steps that are a power of two times one that all rounds share.

    So what a client has missed is one message of integers, however many rounds it is, as coarse as
    the finest of them.
    """
    return Compression(2**14 - 1, grid=number)


def _on_grid(how: Compression, x: Float[Array, "..."], finest: Array) -> Int[Array, "..."]:
    """Multiples of the finest step: of ``2^j`` of it, about ``how.grid`` times ``x``'s rms."""
    steps = how.grid * _root_mean_square(x) / finest
    power = jnp.round(jnp.log2(jnp.clip(steps, 1.0, 2.0**_COARSEST)))
    coarse = jnp.exp2(power)
    q = jnp.round(x / (finest * coarse)) * coarse
    return jnp.clip(q, -how.levels, how.levels).astype(jnp.int16)


def grid_scales(compression: Compression, weights: PyTree) -> tuple[Any, ...]:
    """The finest step of each tensor: a share of the initial weights' root mean square.

    Of a tensor that begins as zeros, of that of all the others.
    """
    if not compression.grid:
        return ()
    sizes = jnp.stack([_root_mean_square(x) for x in jax.tree.leaves(weights)])
    usual = jnp.sqrt((sizes**2).sum() / jnp.maximum((sizes > 0).sum(), 1))
    units = jnp.where(sizes > 0, sizes, jnp.where(usual > 0, usual, 1.0))
    return tuple(_bfloat16_above(unit / np.float32(_FINEST)) for unit in units)


COMPRESSIONS: dict[str, Spec[Callable[[float], Compression]]] = {
    "float32": Spec(_floats),
    "bits": Spec(_bits, 8, least=2, most=16),
    "sign": Spec(_sign),
    "step": Spec(_step, 2.0, least=0.01),
    "grid": Spec(_grid, 2.0, least=0.01),
    "top": Spec(_top, 0.01, least=1e-6, most=1.0),
}
"""Every compression by name: a new one is one line here."""


def entropy_bits(packed: Packed, levels: int, floats: int = 0) -> Float[Array, ""]:
    """The information in a message: bits of its integers by how often each occurs, and of scales.

    ``sum over tensors of -sum log2(count(q) / n)``, and 16 bits a scale; 32 a float.

    Args:
      packed: one message.
      levels: of its compression.
      floats: how many of the last tensors are floats.

    Example:
      >>> packed = Packed((jnp.array([0, 1, 0, 1], jnp.int16),), (jnp.ones(()),))
      >>> float(entropy_bits(packed, 1)) - 16
      4.0
    """
    values = packed.values
    coded = len(values) - floats if levels else 0
    bits = jnp.float32(32 * sum(math.prod(v.shape) for v in values[coded:]))
    return bits + sum((_entropy(q, levels) + 16 for q in values[:coded]), jnp.float32(0))


def _entropy(q: Int[Array, "..."], levels: int) -> Float[Array, ""]:
    levels = min(levels, 2**11 - 1)  # what lies beyond is so rare that it counts as one value
    q = jnp.clip(q, -levels, levels)
    counts = jnp.zeros(2 * levels + 1, jnp.float32).at[q.reshape(-1) + levels].add(1.0)
    share = counts / max(math.prod(q.shape), 1)
    return -(counts * jnp.log2(jnp.where(counts > 0, share, 1.0))).sum()
