"""The application that the supervisors under measurement load, configured by the environment."""

from tests.benchmarks.jobs import make_app

durably = make_app()
