"""Loss and metrics of a model over data, batch by batch; pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from rosler_jax.tasks import TASKS, Task, losses
from rosler_jax.units import PLAIN, Units

if TYPE_CHECKING:
    from jaxtyping import Array, Float

EVALUATION_BATCH = 1000


def statistics(task: Task, outputs: Array, y: Any) -> dict[str, Array]:
    """Means of the metrics' statistics over a batch."""
    return {
        name: jnp.asarray(metric.statistics(outputs, y), jnp.float32).mean(0)
        for name, metric in task.metrics.items()
    }


def values(task: Task, means: dict[str, Array]) -> dict[str, Array]:
    """The metrics, of means over all examples."""
    return {name: task.metrics[name].value(mean) for name, mean in means.items()}


def evaluate(
    predict: Callable[[Any], Any],
    x: Array,
    y: Any,
    task: Task = TASKS["classification"],
    batch: int = EVALUATION_BATCH,
    units: Units = PLAIN,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """Mean loss and metrics of ``predict(x) -> outputs``, in batches; pure.

    Example:
      >>> x, y = jnp.eye(3), jnp.arange(3)
      >>> float(evaluate(lambda x: x, x, y)[1]["accuracy"])
      1.0
    """
    n = x.shape[0]
    batch = min(batch, n)
    count = -(-n // batch)
    index = jnp.arange(count * batch).reshape(count, batch)

    def one(i: Array) -> Any:
        j = jnp.minimum(i, n - 1)
        return tally(task, predict, x[j], None if y is None else y[j], i < n, units)

    sums = jax.lax.map(one, index)
    return tallied(task, jax.tree.map(lambda a: a.sum(0), sums), n)


def tally(
    task: Task, predict: Callable[[Any], Any], x: Array, y: Any, valid: Array, units: Units
) -> tuple[Array, dict[str, Array]]:
    """Sums over a batch of losses and of the metrics' statistics, of the valid examples."""
    out, y = predict(x), task.target(x, y)

    def total(v: Any) -> Array:
        v = jnp.asarray(v, jnp.float32)
        return jnp.where(valid.reshape(-1, *[1] * (v.ndim - 1)), v, 0).sum(0)

    found = {name: total(m.statistics(out, y)) for name, m in task.metrics.items()}
    return total(losses(task, out, y, {"unit": units.target_std})), found


def tallied(task: Task, sums: tuple[Array, dict[str, Array]], n: int) -> tuple[Array, dict]:
    """Mean loss and metrics, of the sums over ``n`` examples."""
    loss, found = sums
    return loss / n, values(task, {name: total / n for name, total in found.items()})
