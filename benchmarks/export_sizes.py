"""How small may an exported model be? Quality, time and size of exports of teachers of several sizes and a student.

``python -m benchmarks.export_sizes`` trains, evaluates, exports and checks each by the real commands, and prints one Markdown
table: metrics of the shape with true photon sums, in brackets those of the full chain; milliseconds of one core's time a
response, batch 1, one thread, the files in turn, at best and in the median. What is there already is not made again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from calosim.__main__ import main as calosim
from calosim.data.reading import read_primaries
from calosim.evaluation.stored import Evaluation
from calosim.export.builder import NORMALS
from calosim.export.client import Client
from calosim.io import markdown_table, read_json
from calosim.runs import Run

#: Hidden units of the coarse part's layers, and of local networks.
SIZES = ((64, 32), (128, 64), (256, 96), (384, 128))
#: Of this size there is a student too, trained half as long.
TAUGHT = (256, 96)
#: Responses that are timed, and how often.
RESPONSES, ROUNDS = 50, 15

HEADER = ["model", "parameters", "WS", "MAE_cond", "AUC of images", "AUC of features", "ms", "MB"]


def run(made: Path, *words: object) -> None:
    """Runs a command, unless what it makes is there."""
    if not made.exists() and calosim([str(word) for word in words]):
        raise SystemExit(1)


def measure(run_folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """What evaluation, export and check say of a shower model."""
    out = Path(f"{run_folder}-o2")
    stages = ["--shower", run_folder, "--photons", options.out / "photons"]
    rows = ["--rows", options.rows, "--classifier_rows", options.rows, "--classifier_seeds", 2, "--runs", 3]
    judged = run_folder / Run.EVALUATION
    run(judged, "evaluate", *stages, "--floor", options.floor, *rows, "--quiet", "true", "--out", judged)
    run(out, "export", *stages, "--out", out)
    run(out / "check.json", "export", "--check", out, "--montecarlo", options.data, "--most", options.rows)
    return {"evaluation": Evaluation(judged).record, "export": read_json(out / "export.json")}


def milliseconds(folders: list[Path], data: str) -> np.ndarray:
    """The least and the median time of exports for a response, as a mean over responses, (exports, 2)."""
    particles = read_primaries(Path(data))[0]
    particles = particles[np.linspace(0, len(particles) - 1, RESPONSES).astype(int)]
    noise = np.random.default_rng(1).standard_normal((RESPONSES, NORMALS)).astype(np.float32)
    clients = [Client(f"{folder}-o2") for folder in folders]
    given, times = clients[0].standardized(particles), np.zeros((len(clients), RESPONSES, ROUNDS))
    for n in np.ndindex(ROUNDS, RESPONSES, len(clients)):
        start = time.thread_time()
        clients[n[2]].output(given[n[1]], noise[n[1]])
        times[n[::-1]] = 1e3 * (time.thread_time() - start)
    return np.stack((times.min(2).mean(1), np.median(times, 2).mean(1)), 1)


def row(name: str, found: dict[str, Any], ms: np.ndarray) -> list[str]:
    """A line of the table."""
    judged, export = found["evaluation"], found["export"]

    def both(value: Any, form: str) -> str:
        return f"{value('shape'):{form}} ({value('chain'):{form}})"

    means, verdicts = judged["images"], judged["c2st"]["candidates"]
    return [
        name,
        f"{export['models']['shape']['parameters']:,}",
        *(both(lambda t, m=m: means[t]["mean"][f"{m}_all"], ".2f") for m in ("ws", "mae_cond")),
        *(both(lambda t, j=j: verdicts[t]["verdicts"][j]["auc"], ".3f") for j in ("images", "features")),
        "{:.2f}, {:.2f}".format(*ms),
        f"{sum(f['bytes'] for f in export['files'].values()) / 1e6:.2f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="data/study.root")
    parser.add_argument("--floor", default="data/study-floor.root")
    parser.add_argument("--out", type=Path, default=Path("runs/export-sizes"))
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--rows", type=int, default=2000, help="rows to judge on, and responses to check")
    options = parser.parse_args()
    training = ["--data.files", f"[{options.data}]", "--trainer.enable_progress_bar", "false", "--run"]
    run(options.out / "photons", "fit", "-c", "conf/photons.yaml", *training, options.out / "photons")
    training = ["-c", "conf/study/plain.yaml", "--trainer.max_epochs", options.epochs, *training]
    found = {}
    for hidden, local in SIZES:
        folder = options.out / f"{hidden}-{local}"
        sizes = ["--model.representation.hidden", hidden, "--model.representation.local_hidden", local]
        run(folder / "training.json", "fit", "-c", "conf/teacher.yaml", *training, folder, *sizes)
        found[folder] = measure(folder, options)
    teacher, student = options.out / "{}-{}".format(*TAUGHT), options.out / "student"
    made = ["fit", "-c", "conf/student.yaml", "--model.init_from", teacher]
    run(student / "training.json", *made, *training, student, "--trainer.max_epochs", options.epochs // 2)
    found[student] = measure(student, options)
    times = milliseconds([*found], options.data)
    print(markdown_table(HEADER, [row(f.name, each, ms) for (f, each), ms in zip(found.items(), times, strict=True)]))


if __name__ == "__main__":
    main()
