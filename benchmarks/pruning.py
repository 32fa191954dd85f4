"""Accuracy of pruned networks: what has least relevance is set to 0, against magnitude, Wanda, activation and chance.

    python benchmarks/pruning.py [--epochs 12] [--steps 800] [--samples 200] [--seeds 2]

Three networks: the demo's CNN and ViT on digits, and a GPT of three layers that names the other one of two names.
Scores come from reference samples of the training set, accuracy is that of the test set, nothing is trained again.
First single weights of linear layers and convolutions: they compete in all of the model, in each layer, or in each row
(output), as Wanda has it. Then whole units, in all of the model or at each place: filters of the CNN, heads and neurons
of MLPs of the others. Relevance is put together over samples by its sum, the sum of absolute values, or the norm.
"""

import argparse
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial

import torch
from circuits import names, train
from concepts import trained_on_marks
from tabulate import tabulate
from torch import nn

from lxt_compose.concepts import prune, prune_units, pruning_scores, unit_scores
from lxt_compose.demo.data import Digits, load_digits
from lxt_compose.demo.models import SmallCNN, SmallViT
from lxt_compose.demo.training import accuracy, one_thread

SPARSITIES = (0.5, 0.7, 0.9)
WEIGHTS = (
    ("relevance", "sum", ("model", "row")),
    ("relevance", "absolute", ("model", "row")),
    ("relevance", "norm", ("model", "layer", "row")),
    ("magnitude", "", ("model", "layer", "row")),
    ("wanda", "", ("model", "row")),
    ("random", "", ("model",)),
)
UNITS = (
    ("relevance", "sum", "model"),
    ("relevance", "absolute", "model"),
    ("relevance", "norm", "model"),
    ("activation", "absolute", "model"),
    ("activation", "absolute", "place"),
    ("random", "sum", "model"),
)
CUT = {
    "CNN": ["stem.0", "residual.first", "residual.second", "down.1"],
    "ViT": ["encoder.layers.*.linear1", "encoder.layers.*.self_attn:heads"],
    "GPT": ["blocks.*.mlp.act", "blocks.*.attention:heads"],
}
Rows = dict[str, list[list[float]]]


def accuracies(pruned: Callable[[float], AbstractContextManager[object]], count: Callable[[], float]) -> list[float]:
    """The accuracy at each sparsity."""
    found = []
    for sparsity in SPARSITIES:
        with pruned(sparsity):
            found.append(count())
    return found


def weights(model: nn.Module, batches: list[object], count: Callable[[], float], of: str) -> Rows:
    """The accuracy for each way to prune weights and each sparsity."""
    found: Rows = {"none": [[count()] * len(SPARSITIES)]}
    for by, aggregate, places in WEIGHTS:
        scores = pruning_scores(model, batches, of, by=by, **({"aggregate": aggregate} if aggregate else {}))  # type: ignore[arg-type]
        for within in places:
            line = accuracies(partial(prune, model, scores, within=within), count)
            found[f"{by}{aggregate and f' ({aggregate})'}, in {within}"] = [line]
    return found


def units(model: nn.Module, batches: list[object], count: Callable[[], float], of: list[str]) -> Rows:
    """The accuracy for each way to prune units and each sparsity."""
    found: Rows = {}
    for by, aggregate, within in UNITS:
        scores = unit_scores(model, batches, of, by=by, aggregate=aggregate)
        line = accuracies(partial(prune_units, model, scores, within=within), count)
        found[f"{by if by == 'random' else f'{by} ({aggregate})'}, in {within}"] = [line]
    return found


def on_digits(name: str, digits: Digits, options: argparse.Namespace, seed: int) -> tuple[Rows, Rows]:
    """Both tables for one of the demo's networks."""
    model = trained_on_marks({"CNN": SmallCNN, "ViT": SmallViT}[name], digits, options.epochs, seed, mark=0.0)
    batches: list[object] = list(digits.train_images[: options.samples].split(50))

    def count() -> float:
        return accuracy(model, digits.test_images, digits.test_labels)

    return weights(model, batches, count, "*"), units(model, batches, count, CUT[name])


def on_names(options: argparse.Namespace, seed: int) -> tuple[Rows, Rows]:
    """Both tables for the GPT."""
    model = train(names, options.steps, seed)
    prompts, answers, _, _ = names(1000, torch.Generator().manual_seed(21))
    given = names(options.samples, torch.Generator().manual_seed(22))[0].split(50)
    batches: list[object] = [{"input_ids": part} for part in given]

    @torch.no_grad()
    def count() -> float:
        return (model(prompts)[:, -1].argmax(1) == answers).double().mean().item()

    return weights(model, batches, count, "blocks.*"), units(model, batches, count, CUT["GPT"])


def printed(found: dict[str, list[Rows]]) -> str:
    """A table: the means over seeds, three columns for each network."""
    head = ["pruned", *(f"{name} {share:.0%}" for name in found for share in SPARSITIES)]
    rows = []
    for way in next(iter(found.values()))[0]:
        means = [torch.tensor([one[way][0] for one in seeds]).mean(0).tolist() for seeds in found.values()]
        rows.append([way, *(value for mean in means for value in mean)])
    return tabulate(rows, head, tablefmt="github", floatfmt=".3f")


def main() -> None:
    """Train, prune, count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--samples", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    single: dict[str, list[Rows]] = {}
    whole: dict[str, list[Rows]] = {}
    with one_thread():
        digits = load_digits()
        for seed in range(options.seeds):
            for name in CUT:
                both = on_names(options, seed) if name == "GPT" else on_digits(name, digits, options, seed)
                single.setdefault(name, []).append(both[0])
                whole.setdefault(name, []).append(both[1])
                print(f"{name}, seed {seed}: done", flush=True)
    print("\nsingle weights\n\n" + printed(single))
    print("\nunits\n\n" + printed(whole))


if __name__ == "__main__":
    main()
