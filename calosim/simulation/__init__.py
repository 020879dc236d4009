"""calosim.simulation."""
