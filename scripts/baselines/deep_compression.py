"""Deep Compression: Han, Mao, Dally, arXiv:1510.00149.

Prune the smallest weights of each layer of a trained net and train the others on; share the values
of what is left, k-means of each layer from centroids at equal distances; train the centroids; code.
The library's range coder, which adapts, is in the place of relative indices and Huffman codes: it
codes one integer for each weight, 0 for a pruned one, -1, -2, ... and 1, 2, ... for the centroids
below and above zero from zero outwards. The codebook, float16, is in the file's metadata: all of it
is in the bytes of that one file.
"""

from __future__ import annotations

import base64
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from baselines.files import Shipped, graph_of
from baselines.masks import largest, map_kernels, survivors
from baselines.training import Rule, Trained, descent, train
from rosler_jax._paths import path_name
from rosler_jax._quantized import QuantizedTensor
from rosler_jax.graph import Graph
from rosler_jax.graph.graph import map_weights
from rosler_jax.graph.prune import pruned
from rosler_jax.graph.quantize import with_integers
from rosler_jax.graph.save import Model
from rosler_jax.graph.weight import Weight
from rosler_jax.run import Prepared

CODES = 8
"""Bits of the integers before they are coded: at most 127 centroids on either side of zero."""


def pruned_once(params: Any, keep: dict[str, float]) -> Any:
    """Masks of each layer's largest weights; the fraction by the kernel's name."""

    def one(name: str, weights: Any) -> np.ndarray:
        scores = np.abs(np.asarray(weights))
        return largest(scores, math.ceil(keep[name.rpartition("/")[0]] * scores.size))

    return map_kernels(one, params)


def k_means(values: np.ndarray, clusters: int, steps: int = 100) -> np.ndarray:
    """Centroids of numbers, ascending; empty clusters are left out.

    They begin at equal distances between the extremes, as the paper has it: few, large weights
    count, and would be lost to where most are.
    """
    centroids = np.linspace(values.min(), values.max(), clusters)
    for _ in range(steps):
        nearest = np.searchsorted((centroids[1:] + centroids[:-1]) / 2, values)
        counts = np.bincount(nearest, minlength=len(centroids))
        sums = np.bincount(nearest, values, minlength=len(centroids))
        new = np.sort(sums[counts > 0] / counts[counts > 0])
        if len(new) == len(centroids) and np.array_equal(new, centroids):
            break
        centroids = new
    return centroids.astype(np.float32)


def coded(weights: np.ndarray, mask: np.ndarray, clusters: int) -> tuple[np.ndarray, np.ndarray]:
    """Codes and codebook: of code c, the value ``codebook[c + (centroids below zero)]``.

    The codebook has zero, the value of code 0, between the centroids of either sign.
    """
    live = mask > 0
    centroids = k_means(weights[live].astype(np.float64), clusters)
    codebook = np.sort(np.append(centroids[centroids != 0], 0)).astype(np.float32)
    middle = (codebook[1:] + codebook[:-1]) / 2
    zero = int(np.searchsorted(codebook, 0))
    places = np.searchsorted(middle, weights)
    # A small weight is no pruned one: it goes to the nearer centroid beside zero.
    beside = np.where(weights < 0, max(zero - 1, 0), min(zero + 1, len(codebook) - 1))
    places = np.where(places == zero, beside, places)
    return np.where(live, places - zero, 0).astype(np.int8), codebook


def shared(problem: Prepared) -> Rule:
    """Descent of centroids and biases; the codes are fixed."""

    def weights(trained: Any, fixed: Any) -> Any:
        books, params = trained
        return with_values(params, fixed, books)

    return descent(problem, weights)


def with_values(params: Any, fixed: dict[str, tuple[Any, Any]], books: dict[str, Any]) -> Any:
    """Parameters with what their codes stand for.

    Args:
      params: of the model.
      fixed: codes, and where zero is in the codebook, of each kernel.
      books: codebooks.
    """

    def one(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        if name not in fixed:
            return leaf
        codes, zero = fixed[name]
        values = jnp.asarray(books[name])[codes.astype(jnp.int32) + zero]
        return jnp.where(codes == 0, 0.0, values)

    return jax.tree_util.tree_map_with_path(one, params)


def compressed(
    problem: Prepared, finer: Prepared, dense: Trained, keep: dict[str, float], clusters: int
) -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """Parameters, codes and codebooks: three trainings with the dense one.

    Args:
      problem: data and model.
      finer: the same with the epochs and the rate of the centroids' training.
      dense: the dense net, trained.
      keep: fractions of the layers' weights.
      clusters: of each layer at most.
    """
    masks = pruned_once(dense.params, keep)
    sparse = train(problem, survivors, dense.params, masks)
    fixed, books = {}, {}

    def share(name: str, weights: Any, mask: Any) -> Any:
        codes, book = coded(np.asarray(weights), np.asarray(mask), clusters)
        fixed[name], books[name] = (codes, np.int32(np.flatnonzero(book == 0)[0])), book
        return mask

    map_kernels(share, sparse.params, masks)
    found = train(finer, shared, (books, sparse.params), fixed)
    trained, params = found.state[0]
    halves = {name: np.asarray(book, np.float16) for name, book in trained.items()}
    return params, fixed, halves


def shipped(
    problem: Prepared, params: Any, fixed: dict[str, Any], books: dict[str, Any]
) -> Shipped:
    """One file of the codes as the integers of the model, the codebooks in its metadata."""

    def codes(path: Any, leaf: Any) -> Any:
        name = path_name(path)
        return np.asarray(fixed[name][0], np.float32) if name in fixed else leaf

    integers = {
        name: QuantizedTensor(np.asarray(found), np.float32(1), CODES, None)
        for name, (found, _) in fixed.items()
    }
    graph = graph_of(
        problem,
        jax.tree_util.tree_map_with_path(codes, params),
        lambda graph: pruned(with_integers(graph, integers)),
    )
    metadata = {
        name: [int(fixed[name][1]), base64.b64encode(book.tobytes()).decode()]
        for name, book in books.items()
    }
    return Shipped(graph, CODES, True, metadata, restored)


def restored(model: Model) -> Graph:
    """The graph with the values of the codes that a file holds."""
    books = {
        name: (zero, np.frombuffer(base64.b64decode(text), np.float16).astype(np.float32))
        for name, (zero, text) in model.file.metadata.items()
    }

    def one(weight: Weight) -> Weight:
        if weight.name not in books:
            return weight
        zero, book = books[weight.name]
        stored = np.asarray(weight.integers, np.int64)
        values = np.where(stored == 0, np.float32(0), book[stored + zero])
        return Weight(weight.name, values, weight.layout)

    return map_weights(model.graph, one)
