"""From a trained network to the one that ships, and back from its file."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from rosler_jax import modelfile
from rosler_jax._layer_views import matrix_views
from rosler_jax._paths import path_name
from rosler_jax.factors import SketchFactors, fold
from rosler_jax.modelfile import ModelFile, ModelFileError
from rosler_jax.network import Network, Spec, evaluating, split_state
from rosler_jax.quantization import dequantize_params, quantize_params
from rosler_jax.views import Views

if TYPE_CHECKING:
    from jaxtyping import PyTree


class Trained(NamedTuple):
    """A network as data: descriptions of its layers, parameters, and all other state."""

    specs: list[dict[str, Any]]
    params: Any
    buffers: Any


class LoadedNetwork(NamedTuple):
    """A network read from a model file."""

    specs: list[dict[str, Any]]
    network: Network
    file: ModelFile


def deploy(trained: Trained) -> Trained:
    """Rewrites the layers in the form that takes the fewest numbers and the least work to apply.

    A learnt ``C U R`` linear layer becomes two factors: ``U`` is folded into its smaller neighbour.
    Seeded and dense layers, and convolutions, stay as they are.

    Args:
      trained: specs, ``params["layers"][i]`` and buffers of a :class:`rosler_jax.network.Network`.

    Returns:
      The same network, to float rounding.

    Raises:
      ValueError: if a layer is still in the parallel stage of aRes-BP.

    Example:
      >>> specs = [{"kind": "sketch_linear", "in_features": 9, "out_features": 7, "rank": 2}]
      >>> _, params, buffers = split_state(Network(specs, rngs=nnx.Rngs(0)))
      >>> small = deploy(Trained(specs, params, buffers))
      >>> small.specs[0]["kind"], sorted(small.params["layers"][0])
      ('two_factor', ['bias', 'c', 'r'])
    """
    layers = {
        i: {k: v for k, v in p.items() if k != "fingerprint"}  # the seeds go with the network
        for i, p in trained.params.get("layers", {}).items()
    }
    buffers = dict(trained.buffers.get("layers", {}))
    specs = [dict(spec) for spec in trained.specs]
    for i, spec in enumerate(specs):
        if spec["kind"] != "sketch_linear" or spec.get("mode", "chain") == "seeded":
            continue
        p = layers[i]
        if float(p.get("parallel", 0.0)) > 0.5:
            raise ValueError(
                f"layer {i} is still in the parallel stage of aRes-BP; train past its switch_step"
            )
        two = fold(SketchFactors(c=p["c"], u=p["u"], r=p["r"]))
        rank = two.c.shape[1]
        layers[i] = {"c": two.c, "r": two.r, **_only(p, "bias")}
        buffers.pop(i, None)
        kept = _only(spec, "in_features", "out_features", "use_bias")
        specs[i] = {"kind": "two_factor", **kept, "rank": rank}
    return Trained(specs, {"layers": layers}, {"layers": buffers} if buffers else {})


def _only(mapping: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: mapping[name] for name in names if name in mapping}


def pack(trained: Trained, bits: int) -> dict[str, Any]:
    """The named tensors of a model file: quantised parameters, seeds and statistics as they are."""
    tensors = quantize_params(trained.params, bits, network_views(trained.specs))
    for path, leaf in jax.tree_util.tree_flatten_with_path(trained.buffers)[0]:
        tensors[path_name(path)] = leaf
    return {name.removeprefix("layers/"): tensor for name, tensor in tensors.items()}


def save_network(
    path: str | os.PathLike[str],
    trained: Trained,
    *,
    bits: int,
    metadata: Mapping[str, Any] | None = None,
) -> int:
    """Quantises a network and writes its model file.

    Args:
      path: where to.
      trained: the network; see :func:`deploy` to make it small first.
      bits: bits of the weights.
      metadata: JSON types, kept in the file and counted in its size.

    Returns:
      Bytes of the file.

    Raises:
      ModelFileError: for unknown bits, a layer still in the parallel stage, or a network that
        :func:`load_network` would refuse.
      OSError: if the file cannot be written.
    """
    try:
        tensors = pack(trained, bits)
    except (ValueError, TypeError, KeyError) as error:
        raise ModelFileError(f"{path}: the network cannot be saved: {error}") from error
    data = modelfile.encode(tensors, {"layers": trained.specs}, metadata or {}, name=str(path))
    load_file(path, modelfile.decode(data, name=str(path)))
    modelfile.write_encoded(path, data)
    return len(data)


def load_network(path: str | os.PathLike[str]) -> LoadedNetwork:
    """Reads a model file back into a network that can be called.

    Nothing is allocated for a layer before its tensors in the file are seen to have its shapes.

    Args:
      path: file that :func:`save_network` wrote.

    Returns:
      The network, its layers' descriptions and the file's contents.

    Raises:
      ModelFileError: if the file is damaged, or its tensors do not fit its layers.
      OSError: if it cannot be read.
    """
    return load_file(path, modelfile.load(path))


def load_file(path: str | os.PathLike[str], file: ModelFile) -> LoadedNetwork:
    """The network of a model file's contents; raises as :func:`load_network` does."""
    specs = described_layers(file, str(path))
    try:
        return LoadedNetwork(specs, rebuild(specs, file.tensors), file)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        raise ModelFileError(f"{path}: tensors and layers do not fit: {error}") from error


def described_layers(file: ModelFile, name: str) -> list[dict[str, Any]]:
    """The descriptions of layers that a file of version 1 holds.

    Raises:
      ModelFileError: if it has none.
    """
    specs = file.spec.get("layers")
    if not isinstance(specs, list) or not all(isinstance(spec, dict) for spec in specs):
        if file.version == 2:
            raise ModelFileError(f"{name}: it holds a graph, not layers; use rosler_jax.load")
        raise ModelFileError(f"{name}: its spec has no list of layers; save it with save_network")
    return specs


def rebuild(specs: Sequence[Spec], tensors: Mapping[str, Any]) -> Network:
    """The network of a model file's layers and named tensors.

    Raises:
      ValueError: if they do not fit.
    """
    graphdef, *state = _abstract(_as_json(specs))
    names = {f"layers/{name}": tensor for name, tensor in tensors.items()}
    buffer_names = {
        path_name(path) for path, _ in jax.tree_util.tree_flatten_with_path(state[1])[0]
    }
    values = dequantize_params({k: v for k, v in names.items() if k not in buffer_names}, state[0])
    rest = dequantize_params({k: v for k, v in names.items() if k in buffer_names}, state[1])
    return nnx.merge(graphdef, values, rest)


def network_views(specs: Sequence[Spec]) -> Views:
    """What each parameter of a network of these layers is."""
    return _views(_as_json(specs))


def _as_json(specs: Sequence[Spec]) -> str:
    """Layers as a file holds them."""

    def plain(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        raise TypeError(f"{value!r:.80} in a layer's description is not a JSON type")

    return json.dumps([dict(spec) for spec in specs], default=plain)


@functools.lru_cache(maxsize=32)
def _views(specs: str) -> Views:
    return matrix_views(nnx.merge(*_abstract(specs)))


@functools.lru_cache(maxsize=32)
def _abstract(specs: str) -> tuple[Any, Any, Any]:
    """A network's graph and shapes; kept, since a sweep rebuilds thousands of the same."""
    layers = json.loads(specs)
    return split_state(nnx.eval_shape(lambda: evaluating(Network(layers, rngs=nnx.Rngs(0)))))


def from_restricted(specs: Sequence[Spec], params: PyTree, extracted: PyTree) -> Trained:
    """Rebuilds a rank-restricted dense network with two-factor layers.

    Args:
      specs: layers of the dense network.
      params: its parameters.
      extracted: :func:`rosler_jax.extract_factors`'s tree of the parameters.
    """
    layers: dict[int, Any] = {}
    out: list[dict[str, Any]] = []
    for i, spec in enumerate(map(dict, specs)):
        kernel = extracted["layers"].get(i, {}).get("kernel") if i in params["layers"] else None
        if kernel is not None and hasattr(kernel, "c"):
            bias = _only(params["layers"][i], "bias")
            layers[i] = {"c": jnp.asarray(kernel.c), "r": jnp.asarray(kernel.r), **bias}
            spec = {**spec, "kind": "two_factor", "rank": int(kernel.c.shape[-1])}
        elif i in params["layers"]:
            layers[i] = params["layers"][i]
        out.append(spec)
    return Trained(out, {"layers": layers}, {})
