"""The options of tools: what each can be told, declared once and where it costs no torch, for the command line, YAML and Python.

A tool takes one of these objects; a field that is itself a dataclass groups options that travel together further down. On
the command line and in YAML all are options of one level: ``--shower`` is ``models.shower`` of :class:`Evaluate`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from calosim.particles import particle_code
from calosim.slurm import Slurm

__all__ = [
    "METHODS",
    "MIN_SURROGATE_ROWS",
    "CheckSettings",
    "ClassifierOptions",
    "Compare",
    "Convert",
    "Ensemble",
    "Evaluate",
    "Execution",
    "Explain",
    "Export",
    "FloorOptions",
    "Generate",
    "Merge",
    "Method",
    "Models",
    "Protocol",
    "Report",
    "Requantization",
    "ShapSettings",
    "Shard",
    "Simulate",
    "Stages",
    "SurrogateSettings",
    "Variant",
    "Work",
]

#: Explainers of the ``shap`` package.
Method = Literal["exact", "permutation", "gradient"]
METHODS: tuple[Method, ...] = get_args(Method)
#: Public codes whose metrics can be had beside ours.
Variant = Literal["zdc", "zdc-fast-simulations"]
#: Fewer responses with light than this do not fit a surrogate.
MIN_SURROGATE_ROWS = 100


def check_least(settings: Any, **least: int) -> None:
    """Refuses whole numbers of a settings' dataclass below their least values, 1 where no other is named.

    Raises:
        ValueError: If there is one.
    """
    for name in (field.name for field in fields(settings)):
        value, lowest = getattr(settings, name), least.get(name, 1)
        if isinstance(value, int) and not isinstance(value, bool) and value < lowest:
            raise ValueError(f"expected {name} of at least {lowest}, got {value}")


@dataclass(frozen=True)
class Stages:
    """Which models make a response, in the order in which they are asked from the last.

    Attributes:
        shower: Run folder or checkpoint of the shower model (teacher or student), or the folder of an ensemble.
        photons: Run folder or checkpoint of the photon-sum model; not needed if the ensemble holds one.
        acceptance: Run folder or checkpoint of the acceptance model; without it every primary leaves a response.
    """

    shower: str
    photons: str | None = None
    acceptance: str | None = None


@dataclass(frozen=True)
class Requantization:
    """How noisy real numbers become counts, where a model's coordinates leave a choice.

    Attributes:
        requantization: 1 floor, 2 subtract and round, 3 floor and renormalize, 4 subtract, round and renormalize; an
            ensemble's own choice, else the coordinates' (3), if not given.
        requantization_of: Exceptions by particle, for instance "[neutron=1,k0s=2]".
    """

    requantization: int | None = None
    requantization_of: Sequence[str] = ()

    def by_code(self) -> dict[int, int]:
        """The choices by PDG code, the default under 0.

        Raises:
            ValueError: If an exception is not of that form.
        """
        methods = {} if self.requantization is None else {0: self.requantization}
        for text in self.requantization_of:
            name, _, method = text.rpartition("=")
            if not name or not method.isdigit():
                raise ValueError(f"expected a noise removal as particle=1, 2, 3 or 4, got {text!r}")
            methods[particle_code(name)] = int(method)
        return methods


@dataclass(frozen=True)
class Shard:
    """One of the consecutive ranges that the rows of a generation are cut into.

    Attributes:
        number: Which one, from 1.
        count: How many there are; 1 for a run that is not cut.
    """

    number: int = 1
    count: int = 1

    @classmethod
    def read(cls, text: str | None) -> Shard:
        """The shard of ``3/16``; the whole if nothing is given.

        Raises:
            ValueError: If it is none of that form.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", "1/1" if text is None else text)
        number, count = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= count:
            raise ValueError(f"expected a shard such as 3/16, from 1/16 to 16/16, got {text}")
        return cls(number, count)

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def path(self, out: str | Path) -> Path:
        """The file of the shard, beside that of the whole: ``fast.3-of-16.root``."""
        out = Path(out)
        return out if self.count == 1 else out.with_name(f"{out.stem}.{self.number}-of-{self.count}{out.suffix}")

    def rows(self, total: int) -> range:
        """The rows of the shard, of ``total``.

        Raises:
            ValueError: If there are more shards than rows.
        """
        if self.count > total:
            raise ValueError(f"shard {self}: expected no more shards than responses, of which there are {total}")
        return range(total * (self.number - 1) // self.count, total * self.number // self.count)


@dataclass(frozen=True)
class Work:
    """How responses are made, which changes none of them.

    Attributes:
        batch_size: Responses simulated at once.
        device: auto, cpu, cuda or mps.
        devices: Processes that share the responses: on a GPU each, or each with its share of a CPU's threads.
        shard: Make one of several consecutive ranges of the responses, 3/16 the third of sixteen. All of them together, joined
            by `calosim merge`, are what one run would have made.
    """

    batch_size: int = 256
    device: str = "auto"
    devices: int = 1
    shard: str | None = None


@dataclass(frozen=True)
class Models:
    """The models under judgement, and how their images become photon counts.

    Attributes:
        shower: Run folder, checkpoint or ensemble of the shower model; without it only the photon sums are judged.
        photons: Run folders or checkpoints of photon-sum models; the first is used with the shower model, all are compared.
        requantization: 1 floor, 2 subtract and round, 3 floor and renormalize, 4 subtract, round and renormalize; or best:
            for each particle the one with the smallest Wasserstein distance on validation rows. An ensemble's own by
            default, else 3.
        requantization_of: Exceptions by particle, for instance "[neutron=1,k0s=2]".
        acceptance: Run folder of an acceptance model, judged on the held-out attempts of its own data, with and without a
            response.
    """

    shower: str | None = None
    photons: list[str] | None = None
    requantization: int | Literal["best"] | None = None
    requantization_of: list[str] | None = None
    acceptance: str | None = None

    @property
    def paths(self) -> list[str]:
        """All that is judged, the shower model first.

        Raises:
            ValueError: If nothing is.
        """
        paths = [path for path in (self.shower, *(self.photons or [])) if path]
        if not paths:
            raise ValueError(
                "nothing to evaluate: name a shower model with --shower or photon-sum models with --photons"
            )
        return paths


@dataclass(frozen=True)
class Protocol:
    """Which rows a simulation is judged on, and how often it answers them.

    Several responses are generated for every row, several times over; what is reported are means and standard deviations
    over those runs.

    Attributes:
        split: The rows to judge on; choices between models are made on val, results are reported on test.
        runs: Repetitions with other seeds.
        responses: Responses generated for every row in each run.
        rows: About that many rows, spread over particle types and inputs, up to five of an input; all if not given.
        rows_of_each: In addition up to about that many rows of each particle type, for its own column; "all" stays with the
            natural mix.
        seed: Seed of the draws.
        resamples: Bootstrap resamples of primaries, for the 95 % intervals of metrics; 0: no intervals.
        variants: Metrics as public codes compute them, in a table of their own: some of zdc (m-wojnar/zdc: channel sums not
            rounded, all generations of a row pooled, MAE paired row by row) and zdc-fast-simulations
            (majerzemilia/zdc-fast-simulations: one generation of each row, MAE paired row by row).

    Raises:
        ValueError: If one of the numbers is below 1, resamples are 1 or less than 0, or a variant is unknown.

    References:
        | Fine-tuned Normalizing Flows for ALICE ZDC Fast Simulation (Majerz et al., 2026), section 3.2,
          https://arxiv.org/abs/2608.12795
    """

    split: Literal["test", "val"] = "test"
    runs: int = 5
    responses: int = 5
    rows: int | None = None
    rows_of_each: int | None = None
    seed: int = 1
    resamples: int = 1000
    variants: list[Variant] | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.variants or []) - set(get_args(Variant)):
            raise ValueError(f"unknown variant {min(unknown)!r}; expected some of {', '.join(get_args(Variant))}")
        if self.resamples < 0 or self.resamples == 1:
            raise ValueError(f"expected resamples of 0 or at least 2, got {self.resamples}")
        check_least(self, resamples=0, seed=0)


@dataclass(frozen=True)
class FloorOptions:
    """What stands beside the models.

    Attributes:
        floor: Showers of the same primaries simulated with another seed (``calosim simulate --primaries FILE``). Without
            it, one half of each input's responses answers for the other, on whose rows alone the floor is judged then.
        shape_floor: The same with the photon sums of the judged rows (``calosim simulate --primaries FILE --match_sums 5``):
            the floor of a shower model that is given true photon sums.
        references: Whether the floors and the trivial model are judged too.
    """

    floor: str | None = None
    shape_floor: str | None = None
    references: bool = True


@dataclass(frozen=True)
class ClassifierOptions:
    """Whether and how judges try to tell generated responses from the Monte Carlo's.

    Attributes:
        classifier: Whether the shower model and the full chain take the classifier test, minutes for each; with a floor file
            so does the Monte Carlo itself, as it is and damaged, to show how good the judges are.
        classifier_rows: About that many rows at most take it, of the whole split, whatever else is judged.
        classifier_seeds: Trainings of each judge, each tested on another fifth of the primaries; five test all of them.
        classifier_calochallenge: Whether the CaloChallenge's low-level classifier, trained as there, judges too.

    Raises:
        ValueError: If one of the numbers is below 1.
    """

    classifier: bool = True
    classifier_rows: int = 9000
    classifier_seeds: int = 5
    classifier_calochallenge: bool = False

    def __post_init__(self) -> None:
        check_least(self)


@dataclass(frozen=True)
class ShapSettings:
    """How features are explained.

    ``exact`` is shap.ExactExplainer (all subsets of the features), ``permutation`` shap.PermutationExplainer, one order
    of which is exact for interactions of two features, ``gradient`` shap.GradientExplainer (expected gradients).

    The explainer is exact by default: nine features have 512 subsets, and enumerating them costs little more than sampling
    them well. On one core (3 x 128 hidden, 8 networks, 40 background rows) exact took 0.27 s a row; permutation 0.05 s with
    2 orders, 16 to 20 % off, and 0.14 s with 8, 8 % off; gradient 0.36 s with 200 points, 46 % off: sharp edges, a beam slit
    or the calorimeter's rim, make interactions of many features, which the others miss. compare_rows measures it anew.

    Attributes:
        method: exact, permutation or gradient, see above.
        rows: Test rows to explain.
        background: Training rows that stand for masked features.
        posterior: Networks drawn from each Bayesian posterior; an ensemble has its own number.
        permutations: Orders in which "permutation" unmasks the features, each forth and back.
        gradients: Points at which "gradient" differentiates for each row.
        compare_rows: Rows on which all explainers are run and compared; 0 skips that.
        seed: Seed of all draws.

    Raises:
        ValueError: If the method is unknown or a number too small.
    """

    method: Method = "exact"
    rows: int = 100
    background: int = 40
    posterior: int = 8
    permutations: int = 2
    gradients: int = 200
    compare_rows: int = 4
    seed: int = 1

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"unknown explainer {self.method!r}; expected one of {', '.join(METHODS)}")
        check_least(self, background=2, compare_rows=0, seed=0)


@dataclass(frozen=True)
class SurrogateSettings:
    """How surrogates of the shower's center are trained.

    Attributes:
        surrogate_rows: Responses generated for the surrogates; a quarter as many, of test primaries, judge them.
        surrogate_epochs: Passes over those responses.
        devices: Processes that share their generation, each with its share of a CPU's threads.

    Raises:
        ValueError: If a number is too small.
    """

    surrogate_rows: int = 2000
    surrogate_epochs: int = 60
    devices: int = 1

    def __post_init__(self) -> None:
        check_least(self, surrogate_rows=MIN_SURROGATE_ROWS)


@dataclass(frozen=True)
class CheckSettings:
    """What a check does.

    Attributes:
        primaries: ROOT file or CSV with the primaries to simulate.
        montecarlo: ROOT file of showers with the Monte Carlo's responses, beside which channel sums are shown. Its primaries are
            taken if none are given; they should be the same ones.
        responses: Responses to each primary.
        most: Primaries at most, evenly spread.
        seed: Seed of the noise.
        shuffles: Shuffled samples that tell what distances are chance.
    """

    primaries: str | None = None
    montecarlo: str | None = None
    responses: int = 1
    most: int = 2000
    seed: int = 1
    shuffles: int = 1000


@dataclass(frozen=True)
class Execution:
    """Where and how the steps of a plan run.

    Attributes:
        executor: local, or slurm: all steps are submitted at once, each after those it needs. The same command again shows how
            they stand, and collects when they are over.
        jobs: Runs at once, locally; they share the processor cores, and take turns at the CUDA devices.
        slurm: What each job asks Slurm for: --slurm.partition, --slurm.gpus, --slurm.time and so on, as of `calosim submit`.
        retry: Submit the steps that failed in Slurm again. Locally they always are.
    """

    executor: Literal["local", "slurm"] = "local"
    jobs: int = 1
    slurm: Slurm | None = None
    retry: bool = False

    def __post_init__(self) -> None:
        if self.executor == "local" and (self.slurm or self.retry):
            raise ValueError("slurm and retry are of `--executor slurm`; expected it beside them")
        if self.jobs < 1:
            raise ValueError(f"expected at least one job, got {self.jobs}")


@dataclass(frozen=True)
class Simulate:
    """Makes showers with the toy Monte Carlo and writes them to a ROOT file.

    Attributes:
        detector: Its name in calosim/detectors.py, such as zn, zp or focal_h.
        primaries: How many primaries to draw from the published mix, or a ROOT or CSV file whose primaries to take: with
            another seed, the Monte Carlo's own floor.
        responses_per_primary: Responses of at least 10 photons to a primary, on average over the published mix, where most
            primaries miss. Given primaries are tried as often: one on course leaves several times as many, others none.
        split: Take only those rows of the file that a training with it holds out by default, to test or to validate.
        match_sums: Keep, for each row of the file, only that many of the responses to its primary, those with the nearest
            photon sums and each for one row: the floor of models that are given the true sums. The more
            responses_per_primary, the nearer. 0 keeps all.
        keep_empty: Write every attempt, those that leave fewer than 10 photons too: six times as many rows in the ZN. What is
            without it is the same, bit for bit.
        seed: Seed; one seed, one data set, whatever the number of workers.
        out: The ROOT file to write.
        workers: Threads.
        quiet: Show no progress.
    """

    detector: str = "zn"
    primaries: int | str = 1000
    responses_per_primary: int = 20
    split: Literal["test", "val"] | None = None
    match_sums: int = 0
    keep_empty: bool = False
    seed: int = 1
    out: str = "data/zn.root"
    workers: int = 2
    quiet: bool = False


@dataclass(frozen=True)
class Convert:
    """Converts showers of any known form to one ROOT or HDF5 file.

    Attributes:
        source: ROOT, HDF5, npz or text files, one or a list. npz: particles and responses (key ``arr_0``). Text of O2's
            Extract.C: the CSV and the image texts. A partner that is not listed is looked for beside its file.
        out: The file to write, .root, or .h5 in the layout of the CaloChallenge.
        detector: The detector expected, such as zn, zp or focal_h. Required where text files hold both ZN and ZP.
        assume_beam_direction: Take tracks of the older CSV, which has no momenta, as parallel to the beam.
        prefer: PDG codes to take where an npz file without PDG codes leaves a choice; 310 takes K0S where K0L
            fits as well.
        tree: The tree of ROOT files, such as events/tracks; showers or o2sim if not given.
        columns: Branches of other names, by ours: {energy: E, px: p.fX, response: cells}.
        quiet: Show no progress.
    """

    source: str | list[str]
    out: str
    detector: str | None = None
    assume_beam_direction: bool = False
    prefer: list[int] | None = None
    tree: str | None = None
    columns: dict[str, str] | None = None
    quiet: bool = False


@dataclass(frozen=True)
class Generate:
    """Simulates responses to primaries with trained models and writes them to a ROOT file.

    Attributes:
        stages: The models.
        primaries: ROOT file, or CSV with a header of the nine features and pdg.
        out: The ROOT file to write; its shards are beside it, fast.3-of-16.root. What was interrupted goes on when the same
            command is given again.
        responses: Responses to each primary.
        seed: Seed; a response depends on the seed and its row alone.
        requantization: How noisy real numbers become counts.
        work: How they are made.
        strict: Refuse primaries outside of what the models were trained on: types that they never saw, features far outside
            of their range in training. They are counted and reported otherwise.
        quiet: Show no progress.
    """

    stages: Stages
    primaries: str
    out: str
    responses: int = 1
    seed: int = 1
    requantization: Requantization = Requantization()
    work: Work = Work()
    strict: bool = False
    quiet: bool = False


@dataclass(frozen=True)
class Merge:
    """Joins the shards of one generation to what a single run would have written.

    Attributes:
        shards: The files of all shards, in any order.
        out: The ROOT file to write.
        quiet: Show no progress.
    """

    shards: list[str]
    out: str
    quiet: bool = False


@dataclass(frozen=True)
class Evaluate:
    """Judges a fast simulation on the test split and writes tables and pictures.

    The data set and its split are those that the shower model (else the first photon-sum model) was trained with; a model
    of one particle is judged on that particle's rows.

    Attributes:
        out: Folder for the results.
        models: The models under judgement.
        files: Data files, if they are no longer where the models were trained.
        data: Run folder whose data set and split are used; that of the shower model if not given.
        floors: What stands beside the models.
        protocol: Which rows are judged, and how often they are answered.
        classifier: Whether and how classifiers try to tell generated responses from the Monte Carlo's.
        device: auto, cpu, cuda or mps.
        devices: Processes that share the responses: on a GPU each, or each with its share of a CPU's threads.
        quiet: Show no progress.
    """

    out: str
    models: Models = Models()
    files: list[str] | None = None
    data: str | None = None
    floors: FloorOptions = FloorOptions()
    protocol: Protocol = Protocol()
    classifier: ClassifierOptions = ClassifierOptions()
    device: str = "auto"
    devices: int = 1
    quiet: bool = False


@dataclass(frozen=True)
class Ensemble:
    """Makes a folder of models that simulate together: one for each of some particles, the default for all others.

    The folder holds copies, without what only training needs, so it can be moved and the runs deleted. If all its models
    were trained on one data set with one split, the record of the default's run comes along, so that ``calosim
    evaluate`` finds the test rows that none of them has seen.

    Attributes:
        folder: The folder to make.
        default: Run folder or checkpoint of the default model, the baseline.
        members: Run folders or checkpoints by particle name or PDG code, for instance "{lambda: runs/finetune/lambda}".
        photons: Run folder or checkpoint of the photon-sum model.
        requantization: How noisy real numbers become counts.
    """

    folder: str
    default: str
    members: dict[str, str]
    photons: str | None = None
    requantization: Requantization = Requantization()


@dataclass(frozen=True)
class Explain:
    """Explains the photon sum and the shower's center by the primary's features (SHAP), and how sure the photon sum is.

    Writes explain.md and explain.json, shap.csv and shap.npz, photon_uncertainty.json, .csv and .npz (by row), and
    pictures. Rows are of the test split of the data the models were trained with, background rows of its training split.

    Attributes:
        out: Folder for the results.
        photons: Run folder or checkpoint of the photon-sum model; the ensemble's, if ``shower`` is one that holds it.
        shower: Run folder, checkpoint or ensemble of the shower model. Surrogates of the x and y of the shower's center are
            trained on what it generates; without it only the photon sum is explained.
        particle: Explain this particle type alone; all types in their natural mix if not given.
        files: Data files, if they are no longer where the models were trained.
        data: Run folder whose data set and split are used; that of the photon-sum model if not given.
        settings: How features are explained.
        surrogates: How surrogates of the shower's center are trained.
        uncertainty_rows: Test rows whose predictive intervals are held against the observed photon sums.
        quiet: Show no progress.
    """

    out: str
    photons: str | None = None
    shower: str | None = None
    particle: str | int | None = None
    files: list[str] | None = None
    data: str | None = None
    settings: ShapSettings = ShapSettings()
    surrogates: SurrogateSettings = SurrogateSettings()
    uncertainty_rows: int = 2000
    quiet: bool = False


@dataclass(frozen=True)
class Report:
    """Writes one self-contained HTML page about runs, evaluations, studies and explanations.

    A damaged one is named in a line, and left out.

    Attributes:
        runs: Folders; everything of calosim in them is reported, to three levels below.
        out: The page to write.
        title: Its title.
        wandb: Log the same tables, figures and configurations to this Weights & Biases project too; offline without a key.
        quiet: Show no progress.
    """

    runs: list[str]
    out: str = "report.html"
    title: str = "calosim report"
    wandb: str | None = None
    quiet: bool = False


@dataclass(frozen=True)
class Export:
    """Writes trained models as files for other programs, or checks such files.

    Attributes:
        shower: Run folder or checkpoint of the shower model, of split representation.
        photons: Run folder or checkpoint of the photon-sum model.
        acceptance: Run folder or checkpoint of the acceptance model; without it every primary leaves a response, and the
            classifier, which O2 wants, says yes to all.
        to: o2, for the fast simulation of ALICE O2 (Detectors/ZDC/fastsimulation); or one file for any program with ONNX
            Runtime (onnx) or libtorch (torchscript).
        out: The folder to make.
        check: A folder made before, to run as O2 does and compare with Python, instead of making one.
        settings: What the check does.
    """

    shower: str | None = None
    photons: str | None = None
    acceptance: str | None = None
    to: Literal["o2", "onnx", "torchscript"] = "o2"
    out: str = "runs/export"
    check: str | None = None
    settings: CheckSettings = CheckSettings()


@dataclass(frozen=True)
class Compare:
    """Runs a plan of trainings, skipping what is finished, and compares them with statistics.

    A killed study resumes when it is started again; a failed run is shown and the rest goes on. What is finished is
    recognized by its resolved settings and the content of its data.

    Attributes:
        plan: The plan, a YAML file. conf/study has examples; their entries are explained at the top of
            calosim/studies/plan.py (python -m pydoc calosim.studies.plan).
        out: Another folder than the plan's.
        execution: Where and how it runs.
        dry_run: Only print the steps with their state and command.
        options: Further options of every training, for instance '{"trainer.max_epochs": 1}'.
        each: Other values of `each`, for instance '{"seed": [1]}'.
        resamples: Bootstrap resamples of primaries.
        quiet: Show no progress.
    """

    plan: str
    out: str | None = None
    execution: Execution = Execution()
    dry_run: bool = False
    options: dict[str, Any] | None = None
    each: dict[str, list[Any]] | None = None
    resamples: int = 10_000
    quiet: bool = False
