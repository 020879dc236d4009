"""How good a fast simulation is: test rows, the Monte Carlo's own floor and a trivial model, metrics and tables."""
