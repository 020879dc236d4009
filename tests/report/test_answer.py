"""The opening says what the classifier test says: it can tell, it cannot, or nobody asked it."""

from __future__ import annotations

import shutil

import pytest

from calosim.evaluation.definitions import TITLES
from calosim.evaluation.stored import Evaluation
from calosim.io import read_json, write_json
from calosim.report.sections import HEADER, answer, verdict


def judged(auc, low, controls=None):
    """A classifier test of a candidate whose judges have these areas and lower ends."""
    verdicts = {
        name: {"auc": a, "error": 0.01, "low": b} for name, a, b in zip(("images", "features"), auc, low, strict=True)
    }
    damaged = {} if controls is None else {"damaged_10": {"verdicts": {"features": {"low": controls}}}}
    return {"candidates": {"model": {"verdicts": verdicts}}, "controls": damaged}


@pytest.mark.parametrize(
    ("test", "level", "words"),
    [
        ({}, "none", "not put before a classifier"),
        ({"reason": "needs 20 primaries"}, "none", "not put before a classifier"),
        (judged((0.51, 0.52), (0.49, 0.48), 0.55), "good", "a classifier cannot tell"),
        (judged((0.51, 0.52), (0.49, 0.48)), "good", "a classifier cannot tell"),
        (judged((0.51, 0.52), (0.49, 0.48), 0.49), "none", "a classifier cannot tell, but neither"),
        # The judge that can tell decides, not the higher area of one that cannot.
        (judged((0.58, 0.62), (0.55, 0.49)), "good", "tells it in 58\u00a0% of pairs"),
        (judged((0.6, 0.79), (0.55, 0.76)), "fair", "tells it in 79\u00a0% of pairs"),
        (judged((0.98, 0.91), (0.97, 0.9)), "poor", "tells it in 98\u00a0% of pairs"),
    ],
)
def test_verdicts(test, level, words):
    found = verdict(test, "model")
    assert found.level == level
    assert words in found.words


def test_a_line_holds_the_model_against_its_own_floor(folders, tmp_path):
    shutil.copytree(folders / "judged", tmp_path / "judged")
    path = tmp_path / "judged" / Evaluation.RECORD
    record = read_json(path)
    values = {"shape": 6.0, "chain": 12.0, "floor": 8.0, "shape_floor": 3.0}
    record["images"] = {
        TITLES[name]: {"mean": {"ws_all": ws}, "std": {}, "seconds": 0.002} for name, ws in values.items()
    }
    record["classifier"] = {"candidates": {TITLES["chain"]: judged((0.7, 0.8), (0.6, 0.7))["candidates"]["model"]}}
    write_json(path, record)
    (_, (pictures,)), (name, (head, lines, _)) = answer([tmp_path / "judged"]).pieces
    assert len(pictures) == 1
    assert (name, head) == ("verdicts", HEADER)
    shape, chain = lines
    assert shape[:5] == (TITLES["shape"], "2.00", "–", "–", "2")
    assert chain[:5] == (TITLES["chain"], "1.50", "0.700 ± 0.010", "0.800 ± 0.010", "2")
    assert [line[-1].level for line in lines] == ["none", "poor"]
    # Without a floor of the same sums the ratio says that it is another one.
    del record["images"][TITLES["shape_floor"]]
    write_json(path, record)
    assert answer([tmp_path / "judged"]).pieces[1][1][1][0][1] == "0.75 (floor of other sums)"
    # Choices on validation rows, and models of photon sums alone, are no answer.
    for key, value in (("split", "val"), ("shape", None)):
        write_json(path, record | {key: value})
        assert not answer([tmp_path / "judged"]).pieces
