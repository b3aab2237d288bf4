"""From a training's outcome to what its model file would hold, and how good that is."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax import modelfile
from rosler_jax.deploy import pack, rebuild
from rosler_jax.fit import evaluate, network_specs
from rosler_jax.network import split_state
from rosler_jax.run import dense_parameters, trained_to_ship

if TYPE_CHECKING:
    from jaxtyping import Array, PyTree

    from rosler_jax.config import TrainConfig
    from rosler_jax.sweep.population import Member, Population


def shipped(
    config: TrainConfig, params: PyTree, buffers: PyTree, member: Member, population: Population
) -> dict[str, Any]:
    """Packs a training's best model as ``rosler train`` would, and scores what the file holds.

    Args:
      config: of the member, with its bits.
      params, buffers: at the config's own rank.
      member: its split and the moments of its inputs.
      population: the member's.

    Returns:
      ``validation_accuracy``, ``test_accuracy``, ``file_bytes``, ``parameters``, ``compression``.
    """
    examples, sizes = (
        population.examples,
        (population.examples.in_features, population.examples.num_classes),
    )
    specs = network_specs(config, *sizes)
    trained = trained_to_ship(config, specs, params, buffers)
    tensors = pack(trained, config.bits)
    network = rebuild(trained.specs, tensors)
    (first, *_) = network_specs(config, *sizes, *population.moments(config))
    size = len(modelfile.encode(tensors, {"layers": [first, *trained.specs[1:]]}, {}))
    held = np.asarray(member.validation)
    scores = {
        "validation_accuracy": _accuracy(network, member, examples.x[held], examples.y[held]),
        "test_accuracy": _accuracy(network, member, examples.test_x, examples.test_y),
    }
    return {
        **scores,
        "file_bytes": size,
        "parameters": sum(int(np.size(leaf)) for leaf in jax.tree.leaves(trained.params)),
        "compression": 4 * dense_parameters(specs) / size,
    }


def _accuracy(network: nnx.Module, member: Member, x: Any, y: Any) -> float:
    graphdef, params, buffers = split_state(network)
    score = _score(graphdef, params, buffers, member.mean, member.std, x, y)
    return round(float(score) * len(y)) / len(y)


@functools.partial(jax.jit, static_argnums=0)
def _score(
    graphdef: Any, params: PyTree, buffers: PyTree, mean: Array, std: Array, x: Array, y: Array
) -> Array:
    def predict(x: Array) -> Array:
        standard = (x.astype(jnp.float32) - mean) * (1.0 / std)
        return nnx.merge(graphdef, params, buffers)(standard)

    return evaluate(predict, x, y)[1]
