"""One try, in a process of its own: trains a peer, scores it on validation rows and lets it answer the test rows."""

from __future__ import annotations

import os
import time

import numpy as np
import torch

from calosim.evaluation.protocol import Protocol
from calosim.evaluation.selection import select_rows
from calosim.files import write_json, write_npz
from calosim.metrics.wasserstein import wasserstein
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
    begin = time.perf_counter()
    steps = peer.fit(train, tried.minutes, study.seed)
    seconds = time.perf_counter() - begin
    print(f"{steps} steps in {seconds:.1f} s", flush=True)
    tried.folder.mkdir(parents=True, exist_ok=True)
    peer.save(tried.folder / Try.WEIGHTS)
    answer = peer.generate(val.particles, val.pdg, val.photon_sum, study.seed)
    val_ws = float(wasserstein(val.geometry.channels(val.images), val.geometry.channels(answer)).mean())
    nlls = {name: peer.nll(showers) for name, showers in (("val", val), ("test", rows.showers))}
    means = {f"{name}_nll": None if nll is None else float(nll.mean()) for name, nll in nlls.items()}
    test = rows.showers
    begin = time.perf_counter()
    images = peer.generate(test.particles, test.pdg, test.photon_sum, study.seed)
    generation = time.perf_counter() - begin
    arrays = {"images": images.astype(np.uint16 if images.max() <= NARROW else np.uint32)}
    if peer.own_sums:
        own = peer.own(test.particles, test.pdg, test.photon_sum, study.seed)
        arrays["own_channels"] = data.detector.channels(own).astype(np.int64)
    if nlls["test"] is not None:
        arrays["nll"] = nlls["test"].astype(np.float32)
    write_npz(tried.folder / Try.IMAGES, **arrays)
    (tried.folder / Try.UNFINISHED).unlink(missing_ok=True)
    write_json(
        tried.folder / Try.RESULT,
        {
            **{"name": tried.name, "title": entry.title, "minutes": tried.minutes, "lr": tried.lr, "seed": study.seed},
            **{"seconds": seconds, "steps": steps, "parameters": peer.parameters, "threads": study.threads},
            **{"val_ws": val_ws, **means, "nll_unit": peer.nll_unit},
            **{"data_hash": data.data_hash, "rows": len(rows), "positions": int(rows.positions.sum())},
            **{"seconds_to_answer": generation, "torch": torch.__version__, "cores": os.cpu_count()},
            **{"git": git_hash()},
        },
    )
    print(f"validation: WS {val_ws:.2f}, NLL {means['val_nll']}", flush=True)
