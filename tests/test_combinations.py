"""The cover of combinations leaves no value, and no pair among three arguments, untried."""

import itertools

import combinations
import pytest

AXES = {"family": "abcde", "dtype": "xyz", "size": (1, 2, 3, 4)}


def product(names):
    rows = itertools.product(*(AXES[name] for name in names))
    return {str(row): ("test", dict(zip(names, row, strict=True))) for row in rows}


@pytest.mark.parametrize("names", [["family"], ["family", "dtype"], [*AXES]], ids=len)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_value_and_every_pair_is_tried(names, seed):
    tests = product(names)
    kept = combinations.cover(tests, seed=seed)
    size = min(2, max(1, len(names) - 1))

    def tuples(chosen):
        rows = (tests[name][1].items() for name in chosen)
        return {pair for row in rows for pair in itertools.combinations(row, size)}

    assert tuples(kept) == tuples(tests)
    assert kept == set(tests) if len(names) == 1 else len(kept) < len(tests)


def test_two_arguments_are_mixed():
    tests = product(["family", "size"])
    kept = [tests[name][1] for name in combinations.cover(tests)]
    # Not all of one with the first of the other.
    assert all(sum(row["size"] == size for row in kept) < len(AXES["family"]) for size in (1, 2))


def test_one_is_the_first_and_tests_are_covered_apart():
    tests = product(["family"])
    tests |= {f"other {name}": ("other", values) for name, (_, values) in tests.items()}
    assert combinations.cover(tests, first=True) == {"('a',)", "other ('a',)"}
    assert combinations.cover(tests) == set(tests)
