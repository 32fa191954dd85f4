"""Accuracy of pruned networks: weights that have least relevance, against magnitude, Wanda and random ones.

    python benchmarks/pruning.py [--epochs 20] [--steps 1500] [--samples 200]

Three networks: the demo's CNN and ViT on digits, and a GPT of three layers that names the other one of two names.
Scores come from reference samples of the training set, accuracy is that of the test set, nothing is trained again.
Weights of linear layers and convolutions compete within each layer; "in rows" means for each output, as Wanda has it.
"""

import argparse
from collections.abc import Callable

import torch
from circuits import names, train
from concepts import trained_on_marks
from tabulate import tabulate
from torch import nn

from lxt_compose.concepts import prune, pruning_scores
from lxt_compose.demo.data import load_digits
from lxt_compose.demo.models import SmallCNN, SmallViT
from lxt_compose.demo.training import accuracy, one_thread

SPARSITIES = (0.5, 0.7, 0.9)
WAYS = (("relevance", "layer"), ("relevance", "row"), ("magnitude", "layer"), ("wanda", "row"), ("random", "layer"))


def row(
    name: str, model: nn.Module, batches: list[object], count: Callable[[], float], weights: str
) -> list[list[object]]:
    """The accuracy for each way to prune and each sparsity."""
    found: list[list[object]] = [[name, "none", *[count()] * len(SPARSITIES)]]
    for by, within in WAYS:
        scores = pruning_scores(model, batches, weights, by=by, composite="relp")
        line: list[object] = [name, f"{by}, in {within}s"]
        for sparsity in SPARSITIES:
            with prune(model, scores, sparsity, within=within):
                line.append(count())
        found.append(line)
    return found


def main() -> None:
    """Train, prune, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--samples", type=int, default=200)
    options = parser.parse_args()
    rows = []
    with one_thread():
        digits = load_digits()
        samples: list[object] = list(digits.train_images[: options.samples].split(50))
        for name, build in (("CNN", SmallCNN), ("ViT", SmallViT)):
            model = trained_on_marks(build, digits, options.epochs, 0, mark=0.0)
            rows += row(name, model, samples, lambda m=model: accuracy(m, digits.test_images, digits.test_labels), "*")  # type: ignore[misc]
        model = train(names, options.steps, 0)
        prompts, answers, _, _ = names(1000, torch.Generator().manual_seed(21))
        batches: list[object] = [
            {"input_ids": part} for part in names(options.samples, torch.Generator().manual_seed(22))[0].split(50)
        ]

        @torch.no_grad()
        def right() -> float:
            return (model(prompts)[:, -1].argmax(1) == answers).double().mean().item()

        rows += row("GPT", model, batches, right, "blocks.*")
    print(tabulate(rows, ["net", "pruned", *[f"{s:.0%}" for s in SPARSITIES]], tablefmt="github", floatfmt=".3f"))


if __name__ == "__main__":
    main()
