r"""Speed and memory of the flow engine beside nflows and zuko, interleaved in one run.

``python -m benchmarks.flows --size reference`` prints one Markdown table. Every figure is the median of interleaved
repetitions. The peers' exact sampling, one full pass per feature and transformation, is timed for a few passes and
multiplied; such rows are marked *extrapolated*. Ratios compare what runs on the same machine in the same minute;
absolute times do not travel. The engine runs as it is and, unless ``--no-compile``, with compiled splines as well. Aims
are this project's own, for the reference size. An untrained flow is near the identity, where the exact inverse needs
fewest passes: ``--run RUN`` measures a trained teacher instead, beside peers of its size.

The peers: nflows 0.14 (``MaskedPiecewiseRationalQuadraticAutoregressiveTransform``, the library of the reference
training, with plain and with fused Adam) and zuko (``MaskedAutoregressiveTransform``). All have the same widths; the
engine stores the same masked network in half the weights.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch._dynamo
import zuko
from torch import Tensor, nn
from zuko.lazy import Flow, UnconditionalDistribution

from calosim.flows import FlowConfig, cast, iaf, maf, units

BOUND = 14.0


@dataclass(frozen=True)
class Size:
    """A model's size, and the batches to measure."""

    features: int
    hidden: tuple[int, ...]
    transforms: int
    context: int = 10
    bins: int = 8
    batches: tuple[int, ...] = (1, 64, 256)


SIZES = {
    "demo": Size(44 * 44, (128, 128), 2, bins=4),
    "reference": Size(44 * 44, (1452, 1452), 4),
    "tiny": Size(64, (48, 48), 2, batches=(1, 16)),
}


def nflows_model(size: Size) -> nn.Module:
    """The reference training's network on nflows, with as many hidden layers as ours."""
    from nflows.distributions.normal import StandardNormal
    from nflows.flows.base import Flow as NFlow
    from nflows.transforms.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressiveTransform
    from nflows.transforms.base import CompositeTransform
    from nflows.transforms.permutations import RandomPermutation, ReversePermutation

    parts: list[nn.Module] = []
    for i in range(size.transforms):
        parts.append(RandomPermutation(size.features) if i % 2 else ReversePermutation(size.features))
        parts.append(
            MaskedPiecewiseRationalQuadraticAutoregressiveTransform(
                size.features,
                size.hidden[0],
                size.context,
                num_bins=size.bins,
                tails="linear",
                tail_bound=BOUND,
                num_blocks=1,
                use_residual_blocks=False,
                dropout_probability=0.05,
            )
        )
    return NFlow(CompositeTransform(parts), StandardNormal([size.features]))


def zuko_model(size: Size) -> Flow:
    """The same network on zuko."""
    units = [
        zuko.flows.autoregressive.MaskedAutoregressiveTransform(
            size.features,
            size.context,
            order=torch.arange(size.features).flip(0) if i % 2 == 0 else torch.randperm(size.features),
            univariate=partial(zuko.transforms.MonotonicRQSTransform, bound=BOUND),
            shapes=((size.bins,), (size.bins,), (size.bins - 1,)),
            hidden_features=size.hidden,
        )
        for i in range(size.transforms)
    ]
    base = UnconditionalDistribution(
        zuko.distributions.DiagNormal, torch.zeros(size.features), torch.ones(size.features), buffer=True
    )
    return Flow(units, base)


def engine_model(size: Size, builder: Callable[..., Flow] = maf, **kwargs: bool) -> Flow:
    config = FlowConfig(size.transforms, size.hidden, size.bins, BOUND)
    return builder(size.features, size.context, config, **kwargs)


def log_prob(model: nn.Module, x: Tensor, c: Tensor) -> Tensor:
    return model(c).log_prob(x) if isinstance(model, Flow) else model.log_prob(x, context=c)


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, c: Tensor) -> None:
    optimizer.zero_grad()
    (-log_prob(model, x, c).mean()).backward()
    optimizer.step()


@torch.no_grad()
def one_pass(model: nn.Module, x: Tensor, c: Tensor) -> None:
    """One of the peers' passes through the conditioner and the spline of one transformation."""
    if isinstance(model, Flow):
        model.transform.transforms[0](c).meta(x).inv(x)
    else:
        transform = model._transform._transforms[1]
        parameters = transform.autoregressive_net(x, c)
        transform._elementwise_inverse(x, parameters)


@torch.no_grad()
def sample(model: Flow, z: Tensor, c: Tensor) -> None:
    model(c).transform.inv(z)


def interleaved(cases: dict[str, Callable[[], None]], repetitions: int) -> dict[str, float]:
    """Median wall-clock seconds of each case, all cases taking turns; one warm-up each."""
    times: dict[str, list[float]] = {name: [] for name in cases}
    for n in range(repetitions + 1):
        for name, case in cases.items():
            start = time.perf_counter()
            case()
            if n:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def gemm_peak() -> dict[torch.dtype, float]:
    """Measured floating-point operations per second of a large square product."""
    peak = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(2048, 2048).to(dtype)
        peak[dtype] = 2 * 2048**3 / interleaved({"": lambda a=a: torch.mm(a, a)}, 5)[""]  # type: ignore[misc]
    return peak


def peak_memory(name: str, size_name: str, batch: int) -> float:
    """Peak resident memory in GB of a fresh process that takes three training steps."""
    command = [sys.executable, "-m", "benchmarks.flows", "--size", size_name, "--memory", name, "--batch", str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def resident_peak() -> float:
    """Peak resident memory of this process in GB (Linux).

    Not ``getrusage``: its maximum survives ``exec``, so a child would report the benchmark that started it.
    """
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1e6


def measure_memory(name: str, size: Size, batch: int) -> None:
    """Takes three training steps and prints the peak resident memory of this process, less that of the imports."""
    before = resident_peak()
    model, fused = built(name, size)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused)
    x, c = torch.randn(batch, size.features), torch.randn(batch, size.context)
    for _ in range(3):
        train_step(model, optimizer, x, c)
    print(resident_peak() - before)


def built(name: str, size: Size) -> tuple[nn.Module, bool]:
    """The model of that name, and whether its optimizer is fused."""
    match name:
        case "nflows" | "nflows, fused Adam":
            return nflows_model(size), name != "nflows"
        case "zuko":
            return zuko_model(size), False
        case _:
            return engine_model(size), True


Row = tuple[str, str, str, str, str, str]  # figure, batch, measured, ratio, aim, note

#: What the engine aims at: times faster than each peer.
TRAINING_AIMS = {"nflows": 8, "nflows, fused Adam": 5, "zuko": 10}
TEACHER_AIM, STUDENT_AIM, PEAK_AIM, MEMORY_AIM, BUILD_AIM = 10_000, 25_000, 0.75, 0.33, 1.0


def training_rows(size: Size, batch: int, repetitions: int, compile: bool) -> list[Row]:
    x, c = torch.randn(batch, size.features), torch.randn(batch, size.context)
    times: dict[str, list[float]] = {}
    for _ in range(max(1, repetitions // 2)):  # models take turns in memory: all four do not fit a laptop
        for name in (*TRAINING_AIMS, "engine"):
            model, fused = built(name, size)
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-4, fused=fused)
            step = partial(train_step, model, optimizer, x, c)
            times.setdefault(name, []).append(interleaved({"": step}, 2)[""])
            if name == "engine":

                def low(step: Callable[[], None] = step) -> None:
                    with torch.autocast("cpu", torch.bfloat16):
                        step()

                times.setdefault("engine, bfloat16 autocast", []).append(interleaved({"": low}, 2)[""])
                if compile:
                    for _, unit in units(model):  # type: ignore[arg-type]
                        unit.compile_spline = True
                    times.setdefault("engine, compiled", []).append(interleaved({"": step}, 2)[""])
            del model, optimizer, step
            gc.collect()
    seconds = {name: statistics.median(t) for name, t in times.items()}
    return [
        (
            f"training step, {ours}",
            str(batch),
            f"{seconds[ours]:.3g} s",
            f"{seconds[peer] / seconds[ours]:.2f} x {peer}",
            f"{aim} x",
            "",
        )
        for ours in seconds
        if ours.startswith("engine")
        for peer, aim in TRAINING_AIMS.items()
    ]


def sampling_rows(size: Size, repetitions: int, compile: bool, trained: Flow | None = None) -> Iterator[Row]:
    peak = gemm_peak()
    teacher, student = trained or engine_model(size).eval(), engine_model(size, iaf).eval()
    # The teacher not in bfloat16: its rounding keeps the in-chunk iteration going, about 60 passes instead of 8, four
    # times slower.
    ours = {
        "exact teacher": teacher,
        "student": student,
        "student, bfloat16": cast(student, torch.bfloat16),
    }
    if compile:
        for name, model in list(ours.items()):
            dtype = next(model.parameters()).dtype
            ours[f"{name}, compiled"] = cast(model, dtype, compile=True)
    peers = {"nflows": nflows_model(size).eval(), "zuko": zuko_model(size).eval()}
    # Every weight is used once per row; the engine's weights outside the prefixes do not exist.
    weights = sum(p.numel() for p in teacher.parameters())
    for batch in size.batches:
        z, c = torch.randn(batch, size.features), torch.randn(batch, size.context)
        cases = {name: partial(sample, model, z, c) for name, model in ours.items()}
        cases |= {name: partial(one_pass, model, z, c) for name, model in peers.items()}
        seconds = interleaved(cases, repetitions)
        for name in peers:
            seconds[name] *= size.features * size.transforms
            yield f"sampling, {name}", str(batch), f"{seconds[name]:.3g} s", "", "", "extrapolated from single passes"
        for name in ours:
            dtype = torch.bfloat16 if "bfloat16" in name else torch.float32
            ratios = ", ".join(f"{seconds[p] / seconds[name]:,.0f} x {p}" for p in peers)
            share = f"{2 * batch * weights / seconds[name] / peak[dtype]:.0%} of GEMM peak"
            aim = f"{TEACHER_AIM:,} x" if "teacher" in name else f"{STUDENT_AIM:,} x nflows, {PEAK_AIM:.0%} of peak"
            yield f"sampling, {name}", str(batch), f"{seconds[name]:.3g} s", ratios, aim, f"ratio extrapolated; {share}"


def round_trip_row(size: Size) -> Row:
    flow = engine_model(size).eval()
    x, c = torch.randn(16, size.features), torch.randn(16, size.context)
    with torch.no_grad():
        error = (flow(c).transform.inv(flow(c).transform(x)) - x).abs().max().item()
    return "round trip, largest error", "16", f"{error:.1e}", "", "", "float32"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="reference")
    parser.add_argument("--quick", action="store_true", help="fewer repetitions")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure compiled splines too (compiling takes a minute or two, once a machine)",
    )
    parser.add_argument("--batch", type=int, default=64, help="batch of training")
    parser.add_argument("--run", help="run folder of a trained teacher, to measure sampling with; instead of --size")
    parser.add_argument("--memory", metavar="NAME", help="take three steps of one model, print its peak memory in GB")
    args = parser.parse_args()
    size = SIZES[args.size]
    torch.manual_seed(0)
    torch._dynamo.config.recompile_limit = 64  # both flows in two types at three batches, one process
    if args.memory:
        measure_memory(args.memory, size, args.batch)
        return

    repetitions = 2 if args.quick else 5
    if args.run:
        from calosim.models.shower import ShowerModel

        module = ShowerModel.load(args.run)
        own = FlowConfig.from_plain(module.init["flow"])
        size = Size(module.representation.size, own.hidden, own.transforms, module.features.width, own.bins)
    print(f"{args.run or args.size + ' size'}: {size}, torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| figure | batch | measured | ratio | aim | note |\n|---|---|---|---|---|---|")
    report = partial(show, aims=args.size == "reference" and not args.run)
    if args.run:
        report(sampling_rows(size, repetitions, args.compile, module.flow))
        return
    start = time.perf_counter()
    engine_model(size)
    built_in = f"{time.perf_counter() - start:.2f} s"
    report([("building the model", "", built_in, "", f"< {BUILD_AIM:g} s", ""), round_trip_row(size)])
    report(sampling_rows(size, repetitions, args.compile))
    report(training_rows(size, args.batch, repetitions, args.compile))
    memory = {name: peak_memory(name, args.size, args.batch) for name in ("engine", "nflows", "zuko")}
    for name in ("nflows", "zuko"):
        ratio = f"{memory['engine'] / memory[name]:.2f} of {name}"
        report([("training, peak memory", str(args.batch), f"{memory['engine']:.2f} GB", ratio, f"{MEMORY_AIM}", "")])


def show(rows: Iterable[Row], aims: bool = True) -> None:
    """Prints rows of the table as they come."""
    for *row, aim, note in rows:
        print("| " + " | ".join([*row, aim if aims else "", note]) + " |", flush=True)


if __name__ == "__main__":
    main()
