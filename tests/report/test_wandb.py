"""The report as an offline run of Weights & Biases."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys

import pytest


def test_the_same_goes_to_wandb(folders, tmp_path):
    pytest.importorskip("wandb")
    # Without the answers, whose pictures take a while to draw.
    shutil.copytree(folders / "judged", tmp_path / "judged", ignore=shutil.ignore_patterns("*.npz"))
    out = tmp_path / "report.html"
    runs = [
        str(folder) for folder in (tmp_path / "judged", folders / "teacher", folders / "study", folders / "explained")
    ]
    words = ["report", "--runs", json.dumps(runs), "--out", str(out), "--wandb", "tests", "--quiet", "true"]
    # A process of its own: what earlier tests told W&B's service would be in this run too.
    silent = os.environ | {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    subprocess.run([sys.executable, "-m", "calosim", *words], env=silent, check=True, capture_output=True)
    run = next((tmp_path / "wandb").glob("offline-run-*"))
    records = read_back(next(run.glob("*.wandb")))
    assert any("judged" in key and key.endswith("ws_all") for key in records["summary"])
    assert any("study/comparison/" in key for key in records["summary"])
    assert any(name.endswith(".png") for name in map(str, (run / "files" / "media").rglob("*")))
    assert any("teacher" in key for key in records["config"])


def read_back(path):
    """Keys of the configuration and summary in an offline run's file: protocol buffers in a LevelDB log."""
    from wandb.proto import wandb_internal_pb2

    raw, place, block = path.read_bytes(), 7, 32768
    found, parts = {"config": set(), "summary": set()}, b""
    while place + 7 <= len(raw):
        if block - place % block < 7:  # too short for a header: padding
            place += block - place % block
        _, length, kind = struct.unpack_from("<IHB", raw, place)
        parts += raw[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            found["config"] |= {u.key for u in [*record.run.config.update, *record.config.update]}
            found["summary"] |= {u.key or "/".join(u.nested_key) for u in record.summary.update}
            found["summary"] |= {i.key or "/".join(i.nested_key) for i in record.history.item}
    return found
