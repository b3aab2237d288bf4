"""Axes and plans."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from rosler_jax.config import TrainConfig
from rosler_jax.sweep import SpecError, SweepError, as_spec, load, make_plan, parse, runner

EXAMPLE = """
data = "mnist5k"
hidden = [128]
method = "chain"
epochs = 3
[axes]
learning_rate = { log_uniform = [1e-4, 1e-2], n = 16 }
rank = { grid = [4, 8] }
seed = { grid = [0, 1, 2, 3] }
"""


def test_the_example_of_the_documentation(tmp_path, built):
    path = tmp_path / "sweep.toml"
    path.write_text(EXAMPLE)
    spec = load(path)
    members = spec.configs()
    assert len(members) == 128
    assert [axis.name for axis in spec.axes] == ["learning_rate", "rank", "seed"]
    assert len(set(members)) == 128
    rates = np.array([m.learning_rate for m in members])
    assert rates.min() >= 1e-4
    assert rates.max() <= 1e-2
    # Log-uniform: about half of 16 below the geometric middle; fewer than 2 has p < 1e-3.
    assert 2 <= len({r for r in rates if r < 1e-3}) <= 14
    (group,) = make_plan(members, built)
    assert [rule.rank for rule in group.form.ranks.values()] == [8]


def test_draws_depend_on_name_and_seed_alone():
    axis = {"uniform": [0.0, 0.5], "n": 4}
    one = parse({"axes": {"momentum": axis}})
    two = parse({"axes": {"noise": axis, "momentum": axis}})
    other = parse({"sweep_seed": 1, "axes": {"momentum": axis}})
    assert one.axes[0] == two.axes[1]
    assert two.axes[0].values != two.axes[1].values
    assert one.axes[0] != other.axes[0]


def test_a_random_search_takes_draws_together():
    axes = {
        "learning_rate": {"log_uniform": [1e-4, 1e-2]},
        "seed": {"grid": [0, 1]},
        "noise": {"uniform": [0.0, 0.3]},
    }
    members = parse({"draws": 5, "axes": axes}).configs()
    assert len(members) == 10
    assert len({(m.learning_rate, m.noise) for m in members}) == 5
    assert [m.seed for m in members] == [0, 1] * 5
    # The first draws of a shorter search are those of a longer one.
    longer = parse({"draws": 8, "axes": axes}).configs()
    assert longer[:10] == members


def test_a_space_is_a_file_its_content_or_axes(tmp_path):
    path = tmp_path / "sweep.toml"
    path.write_text(EXAMPLE)
    assert as_spec(path) == as_spec(load(path)) == as_spec(load(path).source)
    assert as_spec(path, "a.npz").base["data"] == "a.npz"
    base = TrainConfig(hidden=(8,), method="chain", rank=7)
    spec = as_spec({"rank": {"grid": [2]}}, config=base)
    assert spec.configs() == [dataclasses.replace(base, rank=2)]
    with pytest.raises(SpecError, match="has its fields already"):
        as_spec(path, config=base)


def test_integer_and_choice():
    spec = parse(
        {"axes": {"rank": {"integer": [2, 3], "n": 20}, "hidden": {"choice": [[8], [16]], "n": 20}}}
    )
    assert set(spec.axes[0].values) == {2, 3}
    assert set(spec.axes[1].values) == {(8,), (16,)}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({}, "needs a table of axes"),
        ({"axes": {"learning_rat": {"grid": [1]}}}, "did you mean 'learning_rate'"),
        ({"rnk": 3, "axes": {"rank": {"grid": [1]}}}, "did you mean 'rank'"),
        ({"rank": 3, "axes": {"rank": {"grid": [1]}}}, "both fixed and an axis"),
        ({"axes": {"rank": {"grid": []}}}, "not empty"),
        ({"axes": {"rank": [1, 2]}}, "expected one of grid, choice"),
        ({"axes": {"rank": {"grid": [1], "m": 3}}}, "has m"),
        ({"axes": {"noise": {"uniform": [0, 1]}}}, "n=None"),
        ({"axes": {"noise": {"uniform": [1, 0], "n": 2}}}, "low is not below"),
        ({"axes": {"noise": {"uniform": [1], "n": 2}}}, "expected .low, high."),
        ({"axes": {"noise": {"log_uniform": [0, 1], "n": 2}}}, "positive ends"),
        ({"axes": {"rank": {"integer": [0.5, 2], "n": 2}}}, "whole numbers"),
        ({"draws": 0, "axes": {"noise": {"uniform": [0, 1]}}}, "draws is 0"),
        ({"draws": 3, "axes": {"rank": {"grid": [1]}}}, "nothing is drawn"),
        ({"draws": 3, "axes": {"noise": {"uniform": [0, 1], "n": 2}}}, "leave n out"),
        ({"draws": 3, "search": {"trials": 2}, "axes": {"rank": {"grid": [1]}}}, "by itself"),
    ],
)
def test_a_wrong_axis_is_named(source, message):
    with pytest.raises(SpecError, match=message):
        parse(source)


def test_an_impossible_member_is_named(tmp_path):
    with pytest.raises(SpecError, match=r"member \{'rank': 0\}: rank=0"):
        parse({"axes": {"rank": {"grid": [4, 0]}}}).configs()
    path = tmp_path / "s.toml"
    path.write_text("rank = ")
    with pytest.raises(SpecError, match="not TOML"):
        load(path)


BASE = TrainConfig(method="chain", hidden=(32,), rank=4, epochs=2, batch_size=32)
SMALL = {"method": "seeded", "hidden": (8,)}
TWO = {"hidden": (32, 32)}


@pytest.mark.parametrize(
    ("varied", "programs", "trainings"),
    [
        ([{"learning_rate": r} for r in (1e-3, 1e-2)], 1, 2),
        ([{"rank": r} for r in (2, 4, 8)], 1, 3),
        ([{"rank": r} for r in (2, 0.2, 0.4)], 1, 3),
        ([{"rank": r} for r in (4, 0.2)], 1, 2),  # the same ranks, said in two ways
        ([{"rules": r, **TWO} for r in (("hidden.0=2", "*.1=6"), ("hidden.*=4",))], 1, 2),
        ([{"rules": r, **TWO} for r in (("hidden.0=2",), ("hidden.*=4",))], 2, 2),
        ([{"bits": b} for b in (4, 8, 16)], 1, 1),
        ([{"bits": b, "quantization_aware": True} for b in (4, 8)], 2, 2),
        ([{"method": m} for m in ("chain", "seeded")], 2, 2),
        ([{"method": "seeded", "rank": r} for r in (1, 2)], 1, 2),
        ([{"method": "seeded", "rank": 2, "in_sketch": w} for w in (5, 9)], 1, 2),
        ([{"method": "seeded", "rank": r, "sketch": "rows_uniform"} for r in (1, 2)], 1, 2),
        ([{"method": "seeded", "rank": r, "sketch": "dct/rademacher"} for r in (1, 2)], 1, 2),
        ([{"method": "seeded", "rank": r, "sketch": "sparse_sign"} for r in (1, 2)], 2, 2),
        # No program has room for the elementwise largest, 8 x 20 of 20 x 8.
        ([{**SMALL, "rank": r, "in_sketch": w} for r, w in ((2, 20), (8, 2))], 2, 2),
        ([{"method": "ares-bp", "rank": r, "oversampling": o} for r, o in ((2, 5), (4, 0))], 1, 2),
        # The family of sketches depends on the rank.
        ([{"method": "ares-bp", "rank": r} for r in (4, 6)], 2, 2),
        ([{"method": "restrict-rank", "rank": r} for r in (2, 4)], 2, 2),
        ([{"method": "restrict-rank", "seed": s} for s in (2, 4)], 2, 2),
        ([{"method": "dense", "rank": r} for r in (2, 4)], 1, 1),
        ([{"method": "dense", "rules": r} for r in ((), ("*=2",))], 1, 1),
        ([{"sketch": s, "oversampling": 2, "in_sketch": 3} for s in ("srht", "gaussian")], 1, 1),
        ([{"noise": n} for n in (0.0, 0.1, 0.2)], 2, 3),
        ([{"class_weights": w} for w in (None, "balanced", "1,2,3")], 2, 3),
        ([{"standardize": s} for s in ("all", "features")], 1, 2),
        ([{"hidden": h} for h in ((32,), (16, 16))], 2, 2),
        ([{"options": (f"activation={a}",)} for a in ("relu", "tanh")], 2, 2),
        ([{"method": "seeded", "sketch": k} for k in ("srht", "rows_uniform")], 2, 2),
        ([{"method": "ares-bp", "parallel_epochs": e} for e in (0.5, 1.0)], 2, 2),
    ],
)
def test_members_share_what_they_can(varied, programs, trainings, built):
    plan = make_plan([dataclasses.replace(BASE, **v) for v in varied], built)
    assert len(plan) == programs
    assert sum(len(group.trainings) for group in plan) == trainings
    assert sorted(sum((m for g in plan for m in g.members), ())) == list(range(len(varied)))


def test_a_program_has_room_for_the_largest_rank_of_every_layer(built):
    rules = [("hidden.0=2", "*.1=6"), ("hidden.*=4",)]
    (group,) = make_plan([dataclasses.replace(BASE, rules=r, **TWO) for r in rules], built)
    assert {k: v.rank for k, v in group.form.ranks.items()} == {"hidden/0": 4, "hidden/1": 6}
    (group,) = make_plan([BASE], built, [dataclasses.replace(BASE, rank=7)])
    assert [rule.rank for rule in group.form.ranks.values()] == [7]


@pytest.mark.parametrize(
    ("varied", "message"),
    [
        ({"patience": 3}, "leave patience out"),
        ({"task": "multi-label"}, "differ in task .classification, multi-label"),
        ({"metric": "f1"}, "differ in metric"),
        ({"stream": "always"}, "differ in stream"),
    ],
)
def test_what_members_cannot_differ_in_is_refused(varied, message):
    with pytest.raises(SweepError, match=message):
        runner.check([BASE, dataclasses.replace(BASE, **varied)])


def test_lists_of_words_may_be_one_word():
    axes = {"rules": {"grid": ["conv*=skip,*=2", ["*=0.25"]]}}
    members = parse({"method": "chain", "options": "activation=tanh", "axes": axes}).configs()
    assert [c.rules for c in members] == [("conv*=skip", "*=2"), ("*=0.25",)]
    assert members[0].options == ("activation=tanh",)
