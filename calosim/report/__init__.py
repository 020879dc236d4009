"""calosim.report."""
