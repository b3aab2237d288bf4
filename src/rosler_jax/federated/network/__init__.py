"""Rounds of federated learning over a network, carried by Flower; knows bytes and no models."""

from __future__ import annotations

from rosler_jax.federated.network.apps import client_app, server_app
from rosler_jax.federated.network.boundary import Assignment, Pace, Reply, Server, Work
from rosler_jax.federated.network.launch import join, join_app, serve, serve_app

__all__ = [
    "Assignment",
    "Pace",
    "Reply",
    "Server",
    "Work",
    "client_app",
    "join",
    "join_app",
    "serve",
    "serve_app",
    "server_app",
]
