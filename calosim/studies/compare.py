"""``calosim compare``: runs a plan, and compares its models with statistics."""

from __future__ import annotations

from collections.abc import Mapping

from calosim.io import atomic_write, write_json
from calosim.options import Compare
from calosim.studies.plan import Plan, load_plan
from calosim.studies.run import run_steps

__all__ = ["compare"]

WAITING = "The same command shows how they stand, and makes the tables when they are over."


def compare(options: Compare) -> None:
    """Runs a plan of trainings, skipping what is finished, and compares them with statistics.

    Raises:
        ValueError: If the plan cannot be read, a step would be refused, or one failed.
    """
    plan, execution, quiet = options.plan, options.execution, options.quiet
    study = load_plan(plan, options.out, options.options)
    # These import torch; a plan that cannot be read is refused at once.
    from calosim.studies.ensemble import make_ensemble
    from calosim.studies.layout import ENSEMBLE, Row, Table, judged_rows, reference_rows
    from calosim.studies.statistics import fill_cells, judge_cells
    from calosim.studies.tables import Comparison, measure_speeds, print_plan, speed_table

    table = Table.of(study)
    for step in study.steps.values():
        step.settings  # noqa: B018 - a step that its command would refuse ends the study before its first one
    if options.dry_run:
        print_plan(study, execution.jobs)
        return
    failed = run_steps(study, execution, quiet)
    if failed is None:
        return print(WAITING)
    rows = judged_rows(study)
    if not rows:
        raise ValueError(f"{plan}: nothing to compare; " + "; ".join(f"{k}: {v}" for k, v in failed.items()))
    chosen: dict[str, str] = {}
    if table.ensemble:
        made = make_ensemble(study, table, execution, quiet)
        if made is None:
            print(WAITING)
            return _check(study, failed)
        if isinstance(made, str):
            failed[ENSEMBLE] = made
        else:
            evaluation, chosen = made
            rows.append(Row(ENSEMBLE, "ensemble of the best", [(evaluation, None)]))
    rows += reference_rows(rows)
    cells = fill_cells(rows, table, options.resamples, quiet) | judge_cells(rows, table.modes)
    comparison = Comparison(study, table, rows, cells, failed, chosen)
    text = comparison.markdown()
    write_json(study.out / Comparison.RECORD, comparison.record())
    atomic_write(study.out / "comparison.csv", comparison.csv())
    if table.speed:
        speeds = measure_speeds(study, quiet)
        text += "\n" + speed_table(study, speeds, cells)
        write_json(study.out / "speed.json", speeds)
    atomic_write(study.out / "comparison.md", text)
    for mode in comparison.modes:
        comparison.draw(study.out / f"comparison-{mode}.png", mode)
    print(text)
    print(f"Tables: {study.out}/comparison.md, .csv; pictures: {study.out}/comparison-*.png")
    _check(study, failed)


def _check(study: Plan, failed: Mapping[str, str]) -> None:
    if failed:
        raise ValueError(f"{len(failed)} of {len(study.steps)} steps failed: {', '.join(failed)}; see above")
