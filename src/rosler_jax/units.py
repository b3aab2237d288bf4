"""The units of a training's data: what inputs and targets are standardised by."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax.graph.graph import Graph, Value
from rosler_jax.graph.kinds import Affine

if TYPE_CHECKING:
    from jaxtyping import Array


class Units(NamedTuple):
    """What inputs and targets are standardised by; numbers, or one for each feature; may be traced.

    Attributes:
      mean, std: of the inputs.
      target_mean, target_std: of the targets, where a task's outputs are in their units.
      class_weights: of a weighted loss, one for each class; or None.
    """

    mean: Any = 0.0
    std: Any = 1.0
    target_mean: Any = 0.0
    target_std: Any = 1.0
    class_weights: Any = None


PLAIN = Units()
"""Of values that stay as they are."""


def standardized(x: Array, units: Units) -> Array:
    """``(x - mean) / std`` in float32; whole numbers wider than bytes are tokens and stay.

    Example:
      >>> standardized(jnp.array([[3, 5]], jnp.uint8), Units(mean=4.0, std=2.0)).tolist()
      [[-0.5, 0.5]]
    """
    if is_tokens(x):
        return x
    return (x.astype(jnp.float32) - units.mean) * (1.0 / units.std)


def is_tokens(x: Any) -> bool:
    """Whether inputs are tokens: whole numbers that are no bytes."""
    return bool(jnp.issubdtype(x.dtype, jnp.integer)) and x.dtype != np.uint8


def filed(mean: Any, std: Any) -> tuple[Any, Any]:
    """Mean and deviation as the model file has them: to digits that depend on the deviation.

    Six digits of a single deviation, four of each of many (they are text in the file), and the mean
    to as many decimals; at least four decimals of a single one.

    Example:
      >>> filed(33.318421, 78.567553), filed(2e-5, 1.23456789e-6)
      ((33.3184, 78.5676), (2e-05, 1.23457e-06))
      >>> filed(np.array([1.0, 5e5]), np.array([1e-5, 1.23456e5]))
      (array([1.e+00, 5.e+05]), array([1.000e-05, 1.235e+05]))
    """
    if np.ndim(std) == 0:
        decimals = max(4, 5 - math.floor(math.log10(std)))
        return round(float(mean), decimals), round(float(std), decimals)
    decimals = (3 - np.floor(np.log10(std))).astype(int).tolist()
    pairs = ([round(float(v), d) for v, d in zip(vs, decimals, strict=True)] for vs in (mean, std))
    means, stds = map(np.array, pairs)
    return means, stds


def class_weights(how: str | None, y: np.ndarray, classes: int) -> np.ndarray | None:
    """The weight of each class in the loss; of mean 1 over the training examples.

    Args:
      how: ``"balanced"``: the rarer, the heavier, ``n / (classes count)``; numbers, as ``"1,4"``;
        or None for none.
      y: labels of the training examples.
      classes: how many there are.

    Raises:
      ValueError: for another number of weights than classes, or weights that are not positive.

    Example:
      >>> class_weights("balanced", np.array([0, 0, 0, 1]), 2).round(3).tolist()
      [0.667, 2.0]
    """
    if how is None:
        return None
    counts = np.bincount(y, minlength=classes)[:classes]
    if how == "balanced":
        found = len(y) / (classes * np.maximum(counts, 1))
    else:
        found = np.array([float(part) for part in how.split(",")])
    if found.shape != (classes,) or not (found > 0).all():
        raise ValueError(
            f"class_weights {how!r} for {classes} classes; pass 'balanced', or as many positive "
            "numbers, as 1,4"
        )
    return np.asarray(found * len(y) / (found @ counts), np.float32)


def units_of(
    data: Any, *, scaled: bool = False, weights: str | None = None, targets: str = "classes"
) -> Units:
    """The units of a :class:`rosler_jax.data.Dataset`, to the digits that its model's file has.

    Args:
      data: the data, or what has their moments.
      scaled: whether outputs are in the units of the targets.
      weights: see :func:`class_weights`.
      targets: what the targets are; ``"none"`` where the inputs are.
    """
    found = Units()
    if not is_tokens(data.train_x):
        found = Units(*filed(data.mean, data.std))
    if scaled:
        own = targets == "none"
        moments = (data.mean, data.std) if own else (data.target_mean, data.target_std)
        mean, std = filed(*moments)
        found = found._replace(target_mean=mean, target_std=std)
    if weights is not None:
        given = class_weights(weights, np.asarray(data.train_y), data.num_classes)
        found = found._replace(class_weights=given)
    return jax.tree.map(np.float32, found)


def in_units(graph: Graph, units: Units, scaled: bool) -> Graph:
    """The graph of a model of standardised values as one of values in the data's own units.

    Args:
      graph: of one input; that of tokens stays.
      units: of the data.
      scaled: whether outputs are standardised targets.
    """
    if graph.inputs[0].dtype == "float32":
        inner = graph.inputs[0]
        outer = inner._replace(id=_fresh(graph))
        first = _affine("standardize", outer, inner, units.mean, 1.0 / np.asarray(units.std, float))
        graph = dataclasses.replace(graph, inputs=(outer,), ops=(first, *graph.ops))
    if scaled:
        inner = graph.outputs[0]
        outer = inner._replace(id=_fresh(graph))
        std = np.asarray(units.target_std, float)
        last = _affine("units", inner, outer, -np.asarray(units.target_mean, float) / std, std)
        graph = dataclasses.replace(graph, outputs=(outer,), ops=(*graph.ops, last))
    return graph


def _fresh(graph: Graph) -> int:
    return max(graph.dtypes(), default=0) + 1


def _affine(name: str, source: Value, target: Value, center: Any, factor: Any) -> Affine:
    return Affine(
        name=name, inputs=(source.id,), outputs=(target.id,), in_shapes=(source.shape,),
        out_shapes=(target.shape,), center=np.asarray(center, np.float32),
        factor=np.asarray(factor, np.float32),
    )  # fmt: skip
