"""Plans in temporary folders, and a finished study of models that only pretend to be trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from calosim.cli.train import resolved
from calosim.data.cache import content_hash
from calosim.evaluation.samples import measure, packed, sample
from calosim.evaluation.stored import Evaluation
from calosim.io import write_json, write_npz
from calosim.runs import FORMAT, Run
from calosim.studies.plan import Study
from calosim.studies.run import files_of


@pytest.fixture
def make_plan(tmp_path):
    """Writes a plan: ``make_plan(name="plan", **entries)`` -> its path; by default without trainings."""

    def make(name="plan", **entries):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"out": str(tmp_path / "out"), "trainings": {}} | entries, sort_keys=False))
        return path

    return make


@pytest.fixture
def pretend():
    """Makes a training's run folder look finished, or begun: ``pretend(step, finished=True, **changed settings)``."""

    def make(step, finished=True, **changed):
        run, settings = Run(step.folder), {**step.settings, **changed}
        run.folder.mkdir(parents=True)
        (run / Run.CONFIG).write_text(yaml.safe_dump(settings))
        files = files_of(settings)
        data = {"data_hash": content_hash(files) if all(Path(file).is_file() for file in files) else "x"}
        write_json(run / Run.RECORD, {"format": FORMAT, "data": data})
        if finished:
            write_json(run / Run.TRAINING, {"seconds": 60.0, "samples": 1000, "steps": 10})

    return make


@pytest.fixture(scope="session")
def answered(showers):
    """Samples and metrics of two candidates, and the arrays of their test rows: a good one, and one too bright for neutrons."""
    inputs, geometry = showers.primary_ids, showers.geometry
    rng = np.random.default_rng(0)
    order = np.lexsort((rng.random(len(inputs)), inputs))
    shuffled = np.empty(len(inputs), dtype=int)
    shuffled[order] = np.roll(order, 1)  # another response, mostly of the same input

    def good(run, n):
        return showers.images[shuffled[n]]

    def bright(run, n):
        return good(run, n) * np.where(showers.pdg[n] == 2112, 2, 1)[:, None, None]

    reference = geometry.channels(showers.images)
    arrays = {"rows": np.arange(len(showers)), "pdg": showers.pdg, "primary_ids": inputs, "reference": reference}
    arrays["natural"] = np.ones(len(showers), dtype=bool)
    found = {}
    for candidate in (good, bright):
        samples = sample(showers, {"shape": candidate}, runs=2, responses=1, quiet=True)
        images = {n: measure(a.runs(reference, showers.pdg, inputs, geometry)) for n, a in samples.items()}
        found[candidate.__name__] = images, packed(samples) | arrays
    return found


@pytest.fixture(scope="session")
def photon_settings():
    """All settings of a training of conf/photons.yaml."""
    return resolved(["-c", "conf/photons.yaml"])


@pytest.fixture
def evaluated(tmp_path, answered, make_plan, pretend, photon_settings):
    """A finished study of three models: a good one twice under two names, and one that is too bright for neutrons."""
    config = {"config": ["conf/photons.yaml"]}
    trainings = {"good": config, "same": config, "bright": {**config, "title": "too bright"}}
    table = {
        "particles": ["all", "gamma", "neutron", "sigma_plus"],
        "modes": ["shape"],
        "reference": "good",
        "metrics": ["ws", "mae_cond", "center"],
    }
    common = {"data.files": [str(tmp_path / "zn.root")]}
    path = make_plan(trainings=trainings, common=common, evaluate={"runs": 2}, table=table)
    facts = {"primaries": 65, "responses": 1, "runs": 2, "data": {"data_hash": "x", "detector": "zn"}}
    facts["requantization"] = {"0": 3, "2112": 1}
    for step in Study(path).steps.values():
        if step.subcommand == "fit":
            vars(step)["settings"] = photon_settings  # spares the time; where and on what it is trained is no setting
            pretend(step)
            continue
        images, arrays = answered["bright" if step.label == "bright" else "good"]
        write_npz(step.folder / Evaluation.SAMPLES, **arrays)
        record = {"arguments": dict(step.options), "images": images, "rows": len(arrays["rows"]), **facts}
        write_json(step.result, record)
    return path
