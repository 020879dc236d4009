"""``calosim compare``: runs a plan, and compares its models with statistics."""

from __future__ import annotations

from collections.abc import Mapping

from calosim.io import atomic_write, write_json
from calosim.options import Compare
from calosim.studies.plan import ENSEMBLE, Study
from calosim.studies.run import print_steps, run_steps

__all__ = ["compare"]

WAITING = "The same command shows how they stand, and makes the tables when they are over."


def compare(options: Compare) -> None:
    """Runs a plan of trainings, skipping what is finished, and compares them with statistics.

    Raises:
        ValueError: If the plan cannot be read, a step would be refused, or one failed.
    """
    plan, execution, quiet = options.plan, options.execution, options.quiet
    study = Study(plan, options.out, options.options, options.each)
    # These import torch; a plan that cannot be read is refused at once.
    from calosim.studies.ensemble import make_ensemble
    from calosim.studies.statistics import Row, cells_of_tests, evaluated_rows, fill_cells, reference_rows
    from calosim.studies.tables import Comparison, measure_speeds, speed_table

    table = study.table
    for step in study.steps.values():
        step.settings  # noqa: B018 - a step that its command would refuse ends the study before its first one
    if options.dry_run:
        return print_steps(study.steps)
    failed = run_steps(study.steps, execution, quiet)
    if failed is None:
        return print(WAITING)
    rows = evaluated_rows(study)
    if not rows:
        raise ValueError(f"{plan}: nothing to compare; " + "; ".join(f"{k}: {v}" for k, v in failed.items()))
    chosen: dict[str, str] = {}
    if table.ensemble:
        made = make_ensemble(study, execution, quiet)
        if made is None:
            print(WAITING)
            return _check(study, failed)
        if isinstance(made, str):
            failed[ENSEMBLE] = made
        else:
            evaluation, chosen = made
            rows.append(Row(ENSEMBLE, "ensemble of the best", [(evaluation, None)]))
    rows += reference_rows(rows)
    cells = fill_cells(rows, table, options.resamples, quiet) | cells_of_tests(rows, table.modes)
    comparison = Comparison(study, rows, cells, failed, chosen)
    text = comparison.markdown()
    write_json(study.out / Comparison.RECORD, comparison.record())
    atomic_write(study.out / "comparison.csv", comparison.csv())
    if table.speed:
        speeds = measure_speeds(study, quiet)
        text += "\n" + speed_table(study, speeds)
        write_json(study.out / "speed.json", speeds)
    atomic_write(study.out / "comparison.md", text)
    for mode in comparison.modes:
        comparison.draw(study.out / f"comparison-{mode}.png", mode)
    print(text)
    print(f"Tables: {study.out}/comparison.md, .csv; pictures: {study.out}/comparison-*.png")
    _check(study, failed)


def _check(study: Study, failed: Mapping[str, str]) -> None:
    if failed:
        raise ValueError(f"{len(failed)} of {len(study.steps)} steps failed: {', '.join(failed)}; see above")
