"""Included files: merged, overridden, and refused where they cannot be."""

from __future__ import annotations

import pytest

from calosim.studies.plan import read_entries


def test_the_including_file_wins_and_mappings_are_merged(tmp_path):
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "a.yaml").write_text("common: {x: 1, y: [1, 2]}\nevaluate: {runs: 5, floor: f}\n")
    (tmp_path / "common" / "b.yaml").write_text("include: [c.yaml]\ncommon: {x: 2}\n")
    (tmp_path / "common" / "c.yaml").write_text("simulate: {z: {seed: 1}}\n")
    plan = tmp_path / "plan.yaml"
    plan.write_text("include: [common/a.yaml, common/b.yaml]\ncommon: {y: [3]}\nevaluate: {floor: null, rows: 4}\n")
    assert read_entries(plan) == {
        "common": {"x": 2, "y": [3]},
        "evaluate": {"runs": 5, "floor": None, "rows": 4},
        "simulate": {"z": {"seed": 1}},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: [plan.yaml]", r"plan\.yaml: includes itself, by way of \S+plan\.yaml$"),
        ("include: [other.yaml]", r"plan\.yaml: includes itself, by way of \S+plan\.yaml and \S+other\.yaml$"),
        (
            "include: [missing.yaml]",
            r"missing\.yaml: cannot be read \(No such file or directory\) \(included by \S+plan\.yaml\)",
        ),
        ("include: other.yaml", "expected `include` to be a list of files, got 'other.yaml'"),
        ("[1, 2]", "expected entries such as `trainings:`, got list"),
        ("{", "expected YAML"),
    ],
)
def test_a_bad_include_is_refused_in_one_line(tmp_path, text, message):
    (tmp_path / "plan.yaml").write_text(text)
    (tmp_path / "other.yaml").write_text("include: [plan.yaml]")
    with pytest.raises(ValueError, match=message) as error:
        read_entries(tmp_path / "plan.yaml")
    assert "\n" not in str(error.value)


def test_the_same_file_may_be_included_twice_in_different_ways(tmp_path):
    """A diamond is no cycle."""
    for name, text in {"a": "include: [c.yaml]", "b": "include: [c.yaml]", "c": "x: 1"}.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "plan.yaml").write_text("include: [a.yaml, b.yaml]")
    assert read_entries(tmp_path / "plan.yaml") == {"x": 1}
