"""A planted artifact is found and taken out, a neuron is switched on, a data set is streamed.

    python benchmarks/concepts.py [--epochs 20] [--seeds 2] [--parts artifact prototypes steering streaming]

*Artifact*: the demo's CNN and ViT are trained on digits of which those of one class carry a watermark (two bright
pixels in a corner), so that marked test scans of other digits are taken for that class. Nodes are channels of the
CNN's last convolution at each place, and principal directions of the ViT's last block at the class token. They are
scored by RelP (the watermark is what differs between clean and corrupted inputs), by relevance and by activation;
measured is what patching each alone takes off the logit of that class. AUROC: nodes with at least half of the largest
measured effect against the others. Then the nodes that RelP ranks first are held at their mean on scans without marks,
as many (of 1, 2, 4, ..., 64) as are best on half of the marked scans; accuracy is counted on the other half. So are
those of the same nodes together with others nearer to the input.

*Steering*: a GPT learns to name the other one of two names. Neurons of its last MLP, and features of a sparse
autoencoder of its last stream, are labeled on 2,000 prompts: by the answer of their reference samples (RelMax), where
18 of 20 agree; by the answer that they have most relevance for; or by both, where they are the same. What is labeled
is then switched on: a multiple of its largest activation is added, the least of a few that makes the model answer the
labels in 95 % of the labeling prompts. How often is the label what the model answers to new prompts? Beside it, all
neurons of a label at once, and the direction from the mean of the stream to that of an answer's prompts.

*Prototypes*: where two digits are one class, do its two prototypes tell them apart? Are scans turned by 90 degrees
found as outliers?

*Streaming*: 10,000 samples through 4,096 units, interrupted once and resumed; memory is that of the process.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

import torch
from circuits import names, train
from tabulate import tabulate
from torch import Tensor, nn

from lxt_compose.concepts import (
    Dictionary,
    Effects,
    Measured,
    Node,
    ablate,
    activations,
    attribute_nodes,
    concept_vectors,
    find_references,
    fit_prototypes,
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


def artifact(name: str, digits: Digits, epochs: int, seed: int) -> tuple[list[object], list[list[object]]]:
    """A row of scores, and rows of accuracies."""
    build, units_of, at, more_of = NETS[name]
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

    rows = []
    for more in more_of:
        found = guess
        for each in more:
            found = found + attribute_nodes(model, with_mark, clean, each, target=CLASS, per="both")
        to = torch.cat([flat_of(model, clean, each) for each in (units, *more)])
        order = (-found.mean).argsort(descending=True).tolist()

        def ablated(
            count: int, part: Tensor, *, mark: bool, order: list[int] = order, found: Effects = found, to: Tensor = to
        ) -> float:
            with ExitStack() as stack:
                for number in order[:count]:
                    stack.enter_context(ablate(model, found.nodes[number].units, to=float(to[number])))
                return accuracy(model, marked(images[part]) if mark else images[part], labels[part])

        count = max([1, 2, 4, 8, 16, 32, 64], key=lambda k: ablated(k, chosen, mark=True))
        numbers = [ablated(k, rest, mark=mark) for k, mark in ((0, False), (0, True), (count, True), (count, False))]
        what = " and ".join(map(str, (at, *more)))
        rows.append([name, seed, what, *numbers[:2], f"{count} of {len(found.nodes)}", *numbers[2:]])
    return scores, rows


def flat_of(model: nn.Module, images: Tensor, units: object) -> Tensor:
    """The mean activation over samples for each node, in the order of nodes."""
    return activations(model, images, units)[0].values.mean(0).flatten()


NETS: dict[
    str, tuple[Callable[[], nn.Module], Callable[[nn.Module, Tensor], object], str, tuple[tuple[str, ...], ...]]
] = {
    "CNN": (SmallCNN, cnn_units, "down.2", ((), ("stem",))),
    "ViT": (SmallViT, vit_units, "class token", ((), ("patches",))),
}
"""A network, its nodes, what they are called, and what other nodes may be held beside them."""


class Autoencoder(nn.Module):
    """A sparse autoencoder: codes of ReLU, and columns of length 1 that they are decoded by."""

    def __init__(self, mean: Tensor, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        columns = nn.functional.normalize(torch.randn(features, len(mean)), dim=1)
        self.encoder, self.columns = nn.Linear(len(mean), features), nn.Parameter(columns)
        with torch.no_grad():
            self.encoder.weight.copy_(columns)
            self.encoder.bias.zero_()

    def encode(self, x: Tensor) -> Tensor:
        return torch.relu(self.encoder(x - self.mean))

    def decode(self, codes: Tensor) -> Tensor:
        return codes @ nn.functional.normalize(self.columns, dim=1) + self.mean


def autoencoder(stream: Tensor, features: int = 128, steps: int = 1500, penalty: float = 0.02) -> Autoencoder:
    """A sparse autoencoder of vectors [samples, width], scaled to their mean length."""
    torch.manual_seed(0)
    found = Autoencoder(stream.mean(0), features)
    size = (stream - stream.mean(0)).norm(dim=1).mean()
    optimizer = torch.optim.Adam(found.parameters(), 3e-3)
    for _ in range(steps):
        x = stream[torch.randint(len(stream), (256,))]
        codes = found.encode(x)
        error = (found.decode(codes) - x).square().sum(1).mean() / size**2
        loss = error + penalty * codes.sum(1).mean() / size
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return found.eval()


STRENGTHS = (1, 2, 10, 30, 100, 300, 1000, 3000)


def steered(model: nn.Module, prompts: Tensor, groups: Sequence[tuple[object, Tensor, int]]) -> tuple[int, Tensor]:
    """The least strength at which the labels are answered on labeling prompts, or the best; the share on new ones.

    A group is units, what is added to each of them at strength 1, and their label.
    """

    def shares(given: Tensor, strength: int) -> Tensor:
        found = []
        for units, add, label in groups:
            with torch.no_grad(), steer(model, units, add=add * strength):
                found.append((model(given)[:, -1].argmax(1) == label).double().mean())
        return torch.stack(found)

    seen: dict[int, float] = {}
    for strength in STRENGTHS:
        seen[strength] = shares(prompts[:100], strength).mean().item()
        if seen[strength] >= 0.95:
            break
    best = max(seen, key=lambda strength: seen[strength])
    return best, shares(names(200, torch.Generator().manual_seed(12))[0], best)


def labels_of(
    model: nn.Module, prompts: Tensor, answers: Tensor, units: object
) -> tuple[dict[int, int], Tensor, Tensor]:
    """Two labels for each unit: of its reference samples, where they agree; and of the answer it speaks for most.

    The second one is the answer of the 20 for which the unit has most relevance, as a mean over prompts. Returned
    is also the largest activation of each unit.
    """
    batches = [{"input_ids": part} for part in prompts.split(250)]
    references = find_references(model, batches, units, k=20)
    (name,) = references.tops
    by_samples = {}
    for unit in references.tops[name].numbers:
        kept = [each.sample for each in references.of(name, unit) if each.value > 0]
        votes = answers[kept].bincount(minlength=20)
        if len(kept) == 20 and votes.max() >= 18:
            by_samples[unit] = int(votes.argmax())
    given = {"input_ids": prompts[:500]}
    targets = [relevances(model, given, units, target=c, composite="relp")[0].values[..., -1] for c in range(20)]
    most = activations(model, {"input_ids": prompts}, units)[0].values[..., -1].max(0).values
    return by_samples, torch.stack([each.mean(0) for each in targets]).argmax(0), most


def steering(steps: int, seed: int) -> list[list[object]]:
    """How often the model answers the label of what is switched on, a row for each way to choose and label it."""
    model = train(names, steps, seed)
    prompts, answers, _, _ = names(2000, torch.Generator().manual_seed(11))
    stream = record(model, {"input_ids": prompts}, "blocks.2")["blocks.2"][0][:, -1]
    rows: list[list[object]] = []

    def add_row(what: str, groups: list[tuple[object, Tensor, int]]) -> None:
        strength, found = steered(model, prompts, groups)
        rows.append([seed, what, len(groups), strength, found.mean().item(), (found >= 0.95).double().mean().item()])

    features = Dictionary("blocks.2@-1", autoencoder(stream))
    for what, units in (("neuron", "blocks.2.mlp.act@-1"), ("feature", features)):
        by_samples, speaks, most = labels_of(model, prompts, answers, units)

        def one(unit: int, units: object = units) -> object:
            return units[unit] if isinstance(units, Dictionary) else f"blocks.2.mlp.act[{unit}]@-1"

        both = {unit: label for unit, label in by_samples.items() if int(speaks[unit]) == label}
        add_row(f"{what}, by samples", [(one(u), most[u], label) for u, label in by_samples.items()])
        alive = (most > 0).nonzero().flatten().tolist()
        add_row(f"{what}, by targets", [(one(u), most[u], int(speaks[u])) for u in alive])
        add_row(f"{what}, both", [(one(u), most[u], label) for u, label in both.items()])
        if what == "neuron":
            alike = {label: [u for u in both if both[u] == label] for label in sorted(set(both.values()))}
            named = {label: f"blocks.2.mlp.act[{', '.join(map(str, mine))}]@-1" for label, mine in alike.items()}
            add_row("neurons of a label", [(named[label], most[mine], label) for label, mine in alike.items()])
    means = [stream[answers == label].mean(0) - stream.mean(0) for label in range(20)]
    add_row(
        "direction", [(Dictionary("blocks.2@-1", mean[None])[0], torch.ones(()), i) for i, mean in enumerate(means)]
    )
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


MERGED = ((0, 1), (2, 7), (4, 6))
"""Digits that are one class in the benchmark of prototypes."""


def two_ways(digits: Digits, epochs: int, seed: int) -> list[object]:
    """Whether prototypes tell in which of two ways a class is decided, and outliers what was never seen.

    The CNN is trained with pairs of digits as one class. For each such class two prototypes are fitted on the training
    scans: of how many of its test scans does the better assignment of digits to prototypes have the digit right?
    Outliers: test scans turned by 90 degrees against those as they are, by the likelihood under the class that the
    model answers, beside the largest probability.
    """

    def merged(labels: Tensor) -> Tensor:
        labels = labels.clone()
        for kept, other in MERGED:
            labels[labels == other] = kept
        return labels

    train, test = merged(digits.train_labels), merged(digits.test_labels)
    model = trained_on_marks(SmallCNN, replace(digits, train_labels=train, test_labels=test), epochs, seed, mark=0.0)
    turned = digits.test_images.rot90(1, (2, 3))
    scans, is_turned = torch.cat([digits.test_images, turned]), torch.arange(2 * len(turned)) >= len(turned)
    with torch.no_grad():
        logits = model(scans)
    shares, found = [], []
    for by in ("relevance", "activation"):
        vectors = concept_vectors(model, digits.train_images.split(50), "down.1", by=by, labels=train)
        ways = fit_prototypes(vectors, count=2, covariance="diag")
        seen = concept_vectors(model, scans.split(50), "down.1", by=by)
        right = []
        for kept, other in MERGED:
            mine = ((digits.test_labels == kept) | (digits.test_labels == other)).nonzero().flatten()
            nearest = torch.tensor([each.number for each in ways.nearest(seen.values[mine], kept)])
            share = (nearest == (digits.test_labels[mine] == other)).double().mean().item()
            right.append(max(share, 1 - share))
        shares.append(sum(right) / len(right))
        likely = ways.log_likelihoods(seen)[
            torch.arange(len(scans)), [ways.labels.index(k) for k in logits.argmax(1).tolist()]
        ]
        found.append(auroc(-likely, is_turned))
    return [seed, *shares, *found, auroc(-logits.softmax(1).max(1).values, is_turned)]


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--nets", nargs="*", default=list(NETS))
    parser.add_argument("--parts", nargs="*", default=["artifact", "prototypes", "steering", "streaming"])
    options = parser.parse_args()
    with one_thread():
        if "artifact" in options.parts:
            digits = load_digits()
            found = [
                artifact(name, digits, options.epochs, seed) for name in options.nets for seed in range(options.seeds)
            ]
            heads = ["net", "seed", "nodes", "carry it", "AUROC RelP", "relevance", "activation", "Pearson"]
            heads += ["references marked"]
            print(tabulate([row for row, _ in found], heads, tablefmt="github", floatfmt=".3f"))
            heads = [
                "net",
                "seed",
                "nodes at",
                "accuracy",
                "with marks",
                "held",
                "with marks, after",
                "without marks, after",
            ]
            rows = [row for _, several in found for row in several]
            print("\n" + tabulate(rows, heads, tablefmt="github", floatfmt=".3f"))
        if "prototypes" in options.parts:
            digits = load_digits()
            ways = [two_ways(digits, options.epochs, seed) for seed in range(options.seeds)]
            heads = ["seed", "digits told by relevance", "activation"]
            heads += ["turned scans: AUROC of relevance", "activation", "probability"]
            print("\n" + tabulate(ways, heads, tablefmt="github", floatfmt=".3f"))
        if "steering" in options.parts:
            steps = [row for seed in range(options.seeds) for row in steering(options.steps, seed)]
            heads = ["seed", "switched on", "labeled", "x largest", "answers as labeled", "of them in at least 95 %"]
            print("\n" + tabulate(steps, heads, tablefmt="github", floatfmt=".3f"))
        if "streaming" in options.parts:
            heads = ["samples", "units", "samples a second", "MiB more", "resumed: the same"]
            print("\n" + tabulate([streaming()], heads, tablefmt="github", floatfmt=".1f"))


if __name__ == "__main__":
    main()
