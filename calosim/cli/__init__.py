"""The ``calosim`` command: the training verbs and the tools."""
