"""Training steps of convolutional models in a loop: in forms that CPUs run fast, and as given.

    python scripts/bench_convolutions.py
    python scripts/bench_convolutions.py resnet8 vgg16

Compiled trainings are loops; XLA for CPUs orders the axes of convolutions outside of loops only,
and has no fast kernel for some (``rosler_jax._convolutions``). Models of the zoo and of
``bench_models.py``; VGG-16 also with its layers in two factors of an eighth of the rank. Both
variants in turn, several times; median and range of processor and wall time a step.
"""

from __future__ import annotations

import platform
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from bench_models import small_conv, strided_conv
from flax import nnx

from rosler_jax import Rule, models, sketchify
from rosler_jax._convolutions import canonical_convolutions

STEPS, REPEATS = 4, 5


def sketched_vgg16(*, rngs: nnx.Rngs, **given: Any) -> nnx.Module:
    """VGG-16 with every layer but its head in two factors."""
    rules = [Rule("head", skip=True), Rule("*", 0.125, "two-factor")]
    model, _ = sketchify(models.vgg16(rngs=rngs, **given), rules, rngs=rngs)
    assert isinstance(model, nnx.Module)
    return model


CASES: dict[str, tuple[Callable[..., nnx.Module], tuple[int, ...], int]] = {
    "small_conv": (small_conv, (28, 28), 256),
    "strided_conv": (strided_conv, (28, 28), 256),
    "lenet5": (models.lenet5, (28, 28, 1), 256),
    "resnet8": (models.resnet8, (32, 32, 3), 64),
    "vgg16": (models.vgg16, (32, 32, 3), 128),
    "vgg16, two factors of rank 1/8": (sketched_vgg16, (32, 32, 3), 128),
}


def loops(build: Any, shape: tuple[int, ...], batch: int) -> tuple[Any, dict[str, Any]]:
    """Parameters, and a few steps of gradient descent in a loop, by variant."""
    model = build(input_shape=shape, outputs=10, rngs=nnx.Rngs(0))
    graph, *states = nnx.split(model, nnx.Param, ...)
    params, rest = states
    x = jax.random.normal(jax.random.key(0), (batch, *shape))

    def loss(params: Any) -> Any:
        return (nnx.merge(graph, params, nnx.clone(rest))(x) ** 2).mean()

    def loop(grad: Callable[..., Any]) -> Any:
        def step(params: Any, _: Any) -> Any:
            return jax.tree.map(lambda w, g: w - 1e-4 * g, params, grad(params)), None

        return jax.jit(lambda params: jax.lax.scan(step, params, None, length=STEPS)[0])

    grad = jax.grad(loss)
    return params, {"as given": loop(grad), "in order": loop(canonical_convolutions(grad))}


def seconds(function: Any, params: Any) -> tuple[float, float]:
    """Processor and wall seconds of a step."""
    cpu, wall = time.process_time(), time.perf_counter()
    jax.block_until_ready(function(params))
    return (time.process_time() - cpu) / STEPS, (time.perf_counter() - wall) / STEPS


def main(only: list[str]) -> int:
    """Times all cases, or some, and prints a table."""
    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {platform.machine()}\n")
    print("| model, batch | variant | processor ms a step | wall ms a step |\n|---|---|---|---|")
    for name in only or CASES:
        build, shape, batch = CASES[name]
        params, functions = loops(build, shape, batch)
        found: dict[str, list[tuple[float, float]]] = {variant: [] for variant in functions}
        for function in functions.values():
            jax.block_until_ready(function(params))
        for _ in range(REPEATS):
            for variant, function in functions.items():
                found[variant].append(seconds(function, params))
        for variant, times in found.items():
            cells = []
            for values in zip(*times, strict=True):
                low, middle, high = (f(values) * 1e3 for f in (min, statistics.median, max))
                cells.append(f"{middle:.1f} ({low:.1f} to {high:.1f})")
            print(f"| {name}, {batch} | {variant} | {' | '.join(cells)} |", flush=True)
        same = jax.tree.map(
            lambda a, b: bool(jnp.allclose(a, b, atol=1e-5)),
            *(f(params) for f in functions.values()),
        )
        assert all(jax.tree.leaves(same)), name
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
