"""Patch flipping on real digits: does what an explanation calls important matter to the network?

    python benchmarks/flipping.py [--samples 450] [--baseline zero mean blur]

The two networks of the demo (a ViT and a CNN, trained on scikit-learn's digits, from the demo's cache if they are
there) are explained on test scans; then patches of 2 x 2 pixels are removed, most relevant first and least relevant
first, while the logit of the digit that was named is watched. Printed is the symmetric relevance gain, the mean area
between both curves in units of the logit, with a bootstrap interval (95 %, over scans), and the share of scans on which
the method beats a random order.
"""

import argparse
from collections.abc import Callable

import torch
from measure import show
from methods import BASELINES, Explain, relevance
from torch import Tensor, nn

from lxt_compose import baselines, evaluate
from lxt_compose.demo.data import load_digits
from lxt_compose.demo.explain import cnn_composite, vit_composite
from lxt_compose.demo.models import SmallCNN, SmallViT
from lxt_compose.demo.training import Settings, accuracy, default_cache, trained

PATCH, SIDE = 2, 4


def on_patches(method: Callable[..., Tensor]) -> Explain:
    """The scores that a rollout gives to the ViT's patches, which stand after the class token."""

    def scores(model: nn.Module, x: Tensor, target: Tensor) -> Tensor:
        options = {} if method is baselines.attention_rollout else {"target": target}
        return method(model, x, read="first", **options)[:, 1:].reshape(-1, SIDE, SIDE)

    return scores


COMMON: dict[str, Explain] = {
    "attnlrp": relevance("attnlrp"),
    "cp_lrp": relevance("cp_lrp"),
    "res_lrp": relevance("res_lrp"),
    **BASELINES,
    "leave one out": lambda m, x, t: evaluate.leave_one_out(m, x, target=t, patch=PATCH, batch_size=500),
}
NETWORKS = {
    "ViT": (
        SmallViT,
        40,
        {
            "demo (gamma)": relevance(vit_composite()),
            "attention rollout": on_patches(baselines.attention_rollout),
            "gradient x attention rollout": on_patches(baselines.gradient_x_attention_rollout),
        },
    ),
    "CNN": (SmallCNN, 25, {"demo (gamma)": relevance(cnn_composite())}),
}


def interval(values: Tensor, draws: int = 2000) -> tuple[float, float]:
    """A bootstrap interval of the mean, at 95 %."""
    generator = torch.Generator().manual_seed(0)
    picked = torch.randint(0, len(values), (draws, len(values)), generator=generator)
    means = values[picked].mean(1).sort().values
    return float(means[round(0.025 * draws)]), float(means[round(0.975 * draws) - 1])


def main() -> None:
    """Print one table for each network and baseline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=450)
    parser.add_argument("--baseline", nargs="+", default=["zero", "mean"], choices=["zero", "mean", "blur"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    digits = load_digits()
    x = digits.test_images[: options.samples]
    for name, (build, epochs, own) in NETWORKS.items():
        model, _ = trained(build, digits, Settings(epochs), default_cache())
        right = accuracy(model, digits.test_images, digits.test_labels)
        with torch.no_grad():
            target = model(x).argmax(1)
        scores = {method: explain(model, x, target) for method, explain in {**own, **COMMON}.items()}
        for baseline in options.baseline:
            flips = {
                method: evaluate.flip(model, x, found, target=target, patch=PATCH, baseline=baseline, batch_size=2000)
                for method, found in scores.items()
            }
            chance = flips["random"].difference
            rows = []
            for method, found in sorted(flips.items(), key=lambda item: -item[1].gain):
                low, high = interval(found.difference)
                beats = float((found.difference > chance).double().mean())
                areas = float(found.lerf_area.mean()), float(found.morf_area.mean())
                rows.append([method, f"{found.gain:.3f}", f"{low:.3f} - {high:.3f}", *areas, f"{beats:.0%}"])
            show(
                f"{name}, {right:.1%} right, {len(x)} scans, {SIDE * SIDE} patches, baseline {baseline}",
                ["", "gain", "95 % interval", "LeRF area", "MoRF area", "beats random"],
                rows,
            )


if __name__ == "__main__":
    main()
