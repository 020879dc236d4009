"""Trained models as files for other people's programs: one graph from the primary to the image."""
