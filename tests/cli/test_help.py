"""Help names every option with what its docstring says, its type and its default."""

from __future__ import annotations

import re

import pytest
from calosim.cli.help import help_text
from calosim.cli.words import MODELS, TOOLS, tool_options, training_options

from calosim.__main__ import TRAINING


@pytest.mark.parametrize("verb", TOOLS)
def test_a_tool_explains_all_its_options(verb):
    text = help_text(verb, "")
    for name in set(tool_options(verb)) - {"config"}:
        said = re.search(rf"^  --{name}\s+(.*(?:\n {{24}}.*)*)", text, re.MULTILINE)
        assert said, name
        assert len(said[1]) > 15
        assert re.search(r"(required|by\s+default)\)$", said[1]), said[1]
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("verb", TRAINING)
def test_a_training_verb_explains_data_and_trainer(verb):
    text = help_text(verb, "train a model")
    known = training_options(verb)
    names = [f"{group}.{name}" for group in ("data", "trainer") for name in known[group]]
    assert {"data.files", "trainer.max_epochs"} <= set(names)
    assert all(f"  --{name} " in text or f"  --{name}\n" in text for name in names)
    assert "  --ckpt_path " in text
    assert all(re.search(rf"^  --model\s(?:.*\n {{24}})*.*\b{model}\b", text, re.MULTILINE) for model in MODELS)


def test_defaults_are_those_of_the_source():
    text = " ".join(help_text("simulate", "").split())
    assert "nearer. 0 keeps all. (int, 0 by default)" in text
    assert "zn, zp or focal_h. (str, `zn` by default)" in text
    assert "(test|val | null, null by default)" in text
