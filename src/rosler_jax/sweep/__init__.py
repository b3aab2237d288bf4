"""Sweeps: many trainings in few compiled programs, durable on disk."""

from __future__ import annotations

from rosler_jax.sweep.plan import Group, make_plan
from rosler_jax.sweep.runner import Plan, Summary, SweepError, make_schedule, stored_spec, sweep
from rosler_jax.sweep.spec import Axis, SpecError, SweepSpec, load, parse

__all__ = [
    "Axis",
    "Group",
    "Plan",
    "SpecError",
    "Summary",
    "SweepError",
    "SweepSpec",
    "load",
    "make_plan",
    "make_schedule",
    "parse",
    "stored_spec",
    "sweep",
]
