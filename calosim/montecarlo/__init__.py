"""calosim.montecarlo."""
