"""One try, in a process of its own: trains a peer, scores it on validation rows and lets it answer the test rows."""

from __future__ import annotations

import os
import time

import numpy as np
import torch

from calosim.evaluation.selection import select_rows
from calosim.io import write_json, write_npz
from calosim.metrics.wasserstein import wasserstein
from calosim.options import Protocol
from calosim.runs import git_hash

from .settings import Study, Try

__all__ = ["train_try"]

#: Counts in 16 bits, where they fit, are half of what 32 take.
NARROW = np.iinfo(np.uint16).max


def train_try(study: Study, tried: Try) -> None:
    """Trains and answers; the file ``try.json`` comes last and says that all is there.

    Args:
        study: The comparison.
        tried: Which try.
    """
    torch.set_num_threads(study.threads)
    data = study.datamodule()
    entry = study.peers[tried.name]
    peer = entry.build(data.detector, tried.lr)
    train = data.showers("train")
    val = select_rows(data, Protocol(split="val", rows=study.validation_rows)).showers
    rows = study.judged(data)
    begin = time.process_time()
    steps = peer.fit(train, tried.minutes, study.seed)
    seconds = (time.process_time() - begin) / study.threads
    print(f"{steps} steps in {seconds:.1f} s", flush=True)
    tried.folder.mkdir(parents=True, exist_ok=True)
    peer.save(tried.folder / Try.WEIGHTS)
    torch.set_num_threads(study.answer_threads or study.threads)
    answer = peer.generate(val.particles, val.pdg, val.photon_sum, study.seed)
    val_ws = float(wasserstein(val.geometry.channels(val.images), val.geometry.channels(answer)).mean())
    validation = {"val_ws": val_ws, "val_nll": _mean(peer.nll(val)), "nll_unit": peer.nll_unit}
    # Others may wait for this to know their learning rate.
    write_json(tried.folder / Try.VALIDATION, validation)
    print(f"validation: {validation}", flush=True)
    nll = peer.nll(rows.showers)
    test = rows.showers
    begin = time.process_time()
    images, own = peer.both(test.particles, test.pdg, test.photon_sum, study.seed)
    generation = (time.process_time() - begin) / study.threads
    arrays = {"images": images.astype(np.uint16 if images.max() <= NARROW else np.uint32)}
    if own is not None:
        arrays["own_channels"] = data.detector.channels(own).astype(np.int64)
    if nll is not None:
        arrays["nll"] = nll.astype(np.float32)
    write_npz(tried.folder / Try.IMAGES, **arrays)
    (tried.folder / Try.UNFINISHED).unlink(missing_ok=True)
    write_json(
        tried.folder / Try.RESULT,
        {
            **{"name": tried.name, "title": entry.title, "minutes": tried.minutes, "lr": tried.lr, "seed": study.seed},
            **{"seconds": seconds, "steps": steps, "parameters": peer.parameters, "threads": study.threads},
            **{**validation, "test_nll": _mean(nll)},
            **{"data_hash": data.data_hash, "rows": len(rows), "positions": int(rows.positions.sum())},
            **{"seconds_to_answer": generation, "torch": torch.__version__, "cores": os.cpu_count()},
            **{"git": git_hash()},
        },
    )


def _mean(nll: np.ndarray | None) -> float | None:
    return None if nll is None else float(nll.mean())
