"""What a study's tables show: which metrics, columns and rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from calosim.evaluation.stored import TITLES, Evaluation
from calosim.metrics.registry import METRICS
from calosim.particles import STUDY_PARTICLES, particle_code, particle_heading, particle_name
from calosim.studies.plan import ENSEMBLE, REFERENCES, Plan

__all__ = ["ENSEMBLE", "REFERENCES", "Row", "Table", "judged_rows", "reference_rows"]


@dataclass(frozen=True)
class Table:
    """The entry ``table`` of a plan.

    Attributes:
        particles: Columns: ``all`` and particle types, by their short names.
        metrics: Keys of :data:`calosim.metrics.registry.METRICS`.
        modes: ``shape`` (true photon sums), ``chain`` (generated ones).
        reference: The label of the training that others are compared with.
        ensemble: ``default`` and ``members``: labels whose best runs are joined; ``photons``: the label of the photon sum.
        speed: Whether models' sizes and speeds are measured.
    """

    particles: Sequence[str] = ("all", *(particle_name(code) for code in STUDY_PARTICLES))
    metrics: Sequence[str] = ("ws", "mae_cond", "delta", "jacc")
    modes: Sequence[str] = ("shape", "chain")
    reference: str | None = None
    ensemble: Mapping[str, Any] | None = None
    speed: bool = False

    @classmethod
    def of(cls, plan: Plan) -> Table:
        """Reads and checks the entry of a plan.

        Raises:
            ValueError: If it names what does not exist.
        """
        given, known = plan.entries.get("table") or {}, [entry.name for entry in fields(cls)]
        if unknown := set(given) - set(known):
            raise ValueError(
                f"{plan.path}: unknown entries {', '.join(sorted(unknown))} of table; expected {', '.join(known)}"
            )
        # One name of a particle in all tables, however the plan writes it.
        names = [p if p == "all" else particle_name(particle_code(p)) for p in given.get("particles", cls.particles)]
        table = cls(**{**given, "particles": names})
        for what, entries in {"particles": names, "metrics": table.metrics, "modes": table.modes}.items():
            check_once(f"{plan.path}: table.{what}", entries)
        check_once(f"{plan.path}: table.ensemble", table.joined)
        for metric in table.metrics:
            if metric not in METRICS:
                raise ValueError(f"{plan.path}: unknown metric {metric!r}; expected {', '.join(METRICS)}")
        labels = [label for label in [table.reference, *table.joined] if label is not None]
        if missing := {label for label in labels if label not in plan.trainings}:
            names = sorted(missing)
            raise ValueError(f"{plan.path}: the table names {', '.join(names)}, which is none of its trainings")
        return table

    @property
    def joined(self) -> list[str]:
        """Labels of the trainings that the ensemble is chosen from, the default first; empty without an ensemble.

        Raises:
            ValueError: If the entry ``ensemble`` is incomplete.
        """
        if not self.ensemble:
            return []
        needed, known = {"default", "members"}, {"default", "members", "photons"}
        if not isinstance(self.ensemble, dict) or not needed <= set(self.ensemble) <= known:
            raise ValueError(
                f"expected table.ensemble with default, members and perhaps photons, got {self.ensemble!r}"
            )
        return [self.ensemble["default"], *self.ensemble["members"]]

    @property
    def columns(self) -> dict[str, str]:
        """Headings of the columns by particle."""
        return {p: particle_heading(p) for p in self.particles}


def check_once(where: str, names: Sequence[Any]) -> None:
    """Refuses what is named twice, and would count twice.

    Raises:
        ValueError: If something is.
    """
    if twice := [name for number, name in enumerate(names) if name in names[:number]]:
        raise ValueError(f"{where}: expected each once, got {twice[0]} twice")


@dataclass
class Row:
    """One line of the tables: a label's runs, which differ in particle or seed; runs that differ otherwise are other lines.

    Attributes:
        label: The training's label in the plan, with the values of ``each`` that are neither particle nor seed; or ``floor``,
            ``trivial``, ``ensemble``.
        title: What the tables call it.
        evaluations: Evaluations with the particle each is of; None for all.
    """

    label: str
    title: str
    evaluations: list[tuple[Evaluation, str | None]] = field(default_factory=list)

    def of(self, particle: str) -> list[Evaluation]:
        """The evaluations that answer for a particle type, or for ``all``."""
        return [evaluation for evaluation, own in self.evaluations if own is None or own == particle]

    def candidate(self, mode: str) -> str:
        """Which candidate of its evaluations is the row's: the floor is the one of the mode."""
        own = self.label if self.label in REFERENCES else mode
        same = f"{mode}_{own}"
        return same if same in TITLES and all(same in e.metrics for e, _ in self.evaluations) else own

    def called(self, mode: str) -> str:
        """What the tables of a mode call it."""
        return TITLES[self.candidate(mode)] if self.label in REFERENCES else self.title


def judged_rows(plan: Plan) -> list[Row]:
    """A row for each label with a finished evaluation; one for each combination of values that are swept over."""
    rows: dict[str, Row] = {}
    for label in plan.trainings:
        for step in plan.runs(label):
            if evaluation := plan.judged(step):
                key, title = plan.row(step)
                row = rows.setdefault(key, Row(key, title))
                particle = step.options.get("data.particle")
                own = None if particle is None else particle_name(particle_code(particle))
                row.evaluations.append((evaluation, own))
    return list(rows.values())


def reference_rows(rows: Sequence[Row]) -> list[Row]:
    """Floor and trivial model, from the first evaluation of all particles that has them."""
    for row in rows:
        for evaluation, particle in row.evaluations:
            if particle is None and "trivial" in evaluation.metrics:
                there = [name for name in REFERENCES if name in evaluation.metrics]
                return [Row(name, TITLES[name], [(evaluation, None)]) for name in there]
    return []
