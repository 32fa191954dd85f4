"""What each rule costs, and what it costs elsewhere: multiples of plain gradient x input, time and peak memory.

    python benchmarks/rules.py [--repeats 9] [--threads 2] [--processor-time] [--peers DIR]

All in one run, in turns, medians of the ratios within each round. Peers that cannot be imported get a dash.
"""

import argparse
import copy
import sys
import time
from functools import partial

import peers
import torch
from measure import Job, peak_memory, ratios, show, times
from overhead import cnn
from torch import Tensor, nn

from lxt_compose import AlphaBeta, Composite, Epsilon, Flat, Gamma, Identity, Rule, WSquare, ZPlus

BASE = "gradient x input"


def vgg() -> tuple[nn.Module, Tensor]:
    """Six convolutions in three stages with ReLU and max pooling, images of 64 x 64, batch 16."""
    model, x = cnn()
    return model, torch.rand_like(x)


def vit_stack() -> tuple[nn.Module, Tensor]:
    """The MLPs of a small ViT: four times Linear 384 to 1536, GELU and back; 197 tokens, batch 4, both signs."""
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(384, 1536), nn.GELU(), nn.Linear(1536, 384), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(384, 10)), torch.randn(4, 197, 384)


# rule, its limit on the first net, and its name elsewhere
RULES: list[tuple[Rule, float, dict[str, peers.Install | None]]] = []


def collect() -> None:
    """Fill the list of rules; the peers are imported here."""
    RULES.extend(
        [
            (Epsilon(), 1.15, {"Zennit": peers.zennit("Epsilon"), "tdhook": peers.tdhook("EpsilonRule"),
                               "LXT": peers.lxt("EpsilonRule"), "Captum": peers.captum("EpsilonRule")}),
            (ZPlus(), 2.5, {"Zennit": peers.zennit("ZPlus"), "tdhook": peers.tdhook("AlphaBetaRule", 1.0, 0.0),
                             "Captum": peers.captum("Alpha1_Beta0_Rule")}),
            (AlphaBeta(), 2.5, {"Zennit": peers.zennit("AlphaBeta"), "tdhook": peers.tdhook("AlphaBetaRule")}),
            (Gamma(), 2.5, {"Zennit": peers.zennit("Gamma"), "Captum": peers.captum("GammaRule")}),
            (WSquare(), 1.5, {"Zennit": peers.zennit("WSquare"), "tdhook": peers.tdhook("WSquareRule")}),
            (Flat(), 1.5, {"Zennit": peers.zennit("Flat"), "tdhook": peers.tdhook("FlatRule")}),
        ]
    )  # fmt: skip


class Runner:
    """One way to explain a model, on the model from the start, so that only calls are timed."""

    def __init__(self, model: nn.Module, x: Tensor, *, gradient: bool = False) -> None:
        self.model, self.x, self.gradient = model, x, gradient

    def __call__(self) -> Tensor:
        """The relevance of the input for the first output."""
        x = self.x.detach().requires_grad_()
        y = self.model(x)
        start = torch.zeros_like(y)
        start[..., 0] = 1 if self.gradient else y.detach()[..., 0]
        (found,) = torch.autograd.grad(y, x, start)
        return self.x * found if self.gradient else found


def jobs_for(
    rule: Rule, base: nn.Module, x: Tensor, installs: dict[str, peers.Install | None]
) -> tuple[dict[str, Job], dict[str, str]]:
    """The same explanation by every library that has it, and how those failed that do not run."""
    mine = copy.deepcopy(base)
    Composite({peers.LAYERS: rule, peers.ACTIVATIONS: Identity()}).register(mine)
    jobs: dict[str, Job] = {BASE: Runner(base, x, gradient=True), "ours": Runner(mine, x)}
    failed = {}
    for name, install in installs.items():
        if install is None:
            continue
        try:
            made = install(copy.deepcopy(base))
            job = Runner(made, x) if isinstance(made, nn.Module) else partial(made, x)
            job()
        except Exception as reason:  # whatever it is, the row shows it
            failed[name] = peers.failed(
                f"{name}, {rule}, {type(base).__name__} of {len(list(base.children()))}", reason
            )
        else:
            jobs[name] = job
    return jobs, failed


def main() -> None:
    """Print one table for each net."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--processor-time", action="store_true", help="count it, not the wall clock; one thread")
    parser.add_argument("--peers", help="folder with other libraries, as pip install --target makes it")
    options = parser.parse_args()
    torch.set_num_threads(1 if options.processor_time else options.threads)
    clock = time.process_time if options.processor_time else time.perf_counter
    if options.peers:
        sys.path.append(options.peers)
    collect()
    names = ["ours", "Zennit", "tdhook", "LXT", "Captum"]
    for build in (vgg, vit_stack):
        torch.manual_seed(0)
        base, x = build()
        base.eval().requires_grad_(False)
        rows = []
        for rule, limit, installs in RULES:
            jobs, failed = jobs_for(rule, base, x, installs)
            ratio = ratios(times(jobs, options.repeats, clock), BASE)
            memory = {name: peak_memory(job) for name, job in jobs.items()}
            cells = [
                f"{ratio[n]:.2f} / {memory[n] / memory[BASE]:.2f}" if n in ratio else failed.get(n, "-") for n in names
            ]
            rows.append([str(rule), *cells, limit if build is vgg else "-"])
        title = f"{build.__name__}: {(build.__doc__ or '').strip()}\nmultiples of {BASE}: time / peak memory"
        show(title, ["rule", *names, "at most"], rows)


if __name__ == "__main__":
    main()
