"""Whole training steps and a whole sweep, as programs for scripts/compile_kernels: shapes alone.

A step is loss, gradients and Adam of a network INPUTS-w-w-CLASSES on one batch, as
scripts/bench_step.py times it on the device at hand; the sweep is the population that `rosler
sweep` compiles, MEMBERS of them at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from bench_step import CLASSES, INPUTS
from bench_sweep import members
from flax import nnx

from rosler_jax import Rule, sketchify
from rosler_jax.learner import split_state
from rosler_jax.models import mlp
from rosler_jax.optim import ares_bp
from rosler_jax.sweep import Built, load_examples, make_plan, trainings
from rosler_jax.sweep.schedule import MEMORY_SHARE

WIDTHS = (1024, 2048, 4096, 8192, 16384)
RANK, BATCH, MEMBERS = 64, 128, 4096
DEVICE_BYTES = 80e9

LAYERS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "chain": {"mode": "chain"},
    "aRes-BP": {"mode": "ares"},
    "seeded": {"mode": "seeded", "sketch": "srht"},
}
"""What the hidden layers are; of aRes-BP the parallel stage, which keeps the most."""


def steps(_: str = "") -> Iterator[tuple[str, Callable[..., Any], Any]]:
    """(name, function, shapes of its arguments) of every layer and width."""
    for width in WIDTHS:
        for name, sketch in LAYERS.items():
            yield (f"{name} {width}", *_step(sketch, width))


def _step(sketch: dict[str, Any] | None, width: int) -> tuple[Callable[..., Any], Any]:
    def build() -> nnx.Module:
        rngs = nnx.Rngs(0)
        hidden = (width, width)
        model: nnx.Module = mlp(input_shape=(INPUTS,), outputs=CLASSES, hidden=hidden, rngs=rngs)
        if sketch is not None:
            rules = [Rule("head", skip=True), Rule("*", RANK, **sketch)]
            model, _ = sketchify(model, rules, rngs=rngs)
        return model

    graphdef, params, buffers = split_state(nnx.eval_shape(build))
    parallel = sketch is not None and sketch["mode"] == "ares"
    adam = optax.with_extra_args_support(optax.adam(1e-3))
    tx = ares_bp(adam, switch_step=10**9) if parallel else adam

    def step(params: Any, state: Any, buffers: Any, x: Any, y: Any) -> Any:
        def loss(p: Any) -> Any:
            out = nnx.merge(graphdef, p, buffers)(x)
            return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    x = jax.ShapeDtypeStruct((BATCH, INPUTS), jnp.float32)
    y = jax.ShapeDtypeStruct((BATCH,), jnp.int32)
    return step, (params, jax.eval_shape(tx.init, params), buffers, x, y)


def sweep(_: str = "") -> Iterator[tuple[str, Callable[..., Any], Any]]:
    """A population of rank-8 784-256-10 nets on mnist5k, all members together."""
    configs = [dataclasses.replace(c, seed=0) for c in members(2, 3)]
    built = Built(load_examples(configs[0]))
    (group,) = make_plan(configs, built)
    member = trainings.member_of(group.trainings[0], group, built)
    block = trainings.population_of(group, built, MEMBERS, 1).block

    def like(a: Any, *lead: int) -> Any:
        a = np.asarray(a)
        return jax.ShapeDtypeStruct((*lead, *a.shape), a.dtype)

    own = jax.tree.map(lambda a: like(a, MEMBERS), member.own)
    common, data = (jax.tree.map(like, tree) for tree in (member.common, built.data))
    yield f"{MEMBERS} members", block, (common, own, data, jax.ShapeDtypeStruct((), jnp.int32))


def step_table(rows: list[dict[str, Any]]) -> str:
    """Markdown: bytes of a step, and how many times fewer than the dense one's."""
    lines = ["| device | layers | " + " | ".join(f"{w}" for w in WIDTHS) + " |"]
    lines.append("|---|---|" + "---:|" * len(WIDTHS))
    held = {(r["device"], r["what"]): r for r in rows if r["operation"] == "step"}
    for device in dict.fromkeys(device for device, _ in held):
        for name in LAYERS:
            cells = []
            for width in WIDTHS:
                row, dense = (held.get((device, f"{n} {width}")) for n in (name, "dense"))
                cells.append(_cell(row, dense))
            lines.append(f"| {device} | {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _cell(row: dict[str, Any] | None, dense: dict[str, Any] | None) -> str:
    if row is None or "error" in row:
        return "-"
    text = f"{row['arguments'] / 1e6:,.1f} + {row['temporaries'] / 1e6:,.1f}"
    if dense is None or dense is row or "error" in dense:
        return text
    whole = [r["arguments"] + r["temporaries"] for r in (dense, row)]
    return f"{text} ({whole[0] / whole[1]:.1f}x)"


def sweep_line(row: dict[str, Any]) -> str:
    """What a sweep takes, and how many members a device of 80 GB would run together."""
    whole = row["arguments"] + row["outputs"] + row["temporaries"]
    fitting = int(MEMORY_SHARE * DEVICE_BYTES / (whole / MEMBERS))
    return (
        f"{row['device']}: {row['what']} take {row['arguments'] / 1e9:.2f} GB of arguments, "
        f"{row['outputs'] / 1e9:.2f} of results, {row['temporaries'] / 1e9:.2f} of temporaries, "
        f"{whole / MEMBERS / 1e6:.2f} MB a member; {fitting:,} would fit into {MEMORY_SHARE:.0%} "
        f"of {DEVICE_BYTES / 1e9:.0f} GB"
    )
