"""The folder of an evaluation: read when asked for, once, with NaN where JSON has null."""

from __future__ import annotations

import numpy as np
import pytest

from calosim.evaluation.stored import TITLES, Evaluation
from calosim.io import write_json, write_npz


def test_a_folder_is_read_once(tmp_path):
    evaluation = Evaluation(tmp_path)
    assert not evaluation.exists
    with pytest.raises(ValueError, match=r"evaluation\.json: cannot be read"):
        _ = evaluation.record
    images = {"shape": {"mean": {"ws_all": 1.0, "delta_all": None}, "std": {"ws_all": 0.1}, "runs": []}}
    write_json(tmp_path / Evaluation.RECORD, {"images": images, "requantization": {"0": 3, "2112": 1}})
    write_npz(tmp_path / Evaluation.SAMPLES, rows=np.arange(3))
    assert evaluation.exists
    assert evaluation.metrics["shape"]["mean"]["ws_all"] == 1
    assert np.isnan(evaluation.metrics["shape"]["mean"]["delta_all"])
    assert evaluation.metrics["monte_carlo"] == {"mean": {}}
    assert [evaluation.requantization(particle) for particle in ("all", "neutron", "gamma")] == [3, 1, 3]
    assert evaluation.names == {"rows"}
    first = evaluation["rows"]
    (tmp_path / Evaluation.SAMPLES).unlink()
    assert evaluation["rows"] is first


def test_exact_counts_have_no_requantization(tmp_path):
    write_json(tmp_path / Evaluation.RECORD, {"requantization": {}})
    assert Evaluation(tmp_path).requantization("all") is None


def test_what_version_0_2_wrote_has_todays_names(tmp_path):
    images = {title: {"mean": {"ws_all": 1.0}, "std": {"ws_all": 0.1}} for title in TITLES.values()}
    test = {"inputs": 5, "candidates": {TITLES["chain"]: {"verdicts": {}}}, "controls": {"mc": {}}}
    arguments = {"classifier": True, "inputs": "kept"}
    old = {"images": images, "inputs": 7, "classifier": test, "arguments": arguments}
    write_json(tmp_path / Evaluation.RECORD, old)
    write_npz(tmp_path / "answers.npz", inputs=np.arange(3), shape_channels=np.zeros(2))
    found = Evaluation(tmp_path)
    assert set(found.metrics) == {*TITLES, "monte_carlo"}
    assert found.record["primaries"] == 7
    assert found.record["c2st"] == {"primaries": 5, "candidates": {"chain": {"verdicts": {}}}, "controls": {"mc": {}}}
    assert found.record["arguments"] == arguments
    assert found.names == {"primary_ids", "shape_channels"}
    assert np.array_equal(found["primary_ids"], np.arange(3))
