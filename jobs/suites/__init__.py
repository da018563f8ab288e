"""Suites of ``jobs/benchmark.py``, one module each with ``run(settings, stop) -> figures``."""
