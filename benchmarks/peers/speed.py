"""How long trained peers take for a response, on an otherwise idle machine."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

import numpy as np
import torch

from calosim.io import write_json

from .protocol import Peer
from .settings import Study, Try

__all__ = ["BATCHES", "SPEED", "THREADS", "measure_speeds"]

BATCHES, THREADS = (1, 256), (1, 2)
#: The file of the results, in the study's folder.
SPEED = "speed.json"
#: Peers take turns that often: a machine's speed drifts by more than models differ.
TURNS = 3


def milliseconds(peer: Peer, arrays: tuple[np.ndarray, np.ndarray, np.ndarray], batch: int) -> float:
    """Milliseconds per response: the median of half a second's calls, without the first if there are several.

    Args:
        peer: The peer.
        arrays: Features, PDG codes and photon sums.
        batch: Responses of a call.
    """
    some = [np.resize(a, (batch, *a.shape[1:])) if len(a) < batch else a[:batch] for a in arrays]
    times: list[float] = []
    while not times or (sum(times) < 0.5 and len(times) < 50):
        begin = time.perf_counter()
        peer.generate(some[0], some[1], some[2], len(times))
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times[1:] or times) / batch


def measure_speeds(study: Study) -> None:
    """Measures the chosen try of each peer with the longest training that has weights, and writes ``speed.json``."""
    data = study.datamodule()
    showers = data.showers("test", np.arange(min(256, len(data.rows("test")))))
    arrays = (showers.particles, showers.pdg, showers.photon_sum)
    peers: dict[str, Peer] = {}
    for name, entry in study.peers.items():
        for minutes in sorted(study.minutes, reverse=True):
            tried = study.chosen(name, minutes)
            if tried is not None and tried.result and (tried.folder / Try.WEIGHTS).exists():
                peers[name] = entry.build(data.detector, tried.lr)
                peers[name].load(tried.folder / Try.WEIGHTS)
                break
    found: dict[str, dict[str, list[float]]] = {name: {} for name in peers}
    before = torch.get_num_threads()
    try:
        for threads in THREADS:
            torch.set_num_threads(threads)
            for _ in range(TURNS):
                for name, peer in peers.items():
                    for batch in BATCHES:
                        times = found[name].setdefault(f"batch {batch}, {threads} threads", [])
                        times.append(milliseconds(peer, arrays, batch))
    finally:
        torch.set_num_threads(before)
    medians = {name: {key: statistics.median(v) for key, v in times.items()} for name, times in found.items()}
    write_json(Path(study.out) / SPEED, {"milliseconds": medians, "torch": torch.__version__})
    for name, times in medians.items():
        print(name, ", ".join(f"{key}: {value:.3f} ms" for key, value in times.items()))
