"""The written comparison: Markdown, CSV and pictures say the same."""

from __future__ import annotations

import itertools

import pytest

from calosim.io import read_csv
from calosim.studies.compare import compare


@pytest.fixture
def written(judged, tmp_path, capsys):
    compare(str(judged), resamples=2000, quiet=True)
    return tmp_path / "out"


def test_tables_show_who_is_better(written):
    text = (written / "comparison.md").read_text()
    line = next(line for line in text.splitlines() if line.startswith("| too bright"))
    assert "**" not in line.split("|")[4]
    assert "**" in next(line for line in text.splitlines() if line.startswith("| good")).split("|")[4]
    assert "p 0.001, 0 %" in text  # what 2,000 resamples can tell
    assert "| too bright | 1 | 1,000 | 1,000 | 1.0 |" in text
    # Every table stands alone between empty lines.
    lines = text.splitlines()
    for before, line in itertools.pairwise(lines):
        assert not (line.startswith("|") and before and not before.startswith("|"))
    cells = {(r["metric"], r["particle"], r["model"]): r for r in read_csv(written / "comparison.csv")}
    worse = cells["ws", "neutron", "bright"]
    assert (float(worse["versus_p_value"]), float(worse["versus_share"])) == (2 / 2000, 0)
    assert float(worse["low"]) < float(worse["high"])
    assert cells["ws", "neutron", "good"]["versus_p_value"] == ""
    assert (written / "comparison-shape.png").stat().st_size > 10_000


def test_few_primaries_are_said(judged, tmp_path, monkeypatch, capsys):
    for module in ("cells", "tables"):
        monkeypatch.setattr(f"calosim.studies.{module}.LEAST_PRIMARIES", 1000)
    compare(str(judged), resamples=100, quiet=True)
    text = (tmp_path / "out" / "comparison.md").read_text()
    assert "With fewer than 1000 there are no intervals" in text
    assert "## Winners" not in text
    assert "Difference from" not in text
