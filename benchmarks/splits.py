r"""Speed of split coordinates: exact teacher, student, and steps of training, on a CPU or a CUDA device.

``python -m benchmarks.splits`` simulates ZN showers, trains a teacher and its student on them for a while, because cost
follows the photons and those of an untrained network are everywhere, and prints one Markdown table: medians in ms a
response with given photon sums, and ms a training step. Published for pixels, on an A100 at batch 256: 160 ms for the
masked autoregressive teacher, 0.38 ms for the inverse autoregressive student.

References:
    | Inverse Autoregressive Flows for ZDC fast simulation (Majerz et al., 2025), https://arxiv.org/abs/2512.20346
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from calosim.models.shower import ShowerModel
from calosim.models.student import Student
from calosim.models.teacher import Teacher
from calosim.montecarlo.simulate import simulate
from calosim.representations import SplitConfig

WARM_UP = 2


class Data:
    """Batches of simulated showers on a device, always other rows."""

    def __init__(self, primaries: int, device: torch.device) -> None:
        showers = simulate(primaries, 8, "zn", seed=1)
        self.particles = torch.from_numpy(showers.particles).float().to(device)
        self.images = torch.from_numpy(showers.images.astype("int32")).to(device)
        self.photon_sum = self.images.flatten(1).sum(1)

    def batch(self, size: int, number: int) -> dict[str, Tensor]:
        rows = (torch.arange(size, device=self.images.device) * 7919 + number * size) % len(self.images)
        return {"particles": self.particles[rows], "images": self.images[rows], "rows": rows}


def train(model: ShowerModel, data: Data, steps: int, rate: float) -> None:
    """A plain training, to have realistic showers."""
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=rate, fused=True)
    for n in range(steps):
        optimizer.zero_grad()
        model.loss(data.batch(128, n), n).mean().backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 50.0)
        optimizer.step()


def make(data: Data, device: torch.device, steps: int) -> tuple[Teacher, Student]:
    """A teacher and its student."""
    torch.manual_seed(0)
    teacher = Teacher("zn", representation=SplitConfig(local_share=0.5)).to(device).train()
    teacher.features.fit(data.particles, data.photon_sum)
    train(teacher, data, steps, 6e-3)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "teacher.ckpt"
        checkpoint = {"state_dict": teacher.state_dict()}
        teacher.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, path)
        student = Student(init_from=str(path), start="teacher").to(device)
    train(student, data, steps // 2, 1e-3)
    return teacher, student


def milliseconds(case: Callable[[int], object], device: torch.device, seconds: float) -> float:
    """The median of as many runs as take these seconds, at least five."""
    times: list[float] = []
    while len(times) < WARM_UP + 5 or sum(times[WARM_UP:]) < seconds:
        begin = time.perf_counter()
        case(len(times))
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begin)
    return 1e3 * statistics.median(times[WARM_UP:])


def sampling(model: ShowerModel, data: Data, size: int) -> Callable[[int], object]:
    def case(n: int) -> object:
        batch = data.batch(size, n)
        return model.generate(batch["particles"], batch["images"].flatten(1).sum(1), 0, batch["rows"])

    return case


def stepping(model: ShowerModel, data: Data, size: int, rate: float = 1e-5) -> Callable[[int], object]:
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=rate, fused=True)

    def case(n: int) -> object:
        batch = data.batch(size, n)
        loss = model.loss(batch, n).mean()
        optimizer.zero_grad()
        loss.backward()
        return optimizer.step()

    return case


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="of a CPU")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 256, 1024])
    parser.add_argument("--steps", type=int, default=300, help="of the teacher's training before")
    parser.add_argument("--primaries", type=int, default=1500)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each figure")
    parser.add_argument("--quick", action="store_true", help="to see that it runs")
    args = parser.parse_args()
    if args.quick:
        args.steps, args.primaries, args.seconds, args.batches = 4, 60, 0.0, args.batches[:2]
    device = torch.device(args.device)
    data = Data(args.primaries, device)
    teacher, student = make(data, device, args.steps)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {data.photon_sum.float().mean():.0f} photons a response\n")
    print("| figure | batch | threads | ms | ms a row |\n|---|---|---|---|---|")
    for threads in args.threads if device.type == "cpu" else ["–"]:
        if isinstance(threads, int):
            torch.set_num_threads(threads)
        cases = [
            (f"{what}, a response", model.eval(), b, sampling)
            for b in args.batches
            for what, model in (("exact teacher", teacher), ("student", student))
        ]
        cases += [
            (f"{what}'s step of training", model, b, stepping)
            for what, model in (("teacher", teacher), ("student", student))
            for b in (64, args.batches[-1])
        ]
        for what, model, size, kind in cases:
            model.train(kind is stepping)
            ms = milliseconds(kind(model, data, size), device, args.seconds)
            print(f"| {what} | {size} | {threads} | {ms:.3g} | {ms / size:.3g} |", flush=True)


if __name__ == "__main__":
    main()
