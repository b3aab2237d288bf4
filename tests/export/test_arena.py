"""Values in one arena: none that live at the same time overlap, chains take the least."""

from __future__ import annotations

import numpy as np
import pytest

from rosler_jax.export.c.arena import ALIGN, Span, Use, aligned, chain, least, place, plan
from rosler_jax.export.c.unit import Step
from rosler_jax.export.c.wiring import copy_step


def random_uses(seed: int) -> tuple[list[Use], list[int], dict[int, int]]:
    """Steps of a DAG: some work in place, some are parts of their input; sizes of all values."""
    rng = np.random.default_rng(seed)
    sizes = {0: 4 * int(rng.integers(1, 30)), 1: 40}
    uses: list[Use] = []
    for _ in range(int(rng.integers(1, 25))):
        known = list(sizes)
        inputs = tuple(int(v) for v in rng.choice(known[-6:], rng.integers(1, 4)))
        out = len(sizes)
        scratch = int(rng.choice([0, 0, 4, 100]))
        kind = rng.integers(4)
        if kind == 0:
            start = 4 * int(rng.integers(sizes[inputs[0]] // 4))
            sizes[out] = 4 * int(rng.integers(1, (sizes[inputs[0]] - start) // 4 + 1))
            uses.append(Use(copy_step(sizes[out], start), inputs[:1], (out,)))
        elif kind == 1:
            sizes[out] = sizes[inputs[-1]]
            uses.append(Use(Step(str, sizes[out], scratch, in_place=True), inputs, (out,)))
        else:
            sizes[out], sizes[out + 1] = (int(n) for n in rng.integers(4, 99, 2))
            step = Step(str, sizes[out], scratch, more_out_bytes=(sizes[out + 1],))
            uses.append(Use(step, inputs, (out, out + 1)))
    made = [v for use in uses for v in use.outputs]
    outputs = sorted({made[-1], *(int(v) for v in rng.choice(made, 2))})
    return uses, outputs, sizes


@pytest.mark.parametrize("seed", range(200))
def test_what_lives_at_the_same_time_does_not_overlap(seed):
    """Simulates: every byte knows whose value it holds, and every reader finds its own."""
    uses, outputs, sizes = random_uses(seed)
    arena = plan(uses, outputs)
    owner: dict[tuple[int, int], tuple[int, int]] = {}  # (buffer, byte): (value, its byte)
    whole = {arena.roots[v][0] for v in outputs}
    assert len(whole) == len(outputs)  # a buffer of the caller holds one output

    def cells(value: int) -> list[tuple[int, int]]:
        root, start = arena.roots.get(value, (value, 0))
        if root in arena.offsets:
            start += arena.offsets[root]
            assert root not in whole and start + sizes[value] <= arena.bytes
            return [(-1, start + k) for k in range(sizes[value])]
        assert root in whole or root in (0, 1)
        return [(root, start + k) for k in range(sizes[value])]

    for value in (0, 1):
        owner.update({cell: (value, k) for k, cell in enumerate(cells(value))})
    same: dict[tuple[int, int], tuple[int, int]] = {}  # bytes of aliases are bytes of others

    def origin(byte: tuple[int, int]) -> tuple[int, int]:
        while byte in same:
            byte = same[byte]
        return byte

    def check(value: int) -> None:
        for k, cell in enumerate(cells(value)):
            assert owner[cell] == origin((value, k))

    for i, (step, inputs, made) in enumerate(uses):
        for start, stop in arena.dead(i - 1):
            owner.update({(-1, k): (-1, 0) for k in range(start, stop)})
        for value in inputs:
            check(value)
        for k in range(step.scratch_bytes):
            owner[-1, arena.scratch[i] + k] = (-2, i)
        if step.scratch_bytes and not step.in_place:
            for value in inputs:
                check(value)
        for value in made:
            if step.alias is not None and arena.roots[value][0] != value:
                for k in range(sizes[value]):
                    same[value, k] = (inputs[0], step.alias + k)
            else:
                owner.update({cell: (value, k) for k, cell in enumerate(cells(value))})
    for value in outputs:
        check(value)
    assert least(arena.spans) <= arena.bytes and not arena.bytes % ALIGN


@pytest.mark.parametrize("seed", range(50))
def test_a_chain_takes_the_least(seed):
    rng = np.random.default_rng(seed)
    steps, size = [], 0
    for i in range(rng.integers(1, 12)):
        in_place = i > 0 and bool(rng.integers(2))
        size = size if in_place else int(rng.integers(1, 500))
        steps.append(Step(str, size, int(rng.choice([0, 8, 333])), in_place))
    arena = plan(chain(steps), [len(steps)])
    sizes = [0, *(aligned(step.out_bytes) for step in steps[:-1]), 0]
    needs = [
        (x if step.in_place else x + y) + aligned(step.scratch_bytes)
        for x, y, step in zip(sizes, sizes[1:], steps, strict=False)
    ]
    assert arena.bytes == arena.least <= max(ALIGN, *needs)


@pytest.mark.parametrize("seed", range(50))
def test_places_are_near_the_least(seed):
    """On random spans: never more than a quarter above the largest live set."""
    rng = np.random.default_rng(seed)
    firsts = np.sort(rng.integers(0, 30, 40))
    spans = [
        Span(8 * int(rng.integers(1, 60)), int(f), int(f + rng.integers(0, 6))) for f in firsts
    ]
    total, offsets = place(spans)
    for i, (a, x) in enumerate(zip(spans, offsets, strict=True)):
        assert x >= 0 and x + a.bytes <= total
        for b, y in zip(spans[:i], offsets, strict=False):
            apart = a.last < b.first or b.last < a.first
            assert apart or x + a.bytes <= y or y + b.bytes <= x
    assert least(spans) <= total <= 1.25 * least(spans)


def test_a_value_that_is_read_again_is_not_overwritten():
    uses = [
        Use(Step(str, 40), (0,), (1,)),
        Use(Step(str, 40, in_place=True), (1,), (2,)),
        Use(Step(str, 40, in_place=True), (2, 1), (3,)),
        Use(Step(str, 4), (3,), (4,)),
    ]
    arena = plan(uses, [4])
    assert arena.roots[2] == (2, 0) and arena.roots[3] == (2, 0)
    assert arena.bytes == arena.least == 80


def test_nobody_works_in_place_on_an_input_of_the_caller():
    arena = plan(
        [Use(Step(str, 40, in_place=True), (0,), (1,)), Use(Step(str, 4), (1,), (2,))], [2]
    )
    assert arena.roots[1] == (1, 0) and arena.bytes == 40


def test_a_part_is_not_overwritten_by_the_whole():
    uses = [
        Use(Step(str, 40), (0,), (1,)),
        Use(copy_step(8, 0), (1,), (2,)),
        Use(Step(str, 40, in_place=True), (1, 2), (3,)),
        Use(Step(str, 4), (3,), (4,)),
    ]
    arena = plan(uses, [4])
    assert arena.roots[2] == (1, 0) and arena.roots[3] == (3, 0)
