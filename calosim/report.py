"""One self-contained HTML page from any set of run folders: trainings, responses, metrics, studies, explanations.

What is reported follows from what a folder holds: a training (``config.yaml`` and ``run.json``), an evaluation
(``evaluation.json``), a study (``comparison.md``), an explanation (``explain.json``). Sections without data are left out.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from calosim import __version__
from calosim.detectors import get_detector
from calosim.evaluation import RADII, TITLES
from calosim.provenance import atomic_write, git_hash

__all__ = ["report"]

#: What makes a folder of a kind.
KINDS = {
    "training": "run.json",
    "evaluation": "evaluation.json",
    "study": "comparison.md",
    "explanation": "explain.json",
}
#: What is wider than the window scrolls, by keyboard too.
TABLE = '<div class="table" tabindex="0" role="region" aria-label="table">'
#: How deep below the given folders they are looked for.
DEPTH = 3

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<link rel="icon" href="data:,">
<style>
:root { color-scheme: light dark;
        --ink: #1c2430; --soft: #5a6675; --paper: #fff; --card: #f5f7fa; --line: #d9dfe7;
        --accent: #0b62a8 }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9f0; --soft: #9aa7b7; --paper: #12161c; --card: #1b212a; --line: #303a47; --accent: #7cb8ee }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 68rem; padding: 1rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
       font: 1rem/1.55 system-ui, sans-serif }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 1rem 0 .25rem }
h2 { margin: 2.75rem 0 .75rem; padding-top: .5rem; border-top: 2px solid var(--line) }
h3 { margin: 1.75rem 0 .5rem }
h2, h3, h4 { scroll-margin-top: 1rem }
p.lead, figcaption, .soft { color: var(--soft) }
a { color: var(--accent) }
nav ul { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: .75rem 1rem; margin: 1rem 0; list-style: none;
         background: var(--card); border-radius: .5rem }
.table { overflow-x: auto; margin: .75rem 0 }
table { border-collapse: collapse; font-size: .88rem; font-variant-numeric: tabular-nums }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
th { color: var(--soft); font-weight: 600 }
td:first-child { white-space: normal; min-width: 9rem }
p.lead { overflow-wrap: anywhere }
figure { margin: 1rem 0 1.5rem; overflow-x: auto }
figure img { width: 100%; min-width: 36rem; height: auto; max-width: 60rem; background: #fff;
             border: 1px solid var(--line); border-radius: .4rem }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 0 1.5rem }
.pair figure img { min-width: 0 }
figcaption { font-size: .88rem; margin-top: .35rem }
pre { overflow-x: auto; padding: .75rem; background: var(--card); border-radius: .4rem; font-size: .8rem }
details summary { cursor: pointer; color: var(--accent) }
@media print {
  :root { --ink: #000; --soft: #444; --paper: #fff; --card: #fff; --line: #bbb }
  body { max-width: none; padding: 0; font-size: 10pt } figure img { min-width: 0 }
  nav, details { display: none }
  .table, figure { overflow: visible } table { font-size: 7.5pt } .pair { grid-template-columns: 1fr 1fr }
  th, td { padding: .15rem .4rem; white-space: normal } td:first-child { min-width: 5rem }
  figure, tr { break-inside: avoid } h2, h3, h4, h5 { break-after: avoid }
}
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p class="lead">{{ lead }}</p>
<nav aria-label="Contents"><ul>
{%- for section in sections %}
<li><a href="#{{ section.key }}">{{ section.title }}</a></li>
{%- endfor %}
</ul></nav>
<main>
{%- for section in sections %}
<section id="{{ section.key }}">
<h2>{{ section.title }}</h2>
{{ section.body | safe }}
</section>
{%- endfor %}
</main>
</body>
</html>
"""


@dataclass
class Section:
    """A section of the page: its anchor, its title, and its HTML, added piece by piece."""

    key: str
    title: str
    body: str = ""
    pictures: dict[str, bytes] = field(default_factory=dict)

    def text(self, words: str, tag: str = "p") -> None:
        """Adds a paragraph or heading."""
        self.body += f"<{tag}>{html.escape(words)}</{tag}>\n"

    def markdown(self, words: str) -> None:
        """Adds Markdown with tables; its headings go below this section's."""
        from markdown import markdown

        # Names of runs are text, whatever characters are in them.
        lines = ("#" + line if line.startswith("#") else line for line in html.escape(words, quote=False).splitlines())
        rendered = markdown("\n".join(lines), extensions=["tables"])
        self.body += (
            rendered.replace("<table>", f"{TABLE}<table>")
            .replace("</table>", "</table></div>")
            .replace("<th", '<th scope="col"')
            .replace('<th scope="col"ead>', "<thead>")
            + "\n"
        )

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table."""
        cells = "".join(f'<th scope="col">{html.escape(h)}</th>' for h in head)
        lines = "".join("<tr>" + "".join(f"<td>{html.escape(str(c))}</td>" for c in row) + "</tr>\n" for row in rows)
        self.body += f"{TABLE}<table>\n<tr>{cells}</tr>\n{lines}</table></div>\n"

    def picture(self, png: bytes, alt: str, caption: str) -> None:
        """Adds a picture with its alternative text and caption."""
        self.pictures[caption] = png
        data = base64.b64encode(png).decode()
        self.body += (
            f'<figure tabindex="0"><img alt="{html.escape(alt)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>\n"
        )


def report(
    runs: list[str],
    out: str = "report.html",
    title: str = "calosim report",
    wandb: str | None = None,
    quiet: bool = False,
) -> None:
    """Writes one self-contained HTML page about runs, evaluations, studies and explanations.

    Args:
        runs: Folders; everything of calosim in them is reported, to three levels below.
        out: The page to write.
        title: Its title.
        wandb: Log the same tables, figures and configurations to this Weights & Biases project too; offline without a key.
        quiet: Show no progress.
    """
    found = _found([Path(run) for run in runs])
    if not any(found.values()):
        raise ValueError(
            f"{', '.join(runs)}: nothing to report; expected folders with {', '.join(sorted(set(KINDS.values())))}"
        )
    makers = (
        lambda: _trainings(found["training"]),
        lambda: _curves(found["training"]),
        *(lambda f=f: _evaluation(f) for f in found["evaluation"] if not _part_of_study(f, found["study"])),
        *(lambda f=f: _study(f) for f in found["study"]),
        *(lambda f=f: _explanation(f) for f in found["explanation"]),
    )
    made = [make() for make in tqdm(makers, desc="report", unit="section", disable=True if quiet else None)]
    sections = [section for section in made if section.body]
    seen: set[str] = set()
    for section in sections:  # folders of one name in different places
        key, number = section.key, 1
        while section.key in seen:
            number += 1
            section.key = f"{key}-{number}"
        seen.add(section.key)
    facts = ", ".join(f"{len(v)} {k}{'s' if len(v) != 1 else ''}" for k, v in found.items() if v)
    from jinja2 import Environment

    lead = f"{facts}. calosim {__version__}, git {(git_hash() or 'unknown')[:12]}."
    page = Environment(autoescape=True).from_string(PAGE).render(title=title, lead=lead, sections=sections)
    atomic_write(out, page)
    print(
        f"{out}: {len(sections)} sections, {sum(len(s.pictures) for s in sections)} pictures, {len(page) / 1e6:.1f} MB"
    )
    if wandb:
        _log(wandb, title, found, sections, Path(out))


def _found(roots: Sequence[Path]) -> dict[str, list[Path]]:
    """The folders of each kind, in order."""
    folders: dict[Path, None] = {}
    for root in roots:
        if not root.is_dir():
            raise ValueError(f"{root}: no such folder")
        level = [root]
        for _ in range(DEPTH + 1):
            folders |= dict.fromkeys(level)
            level = sorted(child for folder in level for child in folder.iterdir() if child.is_dir())
    # The copies in an ensemble are no training of their own.
    return {
        kind: [
            f
            for f in folders
            if (f / marker).is_file() and not (kind == "training" and (f / "simulator.json").exists())
        ]
        for kind, marker in KINDS.items()
    }


def _part_of_study(folder: Path, studies: Sequence[Path]) -> bool:
    return any(study in folder.parents for study in studies)


def _name(folder: Path) -> str:
    return "/".join(folder.resolve().parts[-2:])


# -- trainings ------------------------------------------------------------------------------------------------------


def _trainings(folders: Sequence[Path]) -> Section:
    section = Section("trained", "What was trained")
    rows = []
    for folder in folders:
        run = json.loads((folder / "run.json").read_text())
        done = folder / "training.json"
        training = json.loads(done.read_text()) if done.exists() else {}
        minutes = f"{training['seconds'] / 60:.1f}" if training else "not finished"
        data = run["data"]
        rows.append(
            [
                _name(folder),
                run["model"].rpartition(".")[2],
                f"{run['parameters']:,}",
                training.get("epochs", ""),
                f"{training['samples']:,}" if training else "",
                minutes,
                run["seed"],
                data["particle"] or "all",
                data["data_hash"][:12],
                (run["git"] or "")[:12],
            ]
        )
    if rows:
        head = ["run", "model", "parameters", "epochs", "samples", "minutes", "seed", "particle", "data hash", "git"]
        section.table(head, rows)
    for folder in folders:
        config = html.escape((folder / "config.yaml").read_text()) if (folder / "config.yaml").exists() else ""
        command = " ".join(map(str, json.loads((folder / "run.json").read_text())["command"]))
        section.body += (
            f"<details><summary>{html.escape(_name(folder))}: command and configuration</summary>"
            f"<pre>calosim {html.escape(command)}</pre><pre>{config}</pre></details>\n"
        )
    return section


def _curves(folders: Sequence[Path]) -> Section:
    section = Section("curves", "Training curves")
    curves: dict[str, dict[str, dict[str, list[tuple[float, float]]]]] = {}
    short = [_name(folder) for folder in folders]
    called = {f: str(f) if short.count(name) > 1 else name for f, name in zip(folders, short, strict=True)}
    for folder in folders:
        model = json.loads((folder / "run.json").read_text())["model"].rpartition(".")[2]
        for path in sorted(folder.glob("metrics.csv")) + sorted(folder.glob("fit-*/metrics.csv")):
            with path.open() as file:
                for line in csv.DictReader(file):
                    for key in ("train/loss", "val/loss", "val/ws"):
                        if line.get(key):
                            series = curves.setdefault(model, {}).setdefault(key, {}).setdefault(called[folder], [])
                            series.append((float(line["step"]), float(line[key])))
    for model, panels in curves.items():
        from calosim.plotting import training_curves

        png = _png(lambda path, panels=panels: training_curves(panels, path))
        names = ", ".join(panels)
        section.picture(
            png, f"Curves of {names} over training steps for {model}", f"{model}: {names} over training steps."
        )
    return section


# -- evaluations ----------------------------------------------------------------------------------------------------


def _evaluation(folder: Path) -> Section:
    from calosim.plotting import channel_histograms, draws, spectra

    results = json.loads((folder / "evaluation.json").read_text())
    section = Section("evaluation-" + "-".join(folder.resolve().parts[-2:]), f"Evaluation: {_name(folder)}")
    tables = folder / "evaluation.md"
    stored = folder / "answers.npz"
    if stored.exists():
        with np.load(stored) as file:
            arrays = {key: file[key] for key in file.files}
        detector = get_detector(results["data"]["detector"])
        if "examples_labels" in arrays:
            labels = arrays["examples_labels"].tolist()
            png = _png(lambda path: draws(arrays["examples_reference"], arrays["examples_generated"], labels, path))
            section.picture(
                png,
                f"Photon images of {', '.join(labels)}: Monte Carlo left, generated right",
                "Responses to the same primaries, one primary a row: draws of the Monte Carlo on the left, generated ones on "
                "the right. Draws of one primary differ; generated ones should differ as much.",
            )
        full = "chain" if "chain_channels" in arrays else "shape"
        generated = arrays[f"{full}_channels"][0].reshape(-1, 5)
        png = _png(lambda path: channel_histograms(arrays["reference"], generated, detector.channel_names(), path))
        section.picture(
            png,
            "Histograms of photons in each of the five channels, with ratios below",
            f"Photons in each read-out channel, {TITLES[full]}, with the ratio to the Monte Carlo; bands are one standard "
            "deviation of the counts.",
        )
        sums = {"Monte Carlo": arrays["reference"].sum(1)}
        sums |= {
            TITLES[n]: arrays[f"{n}_channels"][0].reshape(-1, 5).sum(1) for n in TITLES if f"{n}_channels" in arrays
        }
        profiles = {"Monte Carlo": arrays["reference_profile"]} if "reference_profile" in arrays else {}
        profiles |= {TITLES[n]: arrays[f"{n}_profile"] for n in TITLES if f"{n}_profile" in arrays}
        png = _png(lambda path: spectra(sums, profiles, RADII * detector.pitch, path))
        section.picture(
            png,
            "Spectrum of photon sums, and radial profile of showers",
            "Left: spectrum of photon sums. Right: mean share of the photons by distance from the shower's center of gravity.",
        )
    if tables.exists():
        section.markdown(tables.read_text())
    return section


def _study(folder: Path) -> Section:
    section = Section("study-" + folder.resolve().name, f"Study: {folder.resolve().name}")
    text = (folder / "comparison.md").read_text()
    section.markdown("\n".join(line for line in text.splitlines() if not line.startswith("# ")))
    for path in sorted(folder.glob("comparison-*.png")):
        mode = path.stem.partition("-")[2]
        section.picture(
            path.read_bytes(),
            f"Metrics of all models by particle, {TITLES[mode]}",
            f"{TITLES[mode][0].upper()}{TITLES[mode][1:]}: metrics by particle with 95 % bootstrap intervals (standard "
            "deviations where they cannot be had); lower is better.",
        )
    return section


def _explanation(folder: Path) -> Section:
    section = Section("explanation-" + folder.resolve().name, f"Explanation: {_name(folder)}")
    section.markdown(
        "\n".join(line for line in (folder / "explain.md").read_text().splitlines() if not line.startswith("# "))
    )
    captions = {
        "bar": "mean absolute SHAP values with their spread over the posterior",
        "beeswarm": "SHAP values of single responses, colored by the feature's value",
    }
    for target in json.loads((folder / "explain.json").read_text())["targets"]:
        section.body += '<div class="pair">\n'
        for kind, words in captions.items():
            path = folder / f"{target}_{kind}.png"
            if path.exists():
                caption = f"{target.replace('_', ' ').capitalize()}: {words}."
                section.picture(path.read_bytes(), caption, caption)
        section.body += "</div>\n"
    path = folder / "photon_uncertainty.png"
    if path.exists():
        caption = (
            "Photon sum: predictive intervals against observed sums, the coverage curve, and the parts of the variance."
        )
        section.picture(path.read_bytes(), caption, caption)
    return section


def _png(draw: Any) -> bytes:
    """The bytes of a picture that a function draws into a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "picture.png"
        draw(path)
        return path.read_bytes()


# -- Weights & Biases -------------------------------------------------------------------------------------------------


def _log(
    project: str, title: str, found: Mapping[str, Sequence[Path]], sections: Sequence[Section], page: Path
) -> None:
    """Logs configurations, metrics, figures and the page as a run of its own."""
    import wandb
    import yaml
    from PIL import Image

    from calosim.cli import wandb_offline_without_key

    wandb_offline_without_key()
    config = {_name(f): yaml.safe_load((f / "config.yaml").read_text()) for f in found["training"]}
    with wandb.init(project=project, name=title, config=config, dir=str(page.parent)) as run:
        for section in sections:
            for number, (caption, png) in enumerate(section.pictures.items()):
                picture = wandb.Image(Image.open(io.BytesIO(png)), caption=caption)
                run.log({f"{section.key}/{number}": picture})
        for folder in found["evaluation"]:
            results = json.loads((folder / "evaluation.json").read_text())
            rows = list(_metrics(results))
            run.log({f"{_name(folder)}/metrics": wandb.Table(["candidate", "metric", "mean", "std"], rows)})
            run.summary.update({f"{_name(folder)}/{c}/{m}": mean for c, m, mean, _ in rows})
        for kind, name in (("study", "comparison.csv"), ("explanation", "shap.csv")):
            for path in (folder / name for folder in found[kind]):
                if path.exists():
                    head, *lines = csv.reader(path.read_text().splitlines())
                    run.log({f"{_name(path.parent)}/{path.stem}": wandb.Table([*head], lines)})
        run.log({"report": wandb.Html(page.read_text())})


def _metrics(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    for candidate, result in results.get("images", {}).items():
        for metric, mean in result["mean"].items():
            yield [candidate, metric, mean, result["std"][metric]]
