"""The fast simulation: models that were trained, put to use."""
