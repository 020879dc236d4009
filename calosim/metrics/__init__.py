"""How well generated responses agree with the Monte Carlo: a registry of metrics, the paired bootstrap, the C2ST."""
