"""The ``calosim`` command: its parsers, the trainings and the tools."""
