"""Measurements beside peers; run as modules, for instance ``python -m benchmarks.flows``."""
