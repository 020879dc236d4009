"""calosim.metrics."""
