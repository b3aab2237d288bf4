"""Weights that a seeded delta changes on the device: base in flash, tuned in RAM."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np

from rosler_jax.delta._forms import FORMS
from rosler_jax.delta.seeded_delta import NUMBERS, seeds_of
from rosler_jax.export._errors import ExportError
from rosler_jax.export.c.unit import Unit, float32_literal
from rosler_jax.graph.weight import lay_out
from rosler_kernels.hashing import Tag, domain_key

if TYPE_CHECKING:
    from rosler_jax.delta import SeededDelta
    from rosler_jax.delta.seeded_delta import Tuned
    from rosler_jax.graph.weight import Weight

KERNELS = {
    "full": "tune_full",
    "seeded": "tune_core",
    "lora-xs": "tune_core",
    "sketched": "tune_core",
}
"""The forms that C code has, and the kernel of each."""
_DELTA = "rosler_delta_of"


def check(delta: SeededDelta) -> None:
    """Refuses a delta that C code cannot apply.

    Raises:
      ExportError: naming the form.
    """
    if delta.plan.form not in KERNELS:
        raise ExportError(
            f"C code applies deltas of the forms {', '.join(KERNELS)}, not {delta.plan.form!r}; "
            "apply it before the export"
        )


def tuned(unit: Unit, label: str, weight: Weight) -> str | None:
    """Adds a weight that the unit's delta changes; its name, or None for another weight."""
    delta = unit.delta
    found = None if delta is None else next(
        (w for w in delta.plan.weights if w.name == weight.name), None
    )  # fmt: skip
    if delta is None or found is None:
        return None
    _, m, n = _check_order(found, weight)
    unit.tuned.append(found.name)
    base = unit.array("float", f"{label}_base", weight.values.reshape(m, n).T, "weights")
    name = f"{label}_tuned"
    unit.data.append(f"static float {name}[{m * n}]; /* made by rosler_tune */")
    unit.ram_bytes += 4 * m * n
    sizes = f"&{_struct(unit, delta)}, z, {found.start}u, {m}, {n}"
    kernel = KERNELS[delta.plan.form]
    unit.use(kernel)
    unit.tunes.append(
        f"rosler_{kernel}({sizes}, {_sides(unit, label, delta, found)}{base}, {name});"
    )
    return name


def _check_order(found: Tuned, weight: Weight) -> tuple[int, int, int]:
    """The matrix of a weight, which must lie in the graph as in the model."""
    places = np.arange(math.prod(found.shape))
    wanted = np.asarray(found.view.to_matrices(jnp.asarray(places.reshape(found.shape))))
    stored = lay_out(places.reshape(weight.stored.shape), weight.layout)
    if len(wanted) != 1 or not np.array_equal(stored.reshape(-1, stored.shape[-1]), wanted[0]):
        raise ExportError(
            f"{found.name!r} is several matrices, or lies otherwise in the graph than in the "
            "model; leave it out of the delta, or apply the delta before the export"
        )
    return found.matrices


def _sides(unit: Unit, label: str, delta: SeededDelta, found: Tuned) -> str:
    """Arguments of the bases, where there are any."""
    if FORMS[delta.plan.form].factors is None:
        return ""
    left, right = (np.asarray(a).reshape(a.shape[-2:]) for a in delta.bases[found.name])
    rank = delta.plan.rank
    names = [
        unit.array("float", f"{label}_{side}", values, "bases of the delta")
        for side, values in (("left", left), ("right", right.T))
    ]
    product = f"static float rosler_tune_product[{rank}];"
    if product not in unit.data:
        unit.data.append(product)
        unit.ram_bytes += 4 * rank
    return f"{rank}, {names[0]}, {names[1]}, rosler_tune_product, "


def _struct(unit: Unit, delta: SeededDelta) -> str:
    """The constant that says how numbers are shared."""
    plan = delta.plan
    first, second, *_ = seeds_of(plan.seed, "", NUMBERS)
    keys = [[int(w) for w in first], [int(w) for w in domain_key(second, Tag.RADEMACHER)]]
    words = ", ".join("{{{}u, {}u}}".format(*key) for key in keys)
    scale = np.sqrt(np.float32(plan.k) / np.float32(plan.size))
    shared = int(plan.k < plan.size)
    values = f"{{{words}, {plan.k}u, {shared}, {float32_literal(scale)}}}"
    text = f"static const rosler_delta {_DELTA} = {values};"
    if text not in unit.data:
        unit.use("shared")
        unit.data.append(text)
    return _DELTA


def function(unit: Unit) -> str:
    """``rosler_tune``, once all weights have been met.

    Raises:
      ExportError: if the delta changes weights that the graph does not have as they were.
    """
    assert unit.delta is not None
    missing = sorted({w.name for w in unit.delta.plan.weights} - set(unit.tuned))
    if missing:
        raise ExportError(
            f"the delta changes {missing[0]!r}, which is no weight of a dense or convolutional "
            "operation of the graph; leave it out of the delta"
        )
    body = "\n".join(f"    {line}" for line in [*unit.tunes, "rosler_is_tuned = 1;"])
    return f"void rosler_tune(const float *z)\n{{\n{body}\n}}"


ABOUT = """
/* Takes the model to a delta's ROSLER_DELTA_NUMBERS numbers, which may come over the air; to its
   base with a null pointer, as the first rosler_predict does if nobody has. Not while another
   thread predicts. */
#define ROSLER_DELTA_NUMBERS @K@
void rosler_tune(const float *z);
"""
