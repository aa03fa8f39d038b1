"""Benchmarks: `python -m tests.benchmarks NAME`; see docs/benchmarks.md. They print figures and gate nothing."""
