"""Benchmarks: each prints a table and, with --json, keeps its numbers (benchmarks/README.md)."""
