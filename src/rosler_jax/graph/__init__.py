"""Any model as a graph of plain operations: traced, saved, loaded, counted, exported."""

from __future__ import annotations

from rosler_jax.graph._source import TraceError
from rosler_jax.graph.compute import run, run_all, run_batch
from rosler_jax.graph.graph import Graph, Value, map_weights
from rosler_jax.graph.kinds import KINDS, Op, Window
from rosler_jax.graph.trace import trace
from rosler_jax.graph.weight import Weight

__all__ = [
    "KINDS",
    "Graph",
    "Op",
    "TraceError",
    "Value",
    "Weight",
    "Window",
    "map_weights",
    "run",
    "run_all",
    "run_batch",
    "trace",
]
