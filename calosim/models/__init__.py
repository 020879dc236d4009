"""calosim.models."""
