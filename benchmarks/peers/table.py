"""The table of peers, as Markdown and CSV, the list of all tries, and the picture of quality against training time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from calosim import __version__
from calosim.evaluation.stored import TITLES, Evaluation
from calosim.io import atomic_write, csv_text, markdown_table, read_json
from calosim.metrics.registry import METRICS
from calosim.plots.style import looks, picture, plain_log, save
from calosim.runs import git_hash
from calosim.studies.layout import Row, Table
from calosim.studies.statistics import Cell, fill_cells

from .judging import REFERENCES, judged_tries
from .settings import Study
from .speed import BATCHES, SPEED, THREADS

__all__ = ["write_table"]

SHOWN = ("ws", "mae_cond", "delta", "jacc")
JUDGES = ("images", "features")
RESAMPLES = 2000
#: What the C2ST's record calls the Monte Carlo with another seed, and that with moved photons.
CONTROLS = {"shape_floor": "mc_sums", "floor": "mc", "damaged": "damaged_10"}


@dataclass
class Line:
    """A line of the table.

    Attributes:
        label: Unique.
        title: What it is.
        result: What the try says of itself; empty for references.
        cells: Metrics with their intervals.
        verdicts: What the judges found, by judge.
        own: WS with the model's own photon sums, where it has them.
        speed: Milliseconds per response, by batch and threads.
    """

    label: str
    title: str
    result: Mapping[str, Any] = field(default_factory=dict)
    cells: dict[str, Cell] = field(default_factory=dict)
    verdicts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    own: float | None = None
    speed: Mapping[str, float] = field(default_factory=dict)


def lines_of(study: Study) -> list[Line]:
    """All lines: peers by training time, then floor, trivial model and the judges' power."""
    tries = judged_tries(study)
    references = Evaluation(Path(study.out) / REFERENCES)
    evaluations = {tried.folder.name: Evaluation(tried.folder) for tried in tries.values()}
    rows = [Row(label, label, [(evaluation, None)]) for label, evaluation in evaluations.items()]
    rows += [Row(name, TITLES[name], [(references, None)]) for name in ("floor", "trivial")]
    # Models are of the first mode; the floor's row there is that of the same photon sums, if there is one.
    table = Table(particles=("all",), metrics=SHOWN, modes=("shape", "chain"))
    cells = fill_cells(rows, table, RESAMPLES, quiet=True)
    speeds = Path(study.out) / SPEED
    milliseconds = read_json(speeds)["milliseconds"] if speeds.exists() else {}

    def of(label: str, mode: str = "shape") -> dict[str, Cell]:
        return {m: cells[mode, m, "all", label] for m in SHOWN if (mode, m, "all", label) in cells}

    lines = []
    for (name, _), tried in tries.items():
        label, record = tried.folder.name, evaluations[tried.folder.name].record
        verdicts = _verdicts(record, "candidates", "shape")
        line = Line(label, study.peers[name].title, tried.result or {}, of(label), verdicts)
        line.own, line.speed = record.get("ws_own_sums"), milliseconds.get(name, {})
        lines.append(line)
    controls = {name: _verdicts(references.record, "controls", key) for name, key in CONTROLS.items()}
    trivial = _verdicts(references.record, "candidates", "trivial")
    if "shape_floor" in references.metrics:
        lines.append(Line("shape_floor", TITLES["shape_floor"], {}, of("floor"), controls["shape_floor"]))
    lines.append(Line("floor", TITLES["floor"], {}, of("floor", "chain"), controls["floor"]))
    lines.append(Line("trivial", TITLES["trivial"], {}, of("trivial"), trivial))
    lines.append(Line("damaged", "Monte Carlo, 10 % of photons moved by one pixel", {}, {}, controls["damaged"]))
    return lines


def _verdicts(record: Mapping[str, Any], kind: str, name: str) -> dict[str, dict[str, float]]:
    """What judges found; nothing where there were too few primaries for them."""
    return record["c2st"].get(kind, {}).get(name, {}).get("verdicts", {})


def write_table(study: Study) -> str:
    """Writes ``peers.md``, ``peers.csv`` and ``peers.png`` into the study's folder; returns the Markdown."""
    lines, out = lines_of(study), Path(study.out)
    text = "\n\n".join([_head(study), _markdown(lines), _tries(study)]) + "\n"
    atomic_write(out / "peers.md", text)
    atomic_write(out / "peers.csv", _csv(lines))
    draw(lines, out / "peers.png")
    return text


def _head(study: Study) -> str:
    record = Evaluation(Path(study.out) / REFERENCES).record
    threads = sorted({(t.result or {})["threads"] for t in judged_tries(study).values()})
    return (
        "# Peers on the same showers, at equal training time\n\n"
        f"calosim {__version__}, git {git_hash()}, data {record['data']['data_hash']}; {record['rows']} test rows of "
        f"{record['primaries']} primaries, one response each to the true photon sum; trained on "
        f"{', '.join(map(str, threads))} thread(s) a peer, minutes of processor time. Brackets: 95 % by bootstrap over "
        "primaries; AUC ± its standard error. Responses of the floor of another seed have sums of their own, so that models, "
        "which are given the sums, can be below it. NLL in different units cannot be compared. Models whose images have sums "
        "of their own are brought to "
        "the given one; WS before that is in a column of its own. Pixel flows round last, as published: their sums are off "
        "by some."
    )


def _markdown(lines: list[Line]) -> str:
    header = ["minutes", "model", "lr", "NLL", *(METRICS[m].in_units for m in SHOWN), "WS, own sums"]
    header += [*(f"AUC {judge}" for judge in JUDGES), "parameters", "steps", "trained, min"]
    header += [f"ms, batch {b}, {t} thr." for t in THREADS for b in BATCHES]
    rows = []
    for line in lines:
        result = line.result
        rows.append(
            [
                f"{result['minutes']:g}" if result else "",
                line.title,
                f"{result['lr']:g}" if result else "",
                _nll(result),
                *(_interval(line.cells.get(m), METRICS[m].form) for m in SHOWN),
                "" if line.own is None else f"{line.own:.2f}",
                *(_area(line.verdicts.get(judge)) for judge in JUDGES),
                f"{result['parameters']:,}" if result else "",
                f"{result['steps']:,}" if result else "",
                f"{result['seconds'] / 60:.2f}" if result else "",
                *(f"{line.speed[k]:.3g}" if (k := _key(b, t)) in line.speed else "" for t in THREADS for b in BATCHES),
            ]
        )
    return markdown_table(header, rows)


def _key(batch: int, threads: int) -> str:
    return f"batch {batch}, {threads} threads"


def _nll(result: Mapping[str, Any]) -> str:
    value = result.get("test_nll")
    return "" if value is None else f"{value:.4g} {result['nll_unit']}"


def _interval(cell: Cell | None, form: str) -> str:
    if cell is None:
        return ""
    between = "" if cell.interval is None else " [{:{f}}, {:{f}}]".format(*cell.interval, f=form)
    return f"{cell.mean:{form}}{between}"


def _area(verdict: Mapping[str, float] | None) -> str:
    return f"{verdict['auc']:.3f} ± {verdict['error']:.3f}" if verdict else ""


def _tries(study: Study) -> str:
    """All that was tried, and what was chosen."""
    chosen = {tried.folder for tried in judged_tries(study).values()}
    rows = []
    for tried in study.tries:
        result = tried.result
        start = [f"{tried.minutes:g}", study.peers[tried.name].title, f"{tried.lr:g}"]
        if result is not None:
            nll = "" if result["val_nll"] is None else f"{result['val_nll']:.4g}"
            mark = "in the table" if tried.folder in chosen else ""
            rows.append([*start, f"{result['steps']:,}", nll, f"{result['val_ws']:.2f}", mark])
        elif tried.unfinished:
            rows.append([*start, "", "", "", tried.unfinished])
    header = ["minutes", "model", "lr", "steps", "validation NLL", "validation WS", ""]
    how = "Learning rates are chosen by the validation NLL where there is one, else by WS"
    when = f", at {study.tune_minutes:g} minutes for all times." if study.tune_minutes else ", at each time."
    return f"## All that was tried\n\n{how}{when}\n\n{markdown_table(header, rows)}"


def _csv(lines: list[Line]) -> str:
    keys = (
        "minutes",
        "lr",
        "seed",
        "threads",
        "seconds",
        "steps",
        "parameters",
        "test_nll",
        "nll_unit",
        "val_nll",
        "val_ws",
    )
    header = ["label", "model", *keys, *(f"{m}{end}" for m in SHOWN for end in ("", "_low", "_high")), "ws_own_sums"]
    header += [f"auc_{judge}{end}" for judge in JUDGES for end in ("", "_error", "_low", "_high")]
    header += [f"ms_batch_{b}_threads_{t}" for t in THREADS for b in BATCHES]
    rows = []
    for line in lines:
        row: list[Any] = [line.label, line.title, *(line.result.get(key) for key in keys)]
        for metric in SHOWN:
            cell = line.cells.get(metric)
            row += [None] * 3 if cell is None else [cell.mean, *(cell.interval or (None, None))]
        row.append(line.own)
        for judge in JUDGES:
            row += [line.verdicts.get(judge, {}).get(key) for key in ("auc", "error", "low", "high")]
        rows.append([*row, *(line.speed.get(_key(b, t)) for t in THREADS for b in BATCHES)])
    return csv_text(header, rows)


@picture
def draw(lines: list[Line], path: Path) -> Path:
    """Draws WS and both AUC of every peer against its training time, with floor and trivial model."""
    from matplotlib.figure import Figure

    def value(line: Line, panel: str) -> tuple[float, float, float] | None:
        if panel == "ws":
            cell = line.cells.get("ws")
            return None if cell is None else (cell.mean, *(cell.interval or (cell.mean, cell.mean)))
        verdict = line.verdicts.get(panel)
        return None if not verdict else (verdict["auc"], verdict["low"], verdict["high"])

    titles = dict.fromkeys(line.title for line in lines if line.result)
    references = [line for line in lines if line.label in ("shape_floor", "floor", "trivial")]
    style = looks([*titles, *(line.title for line in references)])
    panels = {"ws": "WS, photons", **{judge: f"AUC of the judge of {judge}" for judge in JUDGES}}
    panels = {panel: heading for panel, heading in panels.items() if any(value(line, panel) for line in lines)}
    figure = Figure(figsize=(4.4 * len(panels), 4.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axis, (panel, heading) in zip(axes, panels.items(), strict=True):
        for title in titles:
            own = [line for line in lines if line.title == title and value(line, panel)]
            x, points = [line.result["minutes"] for line in own], [value(line, panel) for line in own]
            y = [p[0] for p in points]
            # A percentile interval may leave out the value itself.
            errors = [[max(0, p[0] - p[1]) for p in points], [max(0, p[2] - p[0]) for p in points]]
            color, _, marker = style[title]
            axis.errorbar(x, y, errors, marker=marker, color=color, capsize=2, label=title)
        for reference in references:
            if found := value(reference, panel):
                color, kind, _ = style[reference.title]
                axis.axhline(found[0], color=color, linestyle=kind, label=reference.title)
        axis.set(xscale="log", xlabel="training, minutes", title=heading)
        axis.set_xticks(
            times := sorted({line.result["minutes"] for line in lines if line.result}), [f"{t:g}" for t in times]
        )
        axis.minorticks_off()
    axes[0].set_yscale("log")
    plain_log(axes[0].yaxis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(4, len(panels) + 1), frameon=False, fontsize="small"
    )
    return save(figure, path)
