"""The command for given primaries: of a split's rows, with their photon sums, and what it refuses."""

from __future__ import annotations

import numpy as np

from calosim.data.datamodule import split_rows
from calosim.data.reading import read
from calosim.io import read_json
from calosim.montecarlo.simulate import primaries_of_file


def test_sums_are_those_of_the_test_rows(command, tmp_path, capfd):
    first, same = tmp_path / "first.root", tmp_path / "same.root"
    words = ["--quiet", "--workers", 1]
    assert command("simulate", "--primaries", 60, "--responses_per_primary", 6, "--out", first, *words) == 0
    words = ["--primaries", first, *words]
    given = ["--split", "test", "--match_sums", 2, "--responses_per_primary", 60, "--out", same]
    assert command("simulate", *given, "--seed", 2, *words) == 0
    assert "up to 2 each; their photon sums differ by" in capfd.readouterr().out
    showers, found = read(first), read(same)
    rows = showers.select(split_rows(showers.inputs, showers.pdg)["test"])
    assert {p.tobytes() for p in found.particles} <= {p.tobytes() for p in rows.particles}
    assert len(rows) < len(found) <= 2 * len(rows)
    settings = read_json(f"{same}.json")["settings"]
    assert (settings["match_sums"], settings["split"], settings["seed"]) == (2, "test", 2)
    assert len(primaries_of_file(str(first), "test")[1]) == len(np.unique(rows.inputs))
    # The very responses would be found again.
    (tmp_path / "x").mkdir()
    assert command("simulate", *given[:-1], tmp_path / "x" / "x.root", "--seed", 1, *words) == 2
    assert "was simulated with seed 1" in capfd.readouterr().err
    assert command("simulate", "--primaries", 5, "--match_sums", 1, "--out", tmp_path / "x" / "x.root") == 2
    assert "of the rows of a file" in capfd.readouterr().err
    assert not list((tmp_path / "x").iterdir())
