"""
A census of the Python code installed on this machine, as durable jobs.

Each distribution is a run of "census-package", which parses its modules in steps of 50 files. A run of
"census-report" waits for all of these and writes tables and a chart. Kill workers as you like: what a
finished step has counted is not counted again, and the report comes out the same to the byte.

    python docs/examples/census.py --workers 4
"""

import argparse
import ast
import asyncio
import io
import os
import re
import secrets
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution, distributions
from pathlib import Path
from typing import Any, Final

from durably import (
    AsyncStep,
    BatchItem,
    Durably,
    DurablyError,
    Run,
    StepContext,
    Supervisor,
    WaitTimeoutError,
)

FILES_PER_STEP: Final = 50  # at worst so many are parsed again after a kill
WAITS_AT_ONCE: Final = 8
TOP: Final = 20

durably = Durably(
    os.environ.get("DURABLY_DIALECT_URL", "sqlite:///census.db"),
    concurrency=4,
    max_interruptions=100,  # you are invited to kill workers; by default a run fails with its sixth
    max_payload_bytes=4_194_304,  # the largest distributions list more than the default 1 MiB of modules
)


@dataclass(frozen=True)
class PackageRequest:
    """A distribution, the folder it is installed in, and what to add to the time of each parse step."""

    name: str
    version: str
    root: Path
    slow_seconds: float = 0.0


@dataclass(frozen=True)
class Function:
    """Where a function stands, and how many lines it has."""

    name: str
    path: str
    line: int
    lines: int


@dataclass(frozen=True)
class Counts:
    """What was counted in some files; the counts of more files are the `total` of these."""

    files: int = 0
    lines: int = 0
    functions: int = 0
    classes: int = 0
    imports: int = 0
    skipped: int = 0  # files that cannot be read or parsed; they count nowhere else
    lengths: dict[int, int] = field(default_factory=dict)  # lines: functions that have so many
    longest: tuple[Function, ...] = ()
    modules: dict[str, int] = field(default_factory=dict)  # top-level module: files that import it


FIGURES: Final = ("files", "lines", "functions", "classes", "imports", "skipped")


@dataclass(frozen=True)
class PackageCensus:
    """The counts of a distribution."""

    name: str
    version: str
    counts: Counts


@dataclass(frozen=True)
class ReportRequest:
    """The package runs to wait for, and the folder to write to."""

    runs: tuple[str, ...]
    folder: Path


@dataclass(frozen=True)
class ReportFiles:
    """What was written (no chart without matplotlib), and the three biggest distributions."""

    report: Path
    chart: Path | None
    biggest: tuple[str, ...]


# The jobs


@durably.job("census-package")
def census_package(step: StepContext, request: PackageRequest) -> PackageCensus:
    """Count a distribution, FILES_PER_STEP modules a step."""
    files = step.run("list", list_modules, request.name)
    parts = []
    for first, batch in batches(files, FILES_PER_STEP):
        done = first + len(batch)
        # A resumed run knows its steps by their names, so the name says which files the step is about.
        name = f"parse {first}-{done - 1}"
        parts.append(step.run(name, parse_files, request.root, batch, request.slow_seconds))
        step.progress(done, len(files), batch[-1])
    return step.run("summarise", summarise, request, parts)


@durably.job("census-report")
async def census_report(step: AsyncStep, request: ReportRequest) -> ReportFiles:
    """Wait for the package runs, a few at once, and write what they counted."""
    packages: list[PackageCensus] = []
    for _, batch in batches(request.runs, WAITS_AT_ONCE):
        waits: list[Awaitable[PackageCensus]]
        waits = [step.run(f"collect {run_id}", collect, step, run_id) for run_id in batch]
        packages += await asyncio.gather(*waits)
        step.progress(len(packages), len(request.runs), packages[-1].name)
    packages.sort(key=lambda p: (-p.counts.lines, p.name))
    # A plain function in an async job runs in a thread, so that the other runs of the worker go on.
    chart = await step.run("draw chart", draw_chart, packages, request.folder / "census.png")
    text = render(packages, chart.name if chart else None)
    report = await step.run("write report", write_whole, request.folder / "report.md", text.encode())
    return ReportFiles(report, chart, tuple(f"{p.name}: {p.counts.lines:,} lines" for p in packages[:3]))


async def collect(step: AsyncStep, run_id: str) -> PackageCensus:
    """Wait for a package run. If it fails so does the report: `durably retry` the one, then the other."""
    while True:
        step.cancelled.raise_if_set()  # a step without an end of its own lets its worker stop
        with suppress(WaitTimeoutError):
            census: PackageCensus = (await durably.await_run(run_id, timeout=1)).output
            return census


def trigger_census(limit: int | None = None, folder: str = "census-report", slow_seconds: float = 0.0) -> Run:
    """Trigger a run for each distribution, at most *limit*; then the report on these, and return its run."""
    durably.migrate()
    labels = {"census": secrets.token_hex(4)}
    packages = [BatchItem(request, labels=labels) for request in installed(slow_seconds)[:limit]]
    runs = tuple(run.id for run in census_package.batch_trigger(packages))
    # A run that waits holds a slot of its worker. This one is triggered, so claimed, last: it starves nobody.
    return census_report.trigger(ReportRequest(runs, Path(folder).absolute()), labels=labels)


# What their steps do: plain functions


def installed(slow_seconds: float = 0.0) -> list[PackageRequest]:
    """List the installed distributions by name; of two with the same name the one that Python imports."""
    found: dict[str, PackageRequest] = {}
    for dist in distributions():
        if {"Name", "Version"} <= {*dist.metadata}:  # not so in what a broken uninstall leaves behind
            name, root = dist.metadata["Name"], Path(str(dist.locate_file("")))
            key = re.sub(r"[-_.]+", "-", name).lower()
            found.setdefault(key, PackageRequest(name, dist.version, root, slow_seconds))
    return [found[key] for key in sorted(found)]


def list_modules(name: str) -> tuple[str, ...]:
    """List a distribution's .py files; none if it keeps no record of its files, or has been uninstalled."""
    try:
        files = distribution(name).files or ()
    except PackageNotFoundError:
        return ()
    return tuple(sorted({path.as_posix() for path in files if path.suffix == ".py"}))


def batches(items: Sequence[str], size: int) -> Iterator[tuple[int, Sequence[str]]]:
    """Cut *items* into pieces of *size*, each with the index of its first item."""
    for first in range(0, len(items), size):
        yield first, items[first : first + size]


def parse_files(root: Path, files: Iterable[str], slow_seconds: float = 0.0) -> Counts:
    """Count in some files, *slow_seconds* later than need be."""
    time.sleep(slow_seconds)
    return total(count_file(root, path) for path in files)


COUNTED: Final = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom)
_filters = threading.Lock()  # warning filters belong to the process, and sync jobs run in threads of it


def count_file(root: Path, path: str) -> Counts:
    """Count in one file."""
    try:
        source = (root / path).read_bytes()
        with _filters, warnings.catch_warnings():  # doubtful escapes are their author's business
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return Counts(skipped=1)  # templates, tests of parsers, code of another Python: all get installed
    nodes = [node for node in ast.walk(tree) if isinstance(node, COUNTED)]
    functions = [
        Function(node.name, path, node.lineno, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in nodes
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]
    imports = [node for node in nodes if isinstance(node, (ast.Import, ast.ImportFrom))]
    return Counts(
        files=1,
        lines=len(source.splitlines()),
        functions=len(functions),
        classes=sum(isinstance(node, ast.ClassDef) for node in nodes),
        imports=len(imports),
        lengths=dict(Counter(function.lines for function in functions)),
        longest=longest(functions),
        modules=dict.fromkeys({module for node in imports for module in named_by(node)}, 1),
    )


def named_by(node: ast.Import | ast.ImportFrom) -> list[str]:
    """Name the top-level modules that a statement imports; a relative import names none."""
    if isinstance(node, ast.Import):
        return [alias.name.partition(".")[0] for alias in node.names]
    return [node.module.partition(".")[0]] if node.module and not node.level else []


def total(parts: Iterable[Counts]) -> Counts:
    """Add up counts; neither their order nor how the files were divided among them matters."""
    parts = list(parts)
    sums: dict[str, Any] = {name: sum(getattr(part, name) for part in parts) for name in FIGURES}
    lengths: Counter[int] = Counter()
    modules: Counter[str] = Counter()
    for part in parts:
        lengths.update(part.lengths)
        modules.update(part.modules)
    return Counts(
        **sums,
        lengths=dict(sorted(lengths.items())),
        longest=longest(function for part in parts for function in part.longest),
        modules=dict(sorted(modules.items())),
    )


def longest(functions: Iterable[Function]) -> tuple[Function, ...]:
    """Pick the TOP longest functions, longest first, then by where they stand."""
    return tuple(sorted(functions, key=lambda f: (-f.lines, f.path, f.line, f.name))[:TOP])


def summarise(request: PackageRequest, parts: Iterable[Counts]) -> PackageCensus:
    """Add up the parts of a distribution."""
    return PackageCensus(request.name, request.version, total(parts))


# What the report is made of


def render(packages: Sequence[PackageCensus], chart: str | None) -> str:
    """Put the report in Markdown, without times: the same *packages*, biggest first, give the same bytes."""
    counts = total(package.counts for package in packages)
    figures = [name.capitalize() for name in FIGURES]
    biggest: list[list[str | int]] = [[p.name, p.version, *figures_of(p.counts)] for p in packages[:TOP]]
    functions = [(f"`{f.name}`", f"`{f.path}:{f.line}`", f.lines) for f in counts.longest]
    users = Counter(module for package in packages for module in package.counts.modules)
    popular = sorted(counts.modules.items(), key=lambda item: (-item[1], item[0]))[:TOP]
    sections = [
        "# The Python code installed on this machine",
        table(["Distributions", *figures], [(len(packages), *figures_of(counts))]),
        f"![Lines and lengths]({chart})" if chart else "No chart: matplotlib is not installed.",
        "## Biggest distributions",
        table(["Distribution", "Version", *figures], biggest),
        "## Longest functions",
        table(["Function", "Where", "Lines"], functions),
        "## Most imported modules",
        table(["Module", "Files", "Distributions"], [(f"`{name}`", n, users[name]) for name, n in popular]),
    ]
    return "\n\n".join(sections) + "\n"


def figures_of(counts: Counts) -> list[int]:
    """Take the plain figures out of counts."""
    return [getattr(counts, name) for name in FIGURES]


def table(header: Sequence[str], rows: Sequence[Sequence[str | int]]) -> str:
    """Write a Markdown table, numbers to the right."""
    rule = ["---:" if isinstance(cell, int) else "---" for cell in (rows[0] if rows else header)]
    cells = [[f"{cell:,}" if isinstance(cell, int) else cell for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in [header, rule, *cells])


def draw_chart(packages: Sequence[PackageCensus], path: Path) -> Path | None:
    """Draw the chart; nothing without matplotlib, imported here so that other workers stay small."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return None
    biggest = packages[:TOP][::-1]
    lengths = total(package.counts for package in packages).lengths
    figure = Figure(figsize=(14, 7), layout="constrained")
    FigureCanvasAgg(figure)  # pyplot would keep global state, and steps run in threads
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    bars = left.barh([p.name for p in biggest], [p.counts.lines for p in biggest], color="#4878a8")
    left.bar_label(bars, fmt="{:,.0f}", padding=4, fontsize=8)
    left.set_title("Lines by distribution", loc="left", weight="bold")
    left.xaxis.set_visible(False)
    left.margins(x=0.08, y=0.01)
    edges = [2**power for power in range(max(lengths, default=1).bit_length() + 1)]
    right.hist([*lengths], edges, weights=[*lengths.values()], color="#e0965a", edgecolor="white")
    right.set_xscale("log", base=2)
    right.set_xticks(edges[::2], [str(edge) for edge in edges[::2]])
    right.yaxis.set_major_formatter("{x:,.0f}")
    right.set_title("Functions by length in lines", loc="left", weight="bold")
    for axes in (left, right):
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(length=0)
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    return write_whole(path, image.getvalue())


def write_whole(path: Path, content: bytes) -> Path:
    """Write a file in one move, so that nobody meets half of it, whenever this process is killed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)
    return path


def main() -> int:
    """Trigger a census, supervise workers until it is done, and tell what came out."""
    parser = argparse.ArgumentParser(description="Count the Python code installed on this machine, durably.")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--limit", type=int, help="count at most so many distributions")
    parser.add_argument("--output", default="census-report", help="folder of the report")
    parser.add_argument("--slow", type=float, default=0.0, metavar="SECONDS", help="added to each parse step")
    options = parser.parse_args()

    run = trigger_census(options.limit, options.output, options.slow)
    exit_code = Supervisor(f"{__file__}:durably", workers=options.workers, until_idle=True).run()
    try:
        files: ReportFiles = durably.wait_for_run(run.id, timeout=0).output
    except DurablyError as error:  # a run failed, or the supervisor was stopped before the end
        print(error, file=sys.stderr)
        return exit_code or 1
    print(f"The report: {files.report}", "The biggest distributions:", *files.biggest, sep="\n  ")
    return exit_code


if __name__ == "__main__":
    sys.exit(main())
