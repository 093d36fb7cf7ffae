"""Benchmarks with known truth: copies planted among non-members."""
