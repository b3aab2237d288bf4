"""From a jaxpr to a graph: what is known is computed, what is inlined is looked into."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax.extend.core as jex
import numpy as np

from rosler_jax._quantized import FLOAT_BITS, QuantizedTensor
from rosler_jax.graph._builder import Builder, Held, dtype_name, known
from rosler_jax.graph._rules import RULES, evaluate
from rosler_jax.graph._source import UnlocatedError, refuse
from rosler_jax.graph.graph import Value
from rosler_jax.graph.kinds import Concat, Op, Scan, count
from rosler_jax.graph.weight import Weight, computed

INLINED = (
    "jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint", "custom_jvp_call",
    "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call", "custom_lin", "shard_map",
)  # fmt: skip
KEEP_LAYOUT = (
    "reshape", "squeeze", "expand_dims", "broadcast_in_dim", "transpose", "rev", "copy", "slice",
    "convert_element_type", "stop_gradient", "split",
)  # fmt: skip
"""Of a stored array these give the same tensor, laid out another way."""
UNROLLED = 128  # stacked layers: at most so many runs of a scan are written out


def walk(b: Builder, jaxpr: Any, consts: Sequence[Any], args: Sequence[Held]) -> list[Held]:
    """Adds the operations of a jaxpr; gives what its outputs are."""
    env: dict[Any, Held] = {}

    def read(var: Any) -> Held:
        return known(np.asarray(var.val), "constant") if isinstance(var, jex.Literal) else env[var]

    for var, const in zip(jaxpr.constvars, consts, strict=True):
        env[var] = const if isinstance(const, Held) else known(const, "constant")
    env.update(zip(jaxpr.invars, args, strict=True))
    for eqn in jaxpr.eqns:
        made = equation(b, eqn, [read(var) for var in eqn.invars])
        env.update(zip(eqn.outvars, made, strict=True))
    return [read(var) for var in jaxpr.outvars]


def equation(b: Builder, eqn: Any, xs: list[Held]) -> list[Held]:
    """Adds one equation."""
    name = eqn.primitive.name
    if all(x.known for x in xs) and not _lays_out(name, eqn, xs):
        scaled = _scaled(name, xs)
        if scaled is not None:
            return [scaled]
        base = next((computed(x.weight.name) for x in xs if _named(x)), "constant")
        return [known(y, base) for y in evaluate(eqn, xs)]
    if name in INLINED:
        inner = next(eqn.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in eqn.params)
        try:
            return walk(b, getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), xs)
        except UnlocatedError as error:
            raise refuse(eqn, error.why, error.primitive) from None
    if name == "cond":
        return _cond(b, eqn, xs)
    if name == "scan":
        return _scan(b, eqn, xs)
    if name not in RULES:
        raise refuse(eqn, _advice(name))
    made = RULES[name](b, eqn, *xs)
    return made if isinstance(made, list) else [made]


def _lays_out(name: str, eqn: Any, xs: Sequence[Held]) -> bool:
    """Whether an equation only lays out a stored tensor another way."""
    if name in INLINED:
        return True
    if name not in KEEP_LAYOUT or not _named(xs[0]):
        return False
    return name != "convert_element_type" or dtype_name(eqn.outvars[0].aval.dtype) == xs[0].dtype


def _scaled(name: str, xs: Sequence[Held]) -> Held | None:
    """A stored tensor times a number: its name stays, and integers do, whose scales take it."""
    if name not in ("mul", "div") or [_named(x) for x in xs].count(True) != 1:
        return None
    tensor, other = xs if _named(xs[0]) else xs[::-1]
    factor = other.scalar if other.dtype == "float32" else None
    if not factor or (name == "div" and tensor is not xs[0]) or tensor.view != tensor.shape:
        return None
    number = np.float32(1.0 / factor if name == "div" else factor)
    weight = tensor.weight
    stored: Any = weight.stored
    if isinstance(stored, QuantizedTensor) and stored.bits != FLOAT_BITS and number > 0:
        stored = dataclasses.replace(stored, scale=np.asarray(stored.scale) * number)
    elif isinstance(stored, QuantizedTensor):
        return None
    else:
        stored = stored * number
    return dataclasses.replace(tensor, source=Weight(weight.name, stored, weight.layout))


def _named(x: Held) -> bool:
    return x.dtype == "float32" and x.weight.name != "constant"


def _advice(name: str) -> str:
    if name == "while":
        return "a loop of unknown length has no operation; use lax.scan or a loop of Python"
    if name.startswith(("random_", "threefry", "rng_")):
        return "random numbers drawn from a key that is an input; pass the numbers, or a fixed key"
    if name in ("pure_callback", "io_callback", "debug_callback"):
        return "code of Python runs on no device; leave it out"
    if name in ("sort", "top_k", "scatter", "dynamic_update_slice"):
        return "it has no operation; do it outside of the model"
    return "it has no operation in a graph"


def _cond(b: Builder, eqn: Any, xs: list[Held]) -> list[Held]:
    which = xs[0].scalar if xs[0].known else None
    if which is None:
        raise refuse(eqn, "which branch runs depends on the inputs; use jnp.where")
    branches = eqn.params["branches"]
    branch = branches[int(min(max(which, 0), len(branches) - 1))]
    return walk(b, branch.jaxpr, branch.consts, xs[1:])


def _scan(b: Builder, eqn: Any, xs: list[Held]) -> list[Held]:
    p = eqn.params
    (n_consts, n_carry), length = _scan_sizes(p), int(p["length"])
    body = p["jaxpr"]
    first = n_consts + n_carry
    shared, carry, sequences = xs[:n_consts], xs[n_consts:first], xs[first:]
    stacked = any(x.known and _named(x) for x in sequences)
    if length <= UNROLLED and (stacked or length == 1):
        return _unrolled(b, eqn, shared, carry, sequences)
    inner = Builder()
    given = [x for x in shared if not x.known]
    avals = [var.aval for var in body.jaxpr.invars]
    insides = {
        i: inner.input(tuple(a.shape), dtype_name(a.dtype))
        for i, a in enumerate(avals)
        if i >= n_consts or not shared[i].known
    }
    args = [insides.get(i, xs[i]) for i in range(len(avals))]
    out = walk(inner, body.jaxpr, body.consts, args)
    values = [
        Value(int(insides[i].source), str(i), insides[i].shape, insides[i].dtype) for i in insides
    ]
    results = [_result(inner, x, str(i)) for i, x in enumerate(out)]
    reads = [b.whole(x) for x in (*given, *carry, *sequences)]
    shapes = [tuple(var.aval.shape) for var in eqn.outvars]
    ids = tuple(b.value() for _ in shapes)
    dtypes = tuple(dtype_name(var.aval.dtype) for var in eqn.outvars)
    op: Op = Scan(
        name=b.unique("scan"), inputs=tuple(map(b.read, reads)), outputs=ids,
        in_shapes=tuple(x.shape for x in reads), out_shapes=tuple(shapes), dtypes=dtypes,
        body=inner.graph(values, results), shared=len(given), carries=n_carry, length=length,
        reverse=bool(p["reverse"]),
    )  # fmt: skip
    b.ops.append(op)
    return [Held(k, s, s, d) for k, s, d in zip(ids, shapes, dtypes, strict=True)]


def _scan_sizes(params: Mapping[str, Any]) -> tuple[int, int]:
    """How many inputs of a scan every run sees, and how many are state."""
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    shared, carry, _ = params["ft_in"].unpack()  # from JAX 0.12 on
    return len(shared), len(carry)


def _result(b: Builder, x: Held, name: str) -> Value:
    x = b.whole(x)
    return Value(b.read(x), name, x.shape, x.dtype)


def _unrolled(b: Builder, eqn: Any, shared: Any, carry: Any, sequences: Any) -> list[Held]:
    """A scan over stacked layers, written out: every run has its own weights."""
    p, body = eqn.params, eqn.params["jaxpr"]
    length = int(p["length"])
    rows: list[list[Held]] = [[] for _ in range(length)]
    for t in reversed(range(length)) if p["reverse"] else range(length):
        at = [_position(b, x, t) for x in sequences]
        out = walk(b, body.jaxpr, body.consts, [*shared, *carry, *at])
        carry, rows[t] = out[: len(carry)], out[len(carry) :]
    return [*carry, *(_stacked(b, [row[k] for row in rows]) for k in range(len(rows[0])))]


def _position(b: Builder, x: Held, t: int) -> Held:
    shape = x.shape[1:]
    if x.known:
        return x.laid("slice", 0, t, t + 1).laid("reshape", shape)
    return b.reshape(b.take(x, [((t, 1, 1),), *[None] * len(shape)]), shape)


def _stacked(b: Builder, xs: list[Held]) -> Held:
    """Values one behind the other along a new axis."""
    shape = (len(xs), *xs[0].shape)
    if all(x.known for x in xs):
        return known(np.stack([x.array for x in xs]), "constant")
    n = count(shape[1:])
    y = b.emit(Concat, [b.whole(x) for x in xs], [(n,)] * len(xs), (n * len(xs),), axis=0)
    return Held(y.source, shape, shape, y.dtype)
