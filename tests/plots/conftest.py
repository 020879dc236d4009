"""Pictures as figures, to be asked what is on them."""

from __future__ import annotations

import pytest

import calosim.plots.models
import calosim.plots.responses


@pytest.fixture
def figure(monkeypatch, tmp_path):
    """Draws with a function and returns the figure, after it was saved: ``figure(draw, *arguments)``."""

    def draw(function, *arguments):
        kept = []
        module = getattr(calosim.plots, function.__module__.rpartition(".")[2])
        save = module.save
        monkeypatch.setattr(module, "save", lambda found, path: kept.append(found) or save(found, path))
        path = tmp_path / "picture.png"
        assert function(*arguments, path) == path
        assert path.stat().st_size > 1000
        return kept.pop()

    return draw
