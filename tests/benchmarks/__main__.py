"""`python -m tests.benchmarks NAME [options]`."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from tests.benchmarks import cancel, dialects, idle, latency, recovery, relay, throughput
from tests.benchmarks.common import Report

_BENCHMARKS = (throughput, dialects, latency, cancel, recovery, idle, relay)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    names = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    for module in _BENCHMARKS:
        name = module.__name__.rpartition(".")[2]
        one = names.add_parser(name, help=module.__doc__, description=module.__doc__)
        one.add_argument("--quick", action="store_true", help="few and short rounds: to see that it works")
        one.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
        one.add_argument("--folder", type=Path, help="where the databases are made; a disk, not memory")
        one.set_defaults(measure=module.measure)
        module.add_options(one)
    options = parser.parse_args()
    report = Report(options.name, options)
    with tempfile.TemporaryDirectory(prefix="durably-benchmark-", dir=options.folder) as folder:
        options.measure(options, report, Path(folder))
    report.show()
    if options.json is not None:
        report.write(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
