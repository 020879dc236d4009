"""What the metrics are is told for all that tables show, in the same words everywhere."""

from __future__ import annotations

from pathlib import Path

from calosim.evaluation.definitions import DEFINITIONS, definition_table
from calosim.evaluation.tables import METRICS, PRINTED

README = Path(__file__).resolve().parents[2] / "README.md"


def test_all_that_is_printed_is_told():
    assert [heading for _, heading, _ in METRICS[:PRINTED]] == [d.metric for d in DEFINITIONS[:PRINTED]]
    assert all(all(definition) for definition in DEFINITIONS)


def test_the_readme_tells_the_same():
    assert definition_table() in README.read_text(encoding="utf-8")
