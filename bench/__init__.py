"""Benchmarks: each prints ratios from one run, medians of interleaved rounds."""
