"""What the experiments of ``scripts/reproduce`` share: rows measured once, sweeps, sections.

An experiment works in a folder: ``rows/*.json``, one file a row, is what it has measured (killed
at any moment, it goes on with the next row); sweeps and models lie beside. At the end it writes
``NAME.json`` (all rows), ``NAME.svg`` and ``NAME.md``, and with ``--publish`` puts the first two
into ``scripts/results`` and the third between the markers of its section in BENCHMARKS.md.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import hashlib
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rosler_jax._files import json_text, replace_file, replace_json, replace_text
from rosler_jax.sweep.table import TABLE, read_rows

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "BENCHMARKS.md"
RESULTS = ROOT / "scripts" / "results"
SHARED = ROOT.parent / "shared" / "data"
FILES = {"cifar10": "cifar10_jpeg.npz", "cwru": "cwru_12k_drive_end.npz"}

Row = dict[str, Any]


def parser_of(name: str, doc: str | None, seeds: int = 3) -> argparse.ArgumentParser:
    """The options that every experiment has."""
    parser = argparse.ArgumentParser(
        prog=f"scripts/reproduce {name}",
        description=doc,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/reproduce") / name,
        metavar="DIR",
        help="of rows, sweeps and models; what is there is not done again (default: %(default)s)",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="folder of the data sets; default: the project's shared data, where they lie beside\n"
        "the checkout, else tensorflow-datasets by name",
    )
    parser.add_argument(
        "--seeds", type=int, default=seeds, metavar="N", help="default: %(default)s"
    )
    parser.add_argument(
        "--only", default="", metavar="A,B", help="rows whose key contains one of these"
    )
    parser.add_argument("--list", action="store_true", help="list the keys of all rows and stop")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="write scripts/results and the section of BENCHMARKS.md",
    )
    parser.add_argument(
        "--continue-published",
        action="store_true",
        help="take the rows in scripts/results for measured",
    )
    return parser


def begin(name: str, args: argparse.Namespace, keys: Iterable[str] = ()) -> bool:
    """Makes the folder, with the published rows if they are to count; or lists the keys.

    Args:
      name: of the experiment.
      args: its options.
      keys: of all its rows.

    Returns:
      Whether there is more to do: not where they were only to be listed.
    """
    if args.list:
        print("\n".join(keys))
        return False
    (args.out / "rows").mkdir(parents=True, exist_ok=True)
    published = RESULTS / f"{name}.json"
    if args.continue_published and published.exists():
        for row in json.loads(published.read_text("utf-8"))["rows"]:
            path = _row_path(args.out, row["key"])
            if not path.exists():
                replace_json(path, row)
    return True


def source(name: str, folder: Path | None = None) -> str:
    """Where a data set lies: in the folder, or beside the checkout, else its name."""
    found = (folder or SHARED) / FILES.get(name, name)
    if found.exists():
        return str(found)
    if folder is not None and (folder / name).exists():
        return str(folder / name)
    return name


def wanted(key: str, args: argparse.Namespace) -> bool:
    """Whether a row is among those asked for."""
    return not args.only or any(part in key for part in args.only.split(","))


def once(folder: Path, key: str, measure: Callable[[], Mapping[str, Any]]) -> Row:
    """The row of that key: read if it is there, measured and kept if not."""
    path = _row_path(folder, key)
    if path.exists():
        return dict(json.loads(path.read_text("utf-8")))
    start = time.perf_counter()
    print(f"{datetime.datetime.now():%H:%M:%S} {key} ...", end=" ", file=sys.stderr, flush=True)
    row = {"key": key, **measure()}
    took = time.perf_counter() - start
    row |= {"took_seconds": round(took, 1), **stamp()}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_json(path, row)
    print(f"{took:.0f} s", file=sys.stderr, flush=True)
    return row


def rows_of(folder: Path) -> list[Row]:
    """All rows that have been measured, by key."""
    found = [json.loads(path.read_text("utf-8")) for path in (folder / "rows").glob("*.json")]
    return sorted(found, key=lambda row: row["key"])


def _row_path(folder: Path, key: str) -> Path:
    slug = re.sub(r"[^a-zA-Z0-9.=+-]+", "_", key)[:80]
    return folder / "rows" / f"{slug}-{hashlib.sha1(key.encode()).hexdigest()[:8]}.json"


@functools.cache
def stamp() -> dict[str, str]:
    """When, on what and with what a row is measured."""
    import flax
    import jax
    import optax

    return {
        "date": datetime.date.today().isoformat(),
        "revision": revision(),
        "machine": machine(),
        "versions": f"Python {platform.python_version()}, JAX {jax.__version__}, "
        f"Flax {flax.__version__}, optax {optax.__version__}",
    }


def revision() -> str:
    """Of the checkout, short, with a plus if the library has changes; or as the variable says.

    ``ROSLER_REVISION`` is for exported trees, which are in no checkout.
    """

    def git(*words: str) -> str:
        done = subprocess.run(
            ["git", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    found = os.environ.get("ROSLER_REVISION") or git("rev-parse", "--short", "HEAD")
    return found + ("+" if git("status", "--porcelain", "src", "kernels") else "")


def machine() -> str:
    """Cores and processor, in words."""
    import jax

    if jax.default_backend() != "cpu":
        return str(jax.devices()[0].device_kind)
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        models = []
    return f"{os.cpu_count()} cores, {models[0] if models else platform.processor()}"


def sweep(spec: Mapping[str, Any], folder: Path, *, models: bool = True) -> list[Row]:
    """The rows of a sweep (``rosler sweep``), which may be done, or begun.

    Args:
      spec: fields of a run, and ``axes``: lists of values by field.
      folder: of the sweep; its TOML lies beside.
      models: whether every member's model is written, to ``folder/models/MEMBER``.

    Raises:
      RuntimeError: if it cannot be done.
    """
    toml = folder.parent / f"{folder.name}.toml"
    folder.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{k} = {json.dumps(v)}" for k, v in spec.items() if k != "axes"]
    lines += ["[axes]", *(f"{k} = {{ grid = {json.dumps(v)} }}" for k, v in spec["axes"].items())]
    replace_text(toml, "\n".join(lines) + "\n")
    place = "--resume" if (folder / "sweep.json").exists() else "--out"  # refuses another sweep
    command = [sys.executable, "-m", "rosler_jax", "sweep", str(toml), place, str(folder)]
    command += ["--models"] if models else []
    if subprocess.run(command, check=False, stdout=sys.stderr).returncode:
        raise RuntimeError(f"{folder} is not done; see above")
    return read_rows(folder / TABLE)


def mean(values: Iterable[float]) -> float:
    """The mean."""
    return statistics.fmean(values)


def spread(values: Iterable[float]) -> float:
    """The standard deviation; 0 of one value."""
    found = list(values)
    return statistics.stdev(found) if len(found) > 1 else 0.0


def plus_minus(values: Iterable[float], digits: int = 2) -> str:
    """Mean and deviation, as the tables have them; of one value, that alone."""
    found = list(values)
    tail = f" ± {spread(found):,.{digits}f}" if len(found) > 1 else ""
    return f"{mean(found):,.{digits}f}{tail}"


def grouped(rows: Iterable[Row], *fields: str) -> dict[tuple[Any, ...], list[Row]]:
    """Rows that agree in some fields, in the order of first appearance."""
    found: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        found.setdefault(tuple(row[field] for field in fields), []).append(row)
    return found


def table(header: Sequence[str], lines: Iterable[Sequence[Any]]) -> str:
    """A table in Markdown."""
    cells = [list(map(str, line)) for line in (header, ["---"] * len(header), *lines)]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def figure(columns: int = 1, rows: int = 1, *, width: float = 5.0, height: float = 3.6) -> Any:
    """A figure and its axes, all in one list."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    made = Figure(figsize=(columns * width, rows * height), layout="constrained")
    FigureCanvasAgg(made)
    return made, list(made.subplots(rows, columns, squeeze=False).flat)


def provenance(command: str, rows: Sequence[Row]) -> str:
    """The head of a section: command, dates, revisions, machines, versions."""

    def all_of(field: str) -> str:
        return ", ".join(sorted({row[field] for row in rows}))

    return (
        f"    {command}\n\n{all_of('date')}; revision {all_of('revision')}; {all_of('machine')}; "
        f"{all_of('versions')}."
    )


def finish(name: str, args: argparse.Namespace, text: str, made: Any = None) -> None:
    """Writes rows, figure and section; into the repository, too, if it is asked for."""
    rows = rows_of(args.out)
    places = [args.out] + ([RESULTS] if args.publish else [])
    for place in places:
        replace_text(place / f"{name}.json", one_row_a_line(name, rows))
        if made is not None:
            replace_file(place / f"{name}.svg", lambda path: save_svg(made, path))
    replace_text(args.out / f"{name}.md", text + "\n")
    print(f"{text}\n\nwrote {name}.json, {name}.svg and {name}.md into {args.out}")
    if args.publish:
        drawn = f"![{name}](scripts/results/{name}.svg)\n\n" if made is not None else ""
        put_section(name, drawn + text)
        print(f"and the section {name} of {BENCHMARKS.name}")


def one_row_a_line(name: str, rows: Sequence[Row]) -> str:
    """JSON of which changes of a row are changes of a line."""
    lines = ",\n".join(json_text(row, None) for row in rows)
    return f'{{"experiment": {json.dumps(name)}, "rows": [\n{lines}\n]}}\n'


def save_svg(made: Any, path: Path) -> None:
    """An SVG without a date or random names: the same figure, the same bytes."""
    import matplotlib as mpl

    with mpl.rc_context({"svg.hashsalt": "rosler", "svg.fonttype": "none"}):
        made.savefig(path, format="svg", metadata={"Date": None})


def put_section(name: str, text: str, path: Path | None = None) -> None:
    """Puts a text between its markers.

    Raises:
      ValueError: if the file has no such section.
    """
    start, end = f"<!-- reproduce {name} -->\n", f"<!-- end of {name} -->"
    path = path or BENCHMARKS
    old = path.read_text("utf-8")
    pattern = re.compile(re.escape(start) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(old):
        raise ValueError(f"{path.name} has no section {start.strip()} ... {end}; add the markers")
    replace_text(path, pattern.sub(lambda _: f"{start}{text}\n{end}", old))
