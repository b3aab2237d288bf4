"""The version, in one place: packaging reads it from here without importing JAX."""

__version__ = "0.2.0"
