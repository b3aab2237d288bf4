"""The integer hash behind every sketch: (seed, row, column) -> uint32 words.

Specification, complete enough to be repeated in C. All arithmetic is on unsigned 32-bit integers
and wraps.

``threefry_2x32((k0, k1), (c0, c1), rounds=13)`` is Threefry-2x32 (Salmon, Moraes, Dror, Shaw,
"Parallel random numbers: as easy as 1, 2, 3", SC 2011)::

    k2 = k0 ^ k1 ^ 0x1BD11BDA;  x0 = c0 + k0;  x1 = c1 + k1
    for i in 0 .. rounds - 1:
        x0 += x1;  x1 = rotate_left(x1, (13, 15, 26, 6, 17, 29, 16, 24)[i % 8]) ^ x0
        if i % 4 == 3:                       # key injection number n = i // 4 + 1
            n = i // 4 + 1;  x0 += k[n % 3];  x1 += k[(n + 1) % 3] + n

Random123, the authors' library, publishes known answers for 13 and for 20 rounds; with twenty it is
the generator of ``jax.random``.

``domain_key(seed, tag) = threefry_2x32(seed, (tag, 0x524F534C))`` gives each use of a seed a key of
its own, so that two uses never read the same stream. Tags below 256 belong to this package (the
``Tag`` enumeration).

``bounded(w, n) = floor(w n / 2^32)`` maps a word to ``0 .. n - 1``.

``bijection(key, x, bits)`` permutes ``0 .. 2^bits - 1``: with ``(a_r, b_r) = threefry_2x32(key, (r,
0))``, ``h = ceil(bits / 2)``, for r = 0 .. 7: ``x = (x + a_r) (b_r | 1) mod 2^bits;  x = x ^ (x >>
h)``.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Float, UInt32

    Words = tuple[UInt32[Array, "..."], UInt32[Array, "..."]]
    Counter = tuple[UInt32[Array, "..."] | int, UInt32[Array, "..."] | int]

_ROTATIONS = (13, 15, 26, 6, 17, 29, 16, 24)
_PARITY = 0x1BD11BDA
_DOMAIN = 0x524F534C  # "ROSL"
_BIJECTION_ROUNDS = 8  # with 4, the image of a pair is visibly not uniform over keys


class Tag(enum.IntEnum):
    """Counter domains: one for each independent stream that a sketch reads."""

    GAUSSIAN = 1
    RADEMACHER = 2
    SPARSE_SIGN = 3
    SRHT_SIGNS = 4
    SRHT_COLUMNS = 5
    BLOCK_PERM_ENTRIES = 6
    BLOCK_PERM_INPUT = 7
    BLOCK_PERM_OUTPUT = 8
    BLOCK_PERM_SHIFT = 9
    ROWS_UNIFORM = 10
    ROWS_WEIGHTED = 11


def as_seed(seed: object) -> UInt32[Array, "2"]:
    """Two seed words from an integer, a pair of words or a JAX key.

    An integer s gives (s >> 32, s mod 2^32), as ``jax.random.key(s)`` does. A key gives its words;
    of one with more than two (``impl="rbg"``) each further pair is hashed under those before it,
    ``threefry_2x32((k0, k1), (k2, k3))``: the same on every platform and under ``vmap``.

    Args:
      seed: an int in [0, 2^64), an integer scalar array, a uint32 array of shape (2,), or a typed
        JAX key.

    Returns:
      uint32 array of shape (2,).

    Raises:
      ValueError: the seed has another shape, or is out of range.
      TypeError: the seed is not made of integers.

    >>> as_seed(7).tolist()
    [0, 7]
    """
    if isinstance(seed, int | np.integer):
        value = int(seed)
        if not 0 <= value < 2**64:
            raise ValueError(
                f"seed {value} is outside [0, 2^64); pass a non-negative 64-bit integer"
            )
        return jnp.array([value >> 32, value & 0xFFFFFFFF], dtype=jnp.uint32)
    if isinstance(seed, jax.Array) and jnp.issubdtype(seed.dtype, jax.dtypes.prng_key):
        return _key_words(seed)
    words = jnp.asarray(seed)
    if not jnp.issubdtype(words.dtype, jnp.integer):
        raise TypeError(f"seed has dtype {words.dtype}; expected an int, uint32[2] or a JAX key")
    if words.shape == ():
        return jnp.stack([jnp.zeros((), jnp.uint32), words.astype(jnp.uint32)])
    if words.shape != (2,):
        raise ValueError(
            f"seed has shape {words.shape}; expected an int, uint32[2] or a typed JAX key (for "
            "many seeds use jax.vmap, for raw words of a key jax.random.wrap_key_data)"
        )
    return words.astype(jnp.uint32)


def _key_words(key: Array) -> UInt32[Array, "2"]:
    if key.shape != ():
        raise ValueError(f"seed has shape {key.shape}; expected one key (for many use jax.vmap)")
    words = jax.random.key_data(key).reshape(-1)
    state = words[:2]
    for k in range(2, words.size, 2):
        state = jnp.stack(threefry_2x32(state, (words[k], words[k + 1])))
    return state


def threefry_2x32(key: Counter | UInt32[Array, "2"], counter: Counter, rounds: int = 13) -> Words:
    """Threefry-2x32 of a counter under a key.

    Args:
      key: two uint32 words (a pair of arrays, or an array of shape (2,)).
      counter: a pair of uint32 arrays (or Python ints) that broadcast against each other.
      rounds: number of rounds; 13 is this package's hash, 20 is jax.random's.

    Returns:
      Two uint32 arrays of the broadcast shape of the counter.

    >>> [hex(int(w)) for w in threefry_2x32((0, 0), (0, 0))]
    ['0x9d1c5ec6', '0x8bd50731']
    """
    k0, k1 = _u32(key[0]), _u32(key[1])
    ks = (k0, k1, k0 ^ k1 ^ _u32(_PARITY))
    x0, x1 = jnp.broadcast_arrays(_u32(counter[0]), _u32(counter[1]))
    x0, x1 = x0 + k0, x1 + k1
    for i in range(rounds):
        rotation = _ROTATIONS[i % 8]
        x0 = x0 + x1
        x1 = ((x1 << _u32(rotation)) | (x1 >> _u32(32 - rotation))) ^ x0
        if i % 4 == 3:
            n = i // 4 + 1
            x0 = x0 + ks[n % 3]
            x1 = x1 + (ks[(n + 1) % 3] + _u32(n))
    return x0, x1


def domain_key(seed: UInt32[Array, "2"], tag: int) -> Words:
    """The key of one counter domain of a seed: threefry_2x32(seed, (tag, 0x524F534C)).

    Args:
      seed: uint32[2].
      tag: below 256 for this package (``Tag``); callers may use 256 and up.

    Returns:
      Two uint32 scalars.

    >>> a, b = domain_key(as_seed(0), 1), domain_key(as_seed(0), 2)
    >>> bool((a[0] == b[0]) & (a[1] == b[1]))
    False
    """
    return threefry_2x32(seed, (int(tag), _DOMAIN))


def bounded(word: UInt32[Array, "..."], n: int | UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """floor(word n / 2^32): a number in 0 .. n - 1 from a uniform word.

    Written with 16-bit limbs: the GPU back ends have no high multiply. Each value's probability is
    off 1/n by at most 2^-32.

    >>> int(bounded(jnp.uint32(0xFFFFFFFF), 10))
    9
    """
    word, n = _u32(word), _u32(n)
    low16, sixteen = _u32(0xFFFF), _u32(16)
    wh, wl, nh, nl = word >> sixteen, word & low16, n >> sixteen, n & low16
    cross, cross2 = wh * nl, wl * nh
    carry = (cross & low16) + (cross2 & low16) + ((wl * nl) >> sixteen)
    return wh * nh + (cross >> sixteen) + (cross2 >> sixteen) + (carry >> sixteen)


def uniform(word: UInt32[Array, "..."]) -> Float[Array, "..."]:
    """The upper 24 bits as an exact float32 in [0, 1), a multiple of 2^-24.

    >>> float(uniform(jnp.uint32(1 << 31)))
    0.5
    """
    # Through int32: not every accelerator converts uint32 to float.
    return (word >> _u32(8)).astype(jnp.int32).astype(jnp.float32) * np.float32(2.0**-24)


def sin_cos_turns(v: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """(sin 2 pi v, cos 2 pi v) for v in [0, 1), float32, within 2e-7.

    The angle is brought to an eighth of a turn without rounding, and both are polynomials there: a
    few multiplications where a library's sine would spend several times as much on any argument.

    >>> [round(float(a), 6) for a in sin_cos_turns(jnp.float32(1 / 12))]
    [0.5, 0.866025]
    """
    turn = (v * np.float32(4.0) + np.float32(0.5)).astype(jnp.int32)
    t = (v - turn.astype(jnp.float32) * np.float32(0.25)) * np.float32(2.0 * np.pi)
    sine, cosine = t * _taylor(t * t, 1), _taylor(t * t, 0)
    swap = (turn & np.int32(1)) != np.int32(0)
    s, c = jnp.where(swap, cosine, sine), jnp.where(swap, sine, cosine)
    s = jnp.where((turn & np.int32(2)) != np.int32(0), -s, s)
    return s, jnp.where(((turn + np.int32(1)) & np.int32(2)) != np.int32(0), -c, c)


def _taylor(z: Array, first: int) -> Array:
    """1 - z / ((f + 1)(f + 2)) (1 - z / ((f + 3)(f + 4)) (...)): cos for f = 0, sin x / x for 1."""
    total: Any = np.float32(1.0)
    for k in range(first + 7, first, -2):
        total = np.float32(1.0) - z * np.float32(1.0 / (k * (k + 1))) * total
    return jnp.asarray(total)


def bijection(key: Words, x: UInt32[Array, "..."], bits: int) -> UInt32[Array, "..."]:
    """A keyed permutation of 0 .. 2^bits - 1 (definition in the module's text).

    >>> sorted(bijection(domain_key(as_seed(3), 5), jnp.arange(8, dtype=jnp.uint32), 3).tolist())
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    add, multiply, mask, half = _bijection_parameters(key, bits)
    x = _u32(x)
    for r in range(_BIJECTION_ROUNDS):
        x = ((x + add[r]) * multiply[r]) & mask
        x = x ^ (x >> half)
    return x


def bijection_inverse(key: Words, x: UInt32[Array, "..."], bits: int) -> UInt32[Array, "..."]:
    """The inverse of ``bijection`` for the same key and number of bits.

    >>> key, x = domain_key(as_seed(3), 5), jnp.arange(8, dtype=jnp.uint32)
    >>> bijection_inverse(key, bijection(key, x, 3), 3).tolist()
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    add, multiply, mask, half = _bijection_parameters(key, bits)
    x = _u32(x)
    inverse = multiply
    for _ in range(4):  # Newton: an odd a is its own inverse to 3 bits, and each step doubles them
        inverse = inverse * (_u32(2) - multiply * inverse)
    for r in reversed(range(_BIJECTION_ROUNDS)):
        x = x ^ (x >> half)  # its own inverse, since 2 half >= bits
        x = (x * inverse[r] - add[r]) & mask
    return x


def _bijection_parameters(key: Words, bits: int) -> tuple[Array, Array, Array, Array]:
    if not 0 <= bits <= 31:
        raise ValueError(f"bijection on {bits} bits; expected 0 to 31")
    add, multiply = threefry_2x32(key, (jnp.arange(_BIJECTION_ROUNDS, dtype=jnp.uint32), 0))
    return add, multiply | _u32(1), _u32((1 << bits) - 1), _u32((bits + 1) // 2)


def _u32(x: object) -> Array:
    return jnp.asarray(x, dtype=jnp.uint32)
