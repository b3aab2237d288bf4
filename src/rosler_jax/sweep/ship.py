"""From trainings' outcomes to what their model files would hold, and how good that is."""

from __future__ import annotations

import functools
import json
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax import modelfile
from rosler_jax.deploy import Trained, pack, rebuild
from rosler_jax.fit import evaluate, network_specs
from rosler_jax.run import dense_parameters, trained_to_ship

if TYPE_CHECKING:
    from collections.abc import Sequence

    from jaxtyping import Array, PyTree

    from rosler_jax.config import TrainConfig
    from rosler_jax.sweep.examples import Examples
    from rosler_jax.sweep.population import Member, Outcome, Population

AT_ONCE = 64
"""Models that a program packs and scores; fewer fill up the next power of two."""


def shipped(
    trainings: Sequence[tuple[TrainConfig, Outcome, Member]], population: Population
) -> list[dict[str, Any]]:
    """Packs trainings' best models as ``rosler train`` would, and scores what the files hold.

    Models of one shape are packed and scored by one compiled program, one after another within it.

    Args:
      trainings: a member's config with its bits, its best model, its split and moments.
      population: theirs.

    Returns:
      Of each ``validation_accuracy``, ``test_accuracy``, ``file_bytes``, ``parameters``,
      ``compression``.
    """
    examples = population.examples
    sizes = examples.in_features, examples.num_classes
    models, file_bytes = [], []
    alike: dict[tuple[str, int, int], list[int]] = {}
    for i, (config, out, member) in enumerate(trainings):
        trained = trained_to_ship(
            config, network_specs(config, *sizes), *population.crop(out.params, out.buffers, config)
        )
        (first, *_) = network_specs(config, *sizes, *population.moments(config))
        models.append(trained)
        file_bytes.append(_file_bytes(trained, json.dumps(first), config.bits))
        key = json.dumps(trained.specs), config.bits, len(member.validation)
        alike.setdefault(key, []).append(i)
    scores: dict[int, tuple[float, float]] = {}
    for (specs, bits, _), found in alike.items():
        for k in range(0, len(found), AT_ONCE):
            some = found[k : k + AT_ONCE]
            given = [(models[i].params, models[i].buffers, trainings[i][2]) for i in some]
            scores |= zip(some, _scores(specs, bits, given, examples), strict=True)
    return [
        {
            "validation_accuracy": scores[i][0],
            "test_accuracy": scores[i][1],
            "file_bytes": size,
            "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(model.params)),
            "compression": 4 * dense_parameters(model.specs) / size,
        }
        for i, (model, size) in enumerate(zip(models, file_bytes, strict=True))
    ]


def _file_bytes(trained: Trained, first: str, bits: int) -> int:
    """Bytes of a model's file: its shapes and its layers' descriptions decide.

    Args:
      trained: the model, but for the moments of its inputs.
      first: its first layer, which has them, as JSON.
      bits: of its weights.
    """
    leaves, treedef = jax.tree.flatten((trained.params, trained.buffers))
    shapes = tuple((np.shape(leaf), np.asarray(leaf).dtype.str) for leaf in leaves)
    return _bytes_of(json.dumps(trained.specs), first, bits, treedef, shapes)


@functools.lru_cache(maxsize=1024)
def _bytes_of(specs: str, first: str, bits: int, treedef: Any, shapes: Any) -> int:
    layers = json.loads(specs)
    like = [jax.ShapeDtypeStruct(shape, np.dtype(dtype)) for shape, dtype in shapes]
    params, buffers = jax.tree.unflatten(treedef, like)
    names: list[str] = []

    def tensors(params: PyTree, buffers: PyTree) -> list[Any]:
        packed = pack(Trained(layers, params, buffers), bits)
        names.extend(packed)  # in the order of the file, which a dict loses on the way out
        return list(packed.values())

    made = jax.eval_shape(tensors, params, buffers)
    ones = jax.tree.map(lambda a: np.ones(a.shape, a.dtype), made)
    content = dict(zip(names, ones, strict=True))
    filed = [json.loads(first), *layers[1:]]
    return len(modelfile.encode(content, {"layers": filed}, {}))


def _scores(
    specs: str, bits: int, given: list[tuple[PyTree, PyTree, Member]], examples: Examples
) -> list[tuple[float, float]]:
    """Validation and test accuracy of the files of models of one shape."""
    count = 2 ** (len(given) - 1).bit_length()
    filled = [*given, *[given[-1]] * (count - len(given))]
    chosen = [(p, b, m.validation, m.mean, m.std) for p, b, m in filled]
    stacked = jax.tree.map(lambda *leaves: np.stack([np.asarray(v) for v in leaves]), *chosen)
    data = examples.x, examples.y, examples.test_x, examples.test_y
    held, test = (np.asarray(a) for a in _score(specs, bits, stacked, *data))
    sizes = len(given[0][2].validation), len(examples.test_y)
    return [
        (round(float(a) * sizes[0]) / sizes[0], round(float(b) * sizes[1]) / sizes[1])
        for a, b in zip(held[: len(given)], test[: len(given)], strict=True)
    ]


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    specs: str, bits: int, stacked: Any, x: Array, y: Array, test_x: Array, test_y: Array
) -> tuple[Array, Array]:
    layers = json.loads(specs)

    def one(given: Any) -> tuple[Array, Array]:
        params, buffers, held, mean, std = given
        network = rebuild(layers, pack(Trained(layers, params, buffers), bits))

        def predict(x: Array) -> Array:
            return network((x.astype(jnp.float32) - mean) * (1.0 / std))

        return evaluate(predict, x[held], y[held])[1], evaluate(predict, test_x, test_y)[1]

    return jax.lax.map(one, stacked)
