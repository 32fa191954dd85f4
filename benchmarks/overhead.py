"""What a composite costs: time and peak memory as a multiple of plain gradient x input, all in one run.

    python benchmarks/overhead.py [--repeats 15]
    python benchmarks/overhead.py --small        # tiny transformers: Python alone counts

The base freezes the parameters, as a registration does, so both compute the gradient of the input alone. ``--small``
counts the processor time of one thread, so that others on the machine matter less.
"""

import argparse
import time

import torch
from measure import peak_memory, ratios, show, times
from small_models import EmptyHooks, bert, llama
from torch import Tensor, nn
from torch.nn import functional as F

from lxt_compose import AlphaBeta, Composite, Epsilon, Gamma, presets


def mlp() -> tuple[nn.Module, Tensor]:
    """Four hidden layers of 1024 with GELU, batch 256."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(1024, 1024), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(1024, 10)), torch.randn(256, 1024)


def cnn() -> tuple[nn.Module, Tensor]:
    """Shaped like VGG: six convolutions in three stages, images of 64 x 64, batch 16."""
    layers: list[nn.Module] = []
    channels = 3
    for width in (64, 128, 256):
        for inputs in (channels, width):
            layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
        layers.append(nn.MaxPool2d(2))
        channels = width
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
    return nn.Sequential(*layers), torch.randn(16, 3, 64, 64)


class Block(nn.Module):
    """A transformer block, pre-norm, with separate projections and a GELU MLP."""

    def __init__(self, width: int, heads: int, expansion: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Attention and MLP, each added to the stream."""
        batch, length, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.out(mixed)
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """Four blocks of width 256 and a head on the mean token."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block(256, 8) for _ in range(4))
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def transformer() -> tuple[nn.Module, Tensor]:
    """A small transformer, sequences of 128, batch 8."""
    return Transformer(), torch.randn(8, 128, 256)


COMPOSITES = {
    "epsilon (relevance)": lambda: Composite({(nn.Linear, nn.Conv2d): Epsilon()}),
    "defaults (relevance)": lambda: Composite(),
    "defaults (gradient)": lambda: Composite(formulation="gradient"),
    "gamma 0.25": lambda: Composite({(nn.Linear, nn.Conv2d): Gamma()}),
    "alpha 2 beta 1": lambda: Composite({(nn.Linear, nn.Conv2d): AlphaBeta()}),
}


class Runner:
    """One way to explain a model, kept registered so that only calls are timed."""

    def __init__(self, model: nn.Module, x: Tensor, composite: Composite | None) -> None:
        self.model, self.x, self.composite = model, x, composite

    def __call__(self) -> None:
        """Forward, backward, relevance of the input."""
        x = self.x.detach().requires_grad_()
        logit = self.model(x)[:, 0]
        if self.composite is not None and self.composite.formulation == "relevance":
            logit.backward(logit.detach())
        else:
            logit.sum().backward()
            assert x.grad is not None
            (x.detach() * x.grad)


def small(repeats: int) -> None:
    """Print what the AttnLRP preset costs on tiny transformers, beside hooks and a function mode that do nothing."""
    torch.set_num_threads(1)
    rows = []
    for build in (bert, llama):
        plain, x = build()
        jobs = {"gradient x input": Runner(plain, x, None)}
        empty, _ = build()
        EmptyHooks(empty)
        jobs["empty hooks and mode"] = Runner(empty, x, None)
        for formulation in ("gradient", "relevance"):
            model, composite = build()[0], presets.attnlrp(formulation=formulation)
            composite.register(model)
            jobs[f"attnlrp ({formulation})"] = Runner(model, x, composite)
        seconds = times(jobs, repeats, time.process_time)
        ratio = ratios(seconds, "gradient x input")
        rows += [[build.__name__, name, min(seconds[name]) * 1e3, ratio[name]] for name in jobs]
    title = "tiny transformers: 6 layers of width 64, 16 tokens, batch 1, one thread"
    show(title, ["model", "", "best, ms", "time (x gradient)"], rows)


def main() -> None:
    """Print one table for each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, help="rounds (15; with --small 101)")
    parser.add_argument("--small", action="store_true", help="tiny transformers alone")
    options = parser.parse_args()
    torch.manual_seed(0)
    if options.small:
        small(options.repeats or 101)
    else:
        large(options.repeats or 15)


def large(repeats: int) -> None:
    """Print time and memory of each composite on networks of a usual size."""
    for build in (mlp, cnn, transformer):
        base, x = build()
        base.eval().requires_grad_(False)
        jobs = {"gradient x input": Runner(base, x, None)}
        for name, composite in COMPOSITES.items():
            model, _ = build()
            model.load_state_dict(base.state_dict())
            registered = composite()
            registered.register(model.eval())
            jobs[name] = Runner(model, x, registered)
        ratio = ratios(times(jobs, repeats), "gradient x input")
        memory = {name: peak_memory(job) for name, job in jobs.items()}
        rows = [[name, ratio[name], memory[name] / memory["gradient x input"]] for name in jobs]
        show(f"{build.__name__}: {(build.__doc__ or '').strip()}", ["", "time (x gradient)", "peak memory (x)"], rows)


if __name__ == "__main__":
    main()
