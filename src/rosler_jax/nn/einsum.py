"""NNX layers whose weight has any number of axes: the einsum layer and the general linear layer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import jax.numpy as jnp
from flax import nnx

from rosler_jax.initializers import RANGE_FINDER_GAIN
from rosler_jax.nn import _forward
from rosler_jax.nn._module import SketchModule, reshard
from rosler_jax.nn._variables import Mode, drawn_kernel, plan_weight

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Num


@dataclasses.dataclass(frozen=True)
class EinsumView:
    """How an einsum's kernel is seen as matrices ``(g, m, n)``, by its letters.

    Attributes:
      inputs, output: the letters of the inputs and of the result, ``...`` included.
      free: letters of the inputs alone that are in the result.
      batch, contracted, features: letters of the kernel, each kind in the kernel's order.
      sizes: size of every letter of the kernel.
    """

    inputs: str
    output: str
    free: str
    batch: str
    contracted: str
    features: str
    sizes: tuple[tuple[str, int], ...]

    def shape(self, letters: str) -> tuple[int, ...]:
        """Sizes of letters of the kernel."""
        return tuple(dict(self.sizes)[letter] for letter in letters)

    def matrix_shape(self) -> tuple[int, int, int]:
        """``(g, m, n)``."""
        g, m, n = (math.prod(self.shape(k)) for k in (self.batch, self.contracted, self.features))
        return g, m, n

    def to_matrices(self, kernel: Array) -> Float[Array, "g m n"]:
        """The kernel as ``g`` matrices."""
        letters = "".join(letter for letter, _ in self.sizes)
        order = f"{self.batch}{self.contracted}{self.features}"
        return jnp.einsum(f"{letters}->{order}", kernel).reshape(self.matrix_shape())

    def bias_shape(self) -> tuple[int, ...]:
        """Shape of a bias along the kernel's axes of the result, in the result's order."""
        return self.shape("".join(k for k in self.output if k in dict(self.sizes)))

    def align_bias(self, bias: Array, ndim: int) -> Array:
        """Gives a bias the axes of a result with ``ndim`` of them."""
        before, dots, after = self.output.partition("...")
        unnamed = (1,) * (ndim - len(before + after)) if dots else ()
        sizes = dict(self.sizes)
        shape = [tuple(sizes.get(k, 1) for k in part) for part in (before, after)]
        return bias.reshape(*shape[0], *unnamed, *shape[1])


def view_einsum(einsum_str: str, kernel_shape: Sequence[int]) -> EinsumView:
    """Classifies the axes of the kernel of ``inputs,kernel->result``.

    Raises:
      ValueError: if the equation is not of that form, names an axis twice in one place, or has an
        axis of the kernel alone; or if ``kernel_shape`` does not go with it.

    Example:
      >>> view_einsum("nta,hab->nthb", (8, 2, 4)).matrix_shape()
      (1, 2, 32)
      >>> view_einsum("nha,hab->nhb", (8, 2, 4)).matrix_shape()
      (8, 2, 4)
    """
    equation = einsum_str.replace(" ", "")
    operands, arrow, output = equation.partition("->")
    inputs, comma, kernel = operands.partition(",")
    if not arrow or not comma or "," in kernel:
        raise ValueError(f"einsum {einsum_str!r} is not of the form 'inputs,kernel->result'")
    if "." in kernel or ("..." in inputs) != ("..." in output):
        raise ValueError(
            f"einsum {einsum_str!r}: '...' belongs in both the inputs and the result, and not in "
            "the kernel"
        )
    for part in (inputs, kernel, output):
        letters = part.replace("...", "", 1)
        if len(set(letters)) != len(letters) or not (letters == "" or letters.isalpha()):
            raise ValueError(
                f"einsum {einsum_str!r}: {part!r} must name every axis once, by a letter"
            )
    if len(kernel) != len(kernel_shape):
        raise ValueError(
            f"kernel_shape {tuple(kernel_shape)} has {len(kernel_shape)} axes; the kernel of "
            f"{einsum_str!r} has {len(kernel)}"
        )
    unknown = set(output) - set(inputs) - set(kernel)
    alone = set(kernel) - set(inputs) - set(output)
    if unknown or alone:
        raise ValueError(
            f"einsum {einsum_str!r}: {sorted(unknown | alone)} must be in two places; an axis of "
            "the kernel is in the inputs, in the result, or in both"
        )
    return EinsumView(
        inputs=inputs,
        output=output,
        free="".join(k for k in inputs if k in output and k not in kernel and k != "."),
        batch="".join(k for k in kernel if k in inputs and k in output),
        contracted="".join(k for k in kernel if k in inputs and k not in output),
        features="".join(k for k in kernel if k not in inputs),
        sizes=tuple(zip(kernel, (int(size) for size in kernel_shape), strict=True)),
    )


class _Batched(SketchModule):
    """A layer whose weight is seen as ``(g, m, n)``; factors ``(g, m, s)``, ``(g, s, l)``, ..."""

    dtype: Any
    precision: Any

    def _apply(self, x: Array, view: EinsumView) -> Array:
        dots = "..." if "..." in view.inputs else ""
        g, m, _ = view.matrix_shape()
        for letter, size in zip(
            view.inputs.replace("...", ""), _named(x, view.inputs), strict=True
        ):
            expected = dict(view.sizes).get(letter, size)
            if size != expected:
                raise ValueError(
                    f"inputs of shape {x.shape} have {size} along {letter!r} of {view.inputs!r}; "
                    f"the kernel has {expected}"
                )
        x, params = _forward.promote(x, self._params(), self.dtype)
        x = jnp.einsum(f"{view.inputs}->{dots}{view.free}{view.batch}{view.contracted}", x)
        lead = x.shape[: x.ndim - len(view.batch) - len(view.contracted)]
        x = x.reshape(*lead, g, m)
        weight = _forward.weight_of(params, self.sketches())
        y = _forward.with_precision(self.precision, _forward.batched, x, weight)
        y = y.reshape(*lead, *view.shape(view.batch), *view.shape(view.features))
        y = jnp.einsum(f"{dots}{view.free}{view.batch}{view.features}->{view.output}", y)
        return y + view.align_bias(params["bias"], y.ndim) if "bias" in params else y


def _named(x: Array, letters: str) -> tuple[int, ...]:
    """Sizes of the axes of ``x`` that have a letter."""
    before, dots, after = letters.partition("...")
    known = len(before) + len(after)
    if x.ndim < known or (x.ndim > known and not dots):
        raise ValueError(f"inputs of shape {x.shape} do not have the axes {letters!r}")
    return x.shape[: len(before)] + x.shape[x.ndim - len(after) :]


class SketchEinsum(_Batched):
    r"""An einsum with a sketched kernel, after ``nnx.Einsum``.

    The axes of the kernel are seen as three: ``g`` those in inputs and result, ``m`` those summed
    over, ``n`` those of the result alone. Each of the ``g`` matrices ``(m, n)`` has factors of its
    own, ``C (g, m, s)``, ``U (g, s, l)``, ``R (g, l, n)``; the sketches are the same for all.

    Args:
      einsum_str: ``"inputs,kernel->result"``; ``...`` may stand in inputs and result.
      kernel_shape: shape of the kernel that is sketched.
      rank: ``s``, at most ``min(m, n)``.
      bias_shape: shape of the bias, the kernel's axes of the result in the result's order; None for
        no bias.
      mode, in_sketch, oversampling, sketch, init, gain, dtype, param_dtype, bias_init, kernel_init,
        precision, rngs: as in :class:`SketchLinear`.

    Raises:
      ValueError: for an equation that is not of that form, a shape that does not go with it, a rank
        that does not fit, an unknown mode.

    Example:
      >>> from flax import nnx
      >>> layer = SketchEinsum("nta,hab->nthb", (8, 6, 4), 2, bias_shape=(8, 4), rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((16, 11, 6))).shape
      (16, 11, 8, 4)
      >>> layer.c.shape, layer.u.shape, layer.r.shape
      ((1, 6, 2), (1, 2, 2), (1, 2, 32))

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """

    def __init__(
        self,
        einsum_str: str,
        kernel_shape: Sequence[int],
        rank: int,
        *,
        bias_shape: Sequence[int] | None = None,
        mode: Mode = "chain",
        in_sketch: int | None = None,
        oversampling: int | None = None,
        sketch: str | None = None,
        init: Literal["glorot", "he"] | None = None,
        gain: float = RANGE_FINDER_GAIN,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        bias_init: Any = nnx.initializers.zeros_init(),
        kernel_init: Any = None,
        precision: Any = None,
        rngs: nnx.Rngs,
    ):
        view = view_einsum(einsum_str, kernel_shape)
        if bias_shape is not None and math.prod(bias_shape) != math.prod(view.bias_shape()):
            raise ValueError(
                f"bias_shape {tuple(bias_shape)} does not fit {einsum_str!r}; pass "
                f"{view.bias_shape()}, or None for no bias"
            )
        g, m, n = view.matrix_shape()
        plan = plan_weight(
            m, n, rank, mode=mode, in_sketch=in_sketch,
            oversampling=oversampling, sketch=sketch, init=init, gain=gain,
        )  # fmt: skip
        self.einsum_str, self.kernel_shape, self.view = einsum_str, tuple(kernel_shape), view
        self.bias_shape = None if bias_shape is None else tuple(bias_shape)
        self.use_bias, self.dtype, self.param_dtype = bias_shape is not None, dtype, param_dtype
        self.precision = precision
        key = self._make_seeds(plan, rngs)
        kernels = drawn_kernel(kernel_init, kernel_shape, param_dtype, view.to_matrices)
        values = plan.group_factors(key, g, *self.sketches(), kernels)
        self._make_params(values, self.bias_shape, bias_init, param_dtype, rngs)

    def __call__(
        self, x: Num[Array, "..."], einsum_str: str | None = None, out_sharding: Any = None
    ) -> Float[Array, "..."]:
        """Computes the einsum through the thin side.

        Raises:
          ValueError: for inputs whose axes are not those of the equation and the kernel, or for
            another equation than the layer's.
        """
        if einsum_str is not None and einsum_str.replace(" ", "") != self.einsum_str.replace(
            " ", ""
        ):
            raise ValueError(f"this layer is sketched for {self.einsum_str!r}, not {einsum_str!r}")
        return reshard(self._apply(x, self.view), out_sharding)


class SketchLinearGeneral(_Batched):
    r"""A linear layer over any axes with a sketched kernel, after ``nnx.LinearGeneral``.

    The kernel ``(*batch, *in_features, *out_features)`` is seen as ``(g, m, n)``; factors as in
    :class:`SketchEinsum`.

    Args:
      in_features: sizes of the axes that are transformed, in the order of the inputs' axes.
      out_features: sizes of the axes that the result has in their place, at its end.
      rank: ``s``, at most ``min(m, n)``.
      axis: the axes that are transformed.
      batch_axis: leading axes ``0, 1, ...`` with a matrix of its own for each entry, and their
        sizes.
      mode, in_sketch, oversampling, sketch, init, gain, use_bias, dtype, param_dtype, bias_init,
        kernel_init, precision, rngs: as in :class:`SketchLinear`.

    Raises:
      ValueError: if ``in_features`` and ``axis`` differ in length, or batch axes are not leading;
        for a rank that does not fit, an unknown mode.

    Example:
      >>> from flax import nnx
      >>> layer = SketchLinearGeneral((2, 3), (4, 5), rank=2, axis=(1, -1), rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((16, 2, 3))).shape
      (16, 4, 5)

    Source: our reading of Li et al. (2021), doi 10.1038/s43588-021-00039-6.
    """

    def __init__(
        self,
        in_features: int | Sequence[int],
        out_features: int | Sequence[int],
        rank: int,
        *,
        axis: int | Sequence[int] = -1,
        batch_axis: Mapping[int, int] = MappingProxyType({}),
        mode: Mode = "chain",
        in_sketch: int | None = None,
        oversampling: int | None = None,
        sketch: str | None = None,
        init: Literal["glorot", "he"] | None = None,
        gain: float = RANGE_FINDER_GAIN,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        bias_init: Any = nnx.initializers.zeros_init(),
        kernel_init: Any = None,
        precision: Any = None,
        rngs: nnx.Rngs,
    ):
        self.in_features, self.out_features = _as_tuple(in_features), _as_tuple(out_features)
        self.axis = _as_tuple(axis)
        if len(self.in_features) != len(self.axis):
            raise ValueError(
                f"in_features {self.in_features} and axis {self.axis} differ in length; pass one "
                "size for each axis"
            )
        if sorted(batch_axis) != list(range(len(batch_axis))):
            raise ValueError(f"batch_axis {dict(batch_axis)} must be the leading axes 0, 1, ...")
        self.batch_shape = tuple(batch_axis[k] for k in range(len(batch_axis)))
        g, m, n = map(math.prod, (self.batch_shape, self.in_features, self.out_features))
        plan = plan_weight(
            m, n, rank, mode=mode, in_sketch=in_sketch,
            oversampling=oversampling, sketch=sketch, init=init, gain=gain,
        )  # fmt: skip
        self.use_bias, self.dtype, self.param_dtype = use_bias, dtype, param_dtype
        self.precision = precision
        key = self._make_seeds(plan, rngs)
        kernels = drawn_kernel(
            kernel_init, (g * m, n), param_dtype, lambda kernel: kernel.reshape(g, m, n)
        )
        values = plan.group_factors(key, g, *self.sketches(), kernels)
        bias_shape = (*self.batch_shape, *self.out_features) if use_bias else None
        self._make_params(values, bias_shape, bias_init, param_dtype, rngs)

    def _view(self, ndim: int) -> EinsumView:
        """The same as an einsum, for inputs of ``ndim`` axes."""
        batch = len(self.batch_shape)
        axes = sorted(a % ndim if -ndim <= a < ndim else ndim for a in self.axis)
        if len(set(axes)) < len(axes) or axes[-1] >= ndim or axes[0] < batch:
            raise ValueError(
                f"axis {self.axis} does not fit inputs of {ndim} axes, the first {batch} of them "
                "batch axes; name each other axis at most once"
            )
        letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
        inputs, rest = letters[:ndim], letters[ndim:]
        features = rest[: len(self.out_features)]
        kernel = inputs[:batch] + "".join(inputs[a] for a in axes) + features
        output = "".join(k for a, k in enumerate(inputs) if a not in axes) + features
        shape = (*self.batch_shape, *self.in_features, *self.out_features)
        return view_einsum(f"{inputs},{kernel}->{output}", shape)

    def __call__(self, x: Num[Array, "..."], out_sharding: Any = None) -> Float[Array, "..."]:
        """Transforms the axes through the thin side; the other axes stay in front.

        Raises:
          ValueError: for inputs without those axes or with other sizes.
        """
        return reshard(self._apply(x, self._view(x.ndim)), out_sharding)


def _as_tuple(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value,) if isinstance(value, int) else tuple(value)
