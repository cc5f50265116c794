"""Benchmarks: `python -m tests.bench`; what they measure is in docs/benchmarks.md."""
