"""Models of libraries that people use, small, with random weights: are they complete, do they close, are they bounded?

    python benchmarks/zoo_libraries.py                          # those that are installed
    python benchmarks/zoo_libraries.py --library torch_geometric GAT
    python benchmarks/zoo_libraries.py --failures

Each model is explained under AttnLRP in both formulations, without stabilizers, in float64. *complete*: no operation
without a rule. *identical*: the output is that of the model without a composite, bit by bit. *closes*: the
relevance of the inputs and all that the ledger names add up to the output, to 1e-8 of it. *agree*: to 1e-6, the largest
difference between the formulations, relative to the largest relevance. *bounded*: the largest relevance of an input is
below a thousand times the output.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from libraries import detectors, graphs, images, others, sequences, series, speech, vision
from libraries.case import Case
from measure import show
from torch import Tensor

from lxt_compose import Composite, attribute, default_rules
from lxt_compose.attribution import Attribution

LIBRARIES = {
    "torch_geometric": graphs.CASES,
    "sentence-transformers": others.SENTENCES,
    "pytorch-tabnet": others.TABLES,
    "diffusers": vision.DIFFUSERS,
    "segmentation-models-pytorch": vision.SMP,
    "torchvision": vision.TORCHVISION,
    "ultralytics": detectors.YOLO,
    "pytorch-forecasting": series.FORECASTS,
    "speechbrain": speech.SPEECHBRAIN,
    "torchaudio": images.TORCHAUDIO,
    "asteroid": images.ASTEROID,
    "encodec": images.ENCODEC,
    "monai": images.MONAI,
    "segment-anything": images.SEGMENT_ANYTHING,
    "open-clip-torch": images.OPEN_CLIP,
    "vit-pytorch": images.VIT_PYTORCH,
    "efficientnet-pytorch": images.EFFICIENTNET,
    "perceiver-pytorch": images.PERCEIVER,
    "x-transformers": sequences.X_TRANSFORMERS,
    "performer-pytorch": sequences.PERFORMER,
    "mambapy": sequences.MAMBAPY,
    "rtdl-revisiting-models": sequences.RTDL,
    "tab-transformer-pytorch": sequences.TAB_TRANSFORMER,
    "tabm": sequences.TABM,
    "ncps": sequences.NCPS,
    "pykan": sequences.PYKAN,
}
CLOSES, AGREES, BOUNDED = 1e-8, 1e-6, 1e3


def explained(case: Case, formulation: str) -> Attribution:
    """What inputs contributed, with a ledger."""
    composite = Composite(formulation=formulation, defaults=default_rules(formulation, epsilon=0.0))
    torch.manual_seed(0)  # some models draw numbers
    return attribute(case.model, case.inputs, target=case.goal, dims=case.dims, composite=composite, ledger=True)


def difference(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference, relative to the largest number."""
    largest = max(float(x.abs().max()) for x in a.values())
    return max(float((a[name] - b[name]).abs().max()) for name in a) / max(largest, 1e-12)


def gap_of(found: Attribution) -> float:
    """What is between outputs and all that was found of them, relative to the outputs."""
    total = sum(float(r.sum()) for r in found.relevances.values())
    absorbed = sum(float(amount.sum()) for amount in found.ledger.absorbed.values())
    size = max(float(found.output.abs().sum()), 1e-3)
    return max(abs(float(found.output.sum()) - total - absorbed), found.ledger.unaccounted) / size


def judge(make: Callable[[], Case]) -> dict[str, Any]:
    """The verdict on one model; what cannot be built says why."""
    stage = "not built"
    try:
        case = make()
        plain = case.goal(_called(case)).detach().reshape(-1)
        stage = "failed"
        both = [explained(case, formulation) for formulation in ("relevance", "gradient")]
        lacking = sorted({f"{row.target} in {row.path}" for x in both for row in x.report.uncovered})
        largest = max(float(r.abs().max()) for x in both for r in x.relevances.values())
        return {
            "stage": "ran", "complete": all(x.report.complete for x in both),
            "identical": all(bool((x.output.reshape(-1) == plain).all()) for x in both),
            "gap": max(map(gap_of, both)), "agree": difference(*(x.relevances for x in both)),
            "largest": largest / max(float(plain.abs().max()), 1e-3),
            "why": "; ".join(lacking)[:200],
        }  # fmt: skip
    except Exception as error:  # whatever a model raises is its verdict
        return {"stage": stage, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"}


def _called(case: Case) -> Any:
    """The output of the model by itself, recorded too: torch has other kernels otherwise."""
    given = case.inputs
    torch.manual_seed(0)
    if isinstance(given, dict):
        return case.model(**given)
    return case.model(*given) if isinstance(given, tuple) else case.model(given)


def is_right(found: dict[str, Any]) -> bool:
    """Complete, identical, closing, bounded, and alike in both formulations."""
    if found["stage"] != "ran" or not (found["complete"] and found["identical"]):
        return False
    return bool(found["gap"] < CLOSES and found["agree"] < AGREES and found["largest"] < BOUNDED)


def marks(found: dict[str, Any]) -> list[str]:
    """What a line of the table says: yes, or the number that is too large."""
    if found["stage"] != "ran":
        return [""] * 5
    bounds = {"gap": CLOSES, "agree": AGREES, "largest": BOUNDED}
    answers = ["yes" if found[key] else "NO" for key in ("complete", "identical")]
    return answers + ["yes" if found[key] < most else f"{found[key]:.0e}" for key, most in bounds.items()]


def version_of(library: str) -> str:
    """Its version, or nothing if it is not installed."""
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return ""


def main() -> None:
    """Print the table and the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="models; all if left out")
    parser.add_argument("--library", choices=[*LIBRARIES, "all"], default="all")
    parser.add_argument("--failures", action="store_true", help="print only what is not all right")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, summary = [], []
    for library, cases in LIBRARIES.items():
        if options.library not in ("all", library):
            continue
        version, count = version_of(library), Counter[str]()
        for name, make in cases.items() if version else ():
            if options.names and name not in options.names:
                continue
            found = judge(make)
            right = is_right(found)
            count[found["stage"]] += 1
            count["complete"] += bool(found.get("complete"))
            count["right"] += right
            if not (right and options.failures):
                rows.append([library, name, found["stage"], *marks(found), found["why"]])
                print(rows[-1], file=sys.stderr, flush=True)
        columns = ("ran", "complete", "right", "failed", "not built")
        summary.append([library, version or "not installed", *(count[key] for key in columns)])
    show("models", ["library", "model", "", "complete", "identical", "closes", "agree", "bounded", "why not"], rows)
    show("summary", ["library", "version", "ran", "complete", "right", "failed", "not built"], summary)


if __name__ == "__main__":
    main()
