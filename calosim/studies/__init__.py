"""calosim.studies."""
