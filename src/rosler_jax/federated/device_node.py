"""A microcontroller as a client over a network: its own C code trains, this process talks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from rosler_jax.federated._delta_learner import model_key
from rosler_jax.federated.device import device_client, device_code
from rosler_jax.fit import make_schedule
from rosler_jax.hyper import hyper_of

if TYPE_CHECKING:
    from rosler_jax.federated.bodies import Description
    from rosler_jax.federated.node import Examples, Train
    from rosler_jax.learner import Learner


def device_training(
    *, board: str | None = None, dtype: str = "float32", seconds: float = 600
) -> Callable[[Description, Learner, Examples], Train]:
    """What :func:`rosler_jax.federated.node.make_work` takes as ``train`` for a device.

    The device goes through its examples in their order, in whole batches; see
    :func:`rosler_jax.federated.device_client`.

    Args:
      board: an emulated board, as ``"cortex-m4"``; None to run the same C on this machine.
      dtype: of the C code, ``"float32"`` or ``"fixed"``.
      seconds: that a round may take.

    Raises:
      ValueError: of what it returns, for a run whose clients do not train by plain SGD.
      ExportError: of what it returns, for a model that does not train in C.

    Example:
      >>> from rosler_jax.federated.bodies import Body, write_body
      >>> from rosler_jax.federated.node import make_work, own_examples
      >>> examples = own_examples((np.eye(20), np.arange(20) % 2))
      >>> work = make_work(3, examples, train=device_training(board="cortex-m4"))
      >>> work(write_body(Body(None, 7, b"")))  # of a run that it was not told of
      b'lost'
    """

    def make(description: Description, learner: Learner, examples: Examples) -> Train:
        config, federated = description.config, description.federated
        if federated.client.partition(":")[0] != "sgd" or federated.proximal:
            raise ValueError(
                f"a device's C code steps by plain SGD; client {federated.client!r} with proximal "
                f"{federated.proximal:g} does not"
            )
        import jax

        x, y = (np.asarray(part) for part in examples)
        params, buffers = jax.jit(learner.init)(model_key(config.seed))
        code = device_code(
            learner, params, buffers, x, units=description.units, batch=config.batch_size,
            dtype=dtype,
        )  # fmt: skip
        rates = make_schedule(config, hyper_of(config).learning_rate, federated.rounds)

        def train(params: Any, buffers: Any, now: Any) -> tuple[Any, Any]:
            found = device_client(
                code, params, x, y, float(rates(int(now))), epochs=federated.local_epochs,
                board=board, seconds=seconds,
            )  # fmt: skip
            return found.params, buffers

        return train

    return make
