"""One self-contained HTML page from any set of run folders: trainings, responses, metrics, studies, explanations.

What is reported follows from what a folder holds: a training (``config.yaml`` and ``run.json``), an evaluation
(``evaluation.json``), a study (``comparison.md``), an explanation (``explain.json``). Sections without data are left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from calosim import __version__
from calosim.files import atomic_write
from calosim.report.page import PAGE
from calosim.report.sections import curves, evaluation, explanation, study, trainings
from calosim.report.wandb import log_report
from calosim.runs import git_hash

__all__ = ["report"]

#: What makes a folder of a kind.
KINDS = {
    "training": "run.json",
    "evaluation": "evaluation.json",
    "study": "comparison.md",
    "explanation": "explain.json",
}


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
        lambda: trainings(found["training"]),
        lambda: curves(found["training"]),
        *(lambda f=f: evaluation(f) for f in found["evaluation"] if not _part_of_study(f, found["study"])),
        *(lambda f=f: study(f) for f in found["study"]),
        *(lambda f=f: explanation(f) for f in found["explanation"]),
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
        log_report(wandb, title, found, sections, Path(out))


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
