"""The report as a run of Weights & Biases: the same configurations, metrics, figures and page."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from calosim.evaluation.stored import Evaluation
from calosim.io import read_csv, read_json
from calosim.report.page import Section
from calosim.report.sections import folder_name
from calosim.runs import Run

__all__ = ["log_report"]


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
