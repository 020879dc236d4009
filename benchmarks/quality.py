r"""What a flow learns in equal training: the engine's masks beside zuko's and nflows', and the choices around them.

``python -m benchmarks.quality`` trains small flows on simulated ZN showers (16 x 16 pixels, hidden layers narrower than
the image, as in the reference training) and prints the validation negative log-likelihood of the logits in nats per
image, mean and standard deviation over seeds, lower is better. Peers are compared after as many steps (equal widths, so
equal numbers of connections) and after a training of its own that takes as much processor time as the engine's.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from calosim import rng
from calosim.detectors import Detector, get_detector
from calosim.flows import maf
from calosim.montecarlo.simulate import simulate
from calosim.representations import FeatureScaler, PixelConfig

from .flows import Size, log_prob, nflows_model, zuko_model

TRANSFORMS = 2


class Data:
    """Logits and standardized features of a training and a validation split by primary."""

    def __init__(self, detector: Detector, primaries: int, responses: int, standardize: bool) -> None:
        showers = simulate(primaries, responses, detector, seed=1)
        images = torch.as_tensor(np.asarray(showers.images).astype(np.int32))
        particles = torch.as_tensor(showers.particles, dtype=torch.float64)
        _, primary = np.unique(showers.particles, axis=0, return_inverse=True)
        validation = torch.as_tensor(primary.reshape(-1) % 5 == 0)
        sums = images.flatten(1).sum(1)
        keys = rng.row_keys(torch.arange(len(images)), 1)
        scaler = FeatureScaler(detector, photon_sum=True)
        logits = PixelConfig(standardize=standardize).build(detector)
        scaler.fit(particles[~validation], sums[~validation])
        logits.fit(images[~validation], keys[~validation])
        (x, log_volume), c = logits.encode(images, keys), scaler(particles, sums).float()
        self.train, self.validation = (x[~validation], c[~validation]), (x[validation], c[validation])
        self.volume = log_volume[0].item()


@torch.no_grad()
def validate(model: nn.Module, data: Data) -> float:
    """Mean negative log-likelihood of the validation logits in nats per image."""
    model.eval()
    x, c = data.validation
    total = sum(log_prob(model, a, b).sum().item() for a, b in zip(x.split(256), c.split(256), strict=True))
    model.train()
    return -total / len(x) - data.volume


def train(model: nn.Module, data: Data, steps: int, seed: int) -> tuple[float, float]:
    """Trains by Adam; returns the validation loss and the processor seconds of the steps."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3, fused=True)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    x, c = data.train
    start = time.process_time()
    for _ in range(steps):
        rows = torch.randint(len(x), (128,), generator=generator)
        optimizer.zero_grad()
        (-log_prob(model, x[rows], c[rows]).mean()).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 100.0)
        optimizer.step()
        scheduler.step()
    used = time.process_time() - start
    return validate(model, data), used


@torch.no_grad()
def near_identity(model: nn.Module, bins: int = 8) -> nn.Module:
    """Starts a peer where the engine starts: a tenth of the last layers' weights, and derivatives around one."""
    for module in model.modules():
        if hasattr(module, "hyper"):  # zuko, whose derivatives are exponentials
            last = module.hyper[-1]
        elif hasattr(module, "autoregressive_net"):  # nflows, whose derivatives are softplus(bias) + 0.001
            last = module.autoregressive_net.final_layer
        else:
            continue
        last.weight *= 0.1
        last.bias *= 0.1
        if hasattr(module, "autoregressive_net"):
            last.bias.unflatten(0, (-1, 3 * bins - 1))[:, 2 * bins :] += math.log(math.expm1(1 - 1e-3))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pixels", type=int, default=16, help="pixels along each side")
    parser.add_argument("--hidden", type=int, default=160)
    parser.add_argument("--primaries", type=int, default=1000)
    parser.add_argument("--only", default="", help="only flows with this in their name, beside the engine as it is")
    args = parser.parse_args()
    zn = get_detector("zn")
    detector = zn.replace(shape=(args.pixels, args.pixels), pitch=zn.size[0] / args.pixels)
    data = {s: Data(detector, args.primaries, 10, standardize=s) for s in (True, False)}
    pixels, context = detector.pixels, data[True].train[1].shape[1]
    sx, sy = detector.pixel_centers
    radial = torch.as_tensor(np.argsort(np.hypot(sx[:, None], sy).ravel(), kind="stable"))
    size = Size(pixels, (args.hidden, args.hidden), TRANSFORMS, context)

    def engine(
        bins: int = 8, order: Tensor | None = None, permutation: str = "reverse", context_share: float = 0.0
    ) -> nn.Module:
        return maf(
            pixels,
            context,
            transforms=TRANSFORMS,
            hidden=size.hidden,
            bins=bins,
            dropout=0.05,
            order=order,
            permutation=permutation,
            context_share=context_share,
        )

    cases = {
        "engine (standardized, 8 bins, raster and reversed)": (engine, True),
        "zuko": (partial(zuko_model, size), True),
        "nflows": (partial(nflows_model, size), True),
        "zuko, the engine's near-identity start": (lambda: near_identity(zuko_model(size)), True),
        "nflows, the engine's near-identity start": (lambda: near_identity(nflows_model(size)), True),
        "engine, logits not standardized": (engine, False),
        "engine, 4 bins": (partial(engine, bins=4), True),
        "engine, half of the units see the context only": (partial(engine, context_share=0.5), True),
        "engine, radial and reversed": (partial(engine, order=radial), True),
        "engine, random": (partial(engine, permutation="random"), True),
        "engine, reversed and random (reference recipe)": (partial(engine, permutation="alternate"), True),
    }
    cases = {name: case for i, (name, case) in enumerate(cases.items()) if i == 0 or args.only in name}
    losses: dict[str, list[float]] = {name: [] for name in cases}
    in_time: dict[str, list[float]] = {name: [] for name in cases}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    first = next(iter(cases))
    for seed in range(args.seeds):
        for name, (build, standardized) in cases.items():
            torch.manual_seed(seed)
            loss, used = train(build(), data[standardized], args.steps, seed)
            losses[name].append(loss)
            seconds[name].append(used)
            if name.startswith(("zuko", "nflows")):
                # A training of its own, so that its learning rate comes to an end in the engine's time too.
                torch.manual_seed(seed)
                steps = max(1, round(args.steps * seconds[first][-1] / used))
                in_time[name].append(train(build(), data[standardized], steps, seed)[0])
            print(f"seed {seed}, {name}: {loss:.1f} in {used:.0f} s", flush=True)

    def spread(values: list[float]) -> str:
        return f"{statistics.mean(values):.1f} +- {statistics.stdev(values) if len(values) > 1 else 0.0:.1f}"

    rows = len(data[True].train[0])
    print(f"\n{pixels} pixels, hidden {size.hidden}, {TRANSFORMS} transforms, {rows} rows, {args.steps} steps of 128\n")
    print("| flow | nats per image, equal steps | equal time | CPU seconds |\n|---|---|---|---|")
    for name in cases:
        equal_time = spread(in_time[name]) if in_time[name] else spread(losses[name]) if name == first else ""
        print(f"| {name} | {spread(losses[name])} | {equal_time} | {statistics.mean(seconds[name]):.0f} |")


if __name__ == "__main__":
    main()
