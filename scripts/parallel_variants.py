r"""Ways to train a sketched layer: aRes-BP's parallel stage, and what might be better.

A way says which arrays of a layer ``W (m, n)`` of rank ``s`` are trained, what their gradients are,
and which random or adapted *bases* these need. With ``delta = dL/dy`` and ``G = x^T delta``:

- ``sketches``: ``C = W Omega``, ``A = Psi^T W Omega``, ``R = Psi^T W`` get ``G Omega``,
  ``Psi^T G Omega`` and ``Psi^T G``: one virtual W is trained by ``G``. The parallel stage.
- ``sketched inputs``: the same for ``P G``, where P projects on the range of Psi. Then
  ``dC = P x^T (delta Omega) = Psi (Psi^T Psi)^{-1} dA``, and all three need of the input ``x Psi``
  alone: nothing wide is kept for the way back.
- ``adapted``: bases from the weights themselves, ``Psi = orth(C)`` and ``Omega = orth(R^T)``, new
  ones every few updates. Then ``Psi Psi^T G + G Omega Omega^T - Psi Psi^T G Omega Omega^T`` is G
  projected on the tangent space of the matrices of rank s, of which the three are coordinates; C's
  and R's are the K- and L-steps of dynamical low-rank training, which do not wait for each other,
  and ``C A^{-1} R`` takes the step back to rank s (the orthographic retraction).
- ``chain``: ``C U R`` by back-propagation, the rival.
- ``chain, sketched inputs``: the same with ``dC = Psi (x Psi)^T delta_h``, a new Psi every update
  with ``E[Psi Psi^T] = 1``: no bias but noise, and only ``x Psi`` and ``x C`` are kept.
- ``chain, C fixed``: only U and R learn, exactly, from ``x C``.
- ``seeded``: only a core between two fixed sketches learns, exactly, from ``x Psi``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array

import rosler_kernels as rk
from rosler_jax import initializers
from rosler_jax.factors import SketchFactors, core_from_sketch, truncate
from rosler_jax.nn.functional import seeded_dot

Factors = dict[str, Array]
Bases = tuple[Any, ...]


class Way(NamedTuple):
    """How the layers of a network are held and trained.

    Attributes:
      product: ``(factors, bases, x) -> y``, differentiable.
      bases: ``(key, chain) ->`` those of a layer that is the chain C U R now.
      enter: ``(chain, bases) -> factors``.
      leave: ``factors -> chain``.
      carried: ``(momentum, old bases, new bases) -> momentum``.
      every: updates between new bases; None for the first ones for ever.
    """

    product: Callable[[Factors, Bases, Array], Array]
    bases: Callable[[Array, Factors], Bases] = lambda key, chain: ()
    enter: Callable[[Factors, Bases], Factors] = lambda chain, bases: chain
    leave: Callable[[Factors], Factors] = lambda factors: factors
    carried: Callable[[Factors, Bases, Bases], Factors] = lambda momentum, old, new: momentum
    every: int | None = None


def chain_product(factors: Factors, bases: Bases, x: Array) -> Array:
    """``((x C) U) R``, differentiated as usual."""
    return x @ factors["c"] @ factors["u"] @ factors["r"]


def fixed_c_product(factors: Factors, bases: Bases, x: Array) -> Array:
    """The same, C being no parameter."""
    return chain_product({**factors, "c": jax.lax.stop_gradient(factors["c"])}, bases, x)


@jax.custom_vjp
def noisy_chain_product(factors: Factors, bases: Bases, x: Array) -> Array:
    """The chain, with ``dC = Psi (x Psi)^T delta_h`` in the place of ``x^T delta_h``."""
    return chain_product(factors, bases, x)


def _noisy_forward(factors: Factors, bases: Bases, x: Array) -> tuple[Array, Any]:
    h = x @ factors["c"]
    return h @ factors["u"] @ factors["r"], (factors, bases, x @ bases[0], h)


def _noisy_backward(kept: Any, delta: Array) -> tuple[Factors, Bases, Array]:
    factors, bases, x_psi, h = kept
    delta_u = delta @ factors["r"].T
    delta_h = delta_u @ factors["u"].T
    grads = {
        "c": bases[0] @ (x_psi.T @ delta_h),
        "u": h.T @ delta_u,
        "r": (h @ factors["u"]).T @ delta,
    }
    return grads, jax.tree.map(jnp.zeros_like, bases), delta_h @ factors["c"].T


noisy_chain_product.defvjp(_noisy_forward, _noisy_backward)


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def sketched_product(whole: bool, factors: Factors, bases: Bases, x: Array) -> Array:
    """``x C A^+ R`` with sketches of G for cotangents, or of P G.

    Args:
      whole: whether of G, for which x is kept, and not ``x Psi`` alone.
      factors: ``c (m, s)``, ``a (l, s)``, ``r (l, n)``.
      bases: ``Psi (m, l)``, ``Omega (n, s)``.
      x: inputs.
    """
    return x @ factors["c"] @ core_from_sketch(factors["a"]) @ factors["r"]


def _sketched_forward(
    whole: bool, factors: Factors, bases: Bases, x: Array
) -> tuple[Array, tuple[Any, ...]]:
    core = core_from_sketch(factors["a"])
    kept = x if whole else x @ bases[0]
    return x @ factors["c"] @ core @ factors["r"], (factors, core, bases, kept)


def _sketched_backward(
    whole: bool, residuals: tuple[Any, ...], delta: Array
) -> tuple[Factors, Bases, Array]:
    factors, core, (psi, omega), kept = residuals
    x_psi = kept @ psi if whole else kept
    delta_omega = delta @ omega
    d_a = x_psi.T @ delta_omega
    d_c = kept.T @ delta_omega if whole else psi @ jnp.linalg.solve(psi.T @ psi, d_a)
    d_x = delta @ factors["r"].T @ core.T @ factors["c"].T
    nothing = jnp.zeros_like(psi), jnp.zeros_like(omega)
    return {"c": d_c, "a": d_a, "r": x_psi.T @ delta}, nothing, d_x


sketched_product.defvjp(_sketched_forward, _sketched_backward)


def sketched(chain: Factors, bases: Bases) -> Factors:
    """The three sketches of ``W = C U R``, which is not formed."""
    psi, omega = bases
    psi_c, r_omega = psi.T @ chain["c"], chain["r"] @ omega
    right = chain["u"] @ r_omega
    return {
        "c": chain["c"] @ right,
        "a": psi_c @ right,
        "r": psi_c @ chain["u"] @ chain["r"],
    }


def unsketched(factors: Factors) -> Factors:
    """The balanced chain, of rank s, of what the sketches stand for."""
    core = core_from_sketch(factors["a"])
    wide = SketchFactors(c=factors["c"], u=core, r=factors["r"])
    even = truncate(wide, core.shape[0])
    return {"c": even.c, "u": even.u, "r": even.r}


def random_bases(key: Array, chain: Factors) -> Bases:
    """Gaussian Psi, of twice the rank, and Omega; their columns are of length 1 or so."""
    (m, s), n = chain["c"].shape, chain["r"].shape[1]
    key_psi, key_omega = jax.random.split(key)
    psi = jax.random.normal(key_psi, (m, 2 * s)) * (2 * s) ** -0.5
    return psi, jax.random.normal(key_omega, (n, s)) * s**-0.5


def input_basis(key: Array, chain: Factors) -> Bases:
    """Signs, of twice the rank, with ``E[Psi Psi^T] = 1``."""
    m, s = chain["c"].shape
    return (jax.random.rademacher(key, (m, 2 * s), jnp.float32) * (2 * s) ** -0.5,)


def adapted_bases(key: Array, chain: Factors) -> Bases:
    """``orth(C)`` and ``orth(R^T)``."""
    return jnp.linalg.qr(chain["c"])[0], jnp.linalg.qr(chain["r"].T)[0]


def projected_again(momentum: Factors, old: Bases, new: Bases) -> Factors:
    """The coordinates in new tangent space of what these are in the old one."""
    (psi, omega), (psi_new, omega_new) = old, new
    turn, turn_left = omega.T @ omega_new, psi_new.T @ psi
    d_c = psi @ (momentum["r"] @ omega_new) + (momentum["c"] - psi @ momentum["a"]) @ turn
    inner = psi_new.T @ momentum["c"] - turn_left @ momentum["a"]
    return {
        "c": d_c,
        "a": psi_new.T @ d_c,
        "r": turn_left @ momentum["r"] + inner @ omega.T,
    }


def forgotten(momentum: Factors, old: Bases, new: Bases) -> Factors:
    """Nothing of it."""
    return jax.tree.map(jnp.zeros_like, momentum)


def seeded_bases(key: Array, chain: Factors) -> Bases:
    """Walsh-Hadamard sketches: of inputs of eight times the rank, of outputs of the rank."""
    (m, s), n = chain["c"].shape, chain["r"].shape[1]
    key_psi, key_omega = jax.random.split(key)
    return rk.srht(key_psi, m, min(8 * s, m)), rk.srht(key_omega, n, s)


def seeded_core(chain: Factors, bases: Bases) -> Factors:
    """A core as a dense layer of its size would start."""
    psi, omega = bases
    key = jax.random.key(jnp.sum(jax.lax.bitcast_convert_type(chain["c"][0], jnp.uint32)))
    return {"u": initializers.seeded(key, psi, omega).u}


def seeded_product(factors: Factors, bases: Bases, x: Array) -> Array:
    """``a x Psi U Omega^T``."""
    return seeded_dot(x, factors["u"], psi=bases[0], omega=bases[1])


_sketches = Way(partial(sketched_product, True), random_bases, sketched, unsketched)
_inputs = _sketches._replace(product=partial(sketched_product, False))
_adapted = _sketches._replace(bases=adapted_bases, carried=projected_again)

WAYS: dict[str, Way] = {
    "chain": Way(chain_product),
    "chain, sketched inputs": Way(noisy_chain_product, input_basis, every=1),
    "chain, C fixed": Way(fixed_c_product),
    "seeded": Way(seeded_product, seeded_bases, seeded_core),
    "sketches": _sketches,
    "sketches, new every 35": _sketches._replace(carried=forgotten, every=35),
    "sketched inputs": _inputs,
    "sketched inputs, new every 35": _inputs._replace(carried=forgotten, every=35),
    "adapted, every 35": _adapted._replace(every=35),
    "adapted, every update": _adapted._replace(every=1),
}
"""Every way by name: a new one is one line here."""


# A network, and its training.


def new_network(key: Array, inputs: int, hidden: Sequence[int], outputs: int, rank: int) -> Any:
    """Layers as chains, a bias each, and a dense head, as the library starts them."""
    widths = (inputs, *hidden)
    keys = jax.random.split(key, len(widths))
    sides = list(zip(widths, hidden, strict=False))
    made = [
        initializers.range_finder(k, m, n, rank) for k, (m, n) in zip(keys, sides, strict=False)
    ]
    head = jax.random.normal(keys[-1], (widths[-1], outputs)) * widths[-1] ** -0.5
    return {
        "factors": [{"c": f.c, "u": f.u, "r": f.r} for f in made],
        "biases": [jnp.zeros(n) for n in hidden],
        "head": (head, jnp.zeros(outputs)),
    }


def outputs(way: Way, params: Any, bases: Sequence[Bases], x: Array) -> Array:
    """Of the network, before softmax."""
    for factors, bias, base in zip(params["factors"], params["biases"], bases, strict=True):
        x = jax.nn.relu(way.product(factors, base, x) + bias)
    return x @ params["head"][0] + params["head"][1]


def loss(way: Way, params: Any, bases: Sequence[Bases], x: Array, y: Array) -> Array:
    """Mean cross-entropy."""
    out = outputs(way, params, bases, x)
    return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()


def bases_of(way: Way, key: Array, chains: Sequence[Factors]) -> list[Bases]:
    """Those of all layers."""
    keys = jax.random.split(key, len(chains))
    return [way.bases(k, chain) for k, chain in zip(keys, chains, strict=True)]


class Carry(NamedTuple):
    """What an update changes."""

    params: Any
    state: Any
    bases: list[Bases]


def enter(way: Way, tx: optax.GradientTransformation, key: Array, net: Any) -> Carry:
    """The start of training a network of chains."""
    bases = bases_of(way, key, net["factors"])
    factors = [way.enter(f, b) for f, b in zip(net["factors"], bases, strict=True)]
    params = {**net, "factors": factors}
    return Carry(params, tx.init(params), bases)


def leave(way: Way, carry: Carry) -> Any:
    """The network, of chains again."""
    factors = [way.leave(f) for f in carry.params["factors"]]
    return {**carry.params, "factors": factors}


def update(
    way: Way, tx: optax.GradientTransformation, carry: Carry, batch: tuple[Array, Array]
) -> tuple[Carry, None]:
    """One update, in the form of a scan's body."""
    params, state, bases = carry
    grads = jax.grad(partial(loss, way))(params, bases, *batch)
    steps, state = tx.update(grads, state, params)
    return Carry(optax.apply_updates(params, steps), state, bases), None


def refresh(way: Way, carry: Carry, key: Array) -> Carry:
    """New bases, the same weights, and the momentum, if there is one, in the new bases."""
    chains = [way.leave(f) for f in carry.params["factors"]]
    bases = bases_of(way, key, chains)
    factors = [way.enter(f, b) for f, b in zip(chains, bases, strict=True)]
    state, momentum = carry.state, optax.tree.get(carry.state, "trace")
    if momentum is not None:
        pairs = zip(momentum["factors"], carry.bases, bases, strict=True)
        turned = {**momentum, "factors": [way.carried(*three) for three in pairs]}
        state = optax.tree.set(state, trace=turned)
    return Carry({**carry.params, "factors": factors}, state, bases)


def updates(
    way: Way, tx: optax.GradientTransformation, carry: Carry, batches: Any, key: Array
) -> Carry:
    """An update for each batch, with new bases where the way wants them."""
    one = partial(update, way, tx)
    count = len(batches[0])
    every = way.every or count
    whole = count // every * every

    def some(carry: Carry, given: Any) -> tuple[Carry, None]:
        batches, key = given
        carry, _ = jax.lax.scan(one, carry, batches)
        return (refresh(way, carry, key) if way.every else carry), None

    parts = jax.tree.map(lambda b: b[:whole].reshape(-1, every, *b.shape[1:]), batches)
    carry, _ = jax.lax.scan(some, carry, (parts, jax.random.split(key, whole // every)))
    return jax.lax.scan(one, carry, jax.tree.map(lambda b: b[whole:], batches))[0]


class Data(NamedTuple):
    """Splits on the device, flat and standardised."""

    train_x: Array
    train_y: Array
    validation_x: Array
    validation_y: Array
    test_x: Array
    test_y: Array


def train(
    way: Way, tx: optax.GradientTransformation, key: Array, net: Any, data: Data, epochs: int,
    batch: int,
) -> tuple[Any, tuple[Array, Array]]:  # fmt: skip
    """Trains a network of chains, and gives it back; accuracies on validation and test by epoch."""
    key, key_bases = jax.random.split(key)
    count = len(data.train_x) // batch

    def accuracy(carry: Carry, x: Array, y: Array) -> Array:
        found = outputs(way, carry.params, carry.bases, x).argmax(1)
        return (found == y).mean()

    def epoch(carry: Carry, key: Array) -> tuple[Carry, tuple[Array, Array]]:
        key_order, key_bases = jax.random.split(key)
        order = jax.random.permutation(key_order, len(data.train_x))[: count * batch]
        order = order.reshape(count, batch)
        carry = updates(way, tx, carry, (data.train_x[order], data.train_y[order]), key_bases)
        seen = accuracy(carry, data.validation_x, data.validation_y)
        return carry, (seen, accuracy(carry, data.test_x, data.test_y))

    carry = enter(way, tx, key_bases, net)
    carry, history = jax.lax.scan(epoch, carry, jax.random.split(key, epochs))
    return leave(way, carry), history


def sgd(rate: Any, updates: int | None = None) -> optax.GradientTransformation:
    """The parallel stage's optimiser; the rate falls as a cosine over so many updates, if given."""
    falling = rate if updates is None else optax.cosine_decay_schedule(rate, updates)
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(falling, momentum=0.9))


def adam(rate: Any, updates: int) -> optax.GradientTransformation:
    """The successive stage's, as the library has it."""
    return optax.adamw(optax.cosine_onecycle_schedule(updates, rate, 0.3), weight_decay=1e-4)


# What is kept between forward and backward.


def kept_bytes(function: Callable[..., Array], params: Any, x: Array) -> int:
    """Bytes that the way back through ``function(params, x)`` takes from the way there.

    All that JAX saves for the gradient of the parameters, each array once, those that are given
    (parameters, x if it is needed) included, but no broadcast numbers.
    """
    pull = lambda params, x: jax.vjp(lambda p: function(p, x), params)[1]  # noqa: E731
    jaxpr = jax.make_jaxpr(pull)(params, x).jaxpr
    plain = {
        id(var)
        for eqn in jaxpr.eqns
        if eqn.primitive.name in ("broadcast_in_dim", "iota")
        for var in eqn.outvars
    }
    kept = {id(var): var.aval for var in jaxpr.outvars if id(var) not in plain}
    return sum(aval.size * aval.dtype.itemsize for aval in kept.values())


def kept_bytes_an_example(function: Callable[..., Array], params: Any, features: int) -> int:
    """How these grow with the batch: what is neither parameter nor basis."""
    few, many = (kept_bytes(function, params, jnp.zeros((n, features))) for n in (8, 16))
    return (many - few) // 8
