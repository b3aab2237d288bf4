"""What the NNX and the Linen sketch layers share: variable types, and the plan of one weight."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
from flax import nnx

import rosler_kernels as rk
from rosler_jax import initializers
from rosler_jax.factors import (
    SeededFactors,
    SketchFactors,
    TwoFactors,
    check_rank,
    core_from_sketch,
    fold,
    reconstruct,
)
from rosler_jax.nn._families import Kind, kinds

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

Mode = Literal["chain", "ares", "seeded", "two-factor"]
Init = Literal["glorot", "he"]
MODES = ("chain", "ares", "seeded", "two-factor")


class SketchParam(nnx.Param):
    """A trainable factor of a sketched weight: select with ``wrt=SketchParam``.

    Example:
      >>> import rosler_jax
      >>> layer = rosler_jax.SketchLinear(8, 6, rank=2, rngs=nnx.Rngs(0))
      >>> sorted(nnx.state(layer, rosler_jax.SketchParam))
      ['c', 'r', 'u']
    """


class SketchSeed(nnx.Variable):
    """The two seed words of a sketch: data, not trained; vmap over it to vary the sketch.

    A third word, where there is one, says how many columns of the sketch are live: see
    :func:`rosler_kernels.make`.

    Store it with the parameters (``rosler_jax.SketchState`` selects both): a core of other seeds is
    another layer.

    Example:
      >>> import rosler_jax
      >>> layer = rosler_jax.SketchLinear(8, 6, rank=2, mode="seeded", rngs=nnx.Rngs(0))
      >>> [value.shape for value in jax.tree.leaves(nnx.state(layer, rosler_jax.SketchSeed))]
      [(2,), (2,)]
    """


SketchState = nnx.Any(nnx.Param, SketchSeed)
"""A filter, in the place of ``nnx.Param``: the parameters and the seeds that they belong to."""


def seed_words(key: Key[Array, ""]) -> Array:
    """The seed of a sketch, as two uint32 words, from a typed key."""
    return jax.random.bits(key, (2,), jnp.uint32)


def check_mode(mode: str) -> None:
    """Refuses an unknown layer mode."""
    if mode not in MODES:
        raise ValueError(f"unknown mode {mode!r}; pass one of {', '.join(map(repr, MODES))}")


def _check_options(in_sketch: int | None, oversampling: int | None, init: str | None) -> None:
    """Refuses sizes of sketches that cannot be, and an unknown initialisation."""
    if in_sketch is not None and in_sketch < 1:
        raise ValueError(f"in_sketch {in_sketch} is not positive; pass 1 or more, or None")
    if oversampling is not None and oversampling < 0:
        raise ValueError(f"oversampling {oversampling} is negative; pass 0 or more, or None")
    if init is not None and init not in initializers.STDDEVS:
        known = ", ".join(map(repr, initializers.STDDEVS))
        raise ValueError(f"unknown init {init!r}; pass one of {known}, or None")


def co_range_dimension(rank: int, m: int, n: int, oversampling: int | None) -> int:
    """The number ``l`` of rows of R: ``rank + oversampling``, default ``2 rank``, if they fit."""
    wanted = rank + (rank if oversampling is None else oversampling)
    return max(rank, min(wanted, m, n))


@dataclasses.dataclass(frozen=True)
class WeightPlan:
    """The static facts of one sketched ``(m, n)`` weight, or of several with the same sketches.

    Attributes:
      m, n: shape of one matrix.
      rank: ``s``.
      inner: ``l``, or the width of the input sketch of a seeded layer.
      mode: ``"chain"``, ``"ares"``, ``"seeded"`` or ``"two-factor"``.
      sketch: names the families of the sketches, see :func:`rosler_jax.nn._families.kinds`.
      init: variance of the virtual matrix.
      gain: scale of the range-finder initialisation.
    """

    m: int
    n: int
    rank: int
    inner: int
    mode: Mode
    sketch: str
    init: Init
    gain: float

    @property
    def sketched(self) -> bool:
        """Whether the layer has sketches, known by their seeds."""
        return self.mode in ("ares", "seeded")

    @property
    def kinds(self) -> tuple[Kind, Kind]:
        """The families of ``Psi`` and ``Omega``."""
        return kinds(self.sketch, self.m)

    def sketches(
        self, psi_seed: Array | None, omega_seed: Array | None
    ) -> tuple[rk.Sketch | None, rk.Sketch | None]:
        """The pair ``Psi (m -> inner)``, ``Omega (n -> rank)``; ``(None, None)`` without seeds."""
        if not self.sketched:
            return None, None
        first, second = self.kinds
        psi = first.make(psi_seed, self.m, self.inner)  # type: ignore[arg-type]
        return psi, second.make(omega_seed, self.n, self.rank)  # type: ignore[arg-type]

    def shapes(self) -> dict[str, tuple[int, int]]:
        """Shapes of the factors of one matrix, by parameter name, in the order of the chain."""
        if self.mode == "seeded":
            return {"u": (self.inner, self.rank)}
        if self.mode == "two-factor":
            return {"c": (self.m, self.rank), "r": (self.rank, self.n)}
        inner = self.inner if self.mode == "ares" else self.rank
        return {"c": (self.m, self.rank), "u": (self.rank, inner), "r": (inner, self.n)}

    def factors(
        self,
        key: Key[Array, ""],
        psi: rk.Sketch | None,
        omega: rk.Sketch | None,
        kernel: Callable[[Array], Array] | None = None,
    ) -> dict[str, Array]:
        """Initial factors of one matrix, by parameter name, float32.

        ``kernel`` draws the matrix ``(m, n)`` from a key; by default it is virtual.
        """
        if kernel is not None:
            drawn, key = jax.random.split(key)
            return self.nearest(kernel(drawn), key, psi, omega)
        if not self.sketched:
            f = initializers.range_finder(
                key, self.m, self.n, self.rank, init=self.init, gain=self.gain
            )
            if self.mode == "two-factor":
                two = fold(f)
                return {"c": two.c, "r": two.r}
            return {"c": f.c, "u": f.u, "r": f.r}
        assert psi is not None
        assert omega is not None
        if self.mode == "seeded":
            return {"u": initializers.seeded(key, psi, omega, init=self.init).u}
        f = initializers.ares_sketches(key, psi, omega, init=self.init, gain=self.gain)
        return {"c": f.c, "u": f.u, "r": f.r}

    def approximation(
        self,
        w: Float[Array, "m n"],
        key: Key[Array, ""],
        psi: rk.Sketch | None,
        omega: rk.Sketch | None,
        method: Literal["svd", "nystrom", "cur"] = "svd",
    ) -> dict[str, Array]:
        """Factors of an approximation of a matrix, by parameter name, float32 or wider."""
        if self.sketched:
            assert psi is not None
            assert omega is not None
            if self.mode == "seeded":
                return {"u": initializers.seeded_from_dense(w, psi, omega).u}
            f = initializers.ares_from_dense(w, psi, omega, key)
            return {"c": f.c, "u": f.u, "r": f.r}
        f = initializers.from_dense(w, self.rank, key, method=method)
        if self.mode == "two-factor":
            two = fold(f)
            return {"c": two.c, "r": two.r}
        return {"c": f.c, "u": f.u, "r": f.r}

    def represented(
        self, factors: Mapping[str, Array], psi: rk.Sketch | None, omega: rk.Sketch | None
    ) -> Float[Array, "m n"]:
        """The matrix that such factors stand for; of an ares layer in its parallel stage."""
        if self.mode == "seeded":
            assert psi is not None
            assert omega is not None
            return reconstruct(SeededFactors(u=factors["u"], psi=psi, omega=omega))
        if self.mode == "two-factor":
            return reconstruct(TwoFactors(c=factors["c"], r=factors["r"]))
        core = core_from_sketch(factors["u"].T) if self.mode == "ares" else factors["u"]
        return reconstruct(SketchFactors(c=factors["c"], u=core, r=factors["r"]))

    def nearest(
        self,
        w: Float[Array, "m n"],
        key: Key[Array, ""],
        psi: rk.Sketch | None,
        omega: rk.Sketch | None,
    ) -> dict[str, Array]:
        """Factors to start from of the best approximation of a matrix, by parameter name."""
        found = self.approximation(w, key, psi, omega)
        if self.sketched:
            return found
        # No gradient passes where all factors are zero: a layer that is to start from zero has one
        # of them zero, the others as any other layer.
        drawn, zero = self.factors(key, None, None), ~jnp.any(w != 0)
        mended = ("c",) if self.mode == "two-factor" else ("c", "r")
        return found | {name: jnp.where(zero, drawn[name], found[name]) for name in mended}

    def group_factors(
        self,
        key: Key[Array, ""],
        groups: int,
        psi: rk.Sketch | None,
        omega: rk.Sketch | None,
        kernels: Callable[[Array], Array] | None = None,
    ) -> dict[str, Array]:
        """Initial factors of ``groups`` matrices, each with its own key: ``(groups, ...)``.

        ``kernels`` draws the matrices ``(groups, m, n)`` from a key; by default they are virtual.
        """
        if kernels is None:
            keys = jax.random.split(key, groups)
            return jax.vmap(lambda key: self.factors(key, psi, omega))(keys)
        keys = jax.random.split(key, groups + 1)
        nearest = jax.vmap(lambda w, key: self.nearest(w, key, psi, omega))
        return nearest(kernels(keys[0]), keys[1:])


def drawn_kernel(
    kernel_init: Callable[..., Array] | None,
    shape: Sequence[int],
    dtype: Any,
    view: Callable[[Array], Array] = lambda kernel: kernel,
) -> Callable[[Array], Array] | None:
    """Draws a kernel of that shape by Flax's initialiser and sees it as matrices; None for none."""
    if kernel_init is None:
        return None
    return lambda key: view(kernel_init(key, tuple(shape), dtype))


def default_sketch(mode: Mode, rank: int, smaller_side: int) -> str:
    """The sketch family of a layer that names none.

    Signs are the cheapest to regenerate, but a small sign matrix is often singular (8x8: every
    other one), which would cost the layer rank; from four times the rank on it never was in 3,000.
    """
    if mode == "seeded":
        return "srht"
    return "rademacher" if smaller_side >= 4 * rank else "gaussian"


def plan_weight(
    m: int,
    n: int,
    rank: int,
    *,
    mode: Mode,
    in_sketch: int | None,
    oversampling: int | None,
    sketch: str | None,
    init: Init | None,
    gain: float,
) -> WeightPlan:
    """Fills in a layer's defaults; refuses unknown names and sizes that do not fit."""
    check_mode(mode)
    check_rank(rank, m, n)
    _check_options(in_sketch, oversampling, init)
    seeded = mode == "seeded"
    inner = (
        in_sketch or min(8 * rank, m) if seeded else co_range_dimension(rank, m, n, oversampling)
    )
    return WeightPlan(
        m=m,
        n=n,
        rank=rank,
        inner=inner,
        mode=mode,
        sketch=sketch or default_sketch(mode, rank, min(m, n)),
        init=init or ("he" if seeded else "glorot"),
        gain=gain,
    )
