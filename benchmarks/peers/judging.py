"""Judges the answers of tries as ``calosim evaluate`` does: metrics of channels, and the classifier test with its controls."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch

from calosim.data.datamodule import RootDataModule, describe
from calosim.evaluation.definitions import TITLES
from calosim.evaluation.references import Floors, Reference
from calosim.evaluation.samples import Answers, Candidate, ask, first_answers, measure, packed_answers
from calosim.evaluation.stored import Evaluation
from calosim.evaluation.tests import judge_by_classifier
from calosim.io import read_npz, write_json, write_npz
from calosim.metrics.wasserstein import wasserstein
from calosim.options import ClassifierOptions, FloorOptions

from .settings import Study, Try

__all__ = ["REFERENCES", "judge", "judged_tries"]

#: Folder of floor, trivial model and controls beside the tries.
REFERENCES = "references"


def judged_tries(study: Study) -> dict[tuple[str, float], Try]:
    """The chosen try of each peer and training time that is finished."""
    found = {(name, m): study.chosen(name, m) for m in study.minutes for name in study.peers}
    return {key: tried for key, tried in found.items() if tried is not None and tried.result is not None}


def judge(study: Study) -> None:
    """Judges all chosen tries and the references that are not judged yet, several at once."""
    folders = {Path(study.out) / REFERENCES: None, **{t.folder: t for t in judged_tries(study).values()}}
    left = {folder: tried for folder, tried in folders.items() if not Evaluation(folder).exists}
    study.datamodule()
    os.environ["OMP_NUM_THREADS"] = str(study.threads)  # before the children import anything
    work, jobs = partial(_judge_one, study), min(study.jobs, len(left))
    if jobs < 2:
        for item in left.items():
            print(f"{work(item)}: judged", flush=True)
        return
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        for folder in pool.map(work, left.items()):
            print(f"{folder}: judged", flush=True)


def _judge_one(study: Study, item: tuple[Path, Try | None]) -> Path:
    torch.set_num_threads(study.threads)
    folder, tried = item
    if tried is None:
        _judge_references(study, folder)
    else:
        _judge_try(study, tried)
    return folder


def _judge_try(study: Study, tried: Try) -> None:
    """One try's images, and its channels with sums of its own where it has them.

    Raises:
        ValueError: If the try answered other rows than those that are judged.
    """
    data = study.datamodule()
    rows, result = study.judged(data), tried.result or {}
    expected = {"data_hash": data.data_hash, "rows": len(rows), "positions": int(rows.positions.sum())}
    if any(result[key] != value for key, value in expected.items()):
        raise ValueError(f"{tried.folder}: expected answers to {expected}, got { {k: result[k] for k in expected} }")
    arrays = read_npz(tried.folder / Try.IMAGES)
    images = arrays["images"].astype(np.int64)
    more = {}
    if "own_channels" in arrays:
        reference = data.detector.channels(rows.showers.images)
        more["ws_own_sums"] = float(wasserstein(reference, arrays["own_channels"]).mean())
    _judge(study, data, tried.folder, {"shape": lambda run, numbers: images[numbers]}, {}, more)


def _judge_references(study: Study, folder: Path) -> None:
    """Floors and trivial model, and the controls of the classifier test."""
    data = study.datamodule()
    rows, floors = study.judged(data), Floors.read(FloorOptions(study.floor, study.shape_floor), data, "test")
    references = floors.references(data, "test", rows)

    def drawn(name: str) -> Candidate:
        return lambda run, numbers: references[name].answers(numbers, study.seed + run, numbers)

    lacking = {"floor_rows_without_their_input": references["floor"].lacking}
    _judge(study, data, folder, {name: drawn(name) for name in references}, floors.simulated(rows), lacking)


def _judge(
    study: Study,
    data: RootDataModule,
    folder: Path,
    candidates: dict[str, Candidate],
    floors: dict[str, Reference],
    more: dict,
) -> None:
    """Writes an evaluation of candidates, by short name, in the form of ``calosim evaluate``."""
    rows = study.judged(data)
    test, detector = rows.showers, data.detector
    titled = {TITLES[name]: candidate for name, candidate in candidates.items()}
    itself = ask(test, {"": lambda run, n: test.images[n]}, runs=1, responses=1, quiet=True)[""]
    answers = ask(test, titled, runs=1, responses=1, quiet=True)
    reference = itself.channels[0, :, 0]

    def measured(answer: Answers) -> dict:
        return measure(answer, reference, test.pdg, rows.inputs, detector)

    options = ClassifierOptions(classifier_rows=len(rows), classifier_seeds=study.classifier_seeds)
    # The floors are controls of the classifier test, and no candidates.
    models = {TITLES[name]: candidate for name, candidate in candidates.items() if "floor" not in name}
    generated = {
        title: first_answers(candidate, len(rows), 1, title, quiet=True) for title, candidate in models.items()
    }
    write_npz(
        folder / Evaluation.ANSWERS,
        **{"rows": rows.positions, "pdg": test.pdg, "inputs": rows.inputs, "natural": rows.natural},
        **{"reference": reference, **packed_answers(answers)},
    )
    write_json(
        folder / Evaluation.RECORD,
        {
            **{"rows": len(rows), "inputs": len(np.unique(rows.inputs)), "data": describe(data), "seed": study.seed},
            "images": {title: measured(answer) for title, answer in answers.items()},
            "monte_carlo": measured(itself)["mean"],
            "classifier": judge_by_classifier(generated, rows, floors, options, study.seed, quiet=True),
            **more,
        },
    )
