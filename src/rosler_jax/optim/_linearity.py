"""Does an optimiser keep the sketches of one matrix sketches of one matrix? Tried, not guessed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
import optax

from rosler_jax.nn._layouts import column_matrices, fold_columns
from rosler_jax.optim._groups import FACTORS, ares_groups, flatten

if TYPE_CHECKING:
    from jaxtyping import PyTree

PROBE_STEPS = 3
MOST_STEPS = 32  # for optimisers that collect gradients, or warm up from a rate of zero
TOLERANCE = 1e-3  # float32 rounding of three tiny steps is 1e-6; Adam misses by 1e-1 and more

_TRACED = (
    jax.errors.UnexpectedTracerError,
    jax.errors.TracerArrayConversionError,
    jax.errors.ConcretizationTypeError,
)
"""What is raised where a hyperparameter is known to an outer trace alone."""


class _Probe(NamedTuple):
    """Sketches ``Psi``, ``Omega`` of the true size of one layer, and where its factors lie."""

    at: Mapping[str, int]
    shapes: Mapping[str, tuple[int, ...]]
    psi: np.ndarray
    omega: np.ndarray

    def sketches(self, rng: np.random.Generator, scale: float) -> dict[str, np.ndarray]:
        """Leaves that sketch random matrices ``a b`` of rank 2, which are never formed."""
        k = math.prod(self.shapes["u"][:-2])
        a = scale * rng.normal(size=(k, len(self.psi), 2))
        b = rng.normal(size=(k, 2, len(self.omega)))
        columns, rows = a @ (b @ self.omega), (self.psi.T @ a) @ b
        core = (self.psi.T @ columns).swapaxes(1, 2)
        return {
            "c": fold_columns(columns, self.shapes["c"], self.shapes["u"]),
            "u": core.reshape(self.shapes["u"]),
            "r": rows.reshape(self.shapes["r"]),
        }

    def violation(self, leaves: list[Any]) -> tuple[float, str]:
        """How far ``Psi^T C``, ``A``, ``R Omega`` are apart, relatively, and whose fault it is."""
        c, u, r = (np.asarray(leaves[self.at[name]], np.float64) for name in FACTORS)
        core = u.reshape(-1, *u.shape[-2:]).swapaxes(1, 2)
        from_c = self.psi.T @ column_matrices(c, u)
        from_r = r.reshape(-1, *r.shape[-2:]) @ self.omega
        scale = max(map(np.linalg.norm, (core, from_c, from_r))) + 1e-30
        apart = {
            "r": np.linalg.norm(from_c - core) / scale,
            "c": np.linalg.norm(from_r - core) / scale,
            "u": np.linalg.norm(from_c - from_r) / scale,
        }
        # Two that agree accuse the third.
        culprit = next((n for n, d in apart.items() if d < TOLERANCE), "c, u and r")
        return float(max(apart.values())), culprit


def check_keeps_sketches(tx: optax.GradientTransformation, params: PyTree) -> None:
    """Runs ``tx`` on sketches of random matrices and sees whether they stay consistent.

    ``C = W Omega``, ``A = Psi^T W Omega``, ``R = Psi^T W`` of every layer get gradients that are
    the same sketches of random ``G_t``; afterwards ``Psi^T C = A = R Omega`` must still hold. Trees
    and shapes are the true ones, so that labels and masks pick what they will pick. Where
    hyperparameters are traced there is nothing concrete to look at and the check passes.

    Raises:
      ValueError: if the sketches came apart, naming the leaf; or for an incomplete layer.
    """
    groups = ares_groups(params)
    if not groups:
        return
    try:
        with jax.core.eval_context():  # also within a trace: one program, not one an operation
            found = _violations(tx, params, groups)
    except _TRACED:
        return
    for name, (violation, culprit) in found.items():
        if not violation < TOLERANCE:
            raise ValueError(
                f"the parallel optimiser is not linear in the gradient of {name!r}: after trial "
                f"steps the sketches Psi^T C, A and R Omega differ by {violation:.2g} (relative), "
                f"more than {TOLERANCE}, because of its {culprit}; "
                "pass SGD, momentum, weight decay or global-norm clipping as parallel=, the same "
                "for all factors of a layer, and keep adaptive optimisers such as Adam for the "
                "successive stage"
            )


def _violations(
    tx: optax.GradientTransformation, params: PyTree, groups: Mapping[str, Mapping[str, int]]
) -> dict[str, tuple[float, str]]:
    """Of each layer: relative distance of its sketches after a few trial steps, and the culprit."""
    rng = np.random.default_rng(0)
    leaves, treedef = flatten(params)
    probes = {}
    for name, index in groups.items():
        shapes = {key: tuple(leaves[i].shape) for key, i in index.items()}
        (s, l), n = shapes["u"][-2:], shapes["r"][-1]
        m = math.prod(shapes["c"]) // math.prod(shapes["u"][:-1])
        probes[name] = _Probe(index, shapes, rng.normal(size=(m, l)), rng.normal(size=(n, s)))

    def tree(scale: float) -> PyTree:
        """A parameter tree of the true structure: sketches of random matrices, zeros elsewhere."""
        values = [x if not hasattr(x, "shape") else np.zeros(x.shape, np.float32) for x in leaves]
        for probe in probes.values():
            for name, value in probe.sketches(rng, scale).items():
                values[probe.at[name]] = value.astype(np.float32)
        return jax.tree.unflatten(treedef, values)

    @jax.jit
    def after(gradients: PyTree, state: Any, trial: PyTree) -> tuple[PyTree, Any]:
        steps, state = tx.update(gradients, state, trial)
        return optax.apply_updates(trial, steps), state

    trial = tree(0.0)  # from zero: every digit was moved there
    state = jax.jit(tx.init)(trial)
    for step in range(MOST_STEPS):
        trial, state = after(tree(10.0 ** rng.uniform(-2, 2)), state, trial)
        moved = flatten(trial)[0]
        if step + 1 >= PROBE_STEPS and all(
            np.any(moved[probe.at[name]]) for probe in probes.values() for name in FACTORS
        ):
            break
    return {name: probe.violation(moved) for name, probe in probes.items()}
