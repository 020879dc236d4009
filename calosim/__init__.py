"""calosim: fast simulation of ALICE forward calorimeters with normalizing flows."""

__version__ = "0.1.0"
