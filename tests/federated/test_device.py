"""Devices as clients: parameters there and back, and rounds on emulated boards as by JAX."""

from __future__ import annotations

import functools
import shutil
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen

from rosler_jax._convert import Rule
from rosler_jax.export import ExportError, firmware
from rosler_jax.export.c.train.fixed import WEIGHT_LIMIT
from rosler_jax.export.c.train.job import train_in_c
from rosler_jax.export.firmware import ToolchainError
from rosler_jax.federated.device import (
    DeviceCode,
    DeviceUpdate,
    device_client,
    device_code,
    from_device,
    to_device,
)
from rosler_jax.learner import Learner, make_learner, rate_coded_learner
from rosler_jax.models import mlp, resnet8
from rosler_jax.units import Units, standardized

INPUTS, CLASSES, HIDDEN = 20, 4, (24, 16)
BATCH, RATE = 8, 0.125
UNITS = Units(mean=np.float32(3.1), std=np.float32(1.7))
BOARD = "cortex-m4"
UNIT = 2.0**-24
"""Largest relative error of one float32 rounding."""

needs_gcc = pytest.mark.skipif(shutil.which("gcc") is None, reason="no gcc")


def _why_no_firmware() -> str:
    try:
        firmware.find_toolchain()
    except ToolchainError as error:
        return str(error)
    return ""


needs_firmware = pytest.mark.skipif(bool(_why_no_firmware()), reason=_why_no_firmware())

RULES: dict[str, list[Rule]] = {
    # in_sketch below the inputs: the core is scaled in the traced graph.
    "seeded": [Rule("hidden.*", rank=5, mode="seeded", in_sketch=12, sketch="rademacher")],
    "chain": [Rule("hidden.*", rank=5, mode="chain")],
    "two-factor": [Rule("hidden.*", rank=5, mode="two-factor")],
    "dense": [],
}


class Small(linen.Module):
    outputs: int

    @linen.compact
    def __call__(self, x: Any) -> Any:
        for i, n in enumerate(HIDDEN):
            x = linen.relu(linen.Dense(n, name=f"hidden.{i}")(x))
        return linen.Dense(self.outputs, name="head")(x)


@functools.lru_cache
def made(mode: str, flax: str = "nnx") -> tuple[Learner, Any, Any]:
    options = {"hidden": HIDDEN} if flax == "nnx" else {}
    factory = mlp if flax == "nnx" else lambda outputs: Small(outputs)
    learner = make_learner(factory, (INPUTS,), CLASSES, RULES[mode], options=options)
    return learner, *learner.init(jax.random.key(1))


def moved(params: Any, by: float = 0.3) -> Any:
    """Other parameters of the same model: weights that training might have made."""
    rng = np.random.default_rng(5)

    def other(path: Any, leaf: Any) -> Any:
        still = "fingerprint" in jax.tree_util.keystr(path)
        noise = by * rng.normal(size=leaf.shape).astype(np.float32)
        return leaf if still else np.asarray(leaf + noise * np.float32(np.std(leaf) + 0.1))

    return jax.tree_util.tree_map_with_path(other, params)


def nodes(each: int = 24) -> list[tuple[np.ndarray, np.ndarray]]:
    """Three clients, each with most of its examples from other classes; the last has fewer."""
    rng = np.random.default_rng(0)
    centers = 1.5 * rng.normal(size=(CLASSES, INPUTS))
    found = []
    for i, count in enumerate((each, each, each - BATCH)):
        y = np.where(rng.random(count) < 0.7, i, rng.integers(0, CLASSES, count))
        x = centers[y] + rng.normal(size=(count, INPUTS))
        found.append(((x * UNITS.std + UNITS.mean).astype(np.float32), y.astype(np.int32)))
    return found


def everything() -> tuple[np.ndarray, np.ndarray]:
    x, y = zip(*nodes(), strict=True)
    return np.concatenate(x), np.concatenate(y)


def code_of(mode: str, flax: str = "nnx", **more: Any) -> DeviceCode:
    more = {"units": UNITS, "batch": BATCH, **more}
    return device_code(*made(mode, flax), everything()[0], **more)


def loss_of(learner: Learner, buffers: Any, params: Any, x: Any, y: Any) -> Any:
    out, _ = learner.apply(params, buffers, standardized(jnp.asarray(x), UNITS), True)
    if jnp.asarray(y).dtype == jnp.int32:
        return optax.softmax_cross_entropy_with_integer_labels(out, y).mean()
    return ((out - y) ** 2).mean()


def stepped(mode: str, params: Any, x: Any, y: Any) -> Any:
    """The same client by JAX: an epoch of plain SGD in the order of the examples."""
    for k in range(0, len(x) // BATCH * BATCH, BATCH):
        grads = gradient(mode)(params, x[k : k + BATCH], y[k : k + BATCH])
        params = jax.tree.map(lambda w, g: w - np.float32(RATE) * g, params, grads)
    return params


@functools.lru_cache
def gradient(mode: str) -> Any:
    learner, _, buffers = made(mode)
    return jax.jit(jax.grad(lambda params, x, y: loss_of(learner, buffers, params, x, y)))


def flat(params: Any) -> np.ndarray:
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)]).astype(np.float64)


def averaged(old: Any, new: list[Any], counts: list[int]) -> Any:
    """What the server does: ``w + sum_k n_k (w_k - w) / n``."""
    share = np.asarray(counts, np.float64) / sum(counts)

    def one(before: Any, *after: Any) -> np.ndarray:
        before = np.asarray(before, np.float64)
        changes = [
            s * (np.asarray(w, np.float64) - before) for s, w in zip(share, after, strict=True)
        ]
        return (before + sum(changes)).astype(np.float32)

    return jax.tree.map(one, old, *new)


def rounds(client: Any, params: Any, count: int = 2) -> list[Any]:
    """The server's parameters before the first round and after each."""
    found = [params]
    for _ in range(count):
        after = [client(found[-1], x, y) for x, y in nodes()]
        found.append(averaged(found[-1], after, [len(y) for _, y in nodes()]))
    return found


# Parameters.


@pytest.mark.parametrize("flax", ["nnx", "linen"])
@pytest.mark.parametrize("mode", RULES)
def test_float32_goes_there_and_back_bit_for_bit(mode: str, flax: str) -> None:
    params = moved(made(mode, flax)[1])
    code = code_of(mode, flax)
    sent = to_device(code, params)
    assert sent.error == 0.0
    for numbers in (sent.numbers, sent.numbers.tobytes()):
        back = from_device(code, numbers, made(mode, flax)[1])
        jax.tree.map(np.testing.assert_array_equal, back, params)
        assert jax.tree.structure(back) == jax.tree.structure(params)


@needs_gcc
@pytest.mark.parametrize("mode, flax", [(mode, "nnx") for mode in RULES] + [("seeded", "linen")])
def test_a_device_computes_with_what_it_was_sent(mode: str, flax: str) -> None:
    learner, exported, buffers = made(mode, flax)
    params = moved(exported)
    code, (x, _) = code_of(mode, flax), everything()
    found = train_in_c(
        code.source, x[:0, None], x[:0, :1], 0.0, weights=to_device(code, params).numbers, predict=x
    )
    wanted = learner.apply(params, buffers, standardized(jnp.asarray(x), UNITS), False)[0]
    np.testing.assert_allclose(found.outputs, wanted, rtol=1e-4, atol=1e-5)


def test_fixed_point_is_rounded_by_its_own_scales_and_says_how_much() -> None:
    params = moved(made("seeded")[1])
    code = code_of("seeded", dtype="fixed")
    sent = to_device(code, params)
    assert sent.numbers.dtype == np.int32
    largest = max(2.0 ** -(field.fraction + 1) for field in code.source.fields)
    assert 0 < sent.error <= largest
    back = from_device(code, sent.numbers, params)
    assert apart(back, params) <= sent.error + UNIT * np.abs(flat(params)).max()
    # One that has outgrown its scale saturates; that is seen in the error, and not in the others.
    far = jax.tree.map(np.array, params)
    far["head"]["bias"][0] = 1e6
    clipped = to_device(code, far)
    assert np.abs(clipped.numbers).max() == WEIGHT_LIMIT
    assert clipped.error > 9e5


def test_what_does_not_train_is_kept() -> None:
    params = made("seeded")[1]
    code = code_of("seeded", parts=("head",))
    assert list(code.shapes) == ["head/kernel", "head/bias"]
    assert set(code.kept) == {f"hidden/{i}/{name}" for i in (0, 1) for name in ("u", "bias")}
    back = from_device(code, np.zeros(CLASSES * 17, np.float32), params)
    assert not back["head"]["kernel"].any()
    np.testing.assert_array_equal(back["hidden"][0]["u"], params["hidden"][0]["u"])
    with pytest.raises(ValueError, match="hidden/0/bias does not train on the device"):
        to_device(code, moved(params))


# Steps.


def tolerance(largest: float, path: float, steps: int) -> float:
    """How far float32 may take two ways of computing the same steps apart.

    Each step rounds every weight once, by half a unit in the last place, in either way. Its
    gradient goes through sums, forward and back, of K terms in all, each rounded: an error of K
    units in it to first order, and of all steps together of K units of as far as the weights went.
    An error in the weights comes back through the gradient; at a rate at which the loss goes down
    that no more than doubles it. A mean of clients is no farther off than the worst of them.

    Args:
      largest: weight.
      path: as far as a weight went in all steps.
      steps: how many.
    """
    terms = 2 * (INPUTS + 2 * sum(HIDDEN) + 12 + 5) + CLASSES + BATCH
    return 2 * UNIT * (2 * steps * largest + terms * path)


def apart(one: Any, other: Any) -> float:
    return float(np.abs(flat(one) - flat(other)).max())


def of_steps(start: Any, end: Any, steps: int) -> float:
    """The tolerance of a client's steps."""
    return tolerance(np.abs(flat(end)).max(), apart(start, end), steps)


@needs_gcc
@pytest.mark.parametrize("mode", RULES)
def test_a_client_takes_the_steps_of_jax(mode: str) -> None:
    learner, exported, buffers = made(mode)
    params, (x, y) = moved(exported, 0.1), nodes()[0]
    done = device_client(code_of(mode), params, x, y, RATE)
    wanted = stepped(mode, params, x, y)
    allowed = of_steps(params, wanted, len(y) // BATCH)
    assert apart(done.params, wanted) < allowed
    less = stepped(mode, params, x[BATCH:], y[BATCH:])
    assert apart(less, wanted) > 1000 * allowed  # a step forgotten would be seen
    first = loss_of(learner, buffers, params, x[:BATCH], y[:BATCH])
    np.testing.assert_allclose(done.run.losses[0], first, rtol=1e-5)


@needs_gcc
def test_order_and_epochs() -> None:
    params, (x, y) = made("two-factor")[1], nodes()[0]
    code = code_of("two-factor")
    twice = device_client(code, params, x, y, RATE, epochs=2)
    order = np.tile(np.arange(24).reshape(3, 8), (2, 1))
    same = device_client(code, params, x, y, RATE, order=order)
    np.testing.assert_array_equal(twice.run.flat, same.run.flat)
    assert len(twice.run.losses) == 6
    few = device_client(code, params, x[:3], y[:3], RATE)  # fewer than a batch are one step
    assert len(few.run.losses) == 1


@needs_gcc
def test_targets_are_standardised_too() -> None:
    params = made("dense")[1]
    x, _ = nodes()[0]
    rng = np.random.default_rng(3)
    y = (5.0 + 3.0 * rng.normal(size=(len(x), CLASSES))).astype(np.float32)
    units = UNITS._replace(target_mean=np.float32(5.0), target_std=np.full(CLASSES, 3.0, "f4"))
    code = code_of("dense", loss="mse", units=units)
    done = device_client(code, params, x, y, RATE)
    wanted = stepped("dense", params, x, (y - 5.0) / np.float32(3.0))
    assert apart(done.params, wanted) < of_steps(params, wanted, 3)


@pytest.mark.slow
@needs_gcc
@needs_firmware
def test_rounds_of_emulated_boards_are_those_of_jax() -> None:
    learner, params, buffers = made("seeded")
    code = code_of("seeded")
    runs: list[DeviceUpdate] = []

    def board(params: Any, x: Any, y: Any) -> Any:
        runs.append(device_client(code, params, x, y, RATE, board=BOARD))
        return runs[-1].params

    paths: list[float] = []

    def jitted(params: Any, x: Any, y: Any) -> Any:
        new = stepped("seeded", params, x, y)
        paths.append(apart(params, new))
        return new

    found, wanted = rounds(board, params), rounds(jitted, params)
    host = rounds(lambda p, x, y: device_client(code, p, x, y, RATE).params, params)
    path = np.reshape(paths, (2, 3)).max(1).sum()
    allowed = tolerance(np.abs(flat(wanted[2])).max(), path, steps=2 * 3)
    for r in (1, 2):
        assert apart(found[r], wanted[r]) < allowed
        # expf and logf are another library's on the board; the rest is the same arithmetic.
        assert apart(found[r], host[r]) < allowed
    alone = averaged(params, [run.params for run in runs[:2]], [24, 24])
    assert apart(alone, wanted[1]) > 1000 * allowed  # a node forgotten would be seen
    x, y = everything()
    losses = [float(loss_of(learner, buffers, p, x, y)) for p in found]
    assert losses[2] < losses[1] < losses[0]
    assert len(runs) == 6 and all(min(run.run.step_instructions) > 0 for run in runs)


@needs_gcc
@needs_firmware
def test_a_board_and_this_machine_agree_bit_for_bit_where_no_library_computes() -> None:
    params, (x, y) = made("seeded")[1], nodes()[0]
    code = code_of("seeded", loss="mse")
    targets = np.eye(CLASSES, dtype=np.float32)[y]
    runs = [
        device_client(code, params, x, targets, RATE, board=where).run for where in (BOARD, None)
    ]
    np.testing.assert_array_equal(runs[0].flat, runs[1].flat)
    assert runs[0].losses[-1] < runs[0].losses[0]


@pytest.mark.slow
@needs_gcc
@needs_firmware
def test_a_fixed_point_node_joins_in() -> None:
    params = made("seeded")[1]
    code, (x, y) = code_of("seeded", dtype="fixed"), nodes()[0]
    runs = [device_client(code, params, x, y, RATE, epochs=2, board=b) for b in (BOARD, None)]
    np.testing.assert_array_equal(runs[0].run.flat, runs[1].run.flat)
    wanted = params
    for _ in range(2):
        wanted = stepped("seeded", wanted, x, y)
    # Activations have 16 bits, so its change is that of float32 to some thousandths.
    change = flat(runs[0].params) - flat(params)
    right = flat(wanted) - flat(params)
    assert np.linalg.norm(change - right) < 5e-3 * np.linalg.norm(right)
    assert runs[0].run.losses[-1] < runs[0].run.losses[0]


# Refusals.


@pytest.mark.slow
def test_models_that_do_not_match_are_refused() -> None:
    x = np.ones((1, 8, 8, 3), np.float32)
    learner = make_learner(resnet8, (8, 8, 3), 2)
    params, buffers = learner.init(jax.random.key(0))
    with pytest.raises(ExportError, match="stem/conv/kernel: the C code holds it with something"):
        device_code(learner, params, buffers, x)
    code = device_code(learner, params, buffers, x, parts=("head/kernel", "head/bias"))
    assert list(code.shapes) == ["head/kernel", "head/bias"]

    learner = make_learner(
        mlp, (4,), 2, [Rule("hidden.*", rank=2, mode="ares")], options={"hidden": (6,)}
    )
    params, buffers = learner.init(jax.random.key(0))
    with pytest.raises(ExportError, match=r"hidden/0/parallel: layers of aRes-BP"):
        device_code(learner, params, buffers, np.ones((1, 4), np.float32))
    learner = rate_coded_learner(make_learner(mlp, (4,), 2), 8)
    params, buffers = learner.init(jax.random.key(0))
    with pytest.raises(ExportError, match="rate-coded parameters"):
        device_code(learner, params, buffers, np.ones((1, 4), np.float32))
    with pytest.raises(ExportError, match="no class weights"):
        code_of("dense", units=UNITS._replace(class_weights=np.ones(CLASSES)))


def test_parameters_that_do_not_match_are_refused() -> None:
    code, params = code_of("two-factor"), made("two-factor")[1]
    with pytest.raises(ValueError, match=r"hidden/0/c: the device trains one of shape \(20, 5\)"):
        to_device(code, made("dense")[1])
    other = jax.tree.map(np.array, params)
    other["head"]["bias"][0] = np.nan
    with pytest.raises(ValueError, match="head/bias: holds NaN"):
        to_device(code, other)
    with pytest.raises(ValueError, match=r"weights of shape \(3,\)"):
        from_device(code, np.zeros(3, np.float32), params)
    with pytest.raises(ValueError, match="12 bytes from the device"):
        from_device(code, b"abcdefghijkl", params)
    with pytest.raises(ValueError, match="and dtype float64"):
        from_device(code, to_device(code, params).numbers.astype(np.float64), params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(3, np.int32)}, "as many examples in both"),
        ({"y": np.full(24, CLASSES)}, "whole numbers"),
        ({"y": np.zeros(24, np.float32)}, "whole numbers"),
        ({"x": np.zeros((24, 3), np.float32)}, "are no examples of shape"),
        ({"rate": 0.0}, "expected a positive number"),
        ({"epochs": 0}, "epochs 0; expected a whole number"),
        ({"order": np.zeros((2, BATCH + 1), int)}, "1 to 8 examples a step"),
        ({"order": np.full((2, 2), 24)}, "order names the examples 24 to 24; the client has 24"),
    ],
)
def test_bad_examples_say_what_to_do(change: dict[str, Any], message: str) -> None:
    x, y = nodes()[0]
    given = {"x": x, "y": y, "rate": RATE, **change}
    with pytest.raises(ValueError, match=message):
        device_client(code_of("dense"), made("dense")[1], **given)


def test_a_rate_of_fixed_point_is_a_power_of_two() -> None:
    x, y = nodes()[0]
    with pytest.raises(ValueError, match=r"rate 0.1; .*: pass 0.125"):
        device_client(code_of("dense", dtype="fixed"), made("dense")[1], x, y, 0.1)
