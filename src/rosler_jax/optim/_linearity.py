"""Does an optimiser keep the sketches of one matrix sketches of one matrix? Tried, not guessed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import optax

from rosler_jax.optim._groups import ares_groups

if TYPE_CHECKING:
    from jaxtyping import PyTree

PROBE_STEPS = 3
TOLERANCE = 1e-3  # float32 rounding of three tiny steps is 1e-6; Adam misses by 1e-1 and more
_M, _N, _S, _L = 7, 6, 2, 3


def check_keeps_sketches(tx: optax.GradientTransformation, params: PyTree) -> None:
    """Runs ``tx`` on the sketches of one small matrix and sees whether they stay consistent.

    ``C = W Omega``, ``A = Psi^T W Omega``, ``R = Psi^T W`` get gradients that are the same sketches
    of random ``G_t``; afterwards ``Psi^T C = A = R Omega`` must still hold. Where hyperparameters
    are traced there is nothing concrete to look at and the check passes.

    Raises:
      ValueError: if the sketches came apart.
    """
    groups = ares_groups(params)
    if not groups:
        return
    try:
        with jax.ensure_compile_time_eval():
            violation = float(_violation(tx, params, next(iter(groups.values()))))
    except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError):
        return
    if not violation < TOLERANCE:
        raise ValueError(
            f"the parallel optimiser is not linear in the gradient: after {PROBE_STEPS} trial "
            f"steps the sketches Psi^T C and R Omega differ from the core by {violation:.2g} "
            f"(relative), more than {TOLERANCE}; pass SGD, momentum, weight decay or global-norm "
            "clipping as parallel=, and keep adaptive optimisers such as Adam for the successive "
            "stage"
        )


def _violation(tx: optax.GradientTransformation, params: PyTree, group: dict[str, int]) -> Any:
    """Relative distance of ``Psi^T C`` and ``R Omega`` from ``A`` after a few trial steps."""
    rng = np.random.default_rng(0)
    psi, omega = rng.normal(size=(_M, _L)), rng.normal(size=(_N, _S))
    leaves, treedef = jax.tree.flatten(params)

    def tree(w: np.ndarray) -> PyTree:
        """A parameter tree of the true structure: one small sketched matrix, zeros elsewhere."""
        values = [np.zeros(np.shape(x), np.float32) for x in leaves]
        sketches = {"c": w @ omega, "u": (psi.T @ w @ omega).T, "r": psi.T @ w}
        for name, value in sketches.items():
            values[group[name]] = value.astype(np.float32)
        return jax.tree.unflatten(treedef, [jax.numpy.asarray(v) for v in values])

    trial = tree(np.zeros((_M, _N)))  # from zero: every digit was moved there
    state = tx.init(trial)
    for _ in range(PROBE_STEPS):
        grads = tree(10.0 ** rng.uniform(-2, 2) * rng.normal(size=(_M, _N)))
        steps, state = tx.update(grads, state, trial)
        trial = optax.apply_updates(trial, steps)
    c, u, r = (np.asarray(jax.tree.leaves(trial)[group[name]]) for name in "cur")
    scale = np.linalg.norm(u) + 1e-30
    return max(np.linalg.norm(psi.T @ c - u.T), np.linalg.norm(r @ omega - u.T)) / scale
