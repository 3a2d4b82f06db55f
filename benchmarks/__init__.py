"""Measurements that the documentation quotes; see docs/benchmarks.md."""
