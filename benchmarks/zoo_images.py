"""Image models of timm and torchvision with random weights: are they complete, do they close?

    python benchmarks/zoo_images.py                   # the smallest model of every family of timm
    python benchmarks/zoo_images.py --library torchvision --largest 140
    python benchmarks/zoo_images.py --failures convnext levit

Needs timm (and torchvision). Each model gets an image as small as it takes, in float64, and `attribute()` explains one
class under AttnLRP. *complete*: no operation without a rule. *identical*: the output is that of the model without a
composite, bit by bit. *closes*: the relevance of the pixels and all that the ledger names add up to the output, to 1e-8
of its size.
"""

from __future__ import annotations

import argparse
import re
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from itertools import groupby
from typing import Any

import torch
from measure import show
from torch import Tensor, nn

from lxt_compose import attribute

SMALL = ("test_", "atto", "femto", "pico", "nano", "xxs", "xx_small", "xxtiny", "_xt", "tiny", "_ti", "_t", "xs", "_s0")
SMALL += ("18", "26", "small", "_s", "_b0", "_0", "050", "121", "11", "mini", "lite", "_m", "base")
SECONDS = 120
SIZES = (64, 96, 128, 192, 224, 256)
Maker = Callable[..., nn.Module]


def families() -> Iterator[tuple[str, list[tuple[str, Maker]]]]:
    """Each family of timm, with its models, those whose names promise a small one first."""
    timm: Any = import_module("timm")
    for family in timm.list_modules():
        order = by_size(timm.list_models(module=family))
        yield family, [(name, lambda name=name, **options: timm.create_model(name, **options)) for name in order]


def of_torchvision() -> Iterator[tuple[str, list[tuple[str, Maker]]]]:
    """Each family of classifiers of torchvision: what begins alike, up to a number or an underscore."""
    models: Any = import_module("torchvision.models")
    for family, names in groupby(models.list_models(module=models), lambda name: re.split(r"[_\d]", name)[0]):
        yield (
            family,
            [
                (name, lambda name=name, **options: models.get_model(name, weights=None, **options))
                for name in by_size(names)
            ],
        )


def by_size(names: Iterable[str]) -> list[str]:
    """Names of models, those that promise a small one first."""
    return sorted(names, key=lambda name: (next((i for i, part in enumerate(SMALL) if part in name), 99), len(name)))


def build(candidates: list[tuple[str, Maker]], largest: float) -> tuple[str, nn.Module, Tensor]:
    """The first model that is small, and an image that it takes."""
    reason: Exception = ValueError("no model has fewer parameters")
    for name, make in candidates[:12]:
        for size in SIZES:
            try:
                torch.manual_seed(0)
                try:
                    model = make(num_classes=5, img_size=size)
                except (TypeError, ValueError, AssertionError, AttributeError):
                    model = make(num_classes=5)
                if sum(p.numel() for p in model.parameters()) > largest:
                    break
                model = spread(model).double().eval()
                image = torch.randn(2, 3, size, size, dtype=torch.float64)
                with torch.no_grad():
                    if not bool(logits(model(image)).isfinite().all()):
                        raise ValueError("its output is not finite")
                return name, model, image
            except TimeoutError:
                raise
            except Exception as error:  # whatever a model says to a size
                reason = error
    raise reason


def spread(model: nn.Module) -> nn.Module:
    """The model with norms and biases that are not 0 and 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.1 * torch.randn_like(buffer))
    return model


def logits(output: Any) -> Tensor:
    """The logits among what a model gives."""
    found = output[0] if isinstance(output, (tuple, list)) else getattr(output, "logits", output)
    return found.flatten(1)


def judge(candidates: list[tuple[str, Maker]], largest: float, seconds: int) -> dict[str, Any]:
    """The verdict on one family; what cannot be built says why."""

    def too_slow(*_: Any) -> None:
        raise TimeoutError(f"took more than {seconds} s")

    signal.signal(signal.SIGALRM, too_slow)
    signal.alarm(seconds)
    stage, name = "not built", candidates[0][0] if candidates else ""
    try:
        name, model, image = build(candidates, largest)
        stage, plain = "failed", logits(model(image))[:, 1].detach()
        found = attribute(model, image, target=lambda output: logits(output)[:, 1], ledger=True)
        total = found.relevance.double().flatten(1).sum(1) + sum(found.ledger.absorbed.values())
        size = plain.abs().clamp(min=1e-3)
        gap = float((((found.output - total).abs() + found.ledger.unaccounted) / size).max())
        lacking = sorted({f"{row.target} in {row.path}" for row in found.report.uncovered})[:3]
        same = bool((found.output == plain).all())
        return {"stage": "ran", "name": name, "complete": found.report.complete, "identical": same, "gap": gap,
                "why": "; ".join(lacking)}  # fmt: skip
    except Exception as error:  # whatever a model raises is its verdict
        return {"stage": stage, "name": name, "why": f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"}
    finally:
        signal.alarm(0)


def main() -> None:
    """Print the table and the summary."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="families; all if left out")
    parser.add_argument("--library", choices=("timm", "torchvision"), default="timm")
    parser.add_argument("--failures", action="store_true", help="print only what is not all right")
    parser.add_argument("--largest", type=float, default=30, help="millions of parameters (30)")
    parser.add_argument("--seconds", type=int, default=SECONDS, help=f"at most for each family ({SECONDS})")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows, count = [], Counter[str]()
    for family, candidates in families() if options.library == "timm" else of_torchvision():
        if options.names and family not in options.names:
            continue
        found = judge(candidates, options.largest * 1e6, options.seconds)
        right = found["stage"] == "ran" and found["complete"] and found["identical"] and found["gap"] < 1e-8
        count[found["stage"]] += 1
        for key in ("complete", "identical"):
            count[key] += bool(found.get(key))
        count["closes"] += found.get("gap", 1.0) < 1e-8
        count["right"] += right
        if not (right and options.failures):
            marks = [found.get("complete", ""), found.get("identical", ""), found.get("gap", ""), found["why"]]
            rows.append([family, found["name"], found["stage"], *marks])
            print(rows[-1], file=sys.stderr, flush=True)
    show(options.library, ["family", "model", "", "complete", "identical", "gap", "why not"], rows)
    columns = ["ran", "complete", "identical", "closes", "right", "failed", "not built"]
    show("summary", columns, [[count[key] for key in columns]])


if __name__ == "__main__":
    main()
