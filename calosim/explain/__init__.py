"""Explanations: which features decide the photon sum and the shower's center, and how well that can be known."""
