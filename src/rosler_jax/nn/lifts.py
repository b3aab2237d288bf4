"""How inputs meet thin filters: by a matrix product, or by a convolution."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

import rosler_kernels as rk
from rosler_jax.nn._thin import thin_dot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array


LAX_PADDINGS = ("SAME", "VALID", "SAME_LOWER")
PAD_MODES = {"CIRCULAR": "wrap", "REFLECT": "reflect"}


@dataclass(frozen=True)
class DenseLift:
    """Inputs meet filters by a matrix product; one group."""

    def __call__(self, x: Array, filters: Array) -> Array:
        """Multiplies: ``(..., 1, k)``."""
        return thin_dot(x, filters)[..., None, :]

    def sketch(self, x: Array, psi: rk.Sketch) -> Array:
        """Applies ``Psi``: ``(..., 1, l)``."""
        return rk.project(x, psi)[..., None, :]

    def examples(self, x: Array) -> int:
        """All axes but the last."""
        return x.ndim - 1


@dataclass(frozen=True)
class BatchedLift:
    """Inputs ``(..., g, m)`` meet filters ``(g, m, k)``: a matrix product for each of ``g``."""

    def __call__(self, x: Array, filters: Array) -> Array:
        """Multiplies entry by entry: ``(..., g, k)``."""
        if filters.shape[0] == 1:
            return thin_dot(x[..., 0, :], filters[0])[..., None, :]
        return jnp.einsum("...gm,gmk->...gk", x, filters)

    def sketch(self, x: Array, psi: rk.Sketch) -> Array:
        """Applies ``Psi`` to every entry: ``(..., g, l)``."""
        return rk.project(x, psi)

    def examples(self, x: Array) -> int:
        """All axes but the entries and the last."""
        return x.ndim - 2


@dataclass(frozen=True)
class ConvLift:
    """Inputs meet filters by a convolution: what ``jax.lax.conv_general_dilated`` is told.

    Attributes:
      spatial: sizes of the window, one per spatial dimension.
      strides, padding, input_dilation, kernel_dilation: as in ``conv_general_dilated``.
      groups: feature group count.
      precision: as in ``conv_general_dilated``.
    """

    spatial: tuple[int, ...]
    strides: tuple[int, ...]
    padding: str | tuple[tuple[int, int], ...]
    input_dilation: tuple[int, ...]
    kernel_dilation: tuple[int, ...]
    groups: int = 1
    precision: Any = None

    def __call__(self, x: Array, filters: Array) -> Array:
        """Convolves: ``(batch, *spatial, groups, k)``."""
        n = len(self.spatial)
        numbers = jax.lax.ConvDimensionNumbers(
            (0, n + 1, *range(1, n + 1)), (n + 1, n, *range(n)), (0, n + 1, *range(1, n + 1))
        )
        y = jax.lax.conv_general_dilated(
            x,
            filters,
            self.strides,
            self.padding if isinstance(self.padding, str) else list(self.padding),
            lhs_dilation=self.input_dilation,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=numbers,
            feature_group_count=self.groups,
            precision=self.precision,
        )
        return y.reshape(*y.shape[:-1], self.groups, filters.shape[-1] // self.groups)

    def sketch(self, x: Array, psi: rk.Sketch) -> Array:
        """Convolves with the columns of ``Psi``, the same in every group."""

        def one(x: Array) -> Array:
            return rk.project_patches(
                x,
                psi,
                window=self.spatial,
                strides=self.strides,
                padding=self.padding,
                dilation=self.kernel_dilation,
                input_dilation=self.input_dilation,
            )

        if self.groups == 1:
            return one(x)[..., None, :]
        return jax.vmap(one, -2, -2)(
            x.reshape(*x.shape[:-1], self.groups, x.shape[-1] // self.groups)
        )

    def examples(self, x: Array) -> int:
        """The first axis: windows reach over the spatial ones."""
        return 1


def conv_lift(
    spatial: Sequence[int],
    *,
    strides: int | Sequence[int] | None = 1,
    padding: str | int | Sequence[int | tuple[int, int]] = "SAME",
    input_dilation: int | Sequence[int] | None = 1,
    kernel_dilation: int | Sequence[int] | None = 1,
    groups: int = 1,
    precision: Any = None,
) -> ConvLift:
    """Makes a :class:`ConvLift` from arguments as Flax's convolution layers take them.

    ``padding`` is ``"SAME"``, ``"VALID"`` or explicit; the padding modes that change the input
    first (circular, causal, reflect) are applied by :func:`pad_input`.

    Raises:
      ValueError: for an unknown padding, or another number of entries than the window has.

    Example:
      >>> conv_lift((3, 3), strides=2).strides
      (2, 2)
    """
    k = len(spatial)

    def broadcast(name: str, value: int | Sequence[int] | None) -> tuple[int, ...]:
        value = 1 if value is None else value
        sizes = (value,) * k if isinstance(value, int) else tuple(value)
        if len(sizes) != k or min(sizes) < 1:
            raise ValueError(f"{name} {sizes}; pass {k} positive numbers, one a dimension, or one")
        return sizes

    if isinstance(padding, int):
        padding = [(padding, padding)] * k
    if isinstance(padding, str) and padding not in LAX_PADDINGS:
        known = ", ".join((*LAX_PADDINGS, *PAD_MODES, "CAUSAL"))
        raise ValueError(f"unknown padding {padding!r}; pass one of {known}, or numbers")
    if not isinstance(padding, str):
        pairs = [(p, p) if isinstance(p, int) else tuple(p) for p in padding]
        if len(pairs) != k or any(len(pair) != 2 for pair in pairs):
            raise ValueError(f"padding {padding}; pass {k} numbers or pairs (low, high)")
        padding = tuple((low, high) for low, high in pairs)
    return ConvLift(
        spatial=tuple(spatial),
        strides=broadcast("strides", strides),
        padding=padding,
        input_dilation=broadcast("input_dilation", input_dilation),
        kernel_dilation=broadcast("kernel_dilation", kernel_dilation),
        groups=groups,
        precision=precision,
    )


def pad_input(x: Array, lift: ConvLift, mode: str) -> Array:
    """Pads the spatial axes of ``x`` for a ``VALID`` convolution, as Flax's padding modes do.

    Args:
      x: inputs, shape ``(batch, *spatial, channels)``.
      lift: its window and kernel dilation say how far to pad.
      mode: ``"CIRCULAR"``, ``"REFLECT"`` or, in one dimension, ``"CAUSAL"``.

    Raises:
      ValueError: for an unknown mode.
    """
    reach = [(k - 1) * d for k, d in zip(lift.spatial, lift.kernel_dilation, strict=True)]
    if mode == "CAUSAL":
        return jnp.pad(x, [(0, 0), (reach[0], 0), (0, 0)])
    if mode not in PAD_MODES:
        raise ValueError(f"unknown padding mode {mode!r}; pass one of {sorted(PAD_MODES)}, CAUSAL")
    return jnp.pad(
        x, [(0, 0), *((r // 2, (r + 1) // 2) for r in reach), (0, 0)], mode=PAD_MODES[mode]
    )
