"""Do brackets matter? One function, written as ``(a b) c`` and as ``a (b c)``, explained with both, on trained models.

    python benchmarks/brackets.py [--samples 300] [--seeds 3]

By default a product is shared by multiplicative degree: an operand that is itself a product of two factors counts
twice. AttnLRP to the letter shares it in halves, which are other relevances for other brackets. Compared are both on

* linear attention without a softmax, ``(Q K^T) V`` and ``Q (K^T V)``, a retriever of keys (see needle.py);
* a network of third order, ``(A x * B x) * C x``, ``A x * (B x * C x)``, on scikit-learn's digits.

Printed: how far the relevance of the two forms is apart, ``|R1 - R2| / |R1|`` over all samples; the rank and the linear
correlation with what leaving out each part alone does; the symmetric relevance gain; for retrieval how often the top
token is the true one. Ranges are over seeds.
"""

import argparse
import time
from collections.abc import Callable, Iterator

import torch
from measure import show
from methods import BASELINES, Explain, relevance
from needle import Retriever, draw
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose import Uniform, UniformEpsilon, evaluate, presets
from lxt_compose.demo.data import load_digits

HALVES = presets.attnlrp({torch.mul: Uniform(), torch.matmul: UniformEpsilon(0.0)})
"""Explicit keys share evenly among the operands, whatever these are made of."""
SCHEMES: dict[str, Explain] = {
    "by degree (default)": relevance("attnlrp", batch_size=250),
    "in halves": relevance(HALVES, batch_size=250),
    "cp_lrp": relevance("cp_lrp", batch_size=250),
    "gradient x input": BASELINES["gradient x input"],
}


class LinearAttention(nn.Module):
    """A block with attention without a softmax, ``Q K^T V / tokens``, and a GELU MLP, both added to the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.form = heads, 0
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attention and MLP."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.mT) @ v if self.form == 0 else q @ (k.mT @ v)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, length, width) / length)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ThirdOrder(nn.Module):
    """Images to logits by products of three linear functions of the image."""

    def __init__(self, width: int = 48) -> None:
        super().__init__()
        self.form = 0
        self.a, self.b, self.c = (nn.Linear(64, width) for _ in range(3))
        self.head = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        x = images.flatten(1)
        a, b, c = self.a(x), self.b(x), self.c(x)
        return self.head((a * b) * c if self.form == 0 else a * (b * c))


def fitted(model: nn.Module, batches: Iterator[tuple[Tensor, Tensor]], steps: int, rate: float) -> nn.Module:
    """A model trained on so many batches, in eval mode."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.2)
    for _, (inputs, answers) in zip(range(steps), batches, strict=False):
        loss = F.cross_entropy(model(inputs), answers)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return model.eval()


def retrieval(seed: int, samples: int) -> tuple[nn.Module, Tensor, Tensor, dict[str, object], Tensor]:
    """A retriever, test sequences, answers, how parts are removed, and the true places."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield draw(64, generator)[:2]

    model = fitted(Retriever(2, LinearAttention), batches(), 1500, 3e-3)
    tokens, answers, places = draw(samples, torch.Generator().manual_seed(7 + seed))
    return model, tokens, answers, {"baseline": "zero"}, places


def digits(seed: int, samples: int) -> tuple[nn.Module, Tensor, Tensor, dict[str, object], None]:
    """A network of third order, test scans, their digits, and how parts are removed."""
    torch.manual_seed(seed)
    data = load_digits()

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            for chosen in torch.randperm(len(data.train_images)).split(64):
                images = data.train_images[chosen]
                yield images + 0.1 * torch.randn_like(images), data.train_labels[chosen]

    model = fitted(ThirdOrder(), batches(), 1500, 3e-3)
    return model, data.test_images[:samples], data.test_labels[:samples], {"baseline": "zero", "patch": 2}, None


def set_form(model: nn.Module, form: int) -> None:
    """Choose where the brackets are."""
    for module in model.modules():
        if hasattr(module, "form"):
            module.form = form


def measured(explain: Explain, model: nn.Module, x: Tensor, target: Tensor, how: dict, effects: Tensor, places) -> list:
    """What is printed of one way to share, for each form: distance between the forms first."""
    scores = []
    for form in (0, 1):
        set_form(model, form)
        scores.append(explain(model, x, target))
    apart = float((scores[0] - scores[1]).norm() / scores[0].norm())
    found = [apart]
    for each in scores:
        if "patch" in how:
            each = each.reshape(-1, 4, 2, 4, 2).sum((2, 4))
        flip = evaluate.flip(model, x, each, target=target, batch_size=2000, **how)
        found += [
            float(evaluate.correlation(each, effects).nanmean()),
            float(evaluate.correlation(each, effects, kind="pearson").nanmean()),
            flip.gain,
            float("nan") if places is None else 100 * float((each.argmax(1) == places).double().mean()),
        ]
    return found


def spread(values: list[float]) -> str:
    """The range over seeds."""
    if any(value != value for value in values):
        return ""
    low, high = (f"{value:.0e}" if 0 < abs(value) < 1e-3 else f"{value:.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


TASKS: dict[str, Callable] = {"linear attention, retrieval": retrieval, "third order, digits": digits}


def main() -> None:
    """Train, explain, print a table for each task."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    for name, task in TASKS.items():
        found: dict[str, list[list[float]]] = {scheme: [] for scheme in SCHEMES}
        for seed in range(options.seeds):
            start = time.perf_counter()
            model, x, answers, how, places = task(seed, options.samples)
            with torch.no_grad():
                right = model(x).argmax(1) == answers
            spent = time.perf_counter() - start
            print(
                f"{name}, seed {seed}: trained in {spent:.0f} s, {float(right.double().mean()):.1%} right", flush=True
            )
            x, answers = x[right], answers[right]
            places = None if places is None else places[right]
            effects = evaluate.leave_one_out(model, x, target=answers, batch_size=2000, **how)
            for scheme, explain in SCHEMES.items():
                found[scheme].append(measured(explain, model, x, answers, how, effects, places))
        rows = [
            [scheme, form, spread([r[0] for r in of]), *(spread([r[1 + 4 * place + m] for r in of]) for m in range(4))]
            for scheme, of in found.items()
            for place, form in enumerate(("(a b) c", "a (b c)"))
        ]
        head = ["shared", "form", "forms apart", "rank with leave-one-out", "linear", "gain", "true token on top, %"]
        show(f"{name}, {options.seeds} models", head, rows)


if __name__ == "__main__":
    main()
