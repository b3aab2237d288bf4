"""The public names of the package, which are imported when they are asked for."""

from __future__ import annotations

import importlib
from types import ModuleType

import rosler_jax.federated as federated


def test_every_name_is_there_and_no_module_hides_it():
    """A submodule of the same name would take its place as soon as it is imported."""
    for module in federated._MODULES:
        importlib.import_module(f"rosler_jax.federated.{module}")
    named = sorted(name for names in federated._MODULES.values() for name in names)
    assert named == sorted(federated.__all__) == sorted(dir(federated))
    for name in federated.__all__:
        assert not isinstance(getattr(federated, name), ModuleType), name
