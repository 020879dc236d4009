"""calosim.evaluation."""
