"""A microcontroller as a client: the server's parameters in C code that trains, and back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rosler_jax._paths import TRAINING_ONLY, path_name, role_name
from rosler_jax.units import PLAIN, Units, standardized

if TYPE_CHECKING:
    from jaxtyping import Int, Num, PyTree

    from rosler_jax.export.c.train import Field, TrainSource
    from rosler_jax.export.c.train.job import Trained
    from rosler_jax.graph.graph import Graph
    from rosler_jax.learner import Learner

    Leaves = dict[str, np.ndarray]


class DeviceCode(NamedTuple):
    """C code that trains a server's model, and where the server's parameters lie in it.

    Attributes:
      source: ``rosler_train.h`` and ``rosler_train.c``.
      shapes: of the server's parameters that train on the device, by path, in the order of
        ``source.fields``.
      kept: the server's other parameters, by path: the device has them as constants.
      fixed: whether weights are 32-bit integers.
      units: what the code standardises inputs by, and targets are standardised by for it.
      loss, batch: as :func:`device_code` takes them.
      in_shape, outputs: of an example, and numbers that come out.

    Example:
      >>> from rosler_jax.learner import make_learner
      >>> from rosler_jax.models import mlp
      >>> learner = make_learner(mlp, (2,), 3, options={"hidden": ()})
      >>> params, buffers = learner.init(jax.random.key(0))
      >>> code = device_code(learner, params, buffers, np.ones((1, 2), np.float32))
      >>> code.shapes, code.in_shape, code.outputs, code.source.state_bytes
      ({'head/kernel': (2, 3), 'head/bias': (3,)}, (2,), 3, 72)
    """

    source: TrainSource
    shapes: dict[str, tuple[int, ...]]
    kept: Leaves
    fixed: bool
    units: Units
    loss: str
    batch: int
    in_shape: tuple[int, ...]
    outputs: int


class DeviceWeights(NamedTuple):
    """Weights as they lie in ``rosler_state.weights``.

    Attributes:
      numbers: float32, or int32 in fixed point; ``numbers.tobytes()`` is what a device is sent.
      error: largest distance of a number from the server's; 0 of float32 parameters in float32.
    """

    numbers: Num[np.ndarray, " weights"]
    error: float


class DeviceUpdate(NamedTuple):
    """What a device made of the server's parameters.

    Attributes:
      params: the parameters after its steps.
      run: losses, instructions of each step on a board, sizes.
      error: of the weights that it started from; see :class:`DeviceWeights`.
    """

    params: PyTree
    run: Trained
    error: float


def device_code(
    learner: Learner,
    params: PyTree,
    buffers: PyTree,
    x: Num[np.ndarray, "examples *features"],
    *,
    units: Units = PLAIN,
    loss: str = "cross_entropy",
    batch: int = 16,
    parts: str | Sequence[str] = "all",
    dtype: str = "float32",
    momentum: float = 0.0,
) -> DeviceCode:
    r"""Writes the C code with which devices train a server's model.

    It is written once; every round starts from the weights that the device is sent. On the device::

        rosler_train_begin(&state);                        /* no velocity */
        memcpy(state.weights, received, sizeof state.weights);
        rosler_train_step(&state, &arena, x, y, count, rate);    /* as often as the client likes */
        send(state.weights, sizeof state.weights);

    A step is ``w <- w - rate g`` (with the momentum, if any, from zero in every round), g the mean
    gradient over up to ``batch`` examples. The model trains as it evaluates: without dropout, by
    running statistics, of which it keeps those in ``buffers``.

    Args:
      learner: the server's model.
      params: its parameters; those that do not train become constants.
      buffers: all its other state, seeds among it.
      x: inputs in their own units; of float32 only shape and dtype count, in fixed point all scales
        come from these examples.
      units: inputs are standardised by; the code does it itself. Also targets of ``"mse"``.
      loss: ``"cross_entropy"`` of labels or ``"mse"`` of standardised targets.
      batch: most examples in a step.
      parts: what trains: ``"all"``, ``"cores"``, ``"head"``, ``"biases"``, or paths of parameters.
      dtype: ``"float32"``, or ``"fixed"`` for 16-bit activations and 32-bit weights.
      momentum: 0 to below 1.

    Returns:
      The code.

    Raises:
      ExportError: for a model that does not train in C, or whose parameters are not the tensors
        that would train there.

    Example:
      >>> from rosler_jax.learner import make_learner
      >>> from rosler_jax.models import mlp
      >>> from rosler_jax.sketchify import Rule
      >>> rules = [Rule("hidden.*", rank=2, mode="seeded")]
      >>> learner = make_learner(mlp, (8,), 3, rules, options={"hidden": (16,)})
      >>> params, buffers = learner.init(jax.random.key(0))
      >>> code = device_code(learner, params, buffers, np.ones((1, 8), np.float32))
      >>> code.shapes
      {'hidden/0/u': (8, 2), 'hidden/0/bias': (16,), 'head/kernel': (16, 3), 'head/bias': (3,)}
    """
    from rosler_jax.export import ExportError
    from rosler_jax.export.c.train import Training, write_training
    from rosler_jax.graph.kinds import count
    from rosler_jax.graph.trace import trace
    from rosler_jax.rate import RateCoded
    from rosler_jax.run import example_of
    from rosler_jax.units import in_units

    if isinstance(params, RateCoded):
        raise ExportError("rate-coded parameters do not train in C; pass a learner of plain ones")
    leaves = _leaves(params)
    staged = sorted(path for path in leaves if role_name(path) == "parallel")
    if staged:
        raise ExportError(
            f"{staged[0]}: layers of aRes-BP solve for their cores; pass the learner and the "
            "parameters that learner.settled() gives after the switch, or train another method"
        )
    if units.class_weights is not None:
        raise ExportError("the C code's loss has no class weights; pass units without them")
    model = learner.model(params, buffers)
    # A Linen graph names tensors by their collection as well.
    stem = "params/" if isinstance(model, tuple) else ""
    named = {stem + path: leaf for path, leaf in leaves.items()}
    chosen = [parts] if isinstance(parts, str) else list(parts)
    chosen = [stem + part if stem + part in named else part for part in chosen]
    graph = _with_own_cores(trace(model, example_of(x), **learner.call), named)
    graph = in_units(graph, units, False)
    fixed = dtype == "fixed"
    training = Training(dtype, loss, parts=chosen, batch=batch, momentum=momentum)
    source = write_training(graph, training, calibration=np.asarray(x) if fixed else None)
    found = {field.name: _same(field, graph, named) for field in source.fields}
    kept = {
        path: leaf for path, leaf in leaves.items()
        if stem + path not in found and role_name(path) not in TRAINING_ONLY
    }  # fmt: skip
    if kept and "all" in chosen:
        raise ExportError(
            f"{next(iter(kept))}: the C code has no such tensor: it was folded into another, or "
            "does nothing; pass parts= with what trains on the device, and keep it fixed"
        )
    shapes = {name.removeprefix(stem): leaf.shape for name, leaf in found.items()}
    return DeviceCode(
        source, shapes, kept, fixed, units, loss, batch, tuple(graph.in_shape),
        count(graph.out_shape),
    )  # fmt: skip


def to_device(code: DeviceCode, params: PyTree) -> DeviceWeights:
    """The server's parameters as a device's weights.

    In float32 bit for bit. In fixed point ``q = round(w 2^f)``, f the weight's own number of bits
    after the point, saturated: within ``2^-(f + 1)``, unless a weight has outgrown its scale, which
    the error tells.

    Args:
      code: from :func:`device_code`.
      params: the server's parameters, float32.

    Returns:
      The weights, and their largest error.

    Raises:
      ValueError: if the parameters are another model's, hold NaN or infinity, or those that the
        device has as constants are not as they were.

    Example:
      >>> from rosler_jax.learner import make_learner
      >>> from rosler_jax.models import mlp
      >>> learner = make_learner(mlp, (2,), 2, options={"hidden": ()})
      >>> params, buffers = learner.init(jax.random.key(0))
      >>> code = device_code(learner, params, buffers, np.ones((1, 2), np.float32))
      >>> params["head"]["kernel"] = np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)
      >>> to_device(code, params)
      DeviceWeights(numbers=array([1., 3., 2., 4., 0., 0.], dtype=float32), error=0.0)
    """
    from rosler_jax.export.c.train.fixed import WEIGHT_LIMIT

    leaves = _leaves(params)
    for path, constant in code.kept.items():
        if path not in leaves or not np.array_equal(leaves[path], constant, equal_nan=True):
            raise ValueError(
                f"{path} does not train on the device and is not as it was in device_code; keep it "
                "fixed on the server, or write the code anew"
            )
    numbers, errors = [], []
    for field, (path, shape) in zip(code.source.fields, code.shapes.items(), strict=True):
        leaf = leaves.get(path)
        if leaf is None or leaf.shape != shape:
            has = "no such parameter" if leaf is None else f"one of shape {leaf.shape}"
            raise ValueError(
                f"{path}: the device trains one of shape {shape}, and the server's parameters have "
                f"{has}; pass those of the learner that device_code was given"
            )
        if not np.isfinite(leaf).all():
            raise ValueError(f"{path}: holds NaN or infinity; go back to the round before")
        values = leaf.astype(np.float64).reshape(field.shape)
        values = (values.T if field.transposed else values).ravel()
        if code.fixed:
            whole = np.rint(values * 2.0**field.fraction)
            held = np.clip(whole, -WEIGHT_LIMIT, WEIGHT_LIMIT).astype(np.int32)
            errors.append(held * 2.0**-field.fraction - values)
        else:
            held = values.astype(np.float32)
            errors.append(held - values)
        numbers.append(held)
    return DeviceWeights(np.concatenate(numbers), float(np.abs(np.concatenate(errors)).max()))


def from_device(code: DeviceCode, numbers: Any, params: PyTree) -> PyTree:
    """A device's weights as the server's parameters.

    In float32 bit for bit. A fixed-point weight has up to 31 bits, of which float32 holds 24: it is
    rounded to within ``2^-24`` of its size.

    Args:
      code: from :func:`device_code`.
      numbers: the weights as they lie in ``rosler_state.weights``: an array ``(weights,)``, or
        little-endian bytes.
      params: the server's; those that do not train on the device are kept.

    Returns:
      Parameters of the same structure; those that came from the device are NumPy arrays.

    Raises:
      ValueError: for another number of weights or another dtype than the device has.

    Example:
      >>> from rosler_jax.learner import make_learner
      >>> from rosler_jax.models import mlp
      >>> learner = make_learner(mlp, (2,), 2, options={"hidden": ()})
      >>> params, buffers = learner.init(jax.random.key(0))
      >>> code = device_code(learner, params, buffers, np.ones((1, 2), np.float32))
      >>> received = np.arange(6, dtype="<f4").tobytes()
      >>> from_device(code, received, params)["head"]["kernel"].tolist()
      [[0.0, 2.0], [1.0, 3.0]]
    """
    from rosler_jax.export.c.train import unpack

    kind = np.dtype("<i4" if code.fixed else "<f4")
    fields = code.source.fields
    wanted = sum(field.size for field in fields)
    if isinstance(numbers, bytes | bytearray | memoryview):
        if len(numbers) != wanted * kind.itemsize:
            raise ValueError(
                f"{len(numbers)} bytes from the device; expected {wanted * kind.itemsize}, all of "
                "rosler_state.weights"
            )
        numbers = np.frombuffer(numbers, kind)
    flat = np.asarray(numbers)
    if flat.shape != (wanted,) or flat.dtype != kind:
        raise ValueError(
            f"weights of shape {flat.shape} and dtype {flat.dtype}; expected {(wanted,)} and "
            f"{kind.name}, as the device has them"
        )
    values = unpack(fields, flat)
    found = {path: values[f.name] for path, f in zip(code.shapes, fields, strict=True)}

    def put(keys: Any, leaf: Any) -> Any:
        path = path_name(keys)
        if path not in found:
            return leaf
        return np.array(found[path], dtype=leaf.dtype, order="C").reshape(leaf.shape)

    return jax.tree_util.tree_map_with_path(put, params)


def device_client(
    code: DeviceCode,
    params: PyTree,
    x: Num[np.ndarray, "examples *features"],
    y: Num[np.ndarray, "examples *k"],
    rate: float,
    *,
    epochs: int = 1,
    order: Int[np.ndarray, "steps batch"] | None = None,
    board: str | None = None,
    compiler: str = "gcc",
    seconds: float = 600,
) -> DeviceUpdate:
    """Plays a client with the very code that its device runs.

    Args:
      code: from :func:`device_code`.
      params: what the server sends.
      x: the client's inputs, in their own units.
      y: its labels, ``(examples,)``; or its targets in their own units, ``(examples, outputs)``.
      rate: learning rate; in fixed point a power of two, 2^-k with k from 0 to 30.
      epochs: how often it goes through its examples, in their order and in whole batches; those of
        a rest that fills none are left out.
      order: the examples of each step, in place of the epochs: indices, at most ``code.batch`` a
        step.
      board: an emulated board, ``"cortex-m4"``; None for this machine.
      compiler: of this machine.
      seconds: after which the program is stopped.

    Returns:
      The new parameters, and what the run was like.

    Raises:
      ValueError: for parameters as in :func:`to_device`, or examples, a rate or an order that
        cannot be.
      ToolchainError: if a compiler or the emulator is not installed.
      FirmwareError: if the program does not build, fails or hangs.

    Example:
      >>> import contextlib
      >>> from rosler_jax.export.firmware import ToolchainError
      >>> from rosler_jax.learner import make_learner
      >>> from rosler_jax.models import mlp
      >>> learner = make_learner(mlp, (4,), 2, options={"hidden": ()})
      >>> params, buffers = learner.init(jax.random.key(0))
      >>> x, y = np.eye(4, dtype=np.float32), np.arange(4) % 2
      >>> code = device_code(learner, params, buffers, x, batch=4)
      >>> with contextlib.suppress(ToolchainError):
      ...     losses = device_client(code, params, x, y, 0.5, epochs=3).run.losses
      ...     assert losses[2] < losses[1] < losses[0]
    """
    from rosler_jax.export.c.train.job import train_in_c

    inputs, targets = _examples(code, x, y)
    steps = _steps(len(inputs), code.batch, epochs) if order is None else np.asarray(order)
    ready = steps.ndim == 2 and steps.size > 0 and np.issubdtype(steps.dtype, np.integer)
    if not ready or steps.shape[1] > code.batch:
        raise ValueError(
            f"order of shape {steps.shape} and dtype {steps.dtype}; expected indices (steps, "
            f"examples), 1 to {code.batch} examples a step"
        )
    if steps.min() < 0 or steps.max() >= len(inputs):
        raise ValueError(
            f"order names the examples {steps.min()} to {steps.max()}; the client has "
            f"{len(inputs)}, from 0"
        )
    sent = to_device(code, params)
    run = train_in_c(
        code.source, inputs[steps], targets[steps], _rate(code, rate), weights=sent.numbers,
        board=board, compiler=compiler, seconds=seconds,
    )  # fmt: skip
    return DeviceUpdate(from_device(code, run.flat, params), run, sent.error)


def _leaves(params: PyTree) -> Leaves:
    named, _ = jax.tree_util.tree_flatten_with_path(params)
    return {path_name(keys): np.asarray(leaf) for keys, leaf in named}


def _with_own_cores(graph: Graph, leaves: Mapping[str, np.ndarray]) -> Graph:
    """The graph with seeded cores U for ``U* = a U``, and a with the sketch of the input.

    Steps on U* would be steps on U of another rate: ``dU* = dU / a``, so ``dU`` counts ``1 / a^2``.
    """
    from rosler_jax.graph.kinds import Conv, Dense, Project
    from rosler_jax.graph.weight import Weight

    ops = list(graph.ops)
    places = {op.output: i for i, op in enumerate(ops) if len(op.outputs) == 1}
    for i, op in enumerate(graph.ops):
        at = places.get(op.inputs[0], -1)
        psi = ops[at]
        if at < 0 or not isinstance(op, Dense | Conv) or not isinstance(psi, Project):
            continue
        own = leaves.get(op.weight.name)
        a = math.sqrt(psi.sketch.cols / psi.sketch.rows)
        alone = len(graph.consumers()[psi.output]) == 1
        if own is None or psi.transpose or psi.scale != 1.0 or a == 1.0 or not alone:
            continue
        folded, scaled = op.weight.values.ravel(), own.ravel() * a
        if folded.size == scaled.size and np.allclose(folded, scaled, rtol=1e-6, atol=0.0):
            weight = Weight(op.weight.name, own.reshape(op.weight.shape))
            ops[at] = dataclasses.replace(psi, scale=a)
            ops[i] = dataclasses.replace(op, weight=weight)
    return dataclasses.replace(graph, ops=tuple(ops))


def _same(field: Field, graph: Graph, leaves: Mapping[str, np.ndarray]) -> np.ndarray:
    """The server's parameter that a tensor of the C code is, number by number."""
    from rosler_jax.export import ExportError

    leaf = leaves.get(field.name)
    if leaf is None:
        raise ExportError(
            f"{field.name}: the C code would train this tensor, and the server has no such "
            "parameter: it was computed from several (by a normalisation, say); pass parts= with "
            "the parameters that train on the device"
        )
    held = next((w for w in graph.weights() if w.name == field.name), None)
    values: Any = None if held is None else held.values if field.transposed else held.stored
    if not np.array_equal(np.ravel(values), leaf.ravel()):
        raise ExportError(
            f"{field.name}: the C code holds it with something else folded in (a normalisation, a "
            "factor), or turned, so that it cannot be sent back; pass parts= without it"
        )
    return leaf


def _examples(code: DeviceCode, x: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """A client's examples in the C code's types, one row each."""
    from rosler_jax.export.inputs import examples, quantized

    inputs, targets = np.asarray(x), np.asarray(y)
    if inputs.ndim == 0 or targets.ndim == 0 or not 0 < len(inputs) == len(targets):
        raise ValueError(
            f"x of shape {inputs.shape} and y of shape {targets.shape}; expected as many examples "
            "in both, one at least"
        )
    inputs = examples(inputs, code.in_shape, "x").reshape(len(inputs), -1)
    if code.loss == "cross_entropy":
        targets = _labels(targets, code.outputs)
    else:
        units = Units(mean=code.units.target_mean, std=code.units.target_std)
        rows = standardized(jnp.asarray(targets, jnp.float32), units)
        targets = np.asarray(examples(rows, (code.outputs,), "y"))
    if code.fixed:
        inputs = quantized(inputs, code.source.scales[0], np.int16)
        if code.loss == "mse":
            targets = quantized(targets, code.source.scales[1], np.int16)
    return inputs, targets


def _labels(y: np.ndarray, classes: int) -> np.ndarray:
    whole = np.issubdtype(y.dtype, np.integer) and y.ndim == 1
    if not whole or y.min() < 0 or y.max() >= classes:
        raise ValueError(
            f"labels of dtype {y.dtype} and shape {y.shape}, from {y.min()} to {y.max()}; expected "
            f"whole numbers (examples,), 0 to {classes - 1}"
        )
    return y


def _steps(count: int, batch: int, epochs: int) -> Int[np.ndarray, "steps examples"]:
    if not (isinstance(epochs, int) and epochs >= 1):
        raise ValueError(f"epochs {epochs!r}; expected a whole number from 1")
    size = min(count, batch)
    once = np.arange(count - count % size).reshape(-1, size)
    return np.tile(once, (epochs, 1))


def _rate(code: DeviceCode, rate: float) -> float:
    """The rate as the C code takes it: a shift in fixed point."""
    if not (math.isfinite(rate) and rate > 0):
        raise ValueError(f"rate {rate!r}; expected a positive number")
    if not code.fixed:
        return rate
    shift = -math.log2(rate)
    if not (shift.is_integer() and 0 <= shift <= 30):
        near = 2.0 ** -min(max(round(shift), 0), 30)
        raise ValueError(
            f"rate {rate!r}; fixed point takes a power of two from 2^-30 to 1: pass {near!r}"
        )
    return shift
