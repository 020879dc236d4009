"""Models of the kinds that the field uses, trained on the same showers for the same time: ``python -m benchmarks.peers``."""
