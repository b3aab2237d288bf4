"""Sweeps: many trainings in few compiled programs, durable on disk."""

from __future__ import annotations

from rosler_jax.sweep.examples import load_examples
from rosler_jax.sweep.folder import SweepError, stored_spec
from rosler_jax.sweep.plan import Group, make_plan
from rosler_jax.sweep.runner import Summary, sweep
from rosler_jax.sweep.scalars import write_scalars
from rosler_jax.sweep.schedule import Plan, make_schedule
from rosler_jax.sweep.spec import Axis, Halving, Search, SpecError, SweepSpec, load, parse

__all__ = [
    "Axis",
    "Group",
    "Halving",
    "Plan",
    "Search",
    "SpecError",
    "Summary",
    "SweepError",
    "SweepSpec",
    "load",
    "load_examples",
    "make_plan",
    "make_schedule",
    "parse",
    "stored_spec",
    "sweep",
    "write_scalars",
]
