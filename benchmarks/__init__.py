"""Measurements of fastpush beside its peers; README.md explains them, `python -m benchmarks` runs them."""
