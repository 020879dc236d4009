r"""Speed of the flow engine on a CUDA device beside the published times per response.

``python -m benchmarks.flows_gpu`` prints one Markdown table at the reference size: exact teacher sampling, student
sampling and the training step, in float32, TF32 and bfloat16, at batches 256 and 4096. Published (A100, batch 256):
160 ms per response for the masked autoregressive teacher, 0.38 ms for the inverse autoregressive student.

References:
    | Inverse Autoregressive Flows for ZDC fast simulation (Majerz et al., 2025), https://arxiv.org/abs/2512.20346
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch

from calosim.flows import cast, iaf, maf

from .flows import SIZES, engine_model, sample, train_step

PUBLISHED = {"exact teacher sampling": 160.0, "student sampling": 0.38}  # ms per response


def seconds(case: Callable[[], None], repetitions: int) -> float:
    """Median seconds of a case on the device, after two warm-ups."""
    times = []
    for n in range(repetitions + 2):
        torch.cuda.synchronize()
        start = time.perf_counter()
        case()
        torch.cuda.synchronize()
        if n >= 2:
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="reference")
    parser.add_argument("--batches", type=int, nargs="+", default=[256, 4096])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--compile", action="store_true", help="compile the splines")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench-gpu needs a CUDA device, and torch finds none here")
    torch.manual_seed(0)
    size = SIZES[args.size]
    teacher, student = (engine_model(size, b, compile=args.compile).cuda() for b in (maf, iaf))
    optimizer = torch.optim.Adam(teacher.parameters(), lr=1e-4, fused=True)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.size} size\n")
    print("| figure | precision | batch | ms per response | published | ratio |\n|---|---|---|---|---|---|")
    for precision in ("fp32", "tf32", "bf16"):
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        low = precision == "bf16"
        models = [cast(m, torch.bfloat16 if low else torch.float32) for m in (teacher, student)]
        for batch in args.batches:
            z = torch.randn(batch, size.features, device="cuda")
            c = torch.randn(batch, size.context, device="cuda")
            autocast = torch.autocast("cuda", torch.bfloat16) if low else nullcontext()

            def step(z: torch.Tensor = z, c: torch.Tensor = c, autocast=autocast) -> None:
                with autocast:
                    train_step(teacher, optimizer, z, c)

            cases = {
                "exact teacher sampling": partial(sample, models[0], z, c),
                "student sampling": partial(sample, models[1], z, c),
                "training step": step,
            }
            for name, case in cases.items():
                ms = 1e3 * seconds(case, args.repetitions) / batch
                published = PUBLISHED.get(name)
                beside = f"{published:g} | {published / ms:,.0f} x" if published else " | "
                print(f"| {name} | {precision} | {batch} | {ms:.4g} | {beside} |", flush=True)


if __name__ == "__main__":
    main()
