"""What parsers say becomes one line that names the option, its type and what was given."""

from __future__ import annotations

import pytest
from calosim.cli.errors import one_line

from calosim.cli.train import resolved

TEACHER = ["-c", "conf/teacher.yaml"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["-c", "conf/photons.yaml", "--model.hidden", "abc"], "--model.hidden: expected tuple, got abc"),
        ([*TEACHER, "--model.optimizer.lrr", "3"], "--model.optimizer: has no option lrr"),
        ([*TEACHER, "--model.optimizer", "Adamm"], "--model.optimizer: expected the name of a class, got Adamm"),
        ([*TEACHER, "--data.fractions", "[1,2]"], "--data.fractions: expected tuple with 3 elements, got [1, 2]"),
        ([*TEACHER, "--trainer.callbacks.rows", "abc"], "--trainer.callbacks.rows: expected int, got abc"),
        ([*TEACHER, "--model.representation.hidden", "x"], "--model.representation.hidden: expected int, got x"),
        ([*TEACHER, "--trainer.max_epochs", "x"], "--trainer.max_epochs: expected int, got x"),
    ],
)
def test_the_innermost_reason_is_told(words, line):
    with pytest.raises(ValueError) as caught:
        resolved(words)
    assert str(caught.value) == line


def test_other_messages_are_only_joined():
    assert one_line("a file: is\n  damaged ") == "a file: is damaged"
