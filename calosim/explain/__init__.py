"""calosim.explain."""
