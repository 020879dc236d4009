"""The folder of an evaluation: read when asked for, once, with NaN where JSON has null."""

from __future__ import annotations

import numpy as np
import pytest

from calosim.evaluation.stored import Evaluation
from calosim.io import write_json, write_npz


def test_a_folder_is_read_once(tmp_path):
    evaluation = Evaluation(tmp_path)
    assert not evaluation.exists
    with pytest.raises(ValueError, match=r"evaluation\.json: cannot be read"):
        _ = evaluation.record
    images = {"shape": {"mean": {"ws_all": 1.0, "delta_all": None}, "std": {"ws_all": 0.1}, "runs": []}}
    write_json(tmp_path / Evaluation.RECORD, {"images": images, "requantization": {"0": 3, "2112": 1}})
    write_npz(tmp_path / Evaluation.ANSWERS, rows=np.arange(3))
    assert evaluation.exists
    assert evaluation.metrics["shape"]["mean"]["ws_all"] == 1
    assert np.isnan(evaluation.metrics["shape"]["mean"]["delta_all"])
    assert evaluation.metrics["monte_carlo"] == {"mean": {}}
    assert [evaluation.requantization(particle) for particle in ("all", "neutron", "gamma")] == [3, 1, 3]
    assert evaluation.names == {"rows"}
    first = evaluation["rows"]
    (tmp_path / Evaluation.ANSWERS).unlink()
    assert evaluation["rows"] is first


def test_exact_counts_have_no_noise_removal(tmp_path):
    write_json(tmp_path / Evaluation.RECORD, {"requantization": {}})
    assert Evaluation(tmp_path).requantization("all") is None
