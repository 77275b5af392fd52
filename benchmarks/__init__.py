"""Benchmarks: named workloads, providers, and `python -m benchmarks.run`."""
