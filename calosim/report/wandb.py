"""One self-contained HTML page from any set of run folders: trainings, responses, metrics, studies, explanations.

What is reported follows from what a folder holds: a training (``config.yaml`` and ``run.json``), an evaluation
(``evaluation.json``), a study (``comparison.md``), an explanation (``explain.json``). Sections without data are left out.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calosim.report.page import Section
from calosim.report.sections import folder_name

__all__ = ["log_report"]


def log_report(
    project: str, title: str, found: Mapping[str, Sequence[Path]], sections: Sequence[Section], page: Path
) -> None:
    """Logs configurations, metrics, figures and the page as a run of its own."""
    import wandb
    import yaml
    from PIL import Image

    from calosim.cli.train import wandb_offline_without_key

    wandb_offline_without_key()
    config = {folder_name(f): yaml.safe_load((f / "config.yaml").read_text()) for f in found["training"]}
    with wandb.init(project=project, name=title, config=config, dir=str(page.parent)) as run:
        for section in sections:
            for number, (caption, png) in enumerate(section.pictures.items()):
                picture = wandb.Image(Image.open(io.BytesIO(png)), caption=caption)
                run.log({f"{section.key}/{number}": picture})
        for folder in found["evaluation"]:
            results = json.loads((folder / "evaluation.json").read_text())
            rows = list(_metrics(results))
            run.log({f"{folder_name(folder)}/metrics": wandb.Table(["candidate", "metric", "mean", "std"], rows)})
            run.summary.update({f"{folder_name(folder)}/{c}/{m}": mean for c, m, mean, _ in rows})
        for kind, name in (("study", "comparison.csv"), ("explanation", "shap.csv")):
            for path in (folder / name for folder in found[kind]):
                if path.exists():
                    head, *lines = csv.reader(path.read_text().splitlines())
                    run.log({f"{folder_name(path.parent)}/{path.stem}": wandb.Table([*head], lines)})
        run.log({"report": wandb.Html(page.read_text())})


def _metrics(results: Mapping[str, Any]) -> Iterator[list[Any]]:
    for candidate, result in results.get("images", {}).items():
        for metric, mean in result["mean"].items():
            yield [candidate, metric, mean, result["std"][metric]]
