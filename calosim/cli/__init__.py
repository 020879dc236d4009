"""calosim.cli."""
