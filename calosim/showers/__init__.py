"""calosim.showers."""
