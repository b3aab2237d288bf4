"""Time and memory of one training step against the dense network, from small widths to large.

    python scripts/bench_step.py --out runs/step
    python scripts/bench_step.py --out runs/step --widths 1024,4096 --repeats 5

A step is loss, gradients and Adam (aRes-BP's parallel stage: momentum SGD) of a network
784-w-w-10 on one batch, as the library's own training loop runs it: inside a compiled scan. All
kinds of a width take turns in one process, after a warm-up each; the table has medians, spreads
and the ratio to dense, and the bytes that XLA's memory analysis gives for the compiled program.
"products alone" is no training: the matrix products of the chain's step, forward and backward, and
nothing between them; what is left of the chain's time is all that a better loop could save.
"successive" is the program of both stages past its switch, "after its switch" the program of its
own that runs go on with.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import rosler_kernels as rk
from rosler_jax import Rule, finish, sketchify
from rosler_jax.learner import split_state
from rosler_jax.models import mlp
from rosler_jax.nn._thin import thin_dot
from rosler_jax.optim import after_switch, ares_bp

INPUTS, CLASSES = 784, 10
SMALL = (32, 64, 128, 256, 512)
LARGE = (1024, 2048, 4096, 8192, 16384)
SECONDS = 0.5  # about how long one timed call should take

PRODUCTS = "chain, products alone"
AFTER = "aRes-BP, after its switch"
TURNS = 4  # first factors that the products alone go through in turn

KINDS: dict[str, dict[str, Any] | None] = {
    "dense": None,
    "chain": {},
    PRODUCTS: {},
    "aRes-BP, parallel": {"mode": "ares"},
    "aRes-BP, successive": {"mode": "ares"},
    AFTER: {"mode": "ares"},
    "seeded, SRHT": {"mode": "seeded", "sketch": "srht"},
    "seeded, row sampling": {"mode": "seeded", "sketch": "rows_uniform"},
}


def make_steps(kind: str, width: int, rank: int, batch: int) -> tuple[Any, Callable[..., Any]]:
    """The initial state of training, and ``many(state, count)``: so many steps in one program."""
    sketch, rngs = KINDS[kind], nnx.Rngs(0)
    model = mlp(input_shape=(INPUTS,), outputs=CLASSES, hidden=(width, width), rngs=rngs)
    if sketch is not None:
        rules = [Rule("head", skip=True), Rule("*", rank, **sketch)]
        model, _ = sketchify(model, rules, rngs=rngs)
    graphdef, params, buffers = split_state(model)
    adam = tx = optax.with_extra_args_support(optax.adam(1e-3))
    if kind.startswith("aRes"):
        tx = ares_bp(adam, switch_step=10**9 if kind.endswith("parallel") else 1)
    state = tx.init(params)
    if kind == AFTER:
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        model = nnx.merge(graphdef, optax.apply_updates(params, updates), buffers)
        graphdef, params, buffers = split_state(finish(model, fold=False))
        tx, state = adam, after_switch(state, adam, params)
    x = jax.random.normal(jax.random.key(0), (batch, INPUTS))
    y = jax.random.randint(jax.random.key(1), (batch,), 0, CLASSES)

    def loss(p: Any, x: Any, y: Any) -> Any:
        out = nnx.merge(graphdef, p, buffers)(x)
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()

    def step(carry: Any, _: None, x: Any, y: Any) -> tuple[Any, None]:
        p, s = carry
        updates, s = tx.update(jax.grad(loss)(p, x, y), s, p)
        return (optax.apply_updates(p, updates), s), None

    def many(state: Any, x: Any, y: Any, count: int) -> Any:
        return jax.lax.scan(lambda c, n: step(c, n, x, y), state, None, length=count)[0]

    compiled = jax.jit(many, static_argnames="count", donate_argnums=0)
    return (params, state), lambda state, count: compiled.lower(state, x, y, count=count).compile()


def make_products(width: int, rank: int, batch: int) -> tuple[Any, Callable[..., Any]]:
    """The twenty products of a chain's step, in its own form, twelve of them with a side of width.

    A network without bias or relu, whose output is its own cotangent, and whose gradients are kept
    but not applied. The first factor changes every step: all products depend on it, so that none
    leaves the loop, and the gradients of the last step are returned, so that none is dropped.
    """
    shapes = {
        "u1": (rank, rank),
        "r1": (rank, width),
        "c2": (width, rank),
        "u2": (rank, rank),
        "r2": (rank, width),
        "head": (width, CLASSES),
    }
    keys = iter(jax.random.split(jax.random.key(2), len(shapes) + 1))
    normal = lambda *shape: jax.random.normal(next(keys), shape) * shape[-2] ** -0.5  # noqa: E731
    first = normal(TURNS, INPUTS, rank)
    params = {name: normal(*shape) for name, shape in shapes.items()}

    def network(p: Any, x: Any) -> Any:
        h = rk.sketch_matmul(x, p["c1"], p["u1"], p["r1"])
        return thin_dot(rk.sketch_matmul(h, p["c2"], p["u2"], p["r2"]), p["head"])

    def many(state: Any, x: Any, _: Any, count: int) -> Any:
        (first, params), *kept = state

        def step(_: Any, i: Any) -> tuple[Any, None]:
            c1 = jax.lax.dynamic_index_in_dim(first, i % TURNS, keepdims=False)
            out, pull = jax.vjp(lambda p: network(p, x), {**params, "c1": c1})
            return (out, *pull(out)), None

        kept, _ = jax.lax.scan(step, tuple(kept), jnp.arange(count))
        return (first, params), *kept

    compiled = jax.jit(many, static_argnames="count", donate_argnums=0)
    like = jax.tree.map(jnp.zeros_like, {**params, "c1": first[0]})
    state = (first, params), jnp.zeros((batch, CLASSES)), like

    def build(state: Any, count: int) -> Any:
        x = jax.ShapeDtypeStruct((batch, INPUTS), jnp.float32)
        y = jax.ShapeDtypeStruct((batch,), jnp.int32)
        program = compiled.lower(state, x, y, count=count).compile()
        dots = (program.as_text() or "").count(" dot(")
        if count > 1 and dots != 20:
            raise RuntimeError(f"{dots} products in the program; XLA has dropped or added some")
        return program

    return state, build


def program_bytes(compiled: Any) -> int:
    """Arguments, results and temporaries of a compiled program, aliased buffers counted once."""
    m = compiled.memory_analysis()
    total = m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes
    return int(total - m.alias_size_in_bytes)


def measure_width(width: int, rank: int, batch: int, repeats: int) -> list[dict[str, Any]]:
    """Rows of one width: all kinds in turn, ``repeats`` times."""
    x = jax.random.normal(jax.random.key(0), (batch, INPUTS))
    y = jax.random.randint(jax.random.key(1), (batch,), 0, CLASSES)
    states, programs, counts, memory = {}, {}, {}, {}
    for kind in KINDS:
        make = make_products if kind == PRODUCTS else partial(make_steps, kind)
        state, build = make(width, rank, batch)
        trained = state[2] if kind == PRODUCTS else state[0]
        parameters = sum(p.size for p in jax.tree.leaves(trained))
        one = build(state, 1)
        memory[kind] = (program_bytes(one), parameters)
        state = jax.block_until_ready(
            one(state, x, y)
        )  # warm-up; also takes aRes-BP past its switch
        start = time.perf_counter()
        state = jax.block_until_ready(one(state, x, y))
        counts[kind] = max(1, min(200, int(SECONDS / (time.perf_counter() - start))))
        programs[kind] = build(state, counts[kind])
        states[kind] = jax.block_until_ready(programs[kind](state, x, y))
    times: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for _ in range(repeats):
        for kind in KINDS:
            start = time.perf_counter()
            states[kind] = jax.block_until_ready(programs[kind](states[kind], x, y))
            times[kind].append((time.perf_counter() - start) / counts[kind])
    dense = statistics.median(times["dense"])
    return [
        {
            "width": width,
            "kind": kind,
            "parameters": memory[kind][1],
            "milliseconds": 1e3 * statistics.median(t),
            "fastest": 1e3 * min(t),
            "slowest": 1e3 * max(t),
            "speedup": dense / statistics.median(t),
            "program_bytes": memory[kind][0],
            "memory_ratio": memory["dense"][0] / memory[kind][0],
        }
        for kind, t in times.items()
    ]


def markdown(rows: list[dict[str, Any]]) -> str:
    """The table as Markdown."""
    lines = [
        "| width | kind | parameters | step, ms (fastest to slowest) | faster than dense "
        "| program memory, MB | less memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['width']} | {r['kind']} | {r['parameters']:,} | {r['milliseconds']:.3g} "
            f"({r['fastest']:.3g} to {r['slowest']:.3g}) | {r['speedup']:.2f}x | "
            f"{r['program_bytes'] / 1e6:.1f} | {r['memory_ratio']:.1f}x |"
        )
    return "\n".join(lines)


def draw(path: Path, rows: list[dict[str, Any]]) -> None:
    """Step time and memory over the width, one line a kind."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    names = (("milliseconds", "one training step, ms"), ("program_bytes", "program memory, bytes"))
    for axes, (key, label) in zip(figure.subplots(1, 2), names, strict=True):
        for kind in KINDS:
            mine = [r for r in rows if r["kind"] == kind]
            axes.loglog([r["width"] for r in mine], [r[key] for r in mine], "o-", label=kind)
        axes.set(xlabel="width", ylabel=label)
        axes.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def main() -> int:
    """Measures and writes step.md, step.json and step.png."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    widths = ",".join(map(str, SMALL + LARGE))
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and plot")
    parser.add_argument(
        "--widths", default=widths, help=f"widths of both layers (default {widths})"
    )
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for width in map(int, options.widths.split(",")):
        rows += measure_width(width, options.rank, options.batch, options.repeats)
        print(f"width {width} done", flush=True)
    options.out.mkdir(parents=True, exist_ok=True)
    text = markdown(rows)
    about = {
        "device": jax.devices()[0].device_kind,
        "jax": jax.__version__,
        "python": platform.python_version(),
        "rank": options.rank,
        "batch": options.batch,
        "repeats": options.repeats,
    }
    (options.out / "step.md").write_text(text + "\n", encoding="utf-8")
    content = json.dumps({"about": about, "rows": rows}, indent=2)
    (options.out / "step.json").write_text(content, encoding="utf-8")
    draw(options.out / "step.png", rows)
    print(f"\n{about}\n\n{text}\n\nwritten to {options.out}/step.md, step.json, step.png")
    return 0


if __name__ == "__main__":
    sys.exit(main())
