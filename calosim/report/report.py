"""The command ``report``: finds what there is to report below some folders, and writes a section about each.

What is reported follows from what a folder holds: a training (a run's record), an evaluation (``evaluation.json``), a study
(``comparison.md``), an explanation (``explain.json``). Sections without data are left out.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from calosim import __version__
from calosim.evaluation.stored import Evaluation
from calosim.io import atomic_write, read_csv, read_json
from calosim.options import Report
from calosim.report.page import Section, name_apart, render
from calosim.report.sections import answer, curves, evaluation, explanation, folder_name, study, trainings
from calosim.runs import Run, git_hash

__all__ = ["log_report", "report"]


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
            rows = list(_metrics(Evaluation(folder).record))
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


def report(options: Report) -> None:
    """Writes one self-contained HTML page about runs, evaluations, studies and explanations.

    Raises:
        ValueError: If a folder does not exist, there is nothing to report, or a file that is no page would be replaced.
    """
    runs, out, title = options.runs, options.out, options.title
    if Path(out).is_file() and Path(out).suffix.lower() not in (".html", ".htm"):
        raise ValueError(f"{out}: is there and no page; expected another file to write, such as report.html")
    found = _found([Path(run) for run in runs])
    if not any(found.values()):
        raise ValueError(
            f"{', '.join(runs)}: nothing to report; expected folders with {', '.join(sorted(MARKERS.values()))}"
        )
    sections = _sections(found, options.quiet)
    facts = ", ".join(f"{len(v)} {k if len(v) == 1 else PLURALS.get(k, f'{k}s')}" for k, v in found.items() if v)
    page = render(title, f"{facts}.", sections, f"calosim {__version__}, git {(git_hash() or 'unknown')[:12]}")
    atomic_write(out, page)
    pictures = sum(len(section.pictures) for section in sections)
    print(f"{out}: {len(sections)} sections, {pictures} pictures, {len(page) / 1e6:.1f} MB")
    if options.wandb:
        log_report(options.wandb, title, found, sections, Path(out))


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
