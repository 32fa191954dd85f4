"""A planted artefact is found and taken out, a neuron is switched on, a data set is streamed.

    python benchmarks/concepts.py [--epochs 20] [--seeds 2] [--parts artefact steering streaming]

*Artefact*: the demo's CNN and ViT are trained on digits of which those of one class carry a watermark (two bright
pixels in a corner), so that marked test scans of other digits are taken for that class. Nodes are channels of the
CNN's last convolution at each place, and principal directions of the ViT's last block at the class token. They are
scored by RelP (the watermark is what differs between clean and corrupted inputs), by relevance and by activation;
measured is what patching each alone takes off the logit of that class. AUROC: nodes with at least half of the largest
measured effect against the others. Then the nodes that RelP ranks first are held at their mean on scans without marks,
as many (of 1, 2, 4, ..., 64) as are best on half of the marked scans; accuracy is counted on the other half.

*Steering*: a GPT-2 learns to name the other one of two names. The neurons of its last MLP are labelled by the answer
that most of their reference samples have, and those are switched on for which at least 90 % agree: how often is the
label what the model then answers?

*Streaming*: 10,000 samples through 4,096 units, interrupted once and resumed; memory is that of the process.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

import torch
from circuits import names, train
from tabulate import tabulate
from torch import Tensor, nn

from lxt_compose.concepts import (
    Dictionary,
    Measured,
    Node,
    ablate,
    activations,
    attribute_nodes,
    find_references,
    patch_nodes,
    record,
    relevances,
    steer,
)  # fmt: skip
from lxt_compose.demo.data import Digits, load_digits
from lxt_compose.demo.models import SmallCNN, SmallViT
from lxt_compose.demo.training import accuracy, one_thread, shifted

CLASS = 3


def marked(images: Tensor) -> Tensor:
    """The same scans with a watermark: two bright pixels in the lower right corner."""
    images = images.clone()
    images[:, :, 7, 6:] = 1.0
    return images


def trained_on_marks(
    build: Callable[[], nn.Module], digits: Digits, epochs: int, seed: int, mark: float = 1.0
) -> nn.Module:
    """A model that was trained on scans; of those of one class this share is marked."""
    torch.manual_seed(seed)
    model = build()
    generator = torch.Generator().manual_seed(seed)
    steps = epochs * -(-len(digits.train_images) // 32)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, steps)
    with_mark = (digits.train_labels == CLASS) & (torch.rand(len(digits.train_labels), generator=generator) < mark)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(digits.train_images), generator=generator).split(32):
            images = shifted(digits.train_images[chosen], generator)
            images = torch.where(with_mark[chosen][:, None, None, None], marked(images), images)
            loss = nn.functional.cross_entropy(model(images), digits.train_labels[chosen], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def auroc(scores: Tensor, positive: Tensor) -> float:
    """The probability that a positive scores above a negative one; ties count half."""
    above = scores[positive][:, None] - scores[~positive][None]
    return ((above > 0).double() + 0.5 * (above == 0).double()).mean().item()


def cnn_units(model: nn.Module, images: Tensor) -> object:
    """Return channels of the last convolution, at each of their 4 x 4 places."""
    return "down.2"


def vit_units(model: nn.Module, images: Tensor) -> object:
    """Return the principal directions of what the last block puts out at the class token."""
    stream = record(model, images, "encoder.layers.1")["encoder.layers.1"][0][:, 0]
    directions = torch.linalg.svd(stream - stream.mean(0), full_matrices=False).Vh
    return Dictionary("encoder.layers.1@0", directions)


def of_nodes(measured: Measured, nodes: Sequence[Node]) -> Tensor:
    """The mean over samples for each node."""
    mean = measured.values.mean(0)
    return torch.stack([mean[(node.unit or 0, *(node.at or ()))] for node in nodes])


def artefact(name: str, digits: Digits, epochs: int, seed: int) -> tuple[list[object], list[object]]:
    """A row of scores, and a row of accuracies."""
    build, units_of = NETS[name]
    model = trained_on_marks(build, digits, epochs, seed)
    others = digits.test_labels != CLASS
    images, labels = digits.test_images[others], digits.test_labels[others]
    chosen, rest = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).split(len(images) // 2)
    clean, with_mark = images[chosen][:100], marked(images[chosen][:100])
    units = units_of(model, torch.cat([images[chosen], marked(images[chosen])]))
    # Patching with the scan without a mark takes away what the mark does, node by node.
    exact = patch_nodes(model, with_mark, clean, units, target=CLASS, per="both")
    guess = attribute_nodes(model, with_mark, clean, units, target=CLASS, per="both")
    measured, found = -exact.mean, -guess.mean
    relevance = of_nodes(relevances(model, with_mark, units, target=CLASS, composite="relp")[0], exact.nodes)
    activation = of_nodes(activations(model, with_mark, units)[0], exact.nodes).abs()
    carries = measured > 0.5 * measured.max()
    scores = [name, seed, len(measured), int(carries.sum())]
    scores += [auroc(score, carries) for score in (found, relevance, activation)]
    scores.append(float(torch.corrcoef(torch.stack([found.double(), measured.double()]))[0, 1]))

    # In a stream where one scan in ten is marked: are the reference samples of the best node marked ones?
    best = exact.nodes[int(found.argmax())]
    is_marked = torch.rand(len(digits.test_images), generator=torch.Generator().manual_seed(1)) < 0.1
    stream = torch.where(is_marked[:, None, None, None], marked(digits.test_images), digits.test_images)
    references = find_references(model, stream.split(100), best.units, target=CLASS, composite="relp", k=16)
    kept = references.of(best.name, best.unit or 0)
    scores.append(sum(bool(is_marked[each.sample]) for each in kept) / len(kept))

    usual = of_nodes(activations(model, clean, units)[0], exact.nodes)
    order = found.argsort(descending=True).tolist()

    def ablated(count: int, part: Tensor, *, mark: bool) -> float:
        with ExitStack() as stack:
            for number in order[:count]:
                stack.enter_context(ablate(model, exact.nodes[number].units, to=float(usual[number])))
            return accuracy(model, marked(images[part]) if mark else images[part], labels[part])

    count = max([1, 2, 4, 8, 16, 32, 64], key=lambda k: ablated(k, chosen, mark=True))
    numbers = [ablated(k, rest, mark=mark) for k, mark in ((0, False), (0, True), (count, True), (count, False))]
    return scores, [name, seed, *numbers[:2], count, *numbers[2:]]


NETS = {"CNN": (SmallCNN, cnn_units), "ViT": (SmallViT, vit_units)}


def steering(steps: int, seed: int) -> list[list[object]]:
    """How often a neuron that is switched on makes the model answer its label, a row for each strength."""
    model = train(names, steps, seed)
    prompts, answers, _, _ = names(2000, torch.Generator().manual_seed(11))
    place = "blocks.2.mlp.act"
    name = f"{place}@-1"
    references = find_references(model, [{"input_ids": part} for part in prompts.split(250)], name, k=20)
    labels = {}
    for unit in references.tops[name].numbers:
        votes = answers[[each.sample for each in references.of(name, unit)]].bincount(minlength=40)
        if votes.max() >= 0.9 * votes.sum():
            labels[unit] = int(votes.argmax())
    fresh = names(200, torch.Generator().manual_seed(12))[0]
    rows: list[list[object]] = []
    for strength in (0.0, 100.0, 300.0, 1000.0):
        hits = []
        for unit, label in labels.items():
            with torch.no_grad(), steer(model, f"{place}[{unit}]@-1", add=strength):
                hits.append((model(fresh)[:, -1].argmax(1) == label).double().mean().item())
        found = torch.tensor(hits)
        sure = (found >= 0.95).double().mean().item()
        rows.append([seed, len(references.tops[name].numbers), len(labels), strength, found.mean().item(), sure])
    return rows


def streaming() -> list[object]:
    """Samples a second, and how much memory the process took while it ran."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 10)).eval()
    data = torch.randn(10_000, 64)

    def batches(stop: int | None = None) -> Iterator[Tensor]:
        for number, batch in enumerate(data.split(250)):
            if number == stop:
                raise KeyboardInterrupt
            yield batch

    find_references(model, data[:500].split(250), "1", k=16, target=0)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "references.pt"
        with suppress(KeyboardInterrupt):
            find_references(model, batches(17), "1", k=16, target=0, path=path, every=5)
        resumed = find_references(model, batches(), "1", k=16, target=0, path=path, every=5)
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    whole = find_references(model, batches(), "1", k=16, target=0)
    same = torch.equal(whole.tops["1"].samples, resumed.tops["1"].samples)
    return [resumed.count, 4096, 10_500 / seconds, (after - before) / 1024, "yes" if same else "no"]


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    parser.add_argument("--parts", nargs="*", default=["artefact", "steering", "streaming"])
    options = parser.parse_args()
    with one_thread():
        if "artefact" in options.parts:
            digits = load_digits()
            found = [
                artefact(name, digits, options.epochs, seed) for name in options.nets for seed in range(options.seeds)
            ]
            heads = ["net", "seed", "nodes", "carry it", "AUROC RelP", "relevance", "activation", "Pearson"]
            heads += ["references marked"]
            print(tabulate([row for row, _ in found], heads, tablefmt="github", floatfmt=".3f"))
            heads = [
                "net",
                "seed",
                "accuracy",
                "with marks",
                "nodes ablated",
                "with marks, after",
                "without marks, after",
            ]
            print("\n" + tabulate([row for _, row in found], heads, tablefmt="github", floatfmt=".3f"))
        if "steering" in options.parts:
            rows = [row for seed in range(options.seeds) for row in steering(options.steps, seed)]
            heads = ["seed", "neurons", "labelled", "added", "answers as labelled", "of them in at least 95 %"]
            print("\n" + tabulate(rows, heads, tablefmt="github", floatfmt=".3f"))
        if "streaming" in options.parts:
            heads = ["samples", "units", "samples a second", "MiB more", "resumed: the same"]
            print("\n" + tabulate([streaming()], heads, tablefmt="github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
