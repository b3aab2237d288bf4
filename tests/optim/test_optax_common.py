"""optax's own tests of contributed optimisers, run on ours: those of the version that is installed.

The file of tests keeps its optimisers in a list; here the list is ours.
"""

from __future__ import annotations

import functools
import importlib.util
import inspect
import types
import unittest

import pytest
from optax import contrib

from rosler_jax.optim import sketched_adamw
from rosler_jax.views import MatrixView

LIST, TESTS = "_MAIN_OPTIMIZERS_UNDER_TEST = [", "class ContribTest("
OPTIONS = [
    {"learning_rate": 1e-2, "rank": 1, "weight_decay": 0.0},
    {"learning_rate": 1e-2, "rank": 1, "weight_decay": 0.0, "scaling": "subspace", "refresh": 2},
    {"learning_rate": 1e-2, "rank": 1, "weight_decay": 0.0, "state_dtype": "int8"},
]


def two_axes(name, shape):
    """A view for optax's bare arrays."""
    return MatrixView((0,), (1,)) if len(shape) == 2 else None


@functools.wraps(sketched_adamw)
def ours(learning_rate, rank, **options):
    return sketched_adamw(learning_rate, rank, **{**options, "view": two_axes})


ours.__signature__ = inspect.signature(sketched_adamw)  # type: ignore[attr-defined]


def optax_tests() -> unittest.TestSuite:
    """The suite, of our optimisers."""
    found = importlib.util.find_spec("optax.contrib._common_test")
    if found is None or found.origin is None:
        pytest.skip("this optax comes without its tests")
    with open(found.origin, encoding="utf-8") as file:
        source = file.read()
    if LIST not in source or TESTS not in source:
        pytest.skip("this optax has its tests in another form")
    head, tests = source.split(TESTS)
    listed = [{"opt_name": "ours", "opt_kwargs": options} for options in OPTIONS]
    listed = [{**one, "wrapper_name": None, "wrapper_kwargs": None} for one in listed]
    module = types.ModuleType("optax_common_test_of_ours")
    exec(compile(head, found.origin, "exec"), module.__dict__)
    main, whole = "_MAIN_OPTIMIZERS_UNDER_TEST", "_ALL_OPTIMIZERS_UNDER_TEST"
    module.__dict__.update({main: tuple(listed), whole: tuple(listed)})
    # As many lines as it had, so that tracebacks show the right ones.
    exec(compile("\n" * head.count("\n") + TESTS + tests, found.origin, "exec"), module.__dict__)
    return unittest.defaultTestLoader.loadTestsFromModule(module)


@pytest.mark.slow
def test_optax_common_tests(monkeypatch):
    monkeypatch.setattr(contrib, "ours", ours, raising=False)
    result = unittest.TestResult()
    optax_tests().run(result)
    assert result.testsRun >= 12 * len(OPTIONS)
    broken = [f"{test}\n{trace}" for test, trace in [*result.failures, *result.errors]]
    assert not broken, "\n".join(broken)
