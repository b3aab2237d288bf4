"""Sweeps: many trainings in few compiled programs, durable on disk."""

from __future__ import annotations

from rosler_jax.sweep.axes import Axis, SpecError
from rosler_jax.sweep.examples import load_examples
from rosler_jax.sweep.folder import SweepError, stored_spec
from rosler_jax.sweep.plan import Built, Group, make_plan
from rosler_jax.sweep.population import Member, Population, training
from rosler_jax.sweep.runner import Summary, sweep
from rosler_jax.sweep.scalars import write_scalars
from rosler_jax.sweep.schedule import Plan, make_schedule
from rosler_jax.sweep.spec import Halving, Search, SweepSpec, as_spec, load, parse

__all__ = [
    "Axis",
    "Built",
    "Group",
    "Halving",
    "Member",
    "Plan",
    "Population",
    "Search",
    "SpecError",
    "Summary",
    "SweepError",
    "SweepSpec",
    "as_spec",
    "load",
    "load_examples",
    "make_plan",
    "make_schedule",
    "parse",
    "stored_spec",
    "sweep",
    "training",
    "write_scalars",
]
