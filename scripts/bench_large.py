"""Optimisers in sketch space against the others: state, quality, memory, time.

    scripts/bench_large quality --out runs/large                 # trains; resumable; hours on a CPU
    scripts/bench_large quality --methods adamw,channel-20 --steps 200
    scripts/bench_large time                                     # a step of each, in turns
    scripts/bench_large activations                              # ways to keep less of them
    scripts/bench_large llama                                    # LLaMA-7B, by shapes alone

``quality`` trains the model of ``large_lm`` with every method for the same number of steps. The
learning rate is the best of a grid of factors of two by the validation text, searched with the
first seed until the best is not the grid's last; the other seeds train with it. What the table has
is bits a byte of the test text.

``time`` and ``activations`` time compiled steps in turns, after a warm-up each, and count the bytes
of temporaries by the compiler's own analysis. What other devices would take, their compilers say:
``scripts/compile_kernels --specs llama,activations``.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from large_lm import LanguageModel, Size, Text, bits, held_out, text, windows
from large_shapes import VARIANTS, Sizes, gradients, llama_state_bytes, weights_of

from rosler_jax import compact_state, matrix_views, sketched_adamw
from rosler_jax._files import replace_text

DECAY = 0.1
B2 = 0.99  # of every Adam here: runs are short
GRID = 2.0


class Method(NamedTuple):
    """An optimiser of a learning rate, the views of a model's weights and its parameters."""

    make: Callable[..., optax.GradientTransformation]
    rate: float  # the first learning rate tried
    keep: float | None = None  # of the rows of perceptrons' inputs, for their weights' gradients


def _sketched(rank: int, **options: Any) -> Callable[..., optax.GradientTransformation]:
    def make(rate: Any, views: Any) -> optax.GradientTransformation:
        return sketched_adamw(
            rate, rank, view=_with_tables(views), b2=B2, weight_decay=DECAY, **options
        )

    return make


def _with_tables(views: Any) -> Any:
    """Embeddings, too: a table's rows are as good an axis as any."""
    return lambda name, shape: views[name].view if len(shape) > 1 else None


def _adamw(rate: Any, views: Any) -> optax.GradientTransformation:
    return optax.adamw(rate, b2=B2, weight_decay=DECAY)


def _adamw_in(dtype: Any) -> Callable[..., optax.GradientTransformation]:
    def make(rate: Any, views: Any) -> optax.GradientTransformation:
        return optax.chain(
            compact_state(optax.scale_by_adam(b2=B2), dtype),
            optax.add_decayed_weights(DECAY),
            optax.scale_by_learning_rate(rate),
        )

    return make


def _galore(rank: int, gap: int) -> Callable[..., optax.GradientTransformation]:
    def make(rate: Any, views: Any) -> optax.GradientTransformation:
        def dimensions(params: Any) -> Any:
            def one(path: Any, leaf: Any) -> Any:
                view = views[jax.tree_util.keystr(path, simple=True, separator="/")].view
                if leaf.ndim < 2:
                    return None
                return optax.contrib.GaLoreDimensionNumbers(view.inputs, view.outputs)

            return jax.tree_util.tree_map_with_path(one, params)

        return optax.contrib.galore(
            rate, rank, gap, base_optimizer=optax.scale_by_adam(b2=B2), weight_decay=DECAY,
            weight_dimension_numbers=dimensions,
        )  # fmt: skip

    return make


_COSINES = {"refresh": 20, "family": "dct_columns"}
_SIGNS = {"refresh": 100, "family": "rademacher"}
METHODS: dict[str, Method] = {
    "adamw": Method(_adamw, 2e-3),
    "adamw, int8": Method(_adamw_in(jnp.int8), 2e-3),
    "adamw, bf16": Method(_adamw_in(jnp.bfloat16), 2e-3),
    "adamw, half of the rows kept": Method(_adamw, 2e-3, keep=1 / 2),
    "adamw, an eighth of the rows kept": Method(_adamw, 2e-3, keep=1 / 8),
    "adafactor": Method(lambda rate, views: optax.adafactor(rate), 16e-3),
    "galore, 16": Method(_galore(16, 100), 16e-3),
    "combined, 16, cosines": Method(_sketched(16, scaling="combined", **_COSINES), 16e-3),
    "combined, 16, srht": Method(
        _sketched(16, scaling="combined", refresh=20, family="srht"), 16e-3
    ),
    "combined, 8, cosines": Method(_sketched(8, scaling="combined", **_COSINES), 16e-3),
    "combined, 64, cosines, int8": Method(
        _sketched(64, scaling="combined", state_dtype=jnp.int8, **_COSINES), 16e-3
    ),
    "channel, 16": Method(_sketched(16, scaling="channel", **_SIGNS), 16e-3),
    "subspace, 16, cosines": Method(_sketched(16, scaling="subspace", **_COSINES), 16e-3),
    "tensor, 1": Method(_sketched(1, scaling="tensor", **_SIGNS), 16e-3),
}
"""Every method by name: a new one is one line here."""


def schedule(rate: float, steps: int) -> optax.Schedule:
    """A tenth of the steps up, then down a cosine to a tenth."""
    return optax.warmup_cosine_decay_schedule(0.0, rate, steps // 10, steps, rate / 10)


def state_bytes(tx: optax.GradientTransformation, params: Any) -> int:
    """Of the optimiser's state, by shapes."""
    leaves = jax.tree.leaves(jax.eval_shape(tx.init, params))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def trained(method: Method, rate: float, seed: int, size: Size, steps: int, data: Text) -> Any:
    """Bits a byte of validation and test text after training, and seconds a step."""
    model = LanguageModel(size, nnx.Rngs(seed), method.keep)
    graphdef, state = nnx.split(model, nnx.Param)
    tx = method.make(schedule(rate, steps), matrix_views(model))
    params = nnx.to_pure_dict(state)
    clipped = optax.chain(optax.clip_by_global_norm(1.0), tx)

    @functools.partial(jax.jit, donate_argnums=0)
    def step(carry: Any, tokens: jax.Array) -> Any:
        params, state = carry
        loss, grads = jax.value_and_grad(lambda p: bits(graphdef, p, tokens))(params)
        updates, state = clipped.update(grads, state, params)
        return (optax.apply_updates(params, updates), state), loss

    rng, carry = np.random.default_rng(seed), (params, clipped.init(params))
    begin = time.perf_counter()
    for i in range(steps):
        starts = rng.integers(0, len(data.train) - size.length - 1, size.batch)
        carry, loss = step(carry, windows(data.train, starts, size.length))
        if i % 100 == 99:
            print(f"    step {i + 1}/{steps}: {float(loss):.3f}", file=sys.stderr, flush=True)
    seconds = (time.perf_counter() - begin) / steps
    evaluate = jax.jit(lambda p, tokens: bits(graphdef, p, tokens))
    scores = [
        float(np.mean([evaluate(carry[0], part) for part in np.split(held_out(split, size), 8)]))
        for split in (data.validation, data.test)
    ]
    return {"validation": scores[0], "test": scores[1], "seconds": seconds}


class Runs:
    """Results on disk, by method, rate and seed: what is there is not trained again."""

    def __init__(self, folder: Path, size: Size, steps: int):
        self.path, self.size, self.steps = folder / "quality.json", size, steps
        self.rows = json.loads(self.path.read_text("utf-8")) if self.path.exists() else {}
        self.data = text()

    def get(self, name: str, rate: float, seed: int) -> dict[str, float]:
        """A run's result, trained if it is not there."""
        key = f"{name} | {rate:.3g} | {seed} | {self.steps} | {tuple(self.size)}"
        if key not in self.rows:
            print(f"  {name}, rate {rate:.3g}, seed {seed}", file=sys.stderr, flush=True)
            found = trained(METHODS[name], rate, seed, self.size, self.steps, self.data)
            if not np.isfinite(found["validation"]):
                found = {**found, "validation": 99.0, "test": 99.0}
            self.rows[key] = found
            replace_text(self.path, json.dumps(self.rows, indent=1))
        return self.rows[key]


def best_rate(runs: Runs, name: str) -> float:
    """By validation, with the first seed; not at an end of what was tried."""
    tried = [METHODS[name].rate / GRID, METHODS[name].rate, METHODS[name].rate * GRID]
    while True:
        scores = [runs.get(name, rate, 0)["validation"] for rate in tried]
        at = int(np.argmin(scores))
        if 0 < at < len(tried) - 1:
            return tried[at]
        tried = [tried[0] / GRID, *tried] if at == 0 else [*tried, tried[-1] * GRID]


def quality(options: argparse.Namespace) -> None:
    """Trains every method and prints the table."""
    size, out = Size(), Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    runs = Runs(out, size, options.steps)
    model = LanguageModel(size, nnx.Rngs(0))
    params, views = nnx.to_pure_dict(nnx.state(model, nnx.Param)), matrix_views(model)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    whole = state_bytes(METHODS["adamw"].make(1e-3, views), params)
    lines = [
        f"{count:,} parameters; {options.steps} steps of {size.batch * size.length:,} bytes; "
        f"JAX {jax.__version__}, optax {optax.__version__}",
        "| method | state, bytes | of AdamW's | learning rate | validation, bits a byte | test |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    points = []
    for name in options.methods or METHODS:
        rate = best_rate(runs, name)
        rows = [runs.get(name, rate, seed) for seed in range(options.seeds)]
        state = state_bytes(METHODS[name].make(1e-3, views), params)
        scores = {k: [row[k] for row in rows] for k in ("validation", "test")}
        cells = [f"{statistics.mean(v):.3f} ± {_deviation(v):.3f}" for v in scores.values()]
        lines.append(
            f"| {name} | {state:,} | {state / whole:.3f} | {rate:.3g} | {' | '.join(cells)} |"
        )
        print(lines[-1], flush=True)
        points.append((name, state, statistics.mean(scores["test"])))
    replace_text(out / "quality.md", "\n".join(lines) + "\n")
    _draw(points, out / "quality.png")
    print("\n".join(lines))
    print(f"wrote {out / 'quality.md'} and {out / 'quality.png'}")


def in_turns(
    calls: Mapping[str, Callable[[], Any]], rounds: int, before: Callable[[], Any] | None = None
) -> dict[str, list[float]]:
    """Seconds of each call, one of each a round; each after ``before``, which is not timed."""
    for call in calls.values():
        jax.block_until_ready(call())
    found: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds):
        print(f"\r  round {i + 1}/{rounds}", end="", file=sys.stderr, flush=True)
        for name, call in calls.items():
            if before is not None:
                jax.block_until_ready(before())
            begin = time.perf_counter()
            jax.block_until_ready(call())
            found[name].append(time.perf_counter() - begin)
    print(file=sys.stderr)
    return found


def against(seconds: Mapping[str, list[float]], name: str, other: str) -> str:
    """How many times another's a call's seconds are, round by round: median (quartiles)."""
    ratio = [a / b for a, b in zip(seconds[name], seconds[other], strict=True)]
    low, _, high = statistics.quantiles(ratio, n=4)
    return f"{statistics.median(ratio):.2f} ({low:.2f} to {high:.2f})"


def timed(options: argparse.Namespace) -> None:
    """A training step and an update alone of every optimiser, against AdamW's."""
    size = Size()
    model = LanguageModel(size, nnx.Rngs(0))
    graphdef, given = nnx.split(model, nnx.Param)
    params, views = nnx.to_pure_dict(given), matrix_views(model)
    starts = np.arange(size.batch) * 1000
    tokens = jnp.asarray(windows(text().train, starts, size.length))
    gradient = jax.jit(jax.grad(lambda p: bits(graphdef, p, tokens)))
    grads, memory = gradient(params), {}
    calls: dict[str, Callable[[], Any]] = {}

    def whole() -> Any:  # an update follows a gradient, which leaves the caches full of others
        return gradient(params)

    for name, method in METHODS.items():
        tx = method.make(1e-3, views)
        state = tx.init(params)
        update = jax.jit(lambda g, s, p, tx=tx: optax.apply_updates(p, tx.update(g, s, p)[0]))
        later = jax.jit(tx.update)(grads, state, params)[1]
        compiled: Any = update.lower(grads, state, params).compile()
        memory[name] = compiled.memory_analysis()
        calls[name] = functools.partial(update, grads, later, params)
        calls[f"{name}, anew"] = functools.partial(update, grads, state, params)
    seconds = in_turns({"gradient": whole, **calls}, options.rounds, whole)
    step = {name: statistics.median(times) for name, times in seconds.items()}
    print(
        "| update | times AdamW's | of a gradient's time | choosing a subspace | temporaries, MB |"
    )
    print("|---|---:|---:|---:|---:|")
    for name in METHODS:
        print(
            f"| {name} | {against(seconds, name, 'adamw')} | {step[name] / step['gradient']:.3f} | "
            f"{step[f'{name}, anew'] / step['gradient']:.3f} | "
            f"{memory[name].temp_size_in_bytes / 1e6:.1f} |"
        )


def activations(options: argparse.Namespace) -> None:
    """A gradient of a transformer in every way: bytes, operations and time here."""
    sizes = Sizes(width=256, heads=4, depth=4, length=256, batch=8)
    key, weights = jax.random.key(0), weights_of(sizes, jnp.float32)
    leaves, tree = jax.tree.flatten(weights)
    arrays = [
        jax.random.normal(jax.random.fold_in(key, i), a.shape) / a.shape[0] ** 0.5
        for i, a in enumerate(leaves)
    ]
    given = jax.tree.unflatten(tree, arrays)
    x = jax.random.normal(key, (sizes.batch, sizes.length, sizes.width))
    calls, facts = {}, {}
    for name, variant in VARIANTS.items():
        compiled: Any = jax.jit(gradients(variant, sizes)).lower(given, x).compile()
        cost = compiled.cost_analysis() or {}
        facts[name] = compiled.memory_analysis().temp_size_in_bytes, cost.get("flops", 0.0)
        calls[name] = functools.partial(compiled, given, x)
    seconds = in_turns(calls, options.rounds)
    print("| backward pass | temporaries, MB | operations, G | times as it is |")
    print("|---|---:|---:|---:|")
    for name in VARIANTS:
        print(
            f"| {name} | {facts[name][0] / 1e6:.1f} | {facts[name][1] / 1e9:.1f} | "
            f"{against(seconds, name, 'as it is')} |"
        )


def by_shapes(options: argparse.Namespace) -> None:
    """Bytes of LLaMA-7B's optimisers."""
    print("| optimiser | state, GB |\n|---|---:|")
    for name, size in llama_state_bytes().items():
        print(f"| {name} | {size / 1e9:.3f} |")


def _deviation(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _draw(points: list[tuple[str, int, float]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 5), layout="constrained")
    for name, state, score in points:
        axes.plot(max(state, 1e3), score, "o")
        axes.annotate(name, (max(state, 1e3), score), fontsize=7)
    axes.set(xscale="log", xlabel="bytes of optimiser state", ylabel="test, bits a byte")
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("quality", help="bits a byte against bytes of state")
    command.add_argument("--out", default="runs/large", help="folder of results")
    command.add_argument("--steps", type=int, default=500)
    command.add_argument("--seeds", type=int, default=3)
    command.add_argument(
        "--methods", type=lambda s: [m.strip() for m in s.split(";")],
        help=f"of {'; '.join(METHODS)}",
    )  # fmt: skip
    command.set_defaults(run=quality)
    for name, run, about in (
        ("time", timed, "of a step, against AdamW"),
        ("activations", activations, "ways to keep less for the backward pass"),
    ):
        command = commands.add_parser(name, help=about)
        command.add_argument("--rounds", type=int, default=31, help="of one call each")
        command.set_defaults(run=run)
    command = commands.add_parser("llama", help="bytes of LLaMA-7B's optimisers, by shapes")
    command.set_defaults(run=by_shapes)
    options = parser.parse_args()
    unknown = set(getattr(options, "methods", None) or ()) - set(METHODS)
    if unknown:
        parser.error(f"unknown methods {sorted(unknown)}; expected of {'; '.join(METHODS)}")
    options.run(options)


if __name__ == "__main__":
    main()
