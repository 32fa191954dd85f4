"""A task with a known answer: how often does the most relevant token of an explanation hold the answer?

    python benchmarks/needle.py [--layers 3] [--samples 1000] [--seeds 3]

A sequence has twelve tokens, each a pair of a key and a value (all keys differ), and last a token that asks for one of
the keys; the model names its value. So the token that the answer comes from is known. A transformer is trained on it to
over 99 % in less than two minutes on one core. Counted are test sequences that it answers right: the top token of an
explanation, among all thirteen, is the true one or not. Intervals are Wilson's, at 95 %, over all sequences of all
seeds (which are other models).
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial

import torch
from measure import show
from methods import BASELINES, Explain, relevance
from overhead import Block
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose import baselines, evaluate

KEYS, VALUES, PAIRS = 16, 16, 12
NARROW_BLOCK = partial(Block, expansion=2)


class Retriever(nn.Module):
    """Tokens [batch, PAIRS + 1] to logits of the values, read from the last token, which asks."""

    def __init__(self, layers: int, block: Callable[[int, int], nn.Module] = NARROW_BLOCK, width: int = 64) -> None:
        super().__init__()
        self.tokens = nn.Embedding(KEYS * VALUES + KEYS, width)
        self.positions = nn.Parameter(0.1 * torch.randn(1, PAIRS + 1, width))
        self.blocks = nn.ModuleList(block(width, 4) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VALUES)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the values."""
        x = self.tokens(tokens) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x)[:, -1])


def draw(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Sequences [count, PAIRS + 1], the values that are asked for, and where they stand."""
    keys = torch.rand(count, KEYS, generator=generator).argsort(1)[:, :PAIRS]
    values = torch.randint(0, VALUES, (count, PAIRS), generator=generator)
    asked = torch.randint(0, PAIRS, (count, 1), generator=generator)
    tokens = torch.cat([keys * VALUES + values, KEYS * VALUES + keys.gather(1, asked)], 1)
    return tokens, values.gather(1, asked)[:, 0], asked[:, 0]


def train(layers: int, seed: int, steps: int = 1000) -> nn.Module:
    """A trained model in eval mode."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    model = Retriever(layers)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.2)
    for _ in range(steps):
        tokens, answers, _ = draw(64, generator)
        loss = F.cross_entropy(model(tokens), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


METHODS: dict[str, Explain] = {
    "attnlrp": relevance("attnlrp", batch_size=250),
    "cp_lrp": relevance("cp_lrp", batch_size=250),
    "res_lrp": relevance("res_lrp", batch_size=250),
    **BASELINES,
    "attention rollout": lambda m, x, t: baselines.attention_rollout(m, x, read="last"),
    "gradient x attention rollout": lambda m, x, t: baselines.gradient_x_attention_rollout(m, x, target=t, read="last"),
    "leave one out": lambda m, x, t: evaluate.leave_one_out(m, x, target=t, baseline="zero", batch_size=1000),
}


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's interval of a rate (Wilson 1927)."""
    rate = hits / count
    center = rate + z * z / (2 * count)
    spread = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    return (center - spread) / (1 + z * z / count), (center + spread) / (1 + z * z / count)


def main() -> None:
    """Train, explain, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    counts = dict.fromkeys(METHODS, 0)
    context, seconds = dict.fromkeys(METHODS, 0), dict.fromkeys(METHODS, 0.0)
    total = 0
    for seed in range(options.seeds):
        start = time.perf_counter()
        model = train(options.layers, seed)
        spent = time.perf_counter() - start
        tokens, answers, places = draw(options.samples, torch.Generator().manual_seed(7 + seed))
        with torch.no_grad():
            right = model(tokens).argmax(1) == answers
        print(f"seed {seed}: trained in {spent:.0f} s, {float(right.double().mean()):.2%} right", flush=True)
        tokens, answers, places = tokens[right], answers[right], places[right]
        total += len(tokens)
        for name, method in METHODS.items():
            start = time.perf_counter()
            scores = method(model, tokens, answers)
            seconds[name] += time.perf_counter() - start
            counts[name] += int((scores.argmax(1) == places).sum())
            context[name] += int((scores[:, :-1].argmax(1) == places).sum())
    rows = []
    for name in METHODS:
        low, high = wilson(counts[name], total)
        rate, rest = counts[name] / total, context[name] / total
        rows.append([name, f"{rate:.1%}", f"{low:.1%} - {high:.1%}", f"{rest:.1%}", 1000 * seconds[name] / total])
    show(
        f"the top token is the true one: {total} sequences of {PAIRS + 1} tokens, {options.layers} layers, "
        f"{options.seeds} models (chance {1 / (PAIRS + 1):.1%})",
        ["", "of all tokens", "95 % interval", "but the last", "ms each"],
        rows,
    )


if __name__ == "__main__":
    main()
