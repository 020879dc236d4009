"""The model card of an exported folder: what it is made of, how to use it, how good and how fast it is, and its limits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from calosim.evaluation.stored import TITLES, Evaluation
from calosim.export.builder import RUNTIMES
from calosim.export.client import CLASSIFIER, GENERATOR, SIMULATOR, scales_name
from calosim.io import markdown_table
from calosim.metrics.registry import METRICS
from calosim.runs import Run

__all__ = ["card", "check_tables", "not_quoted"]

#: O2's keys of a detector's generator (Detectors/ZDC/simulation/include/ZDCSimulation/ZDCSimParam.h).
_KEYS = {"zn": "Neutron", "zp": "Proton"}

#: Rows of the quality table, and their titles.
SHOWN = ("ws", "mae_cond")
CLASSIFIERS = ("images", "features")

_FEATURES = "energy GeV; vx, vy, vz cm; px, py, pz GeV/c, pz with any sign; mass MeV"

#: What is particular about the output of files for any program.
_FORMS = {
    "onnx": "float32.",
    "torchscript": """int32.
In C++, `torch::jit::load("simulator.pt").forward({noise, features}).toTensor()`; in Python, `torch.jit.load`.""",
}

#: Limits of ONNX files, and of TorchScript's.
_ONNX_LIMITS = """
* Sums of float32 in another order than Python's may move a photon to the other half of a cell; the check counts that.
* Files of this kind were loaded, and their images compared with Python's, by a release of every minor version of ONNX Runtime
  from {} to {}; O2 is built with 1.18 to 1.22. A whole `o2-sim` was not run."""
_SCRIPT_LIMITS = """
* PyTorch calls TorchScript deprecated: take libtorch of the version that it was made with, {torch}, or near."""

#: What the classifier says, without an acceptance model and with one.
_CLASSIFIERS = (
    "1 always, since no acceptance model was exported.",
    "0 where a response is so unlikely that the generator, which decides, need not be asked.",
)

#: How O2 is told to use the files, and what surprises there.
_RECIPE = """\
With the folder's path before each file name, as `--configKeyValues`, all in one line:

```
{lines}
```

The ZDC stays on; its beam line, where most of the time goes, is not built (AliceO2 pull request 15752: 20 pp events took
136.9 s without it, 276.9 s with it). What it did is in the model, which is conditioned on the primary at the vertex.

* Hits of the fast simulation do not stop transport, which makes its own beside them: they are doubled, unless
  `SimCutParams.maxAbsZTracking`, in cm, ends it before the ZDC.
* O2 has one classifier for ZN and ZP. Where both are simulated, take one that says yes to all, as an export without
  an acceptance model has it; generators decide for themselves.
* O2 without a classifier logs an error and turns the fast simulation off.
* The `{other}` pair comes from an export of the other detector.
* The noise comes from `std::random_device`: the seed of `o2-sim` does not repeat it.
* `ZDCSimParam.debugZDCFastSim` writes something only if both models are loaded. It rounds sums of `expm1` where hits cut the
  decimals of each pixel, which is the same for these files, and its common channel has the pixels where x + y is odd, that of
  hits those where it is even."""

_UNCHECKED = "Not checked yet: `calosim export --check FOLDER --primaries primaries.csv`."

_LIMITS = """\
* It is as good as the data that it was trained on: the toy Monte Carlo of calosim is none of ALICE's. Train on your own.
* Primaries of types or energies that were not in training are answered all the same; `calosim generate` counts them.
* The same ten normals have the same response; responses to different ones are independent."""


def card(record: dict[str, Any], check: dict[str, Any] | None = None) -> str:
    """The card as Markdown.

    Args:
        record: What the folder says of itself.
        check: What a check found, if there was one.
    """
    parts = [
        f"# Fast simulation of ALICE's {record['title']}",
        "Made by calosim {calosim} ({git}) on {made}.".format(**record),
        "## What is here",
        _contents(record),
        *(("## Use in O2", _usage(record)) if record["to"] == "o2" else ()),
        "## Made of",
        _sources(record),
        "## Quality",
        _quality(record),
        *(("## Check", check_tables(check) if check else _UNCHECKED) if record["to"] == "o2" else ()),
        "## Limits",
        _LIMITS + (_ONNX_LIMITS.format(*RUNTIMES) if "torch" not in record else _SCRIPT_LIMITS.format(**record)),
    ]
    return "\n\n".join(parts) + "\n"


def _contents(record: dict[str, Any]) -> str:
    nx, ny = record["pixels"]
    rows = [[n, f"{f['bytes'] / 1e6:.2f}", f["sha256"]] for n, f in record["files"].items()]
    table = markdown_table(["file", "MB", "SHA-256"], rows)
    if record["to"] in SIMULATOR:
        return f"""{table}

`{SIMULATOR[record["to"]]}`: inputs `noise` (N, 10), standard normal, and `features` (N, 9), both float32:
{_FEATURES}; charge in e.
Output `images` (N, {nx}, {ny}): photons of pixel (x, y), whole numbers as {_FORMS[record["to"]]}
The graph draws the photon sum and all splits itself."""
    return f"""{table}

`{GENERATOR}`: inputs `noise` (1, 10), standard normal, and `features` (1, 9):
{_FEATURES}; charge in |e|/3.
Output `image` ({ny}, {nx}): log(1 + photons) of pixel (x, y) at {nx} y + x, a little more, so that `(int) expm1` is the count.
The graph draws the photon sum and all splits itself.

`{CLASSIFIER}`: `features` as before; {_CLASSIFIERS["acceptance" in record["models"]]}
The scales files have means 0 and scales 1: the graphs standardize for themselves, as in training."""


def _usage(record: dict[str, Any]) -> str:
    kind = _KEYS.get(record["detector"])
    if kind is None:
        return "O2 has no fast simulation of this detector."
    values = {
        "ZDCSimParam.useZDCFastSim": "true",
        "ZDCSimParam.ZDCFastSimClassifierPath": CLASSIFIER,
        "ZDCSimParam.ZDCFastSimClassifierScales": scales_name(CLASSIFIER),
        f"ZDCSimParam.ZDCFastSimModelPath{kind}": GENERATOR,
        f"ZDCSimParam.ZDCFastSimModelScales{kind}": scales_name(GENERATOR),
        "ZDCSimParam.buildBeamLine": "false",
        "SimCutParams.maxAbsZTracking": "1200",
    }
    other = {"Neutron": "Proton", "Proton": "Neutron"}[kind]
    return _RECIPE.format(lines="\n".join(f"{key}={value};" for key, value in values.items()), other=other)


def _sources(record: dict[str, Any]) -> str:
    rows = []
    for role, source in record["models"].items():
        data = source["data"]
        rows.append(
            [role, str(source["model"]), str(data["data_hash"]), str(source["git"])[:12], Path(source["run"]).name]
        )
    return markdown_table(["model", "class", "data hash", "git", "run"], rows)


def _quality(record: dict[str, Any]) -> str:
    """The metrics of the shower model's evaluation, with floor and trivial model, if there is one."""
    run = Run(record["models"]["shape"]["run"])
    evaluation = Evaluation(run / Run.EVALUATION)
    if not evaluation.exists:
        return f"Not evaluated. What `calosim evaluate` writes to {run.folder.name}/{Run.EVALUATION} before an export comes here."
    if said := not_quoted(record):
        return said
    tested = evaluation.record.get("c2st", {}).get("candidates", {})
    rows = []
    for name, found in evaluation.record.get("images", {}).items():
        verdicts = tested[name]["verdicts"] if name in tested else {}
        areas = [f"{verdicts[which]['auc']:.3f}" if which in verdicts else "" for which in CLASSIFIERS]
        rows.append([TITLES[name], *(f"{found['mean'][f'{m}_all']:{METRICS[m].form}}" for m in SHOWN), *areas])
    return markdown_table(
        ["all particles", *(METRICS[m].heading for m in SHOWN), *(f"AUC of {which}" for which in CLASSIFIERS)], rows
    )


def not_quoted(record: dict[str, Any]) -> str:
    """Why the evaluation of the shower model is not quoted, in words: of other weights; empty if it is, or there is none."""
    run = Run(record["models"]["shape"]["run"])
    evaluation = Evaluation(run / Run.EVALUATION)
    judged = evaluation.record if evaluation.exists else {}
    known = {told["hash"] for told in judged.get("weights", [])}
    roles = ["shape", *(["photons"] if judged.get("photons") else [])] if judged else []
    lacking = [role for role in roles if record["models"][role].get("weights") not in known]
    return (
        f"Not quoted: {run.folder.name}/{Run.EVALUATION} is of other weights than exported ({', '.join(lacking)}): older, or "
        "of another model. Evaluate, and export again."
        if lacking
        else ""
    )


def check_tables(found: dict[str, Any]) -> str:
    """What a check found, as Markdown."""
    n = found["responses"]
    lines = [
        f"{n} responses, {found['dark']} of them dark, run as O2 does by ONNX Runtime {found['onnxruntime']}: batch 1, one "
        f"thread, {found['ms_least']:.2f} ms of processor time a response at best, {found['ms_median']:.2f} ms in the median.",
        f"With the same numbers {found['lit'] - found['different_images']} of {found['lit']} images with light are Python's, "
        f"photon for photon; in the others {found['moved_photons']} photons moved and {found['different_sums']} sums are others.",
        f"The classifier spared {found['spared']} responses, {found['cut']} of which have light without it.",
        f"With other numbers the channel sums' W1 from Python's is {found['distance']:.3g}; of shuffled samples "
        f"{100 * found['chance']:.1f} % have as much or more.",
    ]
    rows = [
        [name, *(f"{a:.2f} / {b:.2f}" for a, b in zip(found["mean"][name], found["ws"][name], strict=True))]
        for name in found["mean"]
    ]
    table = markdown_table([f"mean / W1 to {found['reference']}", *found["channels"]], rows)
    verdict = f"Failed: {'; '.join(found['failed'])}." if found["failed"] else "Passed."
    return "\n\n".join([*lines, table, verdict])
