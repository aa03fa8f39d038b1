"""
What is seen: structlog's set-up, and the way of events and of workers' own logging into it.

The supervisor's process calls `configure_log` once, makes one `LogRelay`, and hands it every record. A
worker's process calls `forward_standard_logging` and `forward_stdout`: what it logs and prints goes the way
of its events. The schema of the lines is in `durably.telemetry.schema`.
"""

from durably.telemetry.log import Form, configure_log, ensure_log, get_logger, leave_log, lost_lines, reopen_log
from durably.telemetry.relay import LogRelay
from durably.telemetry.stdlib import (
    ForwardingHandler,
    StreamToLog,
    forward_standard_logging,
    forward_stdout,
)

__all__ = [
    "Form",
    "ForwardingHandler",
    "LogRelay",
    "StreamToLog",
    "configure_log",
    "ensure_log",
    "forward_standard_logging",
    "forward_stdout",
    "get_logger",
    "leave_log",
    "lost_lines",
    "reopen_log",
]
