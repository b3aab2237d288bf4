"""A training program that is to be written, and the head of its step."""

from __future__ import annotations

from typing import NamedTuple

from rosler_jax.export.c.train.memory import Node
from rosler_jax.export.c.train.options import Training
from rosler_jax.export.c.train.parameters import Parameters
from rosler_jax.export.c.unit import Unit


class Style(NamedTuple):
    """What float and fixed-point programs have of their own.

    Attributes:
      types: names of the types of inputs and outputs.
      scales: what inputs are divided and outputs multiplied by.
      number, rate, loss: C types of a weight, of the learning rate, of the loss.
      element: C type of activations.
      about_rate, about_loss: comments.
    """

    types: tuple[str, str]
    scales: tuple[float, float]
    number: str
    rate: str
    loss: str
    element: str
    about_rate: str
    about_loss: str


FLOAT_STYLE = Style(
    ("float32", "float32"), (1.0, 1.0), "float", "float", "float", "float",
    "learning_rate", "the mean loss of the examples before the step",
)  # fmt: skip


class Program(NamedTuple):
    """A program to be written.

    Attributes:
      unit: its kernels and data so far.
      style: its types.
      parameters: what trains.
      nodes: its operations.
      first: the first node that anything trains in.
      sizes: of an input and an output.
      training: the options.
      has_velocity: whether the state keeps one.
    """

    unit: Unit
    style: Style
    parameters: Parameters
    nodes: list[Node]
    first: int
    sizes: tuple[int, int]
    training: Training
    has_velocity: bool


def declaration(program: Program) -> str:
    """The step function's head."""
    style = program.style
    return (
        f"{style.loss} rosler_train_step(rosler_state *state, rosler_train_arena *arena,\n"
        f"    const rosler_train_input *x, const rosler_train_target *target, int count,\n"
        f"    {style.rate} {style.about_rate})"
    )
