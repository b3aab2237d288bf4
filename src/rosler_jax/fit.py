"""One training run as pure functions: what is scanned, vmapped over, checkpointed and resumed.

:func:`make_fit` turns a config and the shape of the data into three pure functions; a whole run is
``init`` and then ``epoch`` again and again (:func:`fit` scans it), with all state, the random key
included, in one :class:`TrainState`. Nothing here prints, writes, or knows the command line.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from rosler_jax import augment
from rosler_jax._layer_views import matrix_views
from rosler_jax.config import TrainConfig
from rosler_jax.network import Network, evaluating, mlp_specs, split_state
from rosler_jax.optim.ares_bp import ares_bp, default_parallel
from rosler_jax.optim.extract_factors import extract_factors, merge_factors
from rosler_jax.optim.restrict_rank import restrict_rank
from rosler_jax.quantization import fake_quantize_params

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key, PyTree

KEYS = "threefry2x32"
"""The kind of a run's random keys: its state is resumed under any default of JAX's."""
EVALUATION_BATCH = 1000


class Arrays(NamedTuple):
    """Training and validation data on the device; inputs as stored, labels int32."""

    train_x: Array
    train_y: Array
    validation_x: Array
    validation_y: Array


class Metrics(NamedTuple):
    """What one epoch reports."""

    loss: Float[Array, ""]  # mean training loss, label smoothing included
    train_accuracy: Float[Array, ""]  # on the augmented batches, while training
    validation_loss: Float[Array, ""]
    validation_accuracy: Float[Array, ""]
    finite: Array  # whether loss and parameters stayed finite; if not, the epoch was undone


class TrainState(NamedTuple):
    """Everything a run needs to go on, and the best model so far."""

    epoch: Array  # int32 (), epochs done
    key: Array  # uint32 key data
    params: Any
    buffers: Any  # all other model state: seeds, running statistics
    opt_state: Any
    best_params: Any
    best_buffers: Any
    best_accuracy: Array  # validation accuracy of best_params
    best_epoch: Array


class Fit(NamedTuple):
    """The pure functions of a run."""

    graphdef: Any
    init: Callable[[Any], TrainState]
    epoch: Callable[[TrainState, Arrays], tuple[TrainState, Metrics]]
    logits: Callable[[Any, Any, Any], Any]  # params, buffers, x


def layer_template(config: TrainConfig) -> dict[str, Any] | None:
    """Description of a hidden layer for the config's method, without its sizes; None for dense."""
    options: dict[str, Any] = {"sketch": config.sketch} if config.sketch else {}
    if config.method == "chain":
        return {"kind": "sketch_linear", "rank": config.rank}
    if config.method == "ares-bp":
        if config.oversampling is not None:
            options["oversampling"] = config.oversampling
        return {"kind": "sketch_linear", "rank": config.rank, "mode": "ares", **options}
    if config.method == "seeded":
        if config.in_sketch is not None:
            options["in_sketch"] = config.in_sketch
        return {"kind": "sketch_linear", "rank": config.rank, "mode": "seeded", **options}
    if config.method == "low-rank":
        return {"kind": "two_factor", "rank": config.rank}
    return None


def network_specs(
    config: TrainConfig, in_features: int, num_classes: int, mean: Any = 0.0, std: Any = 1.0
) -> list[dict[str, Any]]:
    """The layers of the network that the config trains; mean and std: numbers, or one a feature."""
    template = layer_template(config)
    return mlp_specs(in_features, config.hidden, num_classes, template, mean=mean, std=std)


def make_schedule(config: TrainConfig, peak: float, steps: int) -> optax.Schedule:
    """The learning-rate schedule over ``steps`` updates."""
    if config.schedule == "one-cycle":
        return optax.cosine_onecycle_schedule(max(steps, 2), peak, pct_start=0.3)
    if config.schedule == "cosine":
        return optax.cosine_decay_schedule(peak, max(steps, 1))
    return optax.constant_schedule(peak)


def is_hidden_kernel(specs: list[dict[str, Any]]) -> Callable[[str], bool]:
    """Picks the kernels of all linear layers but the last, the head, by their path's name."""
    linear = [i for i, spec in enumerate(specs) if spec["kind"] == "linear"]
    names = {f"layers/{i}/kernel" for i in linear[:-1]}
    return lambda name: name in names


def parallel_steps(config: TrainConfig, steps_per_epoch: int) -> int:
    """Updates of aRes-BP's parallel stage; none for the other methods."""
    if config.method != "ares-bp":
        return 0
    return max(1, round(config.parallel_epochs * steps_per_epoch))


def make_optimizer(
    config: TrainConfig, specs: list[dict[str, Any]], steps_per_epoch: int
) -> optax.GradientTransformation:
    """The optimiser of the config's method."""
    total = config.epochs * steps_per_epoch
    switch = parallel_steps(config, steps_per_epoch)
    schedule = make_schedule(config, config.peak_learning_rate, total - switch)
    adamw = optax.adamw(schedule, weight_decay=config.weight_decay)
    if config.method == "ares-bp":
        parallel = default_parallel(
            config.parallel_learning_rate, config.momentum, config.clip_norm
        )
        return ares_bp(adamw, switch_step=switch, parallel=parallel)
    if config.method == "restrict-rank":
        return restrict_rank(
            adamw,
            config.rank,
            every=config.restrict_every,
            where=is_hidden_kernel(specs),
            seed=config.seed,
        )
    return adamw


def make_fit(
    config: TrainConfig,
    specs: list[dict[str, Any]],
    num_examples: int,
    std: Any = 1.0,
    inputs: Callable[[Array], Array] | None = None,
) -> Fit:
    """Builds the pure functions of a run.

    Args:
      config: the run.
      specs: layers of the network, as :func:`network_specs` gives them.
      num_examples: size of the training split.
      std: standard deviation of the inputs, or of each feature: the unit of ``config.noise``; may
        be traced.
      inputs: applied to what the network sees, after augmentation; nothing by default.

    Returns:
      :class:`Fit`: ``init(key)``, ``epoch(state, arrays)``, ``logits(params, buffers, x)``.

    Raises:
      ValueError: if the training split is smaller than a batch.

    Example:
      >>> config = TrainConfig(hidden=(16,), rank=2, epochs=2, batch_size=8, method="chain")
      >>> f = make_fit(config, network_specs(config, 12, 3), num_examples=32)
      >>> state = f.init(jax.random.key(0))
      >>> x, y = jnp.ones((32, 12)), jnp.zeros((32,), jnp.int32)
      >>> state, metrics = f.epoch(state, Arrays(x, y, x, y))
      >>> int(state.epoch), bool(metrics.finite)
      (1, True)
    """
    hidden = is_hidden_kernel(specs)
    steps = num_examples // config.batch_size
    if steps < 1:
        raise ValueError(
            f"batch_size {config.batch_size} exceeds the {num_examples} training examples; "
            f"pass batch_size<={num_examples}"
        )
    tx = optax.with_extra_args_support(make_optimizer(config, specs, steps))
    dtype = None if config.precision == "float32" else jnp.dtype(config.precision)

    def build(key: Key[Array, ""]) -> Network:
        return Network(specs, dtype=dtype, rngs=nnx.Rngs(params=key))

    like = nnx.eval_shape(lambda: build(jax.random.key(0)))
    graphdef, views = split_state(like)[0], matrix_views(like)
    deployed_graph = split_state(nnx.eval_shape(lambda: evaluating(build(jax.random.key(0)))))[0]
    quantize_epoch = math.ceil(config.quantize_from * config.epochs)

    def quantized(params: PyTree, epoch: Array) -> PyTree:
        if not config.quantization_aware or config.bits == 32:
            return params
        return jax.lax.cond(
            epoch >= quantize_epoch,
            lambda p: fake_quantize_params(p, config.bits, views),
            lambda p: p,
            params,
        )

    def prepared(x: Array) -> Array:
        return x if inputs is None else inputs(x)

    def logits(params: PyTree, buffers: PyTree, x: Array) -> Array:
        return nnx.merge(deployed_graph, params, buffers)(prepared(x)).astype(jnp.float32)

    def init(key: Key[Array, ""]) -> TrainState:
        key_model, key_run = jax.random.split(key)
        _, params, buffers = split_state(build(key_model))
        return TrainState(
            epoch=jnp.zeros((), jnp.int32),
            key=key_words(key_run),
            params=params,
            buffers=buffers,
            opt_state=tx.init(params),
            best_params=params,
            best_buffers=buffers,
            best_accuracy=-jnp.ones(()),
            best_epoch=jnp.zeros((), jnp.int32),
        )

    def loss_fn(
        params: PyTree, buffers: PyTree, x: Array, y: Array, epoch: Array
    ) -> tuple[Array, tuple[Array, PyTree]]:
        model = nnx.merge(graphdef, quantized(params, epoch), buffers)
        out = model(prepared(x)).astype(jnp.float32)
        targets = optax.smooth_labels(jax.nn.one_hot(y, out.shape[-1]), config.label_smoothing)
        buffers = split_state(model)[2]
        return optax.softmax_cross_entropy(out, targets).mean(), (out, buffers)

    def train_step(carry: Any, batch: Any, arrays: Arrays, epoch: Array) -> tuple[Any, Any]:
        params, buffers, opt_state = carry
        index, key = batch
        x, y = arrays.train_x[index], arrays.train_y[index]
        x = augmented(config, key, x, std)
        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, (out, buffers)), grads = grad_fn(params, buffers, x, y, epoch)
        updates, opt_state = tx.update(grads, opt_state, params)
        params = optax.apply_updates(params, updates)
        return (params, buffers, opt_state), (loss, jnp.mean(out.argmax(-1) == y))

    def epoch(state: TrainState, arrays: Arrays) -> tuple[TrainState, Metrics]:
        key = jax.random.wrap_key_data(state.key, impl=KEYS)
        _, key_order, key_steps = jax.random.split(key, 3)
        order = jax.random.permutation(key_order, num_examples)[: steps * config.batch_size]
        batches = (order.reshape(steps, config.batch_size), jax.random.split(key_steps, steps))
        carry, (losses, hits) = jax.lax.scan(
            lambda c, b: train_step(c, b, arrays, state.epoch),
            (state.params, state.buffers, state.opt_state),
            batches,
        )
        params, buffers, opt_state = carry
        if config.method == "restrict-rank":  # an epoch ends with weights that truly have the rank
            params = merge_factors(extract_factors(params, config.rank, hidden)[0])
        deployed = quantized(params, state.epoch)
        x, y = arrays.validation_x, arrays.validation_y
        val_loss, val_accuracy = evaluate(lambda x: logits(deployed, buffers, x), x, y)
        finite = jnp.isfinite(losses).all() & jnp.isfinite(val_loss) & all_finite(params)
        new = state._replace(
            epoch=state.epoch + 1,
            key=next_key(state.key),
            params=params,
            buffers=buffers,
            opt_state=opt_state,
        )
        new = keep_best(new, val_accuracy, may_end_here(config, state.epoch, quantize_epoch, steps))
        new = jax.tree.map(lambda a, b: jnp.where(finite, a, b), new, state)
        return new, Metrics(losses.mean(), hits.mean(), val_loss, val_accuracy, finite)

    return Fit(graphdef, init, epoch, logits)


def next_key(key: Array) -> Array:
    """The key data of the epoch after the one that begins with ``key``."""
    return jax.random.key_data(jax.random.split(jax.random.wrap_key_data(key, impl=KEYS), 3)[0])


def run_key(seed: int) -> Key[Array, ""]:
    """The key of a run of that seed, whatever kind of key JAX makes by default."""
    return jax.random.key(seed, impl=KEYS)


def key_words(key: Key[Array, ""]) -> Array:
    """A key as what a run's state holds: the two words of one of the kind :data:`KEYS`."""
    plain = str(jax.random.key_impl(key)) == KEYS
    return jax.random.key_data(key) if plain else jax.random.bits(key, (2,), jnp.uint32)


def may_end_here(config: TrainConfig, epoch: Array, quantize_epoch: int, steps: int) -> Array:
    """Whether the model after this epoch could be shipped, so that it may become the best one.

    Not while aRes-BP is in its parallel stage, nor before quantisation-aware training begins.
    """
    first = max(0, math.ceil(parallel_steps(config, steps) / steps) - 1)
    if config.quantization_aware and config.bits < 32:
        first = max(first, quantize_epoch)
    return epoch >= first


def keep_best(state: TrainState, accuracy: Array, eligible: Array) -> TrainState:
    """Remembers the parameters if this is the best validation accuracy so far (ties: the later)."""
    better = eligible & (accuracy >= state.best_accuracy)

    def pick(new: PyTree, old: PyTree) -> PyTree:
        return jax.tree.map(lambda a, b: jnp.where(better, a, b), new, old)

    return state._replace(
        best_params=pick(state.params, state.best_params),
        best_buffers=pick(state.buffers, state.best_buffers),
        best_accuracy=pick(accuracy, state.best_accuracy),
        best_epoch=pick(state.epoch, state.best_epoch),
    )


def augmented(config: TrainConfig, key: Key[Array, ""], x: Array, std: Any) -> Array:
    """Applies the augmentations that the config asks for; a traced noise counts as asked for."""
    key_shift, key_flip, key_noise = jax.random.split(key, 3)
    if config.shift:
        x = augment.shift(key_shift, x, config.shift)
    if config.flip:
        x = augment.flip(key_flip, x)
    if isinstance(config.noise, jax.Array) or config.noise:
        x = augment.noise(key_noise, x, config.noise * std)
    return x


def all_finite(tree: PyTree) -> Array:
    """Whether every floating-point leaf is finite throughout."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.stack([jnp.isfinite(x).all() for x in leaves]).all()


def evaluate(
    predict: Callable[[Any], Any], x: Array, y: Array, batch: int = EVALUATION_BATCH
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Mean cross-entropy and accuracy of ``predict(x) -> logits``, in batches; pure.

    Example:
      >>> x, y = jnp.eye(3), jnp.arange(3)
      >>> float(evaluate(lambda x: x, x, y)[1])
      1.0
    """
    n = x.shape[0]
    batch = min(batch, n)
    count = -(-n // batch)
    index = jnp.arange(count * batch).reshape(count, batch)

    def one(i: Array) -> tuple[Array, Array]:
        valid = i < n
        j = jnp.minimum(i, n - 1)
        out = predict(x[j])
        loss = optax.softmax_cross_entropy_with_integer_labels(out, y[j])
        hit = out.argmax(-1) == y[j]
        return jnp.where(valid, loss, 0).sum(), (valid & hit).sum()

    losses, hits = jax.lax.map(one, index)
    return losses.sum() / n, hits.sum() / n


def fit(
    config: TrainConfig,
    specs: list[dict[str, Any]],
    arrays: Arrays,
    key: Key[Array, ""],
    std: float = 1.0,
) -> tuple[TrainState, Metrics]:
    """A whole run as one pure function: jit it, or vmap it over keys.

    Returns:
      The final state and the metrics of every epoch, each of shape ``(epochs,)``.

    Example:
      >>> config = TrainConfig(hidden=(16,), rank=2, epochs=3, batch_size=8, method="seeded")
      >>> x, y = jnp.ones((32, 12)), jnp.zeros((32,), jnp.int32)
      >>> run = lambda key: fit(config, network_specs(config, 12, 3), Arrays(x, y, x, y), key)
      >>> jax.vmap(run)(jax.random.split(jax.random.key(0), 2))[1].loss.shape
      (2, 3)
    """
    functions = make_fit(config, specs, arrays.train_x.shape[0], std)
    step = lambda state, _: functions.epoch(state, arrays)  # noqa: E731
    return jax.lax.scan(step, functions.init(key), None, length=config.epochs)
