"""Estimates of circuits against exact patching, on small GPTs that learn tasks with one right answer.

    python benchmarks/circuits.py [--steps 1500] [--pairs 24] [--seeds 2]

For each task a GPT of three layers is trained, and pairs of clean and corrupted prompts are drawn whose answers
differ. The effect of each node (a component at a token) on the difference of the two answers' logits is measured by
patching it alone, and estimated by RelP and by gradients (attribution patching). Printed are Pearson's correlations of
estimate and measurement over nodes and pairs, for each kind of component, and how much of the difference the best 4 to
32 nodes (heads and MLPs at tokens) hold alone, all others being patched.
"""

import argparse
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose.concepts import attribute_nodes, faithfulness, patch_nodes

KINDS = {
    "residual stream": "blocks.?",
    "attention output": "blocks.*.attention",
    "MLP output": "blocks.*.mlp",
    "heads": "blocks.*.attention:heads",
}
CURVE = (("heads", "both"), ("MLP output", "place"))
VOCABULARY = 40
Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor, Tensor, Tensor]]
"""Clean prompts [n, tokens], their answers [n], corrupted prompts, their answers."""


def names(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two names and fillers, then one of the names again; the answer is the other one, which the corruption changes."""
    pair = torch.rand(count, 20, generator=generator).argsort(1)[:, :2]
    fillers = torch.randint(20, VOCABULARY, (count, 4), generator=generator)
    repeated = torch.randint(0, 2, (count, 1), generator=generator)

    def prompt(which: Tensor) -> Tensor:
        again = pair.gather(1, which)
        return torch.cat([pair[:, :1], fillers[:, :1], pair[:, 1:], fillers[:, 1:2], again, fillers[:, 2:]], 1)

    other = 1 - repeated
    return prompt(repeated), pair.gather(1, other)[:, 0], prompt(other), pair.gather(1, repeated)[:, 0]


def smallest(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Five different numbers; the answer is the smallest, which the corruption exchanges for a larger one."""
    numbers = torch.rand(count, 30, generator=generator).argsort(1)[:, :6]
    clean, spare = numbers[:, :5], numbers[:, 5:]
    answer, place = clean.min(1)
    second = clean.scatter(1, place[:, None], VOCABULARY).min(1).values
    spare = torch.maximum(spare, second[:, None] + 1).clamp(max=VOCABULARY - 2)
    corrupted = clean.scatter(1, place[:, None], spare)
    end = torch.full((count, 1), VOCABULARY - 1)
    return torch.cat([clean, end], 1), answer, torch.cat([corrupted, end], 1), corrupted.min(1).values


def addition(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two numbers below 17; the answer is their sum modulo 17, the corruption changes the second number."""
    a, b = torch.randint(0, 17, (2, count), generator=generator)
    other = (b + torch.randint(1, 17, (count,), generator=generator)) % 17
    end = torch.full((count,), VOCABULARY - 1)
    return torch.stack([a, b, end], 1), (a + b) % 17, torch.stack([a, other, end], 1), (a + other) % 17


TASKS: dict[str, Draw] = {"names": names, "smallest": smallest, "addition": addition}


class Attention(nn.Module):
    """Causal self-attention with one projection for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map [batch, tokens, width] to the same shape."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Attention and an MLP with GELU, each after a norm and added to the stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2, self.mlp = nn.LayerNorm(width), nn.Sequential()
        self.mlp.add_module("up", nn.Linear(width, 4 * width))
        self.mlp.add_module("act", nn.GELU())
        self.mlp.add_module("down", nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Map the stream [batch, tokens, width] to the stream."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class GPT(nn.Module):
    """A small GPT: tokens [batch, tokens] to logits [batch, tokens, VOCABULARY]."""

    def __init__(self, layers: int = 3, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Parameter(0.02 * torch.randn(16, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Return the logits of what comes next at each token."""
        x = self.tokens(input_ids) + self.positions[: input_ids.shape[1]]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def train(draw: Draw, steps: int, seed: int) -> nn.Module:
    """Return a GPT of three layers that answers at the last token."""
    torch.manual_seed(seed)
    model = GPT()
    generator = torch.Generator().manual_seed(100 + seed)
    optimizer = torch.optim.AdamW(model.parameters(), 2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps, pct_start=0.2)
    for _ in range(steps):
        prompts, answers, _, _ = draw(64, generator)
        loss = F.cross_entropy(model(prompts)[:, -1], answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def pairs(model: nn.Module, draw: Draw, count: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """Pairs of prompts that are both answered right, their two answers [n, 2], and how many are answered right."""
    clean, answer, corrupted, other = draw(1000, torch.Generator().manual_seed(7))
    with torch.no_grad():
        right = (model(clean)[:, -1].argmax(1) == answer) & (model(corrupted)[:, -1].argmax(1) == other)
    kept = (right & (answer != other)).nonzero().flatten()[:count]
    if not len(kept):
        raise SystemExit("the model answers no pair right: train it longer (--steps)")
    return clean[kept], corrupted[kept], torch.stack([answer, other], 1)[kept], right.double().mean().item()


def main() -> None:
    """Train, estimate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--pairs", type=int, default=24)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tasks", nargs="*", default=list(TASKS))
    options = parser.parse_args()
    rows, curves = [], []
    for task in options.tasks:
        for seed in range(options.seeds):
            model = train(TASKS[task], options.steps, seed)
            clean, corrupted, target, right = pairs(model, TASKS[task], options.pairs)
            given = {"input_ids": clean}, {"input_ids": corrupted}
            for kind, units in KINDS.items():
                per = "both" if kind == "heads" else "place"
                exact = patch_nodes(model, *given, units, target=target, per=per)
                found = [
                    attribute_nodes(model, *given, units, target=target, per=per, method=method).correlation(exact)
                    for method in ("relp", "gradient")
                ]
                rows.append([task, seed, f"{right:.1%}", kind, len(exact.nodes), *found])
            for method in ("relp", "gradient", "exact patching"):
                if method == "exact patching":
                    parts = [patch_nodes(model, *given, KINDS[k], target=target, per=per) for k, per in CURVE]
                else:
                    parts = [
                        attribute_nodes(model, *given, KINDS[k], target=target, per=per, method=method)
                        for k, per in CURVE
                    ]
                effects = parts[0] + parts[1]
                curve = faithfulness(model, *given, effects, target=target, counts=[4, 8, 16, 32])
                curves.append([task, seed, method, len(effects.nodes), *curve.tolist()])
            print(f"{task}, seed {seed}: done", flush=True)
    heads = ["task", "seed", "right", "component", "nodes", "RelP", "gradient"]
    print(tabulate(rows, heads, tablefmt="github", floatfmt=".3f"))
    heads = ["task", "seed", "nodes by", "of", "best 4", "8", "16", "32"]
    print("\n" + tabulate(curves, heads, tablefmt="github", floatfmt=".3f"))


if __name__ == "__main__":
    main()
