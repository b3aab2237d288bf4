"""What every test shares: process settings, JAX's strict mode, and where real data may lie."""

from __future__ import annotations

import collections
import gc
import importlib.metadata
import itertools
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Several workers share one accelerator where there is one.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

ROOT = Path(__file__).resolve().parent.parent

# Most of the suite's time is compilation, and many tests compile the same programs: the workers
# share a cache on disk, as do one run and the next. It is keyed by program, compiler and options.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".pytest_cache" / "jax"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

# Compiling without LLVM's optimisation, MLIR's loop emitters and split modules takes a third of
# the time, which small programs do not repay. Not where there is a GPU: there the tests see the
# programs that users run, as they do with XLA_FLAGS= set. XLA stops at flags it does not know.
FAST_COMPILATION = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):
    FAST_COMPILATION.append("--xla_cpu_use_fusion_emitters=false")
    FAST_COMPILATION.append("--xla_cpu_parallel_codegen_split_count=1")
if shutil.which("nvidia-smi") is None:
    os.environ.setdefault("XLA_FLAGS", " ".join(FAST_COMPILATION))

import combinations  # noqa: E402
import jax  # noqa: E402  (reads the settings above)
import pytest  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

if os.environ.get("ROSLER_CHECK_SHAPES") != "0":
    import checked_shapes

    checked_shapes.install()

collect_ignore = ["typed_user"]  # a project of its own

SLOW = ("clang", "cortex-m3", "cortex-m7")
"""Parameters whose tests are of the slow tier: another compiler, boards beside the one at hand."""

TESTS_DONE = itertools.count(1)
THREAD = threading.local()
MAPPINGS = Path("/proc/self/maps")
MOST_MAPPINGS = 20_000


def pytest_addoption(parser: pytest.Parser) -> None:
    """Which of a test's combinations of parameters run."""
    parser.addoption(
        "--combinations",
        choices=["one", "cover", "all"],
        default="one",
        help="of each test its first combination (the default); so many that every value is in "
        "one, and every pair of values where there are three arguments or more; or all",
    )
    parser.addoption(
        "--cover-seed", type=int, default=0, metavar="N", help="which of many covers is taken"
    )


def pytest_report_header(config: pytest.Config) -> str:
    how, seed = config.getoption("--combinations"), config.getoption("--cover-seed")
    return f"combinations: {how}" + (f", --cover-seed {seed}" if how == "cover" else "")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Marks what only the slow tier runs (``-m "slow or not slow"``), and thins combinations."""
    for item in items:
        if any(value in SLOW for value in combinations.arguments(item).values()):
            item.add_marker(pytest.mark.slow)
    how, seed = config.getoption("--combinations"), config.getoption("--cover-seed")
    if how == "all":
        return
    # Each tier by itself: one runs without the other.
    kept = combinations.cover(
        {
            item.nodeid: (
                (item.nodeid.split("[")[0], item.get_closest_marker("slow") is not None),
                combinations.arguments(item),
            )
            for item in items
        },
        first=how == "one",
        seed=seed,
    )
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid not in kept])
    items[:] = [item for item in items if item.nodeid in kept]


def pytest_collection_finish() -> None:
    """Fewer collections of all garbage: each looks through what JAX keeps, a tenth of the time."""
    gc.set_threshold(2000, 20, 50)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The seconds of each folder, of all workers together."""
    spent: dict[str, float] = collections.Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                folder = report.nodeid.split("::")[0]
                spent["/".join(folder.split("/")[:2])] += report.duration
    if spent:
        terminalreporter.section("seconds by folder")
    for folder, seconds in sorted(spent.items(), key=lambda item: -item[1])[:30]:
        terminalreporter.line(f"{seconds:8.1f}  {folder}")


@pytest.fixture(autouse=True, scope="session")
def one_context_a_thread() -> Iterator[None]:
    """Programs are lowered in one MLIR context: a new one for each is a fifth of the tests' time.

    Private to JAX: where it has another name, lowering takes that fifth.
    """
    make = getattr(mlir, "make_ir_context", None)
    if make is None:
        yield
        return

    def context() -> Any:
        if mlir.ir.Context.current is not None:  # within another's lowering: a module of its own
            return make()
        if not hasattr(THREAD, "context"):
            THREAD.context = make()
        return THREAD.context

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlir, "make_ir_context", context)
        yield


@pytest.fixture(autouse=True)
def few_programs() -> Iterator[None]:
    """Drops compiled programs before they are too many.

    Each takes several memory mappings, of which Linux gives a process 65,530; the compiler crashes
    when there are no more.
    """
    yield
    if next(TESTS_DONE) % 25 != 0 or not MAPPINGS.exists():
        return
    vars(THREAD).clear()  # a context keeps all types and constants it has seen
    if MAPPINGS.read_bytes().count(b"\n") > MOST_MAPPINGS:
        jax.clear_caches()


@pytest.fixture(autouse=True, scope="session")
def whole_float32() -> None:
    """Products of float32 in float32, also on GPUs and TPUs, which else round their operands."""
    if jax.default_backend() != "cpu":
        jax.config.update("jax_default_matmul_precision", "highest")


@pytest.fixture
def strict_promotion() -> Iterator[None]:
    """JAX raises on implicit promotion of ranks and dtypes.

    A file of tests asks for it with `pytestmark = pytest.mark.usefixtures("strict_promotion")`. Not
    for all: optax's bias correction raises a float to an integer power, and the hash broadcasts.
    """
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real data sets; skips where it is absent (ROSLER_TEST_DATA names another)."""
    folder = Path(os.environ.get("ROSLER_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; ROSLER_TEST_DATA may name a folder")
    return folder
