r"""Rate-coded parameters: trained together with the bits that they take in a coded file.

A tensor ``w`` is held as integers of a learnt step, ``q = clip(round(w / s), -L, L)``, by the
straight-through estimator, and its integers cost what an entropy model of a learnt width ``b``
says: with the probability ``P`` of an integer under the Laplace distribution,

    R = - sum log2 P(w / s + u),    P(x) = F(x + 1/2) - F(x - 1/2),    F of width b,

where ``u``, uniform in (-1/2, 1/2), makes a smooth function of what rounding makes steps of.
``loss + lambda R`` then finds steps, widths and weights together; most of the weights go to zero.

The noise is a Weyl sequence with a random start: uniform for every weight, spread evenly over a
tensor's weights, so that the rate of one step varies little, and cheap.

Sources: Balle, Minnen, Singh, Hwang, Johnston, "Variational image compression with a scale
hyperprior", arXiv:1802.01436 (the noise); Oktay, Balle, Singh, Shrivastava, "Scalable model
compression by entropy penalized reparameterization", arXiv:1906.06624 (for weights); Esser et al.,
"Learned step size quantization", arXiv:1902.08153 (the gradient of the step).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax import _weyl
from rosler_jax._paths import TRAINING_ONLY, path_name, role_name
from rosler_jax._quantized import QuantizedTensor, integer_levels

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key, PyTree

    Where = Callable[[str, Any], bool]

_WIDTHS = -4.0, 6.0  # of log b: beyond these all or nothing is zero, and P is not exact in float32
_EMPTY_STEP = 2.0**-5  # of tensors that begin as zeros, as biases do


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["params", "log_steps", "log_widths"],
    meta_fields=["levels"],
)
@dataclasses.dataclass(frozen=True)
class RateCoded:
    """Parameters with a step and a width for each coded tensor: a pytree to be trained as a whole.

    Attributes:
      params: the parameters, floats.
      log_steps: natural logarithm of each coded tensor's step, by its name in ``params``.
      log_widths: of its width, in steps.
      levels: the largest integer.
    """

    params: Any
    log_steps: dict[str, Any]
    log_widths: dict[str, Any]
    levels: int

    @property
    def weights(self) -> PyTree:
        """The parameters as they are stored, coded ones as ``q s``; what a model is given.

        Gradients pass rounding unchanged, but for what was clipped.
        """

        def stored(name: str, w: Array) -> Array:
            log_step = self.log_steps[name]
            scaled = jnp.clip(in_steps(w, log_step), -self.levels, self.levels)
            rounded = jnp.round(jax.lax.stop_gradient(scaled))
            return (rounded + (scaled - jax.lax.stop_gradient(scaled))) * step_of(log_step)

        return self._map(stored)

    def bits(self, key: Key[Array, ""] | None = None) -> Float[Array, ""]:
        """The rate: bits of all coded tensors by their entropy models.

        Args:
          key: for the noise of the smooth rate, to be differentiated; None for that of the
            integers as they are.

        Returns:
          Bits, float32. What an adaptive coder then needs is usually less: it also sees which rows
          and which neighbours are zero.
        """
        leaves = self._coded()
        total = jnp.zeros((), jnp.float32)
        for k, (name, w) in enumerate(leaves.items()):
            x = in_steps(w, self.log_steps[name])
            if key is None:
                x = jnp.round(jnp.clip(x, -self.levels, self.levels))
            else:
                x = x + _noise(jax.random.fold_in(key, k), w.shape)
            total += nats(x, self.log_widths[name]).sum()
        return total / np.float32(np.log(2))

    @property
    def tensors(self) -> dict[str, QuantizedTensor]:
        """The coded tensors by name, as a model file holds them; of concrete values."""
        levels, found = self.levels, {}
        for name, w in self._coded().items():
            log_step = self.log_steps[name]
            q = jnp.round(jnp.clip(in_steps(w, log_step), -levels, levels))
            scale = np.asarray(step_of(log_step))
            found[name] = QuantizedTensor(
                np.asarray(q, np.int8), scale, levels.bit_length() + 1, None
            )
        return found

    def _coded(self) -> dict[str, Any]:
        leaves = jax.tree_util.tree_leaves_with_path(self.params)
        named = {path_name(path): leaf for path, leaf in leaves}
        return {name: named[name] for name in self.log_steps}

    def _map(self, function: Callable[[str, Any], Any]) -> PyTree:
        def one(path: Any, leaf: Any) -> Any:
            name = path_name(path)
            return function(name, leaf) if name in self.log_steps else leaf

        return jax.tree_util.tree_map_with_path(one, self.params)


def rate_coded(params: PyTree, *, bits: int = 8, where: Where | None = None) -> RateCoded:
    """Begins to train parameters with the bits that they will take.

    Args:
      params: any tree of floats: Linen's or NNX's parameters, dense weights or factors of sketches.
      bits: of the integers at most: 8, 4, 3 or 2; the rate decides how many are used.
      where: of a leaf's name (``"hidden/kernel"``) and value, whether it is coded; all floats by
        default.

    Returns:
      The parameters with steps and widths: what an optimiser is given. ``coded.weights`` are the
      model's parameters, ``coded.bits(key)`` is the rate that a loss adds, ``coded.tensors`` what a
      file holds.

    Raises:
      ValueError: for other bits, or if nothing is coded.

    Example:
      >>> import optax
      >>> x = jax.random.normal(jax.random.key(0), (64, 8))
      >>> y = x[:, 0] - x[:, 1]  # two of eight inputs count
      >>> coded, tx = rate_coded({"w": jnp.full(8, 0.3)}), optax.adam(0.02)
      >>> def loss(coded, key):
      ...     return ((x @ coded.weights["w"] - y) ** 2).mean() + 0.01 * coded.bits(key)
      >>> @jax.jit
      ... def step(carry, key):
      ...     coded, state = carry
      ...     updates, state = tx.update(jax.grad(loss)(coded, key), state)
      ...     return (optax.apply_updates(coded, updates), state), None
      >>> keys = jax.random.split(jax.random.key(1), 500)
      >>> (coded, _), _ = jax.lax.scan(step, (coded, tx.init(coded)), keys)
      >>> (coded.tensors["w"].values != 0).tolist()
      [True, True, False, False, False, False, False, False]
    """
    if bits not in (8, 4, 3, 2):
        raise ValueError(f"bits {bits!r}; rate-coded integers have at most 8, 4, 3 or 2")
    steps, widths = {}, {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        name = path_name(path)
        floats = jnp.issubdtype(jnp.result_type(leaf), jnp.floating)
        training = role_name(name) in TRAINING_ONLY
        if floats and not training and (where is None or where(name, leaf)):
            steps[name], widths[name] = _initial(jnp.asarray(leaf, jnp.float32))
    if not steps:
        raise ValueError("no parameter is coded: `where` chooses none of the floating leaves")
    return RateCoded(params, steps, widths, integer_levels(bits))


def _initial(w: Array) -> tuple[Array, Array]:
    """Steps of half a deviation: finer than most tensors will need."""
    deviation = jnp.sqrt((w**2).mean())
    begun = deviation > 0
    step = jnp.where(begun, deviation / 2, _EMPTY_STEP)
    mean = jnp.where(begun, jnp.abs(w).mean() / step, 0.5)
    return jnp.log(step), jnp.log(mean)


def in_steps(w: Array, log_step: Array) -> Array:
    """Weights in steps; a product, which is compiled to the same bits wherever it stands."""
    return w * jnp.exp(-log_step)


def step_of(log_step: Array) -> Float[Array, ""]:
    """The scale of the integers: the step as a bfloat16 number, as scales are in a file.

    Its gradient is the step's. Rounding is by the step itself: many weights lie between two
    integers, where the rate and the loss pull them apart, and would change sides all at once with a
    step that jumps.

    Example:
      >>> float(step_of(jnp.log(0.1)))
      0.10009765625
    """
    step = jnp.exp(log_step)
    held = jax.lax.stop_gradient(step)
    return held.astype(jnp.bfloat16).astype(jnp.float32) + (step - held)


def _noise(key: Key[Array, ""], shape: tuple[int, ...]) -> Array:
    """Uniform in [-1/2, 1/2): multiples of the golden ratio from a random start, modulo 1."""
    words = _weyl.words(key, shape)
    return (words >> 8).astype(jnp.float32) * np.float32(2.0**-24) - 0.5


def nats(x: Array, log_width: Array) -> Array:
    r"""``-ln P(x)`` of a Laplace distribution over intervals of length one.

    With ``t = 1 / b``: ``P = (1 - e^-t) e^(-t (|x| - 1/2)) / 2`` from ``|x| = 1/2`` on, and
    ``1 - (e^(-t (1/2 - |x|)) + e^(-t (1/2 + |x|))) / 2`` before.

    Args:
      x: in steps.
      log_width: logarithm of ``b``.

    Example:
      >>> p = jnp.exp(-nats(jnp.arange(-60, 61), jnp.log(3.0)))
      >>> round(float(p.sum()), 4)
      1.0
    """
    t = jnp.exp(-jnp.clip(log_width, *_WIDTHS))
    a = jnp.abs(x)
    outside = t * (a - 0.5) + np.float32(np.log(2)) - jnp.log(-jnp.expm1(-t))
    near = jnp.minimum(a, 0.5)
    inside = -jnp.log1p(-0.5 * (jnp.exp(-t * (0.5 - near)) + jnp.exp(-t * (0.5 + near))))
    return jnp.where(a > 0.5, outside, inside)


def decaying(params: PyTree) -> PyTree:
    """Parameters as decoupled weight decay is to see them: steps and widths do not decay."""
    if not isinstance(params, RateCoded):
        return params
    steps, widths = jax.tree.map(jnp.zeros_like, (params.log_steps, params.log_widths))
    return dataclasses.replace(params, log_steps=steps, log_widths=widths)


def lifted(state: PyTree, params: PyTree, coded: RateCoded) -> PyTree:
    """An optimiser's state of parameters as one of the same parameters rate-coded.

    Moments of steps and widths begin as zeros.

    Args:
      state: any pytree that holds trees like the parameters, as optax's do.
      params: the parameters.
      coded: the same, rate-coded.

    Example:
      >>> import optax
      >>> params, adam = {"w": jnp.ones(3)}, optax.adam(0.1)
      >>> coded = rate_coded(params)
      >>> found, wanted = lifted(adam.init(params), params, coded), adam.init(coded)
      >>> jax.tree.structure(found) == jax.tree.structure(wanted)
      True
    """
    structure = jax.tree.structure(params)
    like = jax.tree.map(jnp.zeros_like, coded)

    def is_params(node: Any) -> bool:
        found: Any = jax.tree.structure(node)
        return bool(found == structure)

    def lift(node: Any) -> Any:
        return dataclasses.replace(like, params=node) if is_params(node) else node

    return jax.tree.map(lift, state, is_leaf=is_params)
