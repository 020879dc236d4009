"""Sections of the report and the page that they make, ``page.html``; all HTML is there, but for rendered Markdown.

What is reported follows from what a folder holds: a training (a run's record), an evaluation (``evaluation.json``), a study
(``comparison.md``), an explanation (``explain.json``). Sections without data are left out.
"""

from __future__ import annotations

import base64
import html
import io
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from markdown import markdown
from markupsafe import Markup
from tqdm import tqdm

from calosim import __version__
from calosim.evaluation.stored import Evaluation
from calosim.io import atomic_write, read_csv, read_json
from calosim.plots.style import DPI
from calosim.report.sections import answer, curves, evaluation, explanation, folder_name, study, trainings
from calosim.runs import Run, git_hash

__all__ = ["Picture", "Section", "log_report", "name_apart", "render", "report"]


#: What is wider than the window scrolls, by keyboard too.
SCROLLING = '<div class="table" tabindex="0" role="region" aria-label="table">'


#: How the lines of tables begin that are no model's.
BESIDE = ("floor", "trivial", "control", "power")


@dataclass(frozen=True)
class Picture:
    """A PNG with its alternative text and its caption."""

    png: bytes
    alt: str
    caption: str

    @property
    def width(self) -> int:
        """How wide it is shown where there is room, in CSS pixels: letters have one size in all pictures."""
        return round(int.from_bytes(self.png[16:20]) * 96 / DPI)

    @property
    def base64(self) -> Markup:
        """The picture as text, which needs no escaping."""
        return Markup(base64.b64encode(self.png).decode())


@dataclass
class Section:
    """A section of the page: its anchor, its title, and pieces, each a macro of ``page.html`` with its arguments."""

    key: str
    title: str
    pieces: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    @property
    def pictures(self) -> list[Picture]:
        """All pictures in order."""
        return [picture for name, (first, *_) in self.pieces if name == "figures" for picture in first]

    def markdown(self, words: str) -> None:
        """Adds Markdown with tables, without its title; its headings go below this section's."""
        # Names of runs are text, whatever characters are in them.
        lines = [line for line in html.escape(words, quote=False).splitlines() if not line.startswith("# ")]
        lines = ["#" + line if line.startswith("#") else line for line in lines]
        rendered = markdown("\n".join(lines), extensions=["tables"])
        # Tables as the macro writes them.
        rendered = rendered.replace("<table>", f"{SCROLLING}<table>").replace("</table>", "</table></div>")
        rendered = re.sub(r"<th(?=[ >])", '<th scope="col"', rendered)
        # What stands beside the models steps back, and so do intervals.
        rendered = re.sub(rf"<tr>(\s*<td[^>]*>(?:{'|'.join(BESIDE)}))", r'<tr class="beside">\1', rendered)
        rendered = re.sub(r"(?<= )(\[[-+.\d]+, [-+.\d]+\])(?=</td>)", r"<small>\1</small>", rendered)
        self.pieces.append(("markup", (Markup(rendered),)))

    def table(self, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table."""
        self.pieces.append(("table", (head, rows)))

    def figures(self, *pictures: Picture | None) -> None:
        """Adds a picture, or several side by side; what could not be drawn is left out."""
        if drawn := tuple(picture for picture in pictures if picture is not None):
            self.pieces.append(("figures", (drawn,)))

    def fold(self, summary: str, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Adds a table that is shown when asked for."""
        self.pieces.append(("fold", (summary, head, rows)))

    def details(self, summary: str, *texts: str) -> None:
        """Adds texts that are shown when asked for."""
        self.pieces.append(("details", (summary, texts)))


def name_apart(sections: Sequence[Section]) -> None:
    """Numbers the anchors of sections about folders of one name in different places."""
    seen: set[str] = set()
    for section in sections:
        key, number = section.key, 1
        while section.key in seen:
            number += 1
            section.key = f"{key}-{number}"
        seen.add(section.key)


def render(title: str, lead: str, sections: Sequence[Section], foot: str = "") -> str:
    """The page as HTML.

    Args:
        title: Its title.
        lead: A line below the title.
        sections: Its sections, with anchors that differ.
        foot: A line at the end.
    """
    template = resources.files("calosim.report").joinpath("page.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined)
    return environment.from_string(template).render(title=title, lead=lead, sections=sections, foot=foot)


def log_report(
    project: str, title: str, found: Mapping[str, Sequence[Path]], sections: Sequence[Section], page: Path
) -> None:
    """Logs configurations, metrics, figures and the page as a run of its own; offline without a key.

    Args:
        project: The project.
        title: The run's name.
        found: Folders by what they are: training, evaluation, study, explanation.
        sections: The page's sections, whose pictures are logged.
        page: The page; the run's files go beside it.
    """
    import wandb
    from PIL import Image

    from calosim.loggers import wandb_offline_where_needed  # with lightning, which a page needs not

    wandb_offline_where_needed()
    config = {folder_name(folder): Run(folder).config for folder in found["training"]}
    with wandb.init(project=project, name=title, config=config, dir=str(page.parent)) as run:
        for section in sections:
            for number, picture in enumerate(section.pictures):
                image = wandb.Image(Image.open(io.BytesIO(picture.png)), caption=picture.caption)
                run.log({f"{section.key}/{number}": image})
        for folder in found["evaluation"]:
            rows = list(_metrics(read_json(folder / Evaluation.RECORD)))
            run.log({f"{folder_name(folder)}/metrics": wandb.Table(["candidate", "metric", "mean", "std"], rows)})
            run.summary.update({f"{folder_name(folder)}/{c}/{m}": mean for c, m, mean, _ in rows})
        for name, marker in (("study", "comparison.csv"), ("explanation", "shap.csv")):
            for path in (folder / marker for folder in found[name]):
                if path.exists():
                    lines = read_csv(path)
                    table = wandb.Table([*lines[0]], [[*line.values()] for line in lines])
                    run.log({f"{folder_name(path.parent)}/{path.stem}": table})
        run.log({"report": wandb.Html(page.read_text(encoding="utf-8"))})


def _metrics(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    """Candidate, metric, mean and standard deviation of each value."""
    for candidate, result in results.get("images", {}).items():
        for metric, mean in result["mean"].items():
            yield [candidate, metric, mean, result["std"][metric]]


#: What can be reported, and the file that tells that a folder is one.
MARKERS = {
    "training": Run.RECORD,
    "evaluation": Evaluation.RECORD,
    "study": "comparison.md",
    "explanation": "explain.json",
}
#: What a folder must be able to tell to be reported.
TOLD: dict[str, Callable[[Path], Any]] = {
    "training": lambda folder: trainings([folder]),
    "evaluation": lambda folder: Evaluation(folder).metrics,
    "study": study,
    "explanation": lambda folder: read_json(folder / MARKERS["explanation"])["targets"],
}
PLURALS = {"study": "studies"}
#: How deep below the given folders they are looked for.
DEPTH = 3


def report(
    runs: list[str],
    out: str = "report.html",
    title: str = "calosim report",
    wandb: str | None = None,
    quiet: bool = False,
) -> None:
    """Writes one self-contained HTML page about runs, evaluations, studies and explanations.

    A damaged one is named in a line, and left out.

    Args:
        runs: Folders; everything of calosim in them is reported, to three levels below.
        out: The page to write.
        title: Its title.
        wandb: Log the same tables, figures and configurations to this Weights & Biases project too; offline without a key.
        quiet: Show no progress.

    Raises:
        ValueError: If a folder does not exist, there is nothing to report, or a file that is no page would be replaced.
    """
    if Path(out).is_file() and Path(out).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out}: is there and no page; expected another file to write, such as report.html")
    found = _found([Path(run) for run in runs])
    if not any(found.values()):
        raise ValueError(
            f"{', '.join(runs)}: nothing to report; expected folders with {', '.join(sorted(MARKERS.values()))}"
        )
    sections = _sections(found, quiet)
    facts = ", ".join(f"{len(v)} {k if len(v) == 1 else PLURALS.get(k, f'{k}s')}" for k, v in found.items() if v)
    page = render(title, f"{facts}.", sections, f"calosim {__version__}, git {(git_hash() or 'unknown')[:12]}")
    atomic_write(out, page)
    pictures = sum(len(section.pictures) for section in sections)
    print(f"{out}: {len(sections)} sections, {pictures} pictures, {len(page) / 1e6:.1f} MB")
    if wandb:
        log_report(wandb, title, found, sections, Path(out))


def _sections(found: dict[str, list[Path]], quiet: bool) -> list[Section]:
    """The sections that have something to say, with anchors that differ."""
    # A study tells itself what its evaluations found.
    judged = [folder for folder in found["evaluation"] if not set(found["study"]) & set(folder.parents)]
    # The answer first, then what it rests on, then how it was made.
    makers = (
        lambda: answer(found["evaluation"]),
        *(lambda f=f: evaluation(f) for f in judged),
        *(lambda f=f: study(f) for f in found["study"]),
        *(lambda f=f: explanation(f) for f in found["explanation"]),
        lambda: trainings(found["training"]),
        lambda: curves(found["training"]),
    )
    made: list[Section] = []
    for make in tqdm(makers, desc="report", unit="section", disable=True if quiet else None):
        with _left_out_if_damaged():
            made.append(make())
    sections = [section for section in made if section.pieces]
    name_apart(sections)
    return sections


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
    found = {what: [f for f in folders if (f / marker).is_file()] for what, marker in MARKERS.items()}
    # The copies in an ensemble are no training of their own.
    found["training"] = [folder for folder in found["training"] if not Run(folder).is_ensemble]
    return {what: [folder for folder in folders if _tells(what, folder)] for what, folders in found.items()}


def _tells(what: str, folder: Path) -> bool:
    """Whether a folder can be reported; otherwise after a line about it."""
    with _left_out_if_damaged(folder):
        TOLD[what](folder)
        return True
    return False


@contextmanager
def _left_out_if_damaged(folder: Path | None = None) -> Iterator[None]:
    """Says in a line what cannot be read, and goes on without it."""
    try:
        yield
    except ValueError as error:
        print(f"calosim: {error}; left out", file=sys.stderr)
    except (AttributeError, KeyError, TypeError) as error:  # records that lack something
        if folder is None:
            raise
        print(
            f"calosim: {folder}: expected a whole record ({type(error).__name__}: {error}); left out", file=sys.stderr
        )
