"""A population: many states of one pure step, in few calls of one compiled program.

A member is data: what it has of its own, and what it has in common with others, as the order of its
batches. Members that have the same in common run as a block under ``vmap``, what is common outside
it: what follows from that is computed once, and their first layers become one large matrix product.
Some blocks run under a second ``vmap``, the devices side by side under ``shard_map``, the rest call
after call.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from rosler_jax.sweep import hosts

if TYPE_CHECKING:
    from jaxtyping import PyTree


class Member(NamedTuple):
    """A member as data: NumPy until a call stacks and places it, then traced.

    Attributes:
      common: what it has in common with others.
      own: what it has of its own.
      alike: equal for members of which ``common`` is equal.

    Example:
      >>> members = [Member(seed, rank, alike=seed) for seed in (0, 1) for rank in (2, 4, 8)]
      >>> [[member.own for _, member in block] for block in layout(members, 4)]
      [[2, 4, 8, 8], [2, 4, 8, 8]]
    """

    common: PyTree
    own: PyTree
    alike: Hashable = None


Block = Callable[..., Any]
"""``(common, own, data, count) -> out``: of a block's members; ``own`` and ``out`` are stacked."""


@dataclasses.dataclass(eq=False)
class Population:
    """A pure function of blocks of members, compiled once for all calls.

    Attributes:
      block: the function; see :func:`training` for that of a step again and again.
      data: of all members, whole on every device.
      width: members of a block.
      blocks: that run together on a device.

    Example:
      >>> def step(common, own, data):  # a line through data, by gradient descent
      ...     slope, rate = own
      ...     slope = slope - rate * jax.grad(lambda a: ((a * data - 3 * data) ** 2).mean())(slope)
      ...     return common, (slope, rate), slope
      >>> many = Population(training(step, 40), np.arange(1.0, 3.0), width=4)
      >>> members = [Member((), (np.float64(0.0), np.float64(rate))) for rate in (0.1, 0.01, 0.001)]
      >>> own, slopes = many.run(members, 40)
      >>> slopes.shape, slopes[:, -1].round(1).tolist()
      ((3, 40), [3.0, 2.6, 0.5])
    """

    block: Block
    data: PyTree
    width: int = 1
    blocks: int = 1
    _compiled: Any = dataclasses.field(default=None, init=False)

    @property
    def mesh(self) -> Mesh:
        """All devices."""
        return mesh()

    @property
    def slots(self) -> int:
        """Blocks of a call."""
        return self.blocks * self.mesh.size

    @functools.cached_property
    def _program(self) -> Any:
        """The jitted function from a call's blocks, the data and a count."""

        def device(given: tuple[PyTree, PyTree], data: PyTree, count: Any) -> Any:
            def run(block: tuple[PyTree, PyTree]) -> Any:
                return self.block(*block, data, count)

            if self.blocks > 1:
                return jax.vmap(run)(given)
            return jax.tree.map(lambda a: a[None], run(jax.tree.map(lambda a: a[0], given)))

        specs = (P("members"), P(), P())
        sharded = jax.shard_map(
            device, mesh=self.mesh, in_specs=specs, out_specs=P("members"), check_vma=False
        )
        return jax.jit(sharded)

    def compiled(self, member: Member) -> Any:
        """The compiled program, for members like this one."""
        if self._compiled is None:
            placed = self._placed([[(0, member)] * self.width] * self.slots, 0)
            self._compiled = self._program.lower(*placed).compile()
        return self._compiled

    @property
    def bytes_needed(self) -> int:
        """What the compiled program takes on a device, by XLA's own analysis."""
        m = self._compiled.memory_analysis()
        return m.argument_size_in_bytes + m.output_size_in_bytes + m.temp_size_in_bytes

    def run(
        self, members: Sequence[Member], count: int, keep: Callable[[Any], Any] = lambda out: out
    ) -> Any:
        """What comes of members, as NumPy, stacked in their order, on every host.

        Args:
          members: at least one.
          count: passed to the function: of a training its steps.
          keep: what of the function's outcome is wanted.
        """
        compiled, rows = self.compiled(members[0]), layout(members, self.width)
        rows = [*rows, *[rows[-1]] * (-len(rows) % self.slots)]  # filled up with copies
        calls = []
        for i in range(0, len(rows), self.slots):  # a call is prepared while another computes
            calls.append(keep(compiled(*self._placed(rows[i : i + self.slots], count))))
        gathered = [hosts.gather(out) for out in calls]
        place = {j: i for i, (j, _) in enumerate(member for row in rows for member in row)}
        at = np.array([place[j] for j in range(len(members))])  # of copies, the last: all the same
        return jax.tree.map(
            lambda *parts: np.concatenate(parts).reshape(-1, *parts[0].shape[2:])[at], *gathered
        )

    def _placed(self, rows: Sequence[Row], count: int) -> tuple[Any, PyTree, Any]:
        along = NamedSharding(self.mesh, P("members"))
        common = _stack([row[0][1].common for row in rows])
        own = _stack([member.own for row in rows for _, member in row])
        own = jax.tree.map(lambda a: a.reshape(len(rows), self.width, *a.shape[1:]), own)
        given = jax.tree.map(lambda a: hosts.place(a, along), (common, own))
        number = hosts.place(np.asarray(count, "i4"), NamedSharding(self.mesh, P()))
        self.data = placed(self.data)
        return given, self.data, number


def mesh() -> Mesh:
    """All devices of all hosts."""
    return Mesh(np.array(jax.devices()), ("members",))


def placed(data: PyTree) -> PyTree:
    """Arrays whole on every device; those that are already stay."""
    whole = NamedSharding(mesh(), P())
    return jax.tree.map(
        lambda a: a if isinstance(a, jax.Array) else hosts.place(np.asarray(a), whole), data
    )


Row = list[tuple[int, Member]]
"""Members that have the same in common, each with its place among all."""


def layout(members: Sequence[Member], width: int) -> list[Row]:
    """Puts members that have the same in common into blocks, filled up with copies of the last."""
    alike: dict[Any, Row] = {}
    for i, member in enumerate(members):
        alike.setdefault(member.alike, []).append((i, member))
    rows = []
    for found in alike.values():
        filled = [*found, *[found[-1]] * (-len(found) % width)]
        rows += [filled[i : i + width] for i in range(0, len(filled), width)]
    return rows


def _stack(trees: Sequence[PyTree]) -> PyTree:
    return jax.tree.map(lambda *leaves: np.stack([np.asarray(v) for v in leaves]), *trees)


def training(step: Callable[..., tuple[Any, Any, Any]], length: int) -> Block:
    """The block of a training: a step again and again, as often as a call says.

    Args:
      step: ``(common, own, data) -> (common, own, record)`` of one member, pure; the new ``common``
        depends on the old alone.
      length: steps at most.

    Returns:
      The function of a block, which gives the members' ``own``, stacked, and their records, stacked
      along a second axis of ``length``: zeros where there were fewer steps.

    Example:
      >>> def step(common, own, data):
      ...     return common, own / 2, own
      >>> own, records = training(step, 4)((), jnp.array([8.0, 1.0]), (), 3)
      >>> own.tolist(), records.tolist()
      ([1.0, 0.125], [[8.0, 4.0, 2.0, 0.0], [1.0, 0.5, 0.25, 0.0]])
    """

    def block(common: PyTree, own: PyTree, data: PyTree, count: Any) -> tuple[PyTree, PyTree]:
        def one(common: PyTree, own: PyTree) -> tuple[Any, Any, Any]:
            return step(common, own, data)

        every = jax.vmap(one, in_axes=(None, 0), out_axes=(None, 0, 0))

        def body(i: Any, carry: Any) -> Any:
            common, own, history = carry
            common, own, record = every(common, own)
            return common, own, jax.tree.map(lambda h, r: h.at[:, i].set(r), history, record)

        like = jax.eval_shape(every, common, own)[2]
        history = jax.tree.map(
            lambda r: jnp.zeros((r.shape[0], length, *r.shape[1:]), r.dtype), like
        )
        _, own, history = jax.lax.fori_loop(0, count, body, (common, own, history))
        return own, history

    return block
