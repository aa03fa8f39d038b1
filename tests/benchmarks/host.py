"""A supervisor of the benchmarks' application: `python -m tests.benchmarks.host [until-idle]`."""

from __future__ import annotations

import sys

from durably import Supervisor
from durably.telemetry import configure_log

if __name__ == "__main__":
    configure_log()
    sys.exit(Supervisor("tests.benchmarks.app:durably", until_idle="until-idle" in sys.argv).run())
