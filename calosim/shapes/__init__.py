"""calosim.shapes."""
