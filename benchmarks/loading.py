"""What loading costs: one indexing operation a batch, beside a per-item Dataset, as a share of a training step.

Run it with ``python -m benchmarks.loading``. The per-item Dataset is what the reference recipe does: it picks one row at a
time, converts it to float, adds noise, normalizes and takes the logit on the CPU, and the loader collates the rows.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from calosim import rng
from calosim.data import write
from calosim.data.datamodule import RootDataModule
from calosim.flows import FlowConfig
from calosim.io import markdown_table
from calosim.models.base import fit_sample
from calosim.models.teacher import Teacher
from calosim.montecarlo import simulate
from calosim.representations import PixelConfig

SIZES = {"demo": FlowConfig(transforms=2, hidden=(128, 128), bins=4), "reference": FlowConfig()}


class PerItem(Dataset):
    """The reference recipe's way, on the same memory-mapped arrays."""

    def __init__(self, data: RootDataModule):
        self.rows, self.arrays = data.rows("train"), data.arrays

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        row = self.rows[i]
        image = torch.from_numpy(self.arrays["images"][row].astype(np.float32)).flatten()
        total = image.sum()
        image = image + 0.5 * torch.rand_like(image)
        shape = 1e-6 + (1 - 2e-6) * image / image.sum()
        particle = torch.from_numpy(self.arrays["particles"][row].astype(np.float32))
        return torch.log(shape / (1 - shape)), torch.cat([particle, total[None]])


def median_ms(step: Callable[[], object], repeats: int) -> float:
    """Median duration of a call in milliseconds."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - begin))
    return statistics.median(times)


def forever(loader: DataLoader) -> Iterator:
    while True:
        yield from loader


def training_step(data: RootDataModule, flow: FlowConfig, batch: dict[str, torch.Tensor]) -> Callable[[], None]:
    """One optimizer step of a teacher on a batch."""
    teacher = Teacher("zn", flow, PixelConfig())
    rows, particles, images = fit_sample(data)
    teacher.features.fit(particles, images.flatten(1).sum(1))
    teacher.representation.fit(images, rng.row_keys(rows, rng.FIT_STREAM))
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        (-teacher.log_likelihood(batch, 0).mean()).backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    options = parser.parse_args()
    table = []
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "zn.root"
        write(file, simulate(200, 20, "zn", 1, workers=2))
        data = RootDataModule(str(file), batch_size=options.batch_size)
        data.setup()
        ours = forever(data.train_dataloader())
        theirs = forever(DataLoader(PerItem(data), batch_size=options.batch_size, shuffle=True))
        for size in options.sizes:
            step = training_step(data, SIZES[size], next(ours))
            step()  # the first step allocates
            rounds = [
                (median_ms(step, 1), median_ms(lambda: next(ours), 20), median_ms(lambda: next(theirs), 3))
                for _ in range(options.repeats)
            ]
            training, own, item = (statistics.median(column) for column in zip(*rounds, strict=True))
            row = [size, f"{training:.1f}", f"{own:.3f}", f"{100 * own / training:.2f} %", f"{item:.1f}"]
            table.append([*row, f"{100 * item / training:.1f} %", f"{item / own:.0f}"])
    print(f"batch {options.batch_size}, {torch.get_num_threads()} threads, medians of {options.repeats}, interleaved\n")
    header = ["model", "training step, ms", "loading, ms", "share", "per-item Dataset, ms", "share", "ratio"]
    print(markdown_table(header, table))


if __name__ == "__main__":
    main()
