"""What a server sends a client over a network: the run, once, and what the model has become.

Layout::

    flags | base | description | message

``flags`` is a byte, 1 where a description follows. ``base`` is the round (LEB128) whose model the
message is to be added to; the message is that of :mod:`rosler_jax.federated.wire`. The description,
preceded by its length (LEB128), is zlib-compressed JSON: both configs, the units of the data, and
what a model needs to know of them. A client that has not got the base answers ``LOST``, and is sent
all from the initial model on, which a seed makes.
"""

from __future__ import annotations

import json
import zlib
from typing import Any, NamedTuple

import numpy as np

from rosler_jax import config as configs
from rosler_jax._frame import leb128, read_leb128
from rosler_jax.config import TrainConfig
from rosler_jax.federated import config as federated_configs
from rosler_jax.federated.config import FederatedConfig
from rosler_jax.federated.wire import MessageError
from rosler_jax.units import Units

LOST = b"lost"
_MOST = 1 << 20  # bytes of a description


class Shapes(NamedTuple):
    """What a model needs to know of data: stands for a :class:`rosler_jax.data.Dataset`.

    Attributes:
      train_x: of any number of examples, shape and dtype count.
      train_y: the same, or None.
      num_classes, vocabulary: as of a dataset.
      examples: in all training data, where a loss asks.
    """

    train_x: Any
    train_y: Any
    num_classes: int | None
    vocabulary: int | None
    examples: int


class Description(NamedTuple):
    """A run, as every client gets to know it."""

    config: TrainConfig
    federated: FederatedConfig
    units: Units
    shapes: Shapes


class Body(NamedTuple):
    """What a client is sent in a round."""

    description: Description | None
    base: int
    message: bytes


def shapes_of(dataset: Any) -> Shapes:
    """Those of a data set."""
    y = dataset.train_y
    return Shapes(
        np.zeros((1, *dataset.train_x.shape[1:]), dataset.train_x.dtype),
        None if y is None else np.zeros((1, *y.shape[1:]), y.dtype),
        dataset.num_classes, dataset.vocabulary, len(dataset.train_x),
    )  # fmt: skip


def write_body(body: Body) -> bytes:
    """The bytes of a body.

    Example:
      >>> read_body(write_body(Body(None, 7, b"message")))
      Body(description=None, base=7, message=b'message')
    """
    described = b"" if body.description is None else zlib.compress(_json(body.description), 9)
    head = bytes([body.description is not None]) + leb128(body.base)
    if described:
        head += leb128(len(described)) + described
    return head + body.message


def read_body(data: bytes) -> Body:
    """The inverse of :func:`write_body`.

    Raises:
      MessageError: for bytes that are none.
    """
    try:
        view = memoryview(data)
        flags, (base, place) = view[0], read_leb128(view, 1)
        description = None
        if flags & 1:
            length, place = read_leb128(view, place)
            stream = zlib.decompressobj()
            text = stream.decompress(bytes(view[place : place + length]), _MOST)
            if not stream.eof:
                raise ValueError("the description is cut off or too long")
            description, place = _described(json.loads(text)), place + length
        return Body(description, base, bytes(view[place:]))
    except (ValueError, IndexError, KeyError, TypeError, zlib.error) as error:
        raise MessageError("damaged", f"no body of a round: {error}") from error


def _json(found: Description) -> bytes:
    shapes = found.shapes
    content = {
        "config": configs.to_dict(found.config),
        "federated": federated_configs.to_dict(found.federated),
        "units": [None if v is None else np.asarray(v).tolist() for v in found.units],
        "x": [list(shapes.train_x.shape[1:]), str(shapes.train_x.dtype)],
        "y": None
        if shapes.train_y is None
        else [list(shapes.train_y.shape[1:]), str(shapes.train_y.dtype)],
        "counts": [shapes.num_classes, shapes.vocabulary, shapes.examples],
    }
    return json.dumps(content, separators=(",", ":")).encode()


def _described(content: dict[str, Any]) -> Description:
    def one(said: Any) -> Any:
        return None if said is None else np.zeros((1, *said[0]), said[1])

    units = Units(*(None if v is None else np.asarray(v, np.float32) for v in content["units"]))
    return Description(
        configs.from_dict(content["config"]),
        federated_configs.from_dict(content["federated"]),
        units,
        Shapes(one(content["x"]), one(content["y"]), *content["counts"]),
    )
